"""What one may do with port forwardings and SNAT rules."""

from ipaddress import IPv4Network
from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.floatingips.model import FLOATING_IPS, FloatingIp
from pileus.cloud.floatingips.operations import port_for
from pileus.cloud.nat.model import PORT_FORWARDINGS, SNAT_RULES, PortForwarding, SnatRule, Transport, rules_of
from pileus.cloud.networks.model import PORTS, ROUTERS, SUBNETS, FixedAddress, Port, Router, Subnet
from pileus.cloud.networks.operations import Prefix
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import FloatingIpId, NetworkId, PortId, RouterId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Wire, ref
from pileus.state.state import put, remove

PortNumber = Annotated[int, Field(ge=1, le=65_535)]


class PortForwardingCreate(Wire):
    floating_ip_id: Annotated[Id, ref("floating-ip")]
    protocol: Annotated[Transport, Field(strict=False)] = Transport.TCP
    external_port: PortNumber
    instance_id: Annotated[Id, ref("instance")] | None = None
    """Its first port is meant."""
    port_id: Annotated[Id, ref("port")] | None = None
    internal_port: PortNumber | None = None
    """By default the same as outside."""
    description: Description = ""

    @model_validator(mode="after")
    def _has_one_end(self) -> Self:
        if (self.instance_id is None) == (self.port_id is None):
            raise ValueError("name either an instance or a port")
        return self


class PortForwardingChange(Wire):
    internal_port: PortNumber | None = None
    description: Description | None = None


class SnatRuleCreate(Wire):
    floating_ip_id: Annotated[Id, ref("floating-ip")]
    subnet_id: Annotated[Id, ref("subnet")] | None = None
    cidr: Prefix | None = None
    """A part of a subnet."""
    instance_id: Annotated[Id, ref("instance")] | None = None
    """Its first port is meant."""
    description: Description = ""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if sum(each is not None for each in (self.subnet_id, self.cidr, self.instance_id)) != 1:
            raise ValueError("name one of subnet_id, cidr and instance_id")
        return self


port_forwardings = Noun(
    PORT_FORWARDINGS,
    plural="port-forwardings",
    columns=("address", "protocol", "external_port", "fixed_address", "internal_port"),
    about="Port forwardings (DNAT): ports of a floating IP that lead to ports of instances.",
)
port_forwardings.list(filters=("floating_ip_id", "port_id", "router_id"), sorts=("external_port",))
port_forwardings.show()


@port_forwardings.post(verb="create")
def create_port_forwarding(ask: Ask, wish: PortForwardingCreate) -> Plan:
    """Lead a port of a floating IP to a port of an instance."""
    floating = ask.see(FLOATING_IPS, wish.floating_ip_id, "floating_ip_id")
    port = port_for(ask, floating, wish.instance_id, wish.port_id)
    router, fixed = _router_to(ask, floating, port)
    key = floating.id, wish.protocol, wish.external_port
    if (other := ask.state[PORT_FORWARDINGS].one("external", key)) is not None:
        leads = f"{floating.address} {wish.protocol}/{wish.external_port} leads to {other.fixed_address}"
        raise Conflict(leads, fields={"external_port": "taken"})
    _is_answered_by_one_line(ask, port, floating.network_id, wish.protocol, wish.internal_port or wish.external_port)
    rule = PortForwarding(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=floating.project_id,
        floating_ip_id=FloatingIpId(floating.id),
        network_id=floating.network_id,
        address=floating.address,
        protocol=wish.protocol,
        external_port=wish.external_port,
        port_id=PortId(port.id),
        fixed_address=fixed.address,
        internal_port=wish.internal_port or wish.external_port,
        router_id=RouterId(router.id),
        description=wish.description,
    )
    return Plan(
        summary=f"lead {rule.address}:{rule.external_port} to {rule.fixed_address}:{rule.internal_port}",
        changes=(put(rule),),
        answers=rule,
        undo="delete the port forwarding",
    )


@port_forwardings.patch(verb="change")
def change_port_forwarding(ask: Ask, rule: PortForwarding, wish: PortForwardingChange) -> Plan:
    """Lead it to another port of the same instance, or describe it."""
    changed = msgspec.structs.replace(rule, **wish.model_dump(exclude_none=True))
    port = ask.state[PORTS].get(rule.port_id)
    _is_answered_by_one_line(ask, port, rule.network_id, rule.protocol, changed.internal_port)
    return Plan(
        summary=f"lead {rule.address}:{rule.external_port} to {rule.fixed_address}:{changed.internal_port}",
        changes=(put(changed),),
        answers=changed,
        undo="change it back",
    )


@port_forwardings.delete(verb="delete")
def delete_port_forwarding(ask: Ask, rule: PortForwarding) -> Plan:
    """Lead it nowhere any more."""
    return Plan(
        summary=f"lead {rule.address}:{rule.external_port} nowhere", changes=(remove(rule),), undo="create it again"
    )


snat_rules = Noun(
    SNAT_RULES,
    plural="snat-rules",
    columns=("source", "address", "router_id"),
    about="SNAT rules: which senders go out under which floating IP, in place of their router's address.",
)
snat_rules.list(filters=("floating_ip_id", "port_id", "router_id"), sorts=("source",))
snat_rules.show()


