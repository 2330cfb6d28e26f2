"""Where a router sends a packet, told from the records: inside by its routes, outside by one of its ways out. Pure.

The order of ways out is that of `pileus.cloud.networks.uplinks`, and rows are made by the same in `pileus.ovn`.
"""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.nat.model import SNAT_RULES
from pileus.cloud.networks.addresses import version_of
from pileus.cloud.networks.model import ROUTERS, SUBNETS, Router, Subnet
from pileus.cloud.networks.uplinks import Leg, has_default, leg_by, leg_to, legs_of, preferred
from pileus.cloud.peerings.model import PEERINGS, PeeringState
from pileus.state.state import State

_CONNECTED, _STATIC = 1, 0
"""Of two routes to the same prefix, the higher is taken (ovn-northd(8), Logical Router IP Routing)."""


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """The first packet of a connection."""

    source: str
    destination: str
    protocol: str
    """`tcp`, `udp`, or `icmp` for an echo request."""
    port: int | None = None
    """Of TCP and UDP."""

    @property
    def version(self) -> int:
        """4 or 6."""
        return version_of(self.destination)

    @property
    def words(self) -> str:
        return self.protocol if self.port is None else f"{self.protocol} {self.port}"


class Sent(NamedTuple):
    """Whereto a router sends a packet."""

    network: str
    """Into which network; empty across a peering."""
    next_hop: str
    """To whom there; empty for the packet's own destination."""
    leg: Leg | None = None
    """By which way out, if by one."""
    peering: str = ""
    """By which peering, if by one."""
    because: str = ""
    """Why by this way out, if it is not the first."""


class _Route(NamedTuple):
    prefix_length: int
    rank: int
    sent: Sent


def send(state: State, router: Router, packet: Packet) -> Sent | None:
    """Where the router sends a packet that is not for itself; None if it has no route."""
    ways_out = legs_of(state, router)
    routes = list(_routes(state, router, packet.destination, ways_out))
    leaves = all(route.sent.leg is not None for route in routes)
    bound = next(_bound(state, router, packet, ways_out), None) if leaves and len(router.uplinks) > 1 else None
    if bound is not None:
        return _beyond(router, bound, packet.destination)
    if not routes:
        return None
    best = max(routes, key=lambda route: (route.prefix_length, route.rank, route.sent.network, route.sent.next_hop))
    return _beyond(router, best.sent, packet.destination)


def is_foreign(state: State, router: Router, packet: Packet) -> bool:
    """Whether a router keeps a packet in because its IPv6 source is none that the world knows the router by."""
    own = [leg.address for leg in legs_of(state, router) if leg.version == 6]
    if packet.version == 4 or not own or packet.source in own:
        return False
    outside = {uplink.network_id for uplink in router.uplinks}
    return not any(
        within(packet.source, subnet.cidr) and (router.snat or subnet.delegated_by in outside)
        for subnet in joined(state, router)
    )


def joined(state: State, router: Router) -> list[Subnet]:
    """The subnets that a router joins."""
    return [state[SUBNETS].get(id) for id in router.subnet_ids]


def within(address: str, cidr: str) -> bool:
    """Whether a prefix holds an address, of the same IP version."""
    return ip_address(address) in ip_network(cidr)


def _routes(state: State, router: Router, to: str, ways_out: list[Leg]) -> Iterator[_Route]:
    """The routes of a router that lead to a destination."""
    for subnet in joined(state, router):
        if within(to, subnet.cidr):
            yield _Route(_length(subnet.cidr), _CONNECTED, Sent(subnet.network_id, ""))
    for leg in ways_out:
        if within(to, leg.subnet.cidr):
            rank = _CONNECTED if leg.uplink.link is None else _STATIC
            yield _Route(_length(leg.subnet.cidr), rank, Sent(leg.network.id, "", leg))
    for route in router.routes:
        if within(to, route.destination):
            if (leg := leg_to(ways_out, route.next_hop)) is None:
                network = next(s.network_id for s in joined(state, router) if within(route.next_hop, s.cidr))
                yield _Route(_length(route.destination), _STATIC, Sent(network, route.next_hop))
            elif leg.gateway is not None:
                yield _Route(_length(route.destination), _STATIC, Sent(leg.network.id, route.next_hop, leg))
    yield from _across(state, router, to)
    version = version_of(to)
    if (first := preferred(ways_out, version)) is not None and not has_default(router, version):
        yield _Route(0, _STATIC, Sent(first.network.id, first.gateway or "", first))


