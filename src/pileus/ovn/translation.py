"""Translation as rows: floating IPs, port forwardings, SNAT rules; and what of it binds a sender to a way out."""

from collections.abc import Iterator

from pileus.cloud.floatingips.model import FloatingIp
from pileus.cloud.nat.model import PortForwarding, SnatRule
from pileus.cloud.networks.model import Router
from pileus.cloud.networks.uplinks import Leg
from pileus.ovn.made import Made, logical_router, reference
from pileus.ovn.names import mac_of
from pileus.ovn.rows import Fact, Value, row_id
from pileus.ovn.steering import Priority, goes_by, prefix_length
from pileus.ovn.view import Kind, View

_IPV4 = 4


def project_floating_ip(view: View, floating_ip: FloatingIp) -> Iterator[Fact]:
    """The translation of an external address to a port's, and back.

    It is done on the port's own host if that is one of several gateways; otherwise on the router's gateway. With one
    gateway both are the same, and the outside has one MAC address fewer to know.
    """
    of = Made(Kind.FLOATING_IP, floating_ip.id)
    if floating_ip.network_id in view.networks:
        # Where the external network begins: whatever the address is used for.
        at, limit = floating_ip.address, floating_ip.bandwidth_mbit
        yield from of.limit(floating_ip.network_id, limit, out=f"ip4.src == {at}", into=f"ip4.dst == {at}")
    router, port = view.routers.get(floating_ip.router_id or ""), view.ports.get(floating_ip.port_id or "")
    if router is None or port is None or floating_ip.fixed_address is None:
        return
    if (leg := _way_out(view, router, floating_ip.network_id)) is None:
        return
    on_its_host: dict[str, Value] = {}
    if len(view.gateways) > 1 and port.host_id in view.gateways:
        on_its_host = {"external_mac": mac_of(floating_ip.id), "logical_port": port.id}
    yield from of.nat(
        logical_router(router, leg.uplink),
        floating_ip.id,
        type="dnat_and_snat",
        external_ip=floating_ip.address,
        logical_ip=floating_ip.fixed_address,
        **on_its_host,
    )
    match = f"ip4.src == {floating_ip.fixed_address}"
    yield from goes_by(of, router, floating_ip.id, leg, priority=Priority.FLOATING, match=match)


def project_port_forwarding(view: View, rule: PortForwarding) -> Iterator[Fact]:
    """A load balancer of one member at the router: what NAT is for whole addresses, it is for single ports."""
    router = view.routers.get(rule.router_id)
    if router is None or (leg := _way_out(view, router, rule.network_id)) is None:
        return
    of, id = Made(Kind.PORT_FORWARDING, rule.id), row_id("Load_Balancer", rule.id)
    leads = {f"{rule.address}:{rule.external_port}": f"{rule.fixed_address}:{rule.internal_port}"}
    yield of.row("Load_Balancer", id, name=rule.id, protocol=rule.protocol.value, vips=leads)
    at = logical_router(router, leg.uplink)
    yield reference("Logical_Router", row_id("Logical_Router", *at), "load_balancer", id)
    match = f"ip4.src == {rule.fixed_address} && {rule.protocol}.src == {rule.internal_port}"
    yield from goes_by(of, router, rule.id, leg, priority=Priority.FORWARDED, match=match)


def project_snat_rule(view: View, rule: SnatRule) -> Iterator[Fact]:
    """The translation of what goes out from a source; of several the longest prefix counts (ovn-nb(5), NAT)."""
    router = view.routers.get(rule.router_id)
    if router is None or (leg := _way_out(view, router, rule.network_id)) is None:
        return
    of = Made(Kind.SNAT_RULE, rule.id)
    at = logical_router(router, leg.uplink)
    yield from of.nat(at, rule.id, type="snat", external_ip=rule.address, logical_ip=rule.source)
    priority, match = Priority.SNAT_RULE + prefix_length(rule.source), f"ip4.src == {rule.source}"
    yield from goes_by(of, router, rule.id, leg, priority=priority, match=match)


def _way_out(view: View, router: Router, network: str) -> Leg | None:
    """The router's way out by IPv4 to this external network, in service or not."""
    return next((leg for leg in view.legs(router) if leg.network.id == network and leg.version == _IPV4), None)
