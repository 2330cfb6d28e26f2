"""The ways out of routers as rows.

A router has its first uplink itself. Each further one is a logical router of its own, linked with it: so each
translates by itself, and is at a gateway by itself, whatever the others do, and a router that gets one more is
otherwise as before.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2s

from pileus.cloud.networks.addresses import version_of
from pileus.cloud.networks.model import GUEST_MTU, Route, Router, Uplink
from pileus.cloud.networks.uplinks import EVERYWHERE, Leg, has_default, is_routed, leg_by, leg_to, preferred
from pileus.kernel.ids import HostId
from pileus.ovn.made import LogicalRouter, Made, logical_router, reference, subnets_joined
from pileus.ovn.names import mac_of
from pileus.ovn.rows import Fact, Value, row_id
from pileus.ovn.steering import Priority, goes_by, only_own_addresses_leave, prefix_length
from pileus.ovn.view import View

# Without the first option every router learns every neighbour that it hears of: a table that grows as the square.
ROUTER_OPTIONS = {"always_learn_from_arp_request": "false", "dynamic_neigh_routers": "true"}

_GATEWAYS_AT_MOST = 5
"""Chassis of one HA group: each probes all others by BFD, and OVN supports no more."""


def project_uplinks(view: View, of: Made, router: Router) -> Iterator[Fact]:
    """The router's ways out, and what takes which of them."""
    ways_out = view.legs(router)
    for uplink in router.uplinks:
        legs = [leg for leg in ways_out if leg.uplink == uplink]
        if not legs:
            continue
        if uplink.link is not None:
            yield from _linked(view, of, router, uplink)
            for leg in legs:
                yield from of.route(
                    logical_router(router),
                    f"{uplink.network_id}/{leg.version}",
                    leg.subnet.cidr,
                    uplink.far_end.address(leg.version),
                )
        yield from _way_out(view, of, router, uplink, legs)
    for version, everywhere in EVERYWHERE.items():
        first = preferred(ways_out, version)
        if first is not None and first.uplink.link is not None and not has_default(router, version):
            next_hop = first.uplink.far_end.address(version)
            yield from of.route(logical_router(router), _default(version), everywhere, next_hop)
    yield from _by_source(view, of, router, ways_out)
    yield from only_own_addresses_leave(of, router, subnets_joined(view, router), ways_out)


def routed_outside(of: Made, router: Router, at: int, route: Route, leg: Leg) -> Iterator[Fact]:
    """A static route whose next hop is outside, while the way there is in service."""
    if leg.gateway is None:
        return
    itself, beyond = logical_router(router), logical_router(router, leg.uplink)
    yield from of.route(beyond, str(at), route.destination, route.next_hop)
    next_hop = route.next_hop
    if beyond != itself:
        next_hop = leg.uplink.far_end.address(leg.version)
        yield from of.route(itself, str(at), route.destination, next_hop)
    if len(router.uplinks) > 1:
        yield from of.policy(
            itself,
            f"route/{at}",
            priority=Priority.ROUTE + prefix_length(route.destination),
            match=f"ip{leg.version}.dst == {route.destination}",
            action="reroute",
            nexthops=frozenset((next_hop,)),
        )


def connected(
    of: Made,
    at: LogicalRouter,
    network: str,
    part: str,
    addresses: frozenset[str],
    *,
    announces: Mapping[str, str] | None = None,
    **columns: Value,
) -> Iterator[Fact]:
    """A port of the router and the port of the switch that it is connected to."""
    inner, outer = row_id("Logical_Router_Port", *at, part), row_id("Logical_Switch_Port", *at, part)
    name = port_name(at, part)
    yield of.row("Logical_Router_Port", inner, name=name, mac=mac_of(*at, part), networks=addresses, **columns)
    yield reference("Logical_Router", row_id("Logical_Router", *at), "ports", inner)
    yield of.row(
        "Logical_Switch_Port",
        outer,
        name=f"to-{name}",
        type="router",
        addresses=frozenset(("router",)),
        options={"router-port": name, **(announces or {})},
    )
    yield reference("Logical_Switch", row_id("Logical_Switch", network), "ports", outer)


def port_name(at: LogicalRouter, part: str) -> str:
    """The name of a logical router's port."""
    return "-".join((*at, part))