def _across(state: State, router: Router, to: str) -> Iterator[_Route]:
    """The routes to what routers join that this one is joined with; what lies behind those is not among it."""
    for peering in state[PEERINGS].by("router", router.id):
        if peering.state is PeeringState.ACTIVE:
            for subnet in joined(state, state[ROUTERS].get(peering.across(router.id))):
                if within(to, subnet.cidr):
                    yield _Route(_length(subnet.cidr), _STATIC, Sent("", "", peering=peering.id))


def _bound(state: State, router: Router, packet: Packet, ways_out: list[Leg]) -> Iterator[Sent]:
    """What binds a packet that leaves to a way out, first things first.

    What a port forwarding binds is answers, and not the first packet of a connection.
    """
    version = packet.version
    for network, because in _bound_by_source(state, router, packet.source):
        if (leg := leg_by(ways_out, network, version)) is not None:
            yield Sent(leg.network.id, leg.gateway or "", leg, because=because)
    for route in sorted(router.routes, key=lambda route: -_length(route.destination)):
        leg = leg_to(ways_out, route.next_hop)
        if within(packet.destination, route.destination) and leg is not None and leg.gateway is not None:
            because = f"as its static route to {route.destination} says"
            yield Sent(leg.network.id, route.next_hop, leg, because=because)
    for source in sorted(router.source_routes, key=lambda source: -_length(source.source)):
        leg = leg_by(ways_out, source.network_id, version)
        if within(packet.source, source.source) and leg is not None:
            because = f"as its route for what {source.source} sends says"
            yield Sent(leg.network.id, leg.gateway or "", leg, because=because)
    for subnet in joined(state, router):
        leg = leg_by(ways_out, subnet.delegated_by or "", version)
        if within(packet.source, subnet.cidr) and leg is not None:
            yield Sent(leg.network.id, leg.gateway or "", leg, because=f"whose prefix {subnet.cidr} is")


def _bound_by_source(state: State, router: Router, source: str) -> Iterator[tuple[str, str]]:
    """The external networks that an address binds its sender to, and why."""
    for floating in state[FLOATING_IPS].by("router_id", router.id):
        if floating.fixed_address == source:
            yield floating.network_id, f"which floating IP {floating.address} is of"
    rules = [rule for rule in state[SNAT_RULES].by("router_id", router.id) if within(source, rule.source)]
    for rule in sorted(rules, key=lambda rule: -_length(rule.source)):
        yield rule.network_id, f"which {rule.address} of SNAT rule {rule.id} is of"


def _beyond(router: Router, sent: Sent, to: str) -> Sent | None:
    """The same with the next hop that the way out takes: a further one routes by itself."""
    leg = sent.leg
    if leg is None:
        return sent
    if leg.uplink.link is None:
        on_link = within(to, leg.subnet.cidr) and sent.next_hop == leg.gateway
        return sent._replace(next_hop="") if on_link else sent
    ways = [(0, _STATIC, leg.subnet.gateway)] if leg.subnet.gateway else []
    if within(to, leg.subnet.cidr):
        ways.append((_length(leg.subnet.cidr), _CONNECTED, ""))
    ways += [
        (_length(route.destination), _STATIC, route.next_hop)
        for route in router.routes
        if within(to, route.destination) and leg_to([leg], route.next_hop) is not None and leg.gateway is not None
    ]
    return sent._replace(next_hop=max(ways)[2]) if ways else None


def _length(prefix: str) -> int:
    return ip_network(prefix).prefixlen
