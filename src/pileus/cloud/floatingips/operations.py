"""What one may do with floating IPs."""

from typing import Annotated

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS, FloatingIp, without_port
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.instances.specs import ports_of
from pileus.cloud.nat.model import PortForwarding, SnatRule, rules_at, rules_of
from pileus.cloud.networks.addresses import Addresses
from pileus.cloud.networks.limiting import BandwidthMbit
from pileus.cloud.networks.model import NETWORKS, PORTS, ROUTERS, NetworkKind, Port
from pileus.cloud.networks.sharing import is_for
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.ids import NetworkId, PortId, RouterId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import Change, put, remove


class FloatingIpCreate(Wire):
    network_id: Annotated[Id, ref("network")] | None = None
    """The external network; without one, the only one that there is."""
    instance_id: Annotated[Id, ref("instance")] | None = None
    port_id: Annotated[Id, ref("port")] | None = None
    bandwidth_mbit: BandwidthMbit | None = None
    """In each direction, in Mbit/s; without, as fast as it goes."""


class FloatingIpChange(Wire):
    bandwidth_mbit: BandwidthMbit | None = None
    """In each direction, in Mbit/s; null for no limit."""


class FloatingIpAssociate(Wire):
    instance_id: Annotated[Id, ref("instance")] | None = None
    """Its first port is meant."""
    port_id: Annotated[Id, ref("port")] | None = None


floating_ips = Noun(
    FLOATING_IPS,
    plural="floating-ips",
    columns=("address", "fixed_address", "port_id", "bandwidth_mbit"),
    about="Floating IPs: external addresses that follow a port wherever it is.",
)
floating_ips.list(filters=("address", "port_id", "network_id"), sorts=("address",))
floating_ips.show()


@floating_ips.post()
def create(ask: Ask, wish: FloatingIpCreate) -> Plan:
    """Take an address of an external network, and give it to a port if one is named."""
    network = _external_network(ask, wish.network_id)
    floating = FloatingIp(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        network_id=network,
        address=ask.view(Addresses).next_of_network(network),
        bandwidth_mbit=wish.bandwidth_mbit,
    )
    changes: list[Change] = []
    if wish.port_id or wish.instance_id:
        floating, changes = _associated(ask, floating, port_for(ask, floating, wish.instance_id, wish.port_id))
    to = f" for {floating.fixed_address}" if floating.fixed_address else ""
    return Plan(
        summary=f"take floating IP {floating.address}{to}",
        changes=(put(floating), *changes),
        answers=floating,
        undo="release it",
    )


@floating_ips.patch()
def change(ask: Ask, floating: FloatingIp, wish: FloatingIpChange) -> Plan:
    """Limit how much passes through a floating IP, or no longer."""
    changed = msgspec.structs.replace(floating, **wish.model_dump(exclude_unset=True))
    limit = f"{changed.bandwidth_mbit} Mbit/s" if changed.bandwidth_mbit else "no limit"
    return Plan(
        summary=f"give floating IP {floating.address} {limit}",
        changes=(put(changed),),
        answers=changed,
        undo="change it back",
    )


@floating_ips.post("/{id}/associate")
def associate(ask: Ask, floating: FloatingIp, wish: FloatingIpAssociate) -> Plan:
    """Give a floating IP to a port; from another one it is taken away."""
    _serves_no_rules(ask, floating)
    port = port_for(ask, floating, wish.instance_id, wish.port_id)
    _, taken = _dissociated(ask, floating)
    changed, given = _associated(ask, floating, port)
    changes = {change.record.id: change for change in (*taken, *given)}
    return Plan(
        summary=f"give floating IP {floating.address} to {changed.fixed_address}",
        changes=(put(changed), *changes.values()),
        answers=changed,
        undo="dissociate it",
    )


@floating_ips.post("/{id}/dissociate")
def dissociate(ask: Ask, floating: FloatingIp) -> Plan:
    """Take a floating IP from its port, and keep it."""
    changed, changes = _dissociated(ask, floating)
    return Plan(
        summary=f"take floating IP {floating.address} from its port",
        changes=(put(changed), *changes),
        answers=changed,
        undo="associate it again",
    )