def _linked(view: View, of: Made, router: Router, uplink: Uplink) -> Iterator[Fact]:
    """The logical router of a further uplink, its link to the router's own, and its routes back inside."""
    itself, beyond = logical_router(router), logical_router(router, uplink)
    name = "-".join(beyond)
    yield of.row("Logical_Router", row_id("Logical_Router", *beyond), name=name, options=ROUTER_OPTIONS)
    near, far = port_name(itself, f"link-{uplink.network_id}"), port_name(beyond, "link")
    ends = (itself, near, uplink.own_end, far), (beyond, far, uplink.far_end, near)
    for at, port, end, peer in ends:
        id = row_id("Logical_Router_Port", port)
        networks = frozenset((f"{end.ipv4}/30", f"{end.ipv6}/126"))
        yield of.row("Logical_Router_Port", id, name=port, mac=mac_of(port), networks=networks, peer=peer)
        yield reference("Logical_Router", row_id("Logical_Router", *at), "ports", id)
    for subnet in subnets_joined(view, router):
        yield from of.route(beyond, subnet.id, subnet.cidr, uplink.own_end.address(version_of(subnet.cidr)))


def _way_out(view: View, of: Made, router: Router, uplink: Uplink, legs: list[Leg]) -> Iterator[Fact]:
    """The port in the external network, on one gateway at a time, and the translation of what goes there."""
    at = logical_router(router, uplink)
    group = row_id("HA_Chassis_Group", *at)
    inside = subnets_joined(view, router)
    yield of.row("HA_Chassis_Group", group, name="-".join(at))
    for rank, host in enumerate(_gateways_of(view, at)):
        member = row_id("HA_Chassis", *at, host)
        yield of.row("HA_Chassis", member, chassis_name=host, priority=_GATEWAYS_AT_MOST - rank)
        yield reference("HA_Chassis_Group", group, "ha_chassis", member)
    mtu = min((view.networks[subnet.network_id].mtu for subnet in inside), default=GUEST_MTU)
    yield from connected(
        of,
        at,
        uplink.network_id,
        "out",
        frozenset(f"{leg.address}/{prefix_length(leg.subnet.cidr)}" for leg in legs),
        announces={"nat-addresses": "router"},  # when the port moves to another gateway
        ha_chassis_group=group,
        # Whoever sends more than fits inside is told so (RFC 1191): the tunnel itself would drop it without a word.
        options={"gateway_mtu": str(mtu)},
    )
    for leg in legs:
        if leg.subnet.gateway is not None and _leads_on(view, router, leg):
            everywhere, port = EVERYWHERE[leg.version], port_name(at, "out")
            yield from of.route(at, _default(leg.version), everywhere, leg.subnet.gateway, output_port=port)
        replaced = view.sources_of(router.id, uplink.network_id)
        for subnet in inside if router.snat else ():
            if version_of(subnet.cidr) == leg.version and subnet.cidr not in replaced and not is_routed(subnet, leg):
                yield from of.nat(at, subnet.id, type="snat", external_ip=leg.address, logical_ip=subnet.cidr)


def _leads_on(view: View, router: Router, leg: Leg) -> bool:
    """Whether the logical router that has this way out sends everything to its gateway."""
    if leg.uplink.link is None:
        return preferred(view.legs(router), leg.version) == leg and not has_default(router, leg.version)
    return not any(
        route.destination == EVERYWHERE[leg.version] and leg_to([leg], route.next_hop) for route in router.routes
    )


def _by_source(view: View, of: Made, router: Router, ways_out: list[Leg]) -> Iterator[Fact]:
    """What is bound to a way out by where it comes from."""
    for route in router.source_routes:
        version = version_of(route.source)
        leg = leg_by(ways_out, route.network_id, version)
        priority, match = Priority.SOURCE + prefix_length(route.source), f"ip{version}.src == {route.source}"
        yield from goes_by(of, router, f"source/{route.source}", leg, priority=priority, match=match)
    for subnet in subnets_joined(view, router):
        if subnet.delegated_by is not None:
            leg = leg_by(ways_out, subnet.delegated_by, version_of(subnet.cidr))
            match = f"ip6.src == {subnet.cidr}"
            yield from goes_by(of, router, f"from/{subnet.id}", leg, priority=Priority.DELEGATED, match=match)


def _default(version: int) -> str:
    """Names the part of a router that is its default route."""
    return "out" if version == 4 else f"out/{version}"


def _gateways_of(view: View, at: LogicalRouter) -> list[HostId]:
    """The gateways of a way out, the first choice first: each ranks the hosts by itself, which spreads the load."""

    def rank(host: HostId) -> bytes:
        return blake2s("/".join((*at, host)).encode()).digest()

    return sorted(view.gateways, key=rank)[:_GATEWAYS_AT_MOST]