@snat_rules.post(verb="create")
def create_snat_rule(ask: Ask, wish: SnatRuleCreate) -> Plan:
    """Have a subnet, a part of one, or an instance go out under a floating IP."""
    floating = ask.see(FLOATING_IPS, wish.floating_ip_id, "floating_ip_id")
    port: Port | None = None
    if wish.instance_id is not None:
        port = port_for(ask, floating, wish.instance_id, None)
        if own := ask.state[FLOATING_IPS].by("port_id", port.id):
            raise Conflict(f"it goes out under its own floating IP {own[0].address}", fields={"instance_id": "has one"})
        router, fixed = _router_to(ask, floating, port)
        source = f"{fixed.address}/32"
    elif wish.subnet_id is not None:
        subnet = ask.see(SUBNETS, wish.subnet_id, "subnet_id", of=floating.project_id)
        router, source = _router_of(ask, floating, [subnet], "subnet_id"), subnet.cidr
    else:
        source = wish.cidr or ""
        router = _router_of(ask, floating, _around(ask, floating, source), "cidr")
    if (other := ask.state[SNAT_RULES].one("source", (router.id, source))) is not None:
        raise Conflict(f"{source} goes out under {other.address} already")
    rule = SnatRule(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=floating.project_id,
        floating_ip_id=FloatingIpId(floating.id),
        network_id=floating.network_id,
        address=floating.address,
        router_id=RouterId(router.id),
        source=source,
        port_id=PortId(port.id) if port is not None else None,
        description=wish.description,
    )
    return Plan(
        summary=f"let {rule.source} go out under {rule.address}",
        changes=(put(rule),),
        answers=rule,
        undo="delete the SNAT rule",
    )


@snat_rules.delete(verb="delete")
def delete_snat_rule(ask: Ask, rule: SnatRule) -> Plan:
    """Let its source go out under the router's own address again."""
    return Plan(
        summary=f"let {rule.source} no longer go out under {rule.address}",
        changes=(remove(rule),),
        undo="create it again",
    )


def _is_answered_by_one_line(ask: Ask, port: Port, network: NetworkId, protocol: Transport, number: int) -> None:
    """Raises Conflict if what comes to this port of a guest comes in by another external network too.

    Its answers all look the same, so they leave by one: for who came in by the other they would be strangers.
    """
    by_others = [each.address for each in ask.state[FLOATING_IPS].by("port_id", port.id) if each.network_id != network]
    by_others += [
        rule.address
        for rule in ask.state[PORT_FORWARDINGS].by("port_id", port.id)
        if (rule.protocol, rule.internal_port) == (protocol, number) and rule.network_id != network
    ]
    if by_others:
        raise Conflict(
            f"{by_others[0]} of another external network leads there: what comes in by both could be answered by one of"
            " them only. Lead it to another port of the instance, or to another network interface",
            fields={"internal_port": "reached by another external network"},
        )


def _router_to(ask: Ask, floating: FloatingIp, port: Port) -> tuple[Router, FixedAddress]:
    """The router that can translate for this port, and the port's address that it would use."""
    for fixed in port.addresses:
        if ":" not in fixed.address:
            return _router_of(ask, floating, [ask.state[SUBNETS].get(fixed.subnet_id)], "floating_ip_id"), fixed
    raise Conflict("the port has no IPv4 address: floating IPs are IPv4")


def _around(ask: Ask, floating: FloatingIp, cidr: str) -> list[Subnet]:
    """The project's subnets that hold this prefix, of whatever network."""
    if ":" in cidr:
        raise Invalid("some fields are wrong", fields={"cidr": "floating IPs are IPv4"})
    part = IPv4Network(cidr)
    mine = ask.state[SUBNETS].by("project", floating.project_id)
    found = [each for each in mine if ":" not in each.cidr and part.subnet_of(IPv4Network(each.cidr))]
    if not found:
        raise Conflict(f"{cidr} is not within a subnet of the project", fields={"cidr": "of no subnet"})
    return found


def _router_of(ask: Ask, floating: FloatingIp, subnets: list[Subnet], field: str) -> Router:
    """The one router that joins one of these subnets with the floating IP's network. Raises Conflict without."""
    if floating.port_id is not None:
        whole = f"floating IP {floating.address} serves a port whole: dissociate it first"
        raise Conflict(whole, fields={"floating_ip_id": "associated"})
    routers = {
        router.id: router
        for subnet in subnets
        for router in ask.state[ROUTERS].by("subnet", subnet.id)
        if router.uplink(floating.network_id) is not None
    }
    if len(routers) != 1:
        none = "no router joins it with the floating IP's network"
        several = "several routers join such subnets: name the subnet"
        raise Conflict(several if routers else none, fields={field: "no router"})
    (router,) = routers.values()
    if any(rule.router_id != router.id for rule in rules_of(ask.state, floating)):
        elsewhere = f"floating IP {floating.address} is translated by another router"
        raise Conflict(elsewhere, fields={field: "other router"})
    return router