@floating_ips.delete()
def delete(ask: Ask, floating: FloatingIp) -> Plan:
    """Give a floating IP back."""
    _serves_no_rules(ask, floating)
    _, changes = _dissociated(ask, floating)
    return Plan(
        summary=f"release floating IP {floating.address}",
        changes=(remove(floating), *changes),
        undo="none: somebody else may get the address",
    )


def _serves_no_rules(ask: Ask, floating: FloatingIp) -> None:
    if rules := rules_of(ask.state, floating):
        kind = "a port forwarding" if isinstance(rules[0], PortForwarding) else "a SNAT rule"
        raise Conflict(f"floating IP {floating.address} serves {kind} ({rules[0].id}): delete it first")


def _external_network(ask: Ask, wanted: str | None) -> NetworkId:
    known = ask.state[NETWORKS].by("kind", NetworkKind.EXTERNAL)
    external = [each.id for each in known if is_for(ask.state, each, ask.caller.project_id)]
    if wanted is not None:
        if wanted not in external:
            raise NotFound("there is no such external network", fields={"network_id": "not found"})
        return NetworkId(wanted)
    if len(external) != 1:
        raise Conflict(f"there are {len(external)} external networks: name one", fields={"network_id": "missing"})
    return NetworkId(external[0])


def port_for(ask: Ask, floating: FloatingIp, instance_id: str | None, port_id: str | None) -> Port:
    """The port that a wish names, of the floating IP's project: the port itself, or an instance's first."""
    if port_id is not None:
        return ask.see(PORTS, port_id, "port_id", of=floating.project_id)
    if instance_id is None:
        raise Invalid("name an instance or a port", fields={"instance_id": "missing"})
    instance = ask.see(INSTANCES, instance_id, "instance_id", of=floating.project_id)
    found = [each for each in ports_of(ask.state, instance) if each.is_attached]
    if not found:
        raise Conflict(f"instance {instance.name} has no port")
    return found[0]


def _associated(ask: Ask, floating: FloatingIp, port: Port) -> tuple[FloatingIp, list[Change]]:
    """The floating IP with this port, and what changes with it.

    Raises Conflict if no router joins the two, or if the port's instance is deleted.
    """
    instance = ask.state[INSTANCES].find(port.instance_id or "")
    if instance is not None and instance.state is InstanceState.DELETED:
        raise Conflict(f"instance {instance.name} is deleted; undelete it first")
    if any(other.id != floating.id for other in ask.state[FLOATING_IPS].by("port_id", port.id)):
        raise Conflict("the port has a floating IP already")
    for rule in rules_at(ask.state, port.id):
        if isinstance(rule, SnatRule):
            raise Conflict(f"the port goes out under {rule.address} by a SNAT rule ({rule.id}): delete it first")
        if rule.network_id != floating.network_id:
            raise Conflict(
                f"{rule.address} of another external network leads port {rule.external_port} to it: what comes in by"
                " both could be answered by one of them only. Give it a second port, or delete the port forwarding"
            )
    for fixed in port.addresses:
        for router in ask.state[ROUTERS].by("subnet", fixed.subnet_id):
            if router.uplink(floating.network_id) is not None and ":" not in fixed.address:
                changed = msgspec.structs.replace(
                    floating, port_id=PortId(port.id), fixed_address=fixed.address, router_id=RouterId(router.id)
                )
                return changed, _shown_on(ask, port, (floating.address,), gone=floating.address)
    raise Conflict("no router joins the port's network with the floating IP's")


def _dissociated(ask: Ask, floating: FloatingIp) -> tuple[FloatingIp, list[Change]]:
    port = ask.state[PORTS].find(floating.port_id) if floating.port_id else None
    changed = without_port(floating)
    return changed, [] if port is None else _shown_on(ask, port, (), gone=floating.address)


def _shown_on(ask: Ask, port: Port, more: tuple[str, ...], gone: str = "") -> list[Change]:
    """The instance of a port shows its floating IPs, so that a list of instances needs no second question."""
    instance = ask.state[INSTANCES].find(port.instance_id) if port.instance_id else None
    if instance is None or not port.is_attached:
        return []
    addresses = tuple(each for each in instance.floating_addresses if each != gone) + more
    return [put(msgspec.structs.replace(instance, floating_addresses=addresses))]
