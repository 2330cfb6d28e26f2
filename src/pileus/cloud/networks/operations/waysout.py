"""Telling by which of its uplinks a router sends what, and why."""

from collections.abc import Iterator, Sequence

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS, FloatingIp
from pileus.cloud.nat.model import rules_through
from pileus.cloud.networks.model import Router, Uplink
from pileus.cloud.networks.operations.routers import routers
from pileus.cloud.networks.routing import joined
from pileus.cloud.networks.uplinks import Leg, is_routed, leg_to, legs_of, preferred
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange
from pileus.state.state import State


class RoutedPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever is beyond an uplink has to route to it."""

    prefix: str
    next_hop: str


class WayOut(msgspec.Struct, frozen=True, kw_only=True):
    """What goes by one of a router's uplinks."""

    network_id: str
    network: str
    physical_network: str
    vlan: int | None
    in_service: bool
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    carries: tuple[str, ...]
    """`ipv4` and `ipv6`, for what nothing binds to another uplink."""
    bound: tuple[str, ...]
    """What goes by it for another reason, while it is in service; with what limits it."""
    routed: tuple[RoutedPrefix, ...]
    """Needed for answers to arrive: it is sent out with its own addresses."""


class WaysOut(msgspec.Struct, frozen=True, kw_only=True):
    """What goes by which of a router's uplinks, in the order in which they are preferred."""

    router_id: str
    uplinks: tuple[WayOut, ...]


@routers.special("GET", "/{id}/uplinks", least=Role.READER, answers=WaysOut)
async def uplinks(exchange: Exchange, router: Router) -> Answer:
    """Show by which of its uplinks a router sends what, and what the world has to route to each."""
    state = exchange.ask.state
    ways_out = legs_of(state, router)
    shown = [_shown(state, router, uplink, ways_out) for uplink in router.uplinks]
    told = WaysOut(router_id=router.id, uplinks=tuple(each for each in shown if each is not None))
    return Answer(status=200, body=msgspec.json.encode(told))


def _shown(state: State, router: Router, uplink: Uplink, ways_out: Sequence[Leg]) -> WayOut | None:
    mine = [leg for leg in ways_out if leg.uplink == uplink]
    if not mine:
        return None
    network = mine[0].network
    return WayOut(
        network_id=network.id,
        network=network.name,
        physical_network=network.physical_network,
        vlan=network.vlan,
        in_service=network.in_service,
        addresses=tuple(leg.address for leg in mine),
        gateways=tuple(leg.subnet.gateway for leg in mine if leg.subnet.gateway),
        carries=tuple(f"ipv{leg.version}" for leg in mine if preferred(ways_out, leg.version) == leg),
        bound=tuple(_bound(state, router, mine)),
        routed=tuple(
            RoutedPrefix(prefix=subnet.cidr, next_hop=leg.address)
            for leg in mine
            for subnet in joined(state, router)
            if is_routed(subnet, leg)
        ),
    )


def _bound(state: State, router: Router, mine: Sequence[Leg]) -> Iterator[str]:
    network = mine[0].network.id
    floating = [each for each in state[FLOATING_IPS].by("router_id", router.id) if each.network_id == network]
    yield from (f"{each.fixed_address}: floating IP {each.address}{_limit(each)}" for each in floating)
    rules = [rule for rule in rules_through(state, router.id) if rule.network_id == network]
    yield from (f"a rule of floating IP {rule.address} ({rule.id})" for rule in rules)
    static = [route for route in router.routes if leg_to(mine, route.next_hop) is not None]
    yield from (f"to {route.destination}: static route" for route in static)
    yield from (f"from {each.source}: source route" for each in router.source_routes if each.network_id == network)
    yield from (f"from {each.cidr}: its own prefix" for each in joined(state, router) if each.delegated_by == network)


def _limit(floating: FloatingIp) -> str:
    return f", {floating.bandwidth_mbit} Mbit/s in each direction" if floating.bandwidth_mbit is not None else ""
