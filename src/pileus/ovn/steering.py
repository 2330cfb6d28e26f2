"""Routing policies: what goes out by another way than a router's first, and what a router lets go out at all.

Policies come after routes and overrule them (ovn-nb(5), Logical_Router_Policy), so that what stays inside is named
first. The order of what goes out is that of `pileus.cloud.networks.uplinks`.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from ipaddress import ip_network

from pileus.cloud.networks.addresses import version_of
from pileus.cloud.networks.model import Router, Subnet
from pileus.cloud.networks.uplinks import Leg
from pileus.ovn.made import Made, logical_router
from pileus.ovn.rows import Fact

_IPV6 = 6


class Priority(IntEnum):
    """Of policies, those that come first first; the length of a prefix is added where there is one."""

    INSIDE = 20_000
    FOREIGN = 19_000
    FORWARDED = 15_000
    FLOATING = 14_000
    SNAT_RULE = 12_000
    ROUTE = 11_000
    SOURCE = 10_000
    DELEGATED = 9_000


def stays_inside(of: Made, router: Router, part: str, *prefixes: str) -> Iterator[Fact]:
    """What is for these is routed as usual, whoever sends it."""
    if not _has_policies(router):
        return
    for version in (4, 6):
        these = sorted(prefix for prefix in prefixes if version_of(prefix) == version)
        if these:
            match = f"ip{version}.dst == {_any_of(these)}"
            itself = logical_router(router)
            yield from of.policy(itself, f"{part}/{version}", priority=Priority.INSIDE, match=match, action="allow")


def goes_by(of: Made, router: Router, part: str, leg: Leg | None, *, priority: int, match: str) -> Iterator[Fact]:
    """What matches, and does not stay inside, leaves by this way; without one nothing is said."""
    if leg is None or leg.gateway is None or len(router.uplinks) == 1:
        return
    itself, next_hop = logical_router(router), leg.gateway
    if leg.uplink.link is not None:
        next_hop = leg.uplink.far_end.address(leg.version)
    else:
        # Whoever is on that wire needs no gateway; a further uplink sees to that itself.
        near = f"ip{leg.version}.dst == {leg.subnet.cidr}"
        yield from of.policy(itself, f"{part}/near", priority=priority, match=f"{match} && {near}", action="allow")
        match += f" && ip{leg.version}.dst != {leg.subnet.cidr}"
    yield from of.policy(
        itself, part, priority=priority, match=match, action="reroute", nexthops=frozenset((next_hop,))
    )


def only_own_addresses_leave(of: Made, router: Router, joined: Iterable[Subnet], ways_out: list[Leg]) -> Iterator[Fact]:
    """IPv6 leaves with addresses that the world knows this router by: delegated, translated, or its own (BCP 38)."""
    own = [leg.address for leg in ways_out if leg.version == _IPV6]
    if not own:
        return
    outside = {leg.network.id for leg in ways_out}
    known = [each.cidr for each in joined if version_of(each.cidr) == _IPV6]
    if not router.snat:
        known = [each.cidr for each in joined if each.delegated_by in outside]
    yield from of.policy(
        logical_router(router),
        "foreign",
        priority=Priority.FOREIGN,
        match=f"ip6.src != {_any_of(sorted((*known, *own)))}",
        action="drop",
    )


def prefix_length(prefix: str) -> int:
    return ip_network(prefix).prefixlen


def _has_policies(router: Router) -> bool:
    """Whether any policy can be about what stays inside."""
    return len(router.uplinks) > 1 or any(each.ipv6_address for each in router.uplinks)


def _any_of(prefixes: list[str]) -> str:
    return prefixes[0] if len(prefixes) == 1 else "{" + ", ".join(prefixes) + "}"
