"""Whether two routers can be joined: no address may be on both sides. Pure."""

from collections.abc import Iterator
from ipaddress import ip_network

from pileus.cloud.networks.model import ROUTERS, SUBNETS, Router, Subnet
from pileus.cloud.peerings.model import PEERINGS, PeeringState
from pileus.kernel.errors import Conflict
from pileus.state.state import State


def check_overlaps(state: State, one: Router, other: Router) -> None:
    """Raises Conflict, with every pair of ranges that overlap, if what one reaches the other reaches too."""
    found = [
        *_pairs(state, one, other),
        *_with_peers(state, one, other),
        *_with_peers(state, other, one),
        *_routed_already(state, one, other),
        *_routed_already(state, other, one),
    ]
    if found:
        raise Conflict(f"routers {one.name} and {other.name} cannot be peered: {'; '.join(found)}")


def check_peerings(state: State, router: Router) -> None:
    """Raises Conflict if a router, as it is to be, overlaps with what it is peered with."""
    for peer in peers_of(state, router):
        check_overlaps(state, router, peer)


def peers_of(state: State, router: Router) -> Iterator[Router]:
    """The routers that it is peered with."""
    for peering in state[PEERINGS].by("router", router.id):
        if peering.state is PeeringState.ACTIVE and (found := state[ROUTERS].find(peering.across(router.id))):
            yield found


def _subnets(state: State, router: Router) -> list[Subnet]:
    return [subnet for id in router.subnet_ids if (subnet := state[SUBNETS].find(id)) is not None]


def _pairs(state: State, one: Router, other: Router) -> Iterator[str]:
    for mine in _subnets(state, one):
        for theirs in _subnets(state, other):
            if ip_network(mine.cidr).overlaps(ip_network(theirs.cidr)):
                yield f"{mine.cidr} ({mine.name}) overlaps with {theirs.cidr} ({theirs.name})"


def _with_peers(state: State, one: Router, other: Router) -> Iterator[str]:
    """What one is joined to by other peerings, against the other's subnets; whose it is, is not told."""
    for peer in peers_of(state, one):
        if peer.id == other.id:
            continue
        for far in _subnets(state, peer):
            for mine in _subnets(state, other):
                if ip_network(far.cidr).overlaps(ip_network(mine.cidr)):
                    yield f"{mine.cidr} ({mine.name}) overlaps with what {one.name} reaches by another peering"


def _routed_already(state: State, one: Router, other: Router) -> Iterator[str]:
    there = {subnet.cidr for subnet in _subnets(state, other)}
    for route in one.routes:
        if route.destination in there:
            yield f"{one.name} has a static route to {route.destination}"
