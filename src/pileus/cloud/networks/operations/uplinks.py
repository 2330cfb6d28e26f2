"""The ways out that a router is given: addresses in external networks, and what a change of them breaks. Plans only."""

from collections.abc import Iterator, Sequence

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.nat.model import rules_through
from pileus.cloud.networks.addresses import Addresses, version_of
from pileus.cloud.networks.model import NETWORKS, SUBNETS, Network, NetworkKind, Router, Uplink
from pileus.cloud.networks.sharing import is_for
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.ids import NetworkId
from pileus.operations.plan import Ask, Reason


def with_uplinks(ask: Ask, router: Router, first: str | None, further: Sequence[str]) -> Router:
    """The router with these external networks as its ways out; it keeps its addresses in those that it had.

    An address of an IP version that a network has and the router had not is taken as well.

    Raises:
        Conflict: a network has no free address.
        Invalid: the networks cannot be a router's in this way.
        NotFound: there is no such external network for its project.
    """
    if first is None and further:
        raise Invalid("a first way out comes before further ones", fields={"further_network_ids": "none before it"})
    wanted = [_external(ask, router, first, "external_network_id")] if first is not None else []
    wanted += [_external(ask, router, each, "further_network_ids") for each in further]
    if len({each.id for each in wanted}) < len(wanted):
        raise Invalid("a router has one uplink to a network", fields={"further_network_ids": "named twice"})
    uplinks = [_uplink(ask, network, router.uplink(network.id)) for network in wanted]
    numbers = _links([each.link for each in uplinks[1:]])
    main = uplinks[0] if uplinks else None
    return msgspec.structs.replace(
        router,
        external_network_id=main and main.network_id,
        external_address=main and main.address,
        external_ipv6_address=main and main.ipv6_address,
        further_uplinks=tuple(
            msgspec.structs.replace(each, link=link) for each, link in zip(uplinks[1:], numbers, strict=True)
        ),
    )


def check_still_used(ask: Ask, router: Router, changed: Router) -> None:
    """Raises Conflict if something goes by a way out that the router is to lose."""
    gone = {each.network_id for each in router.uplinks} - {each.network_id for each in changed.uplinks}
    for floating in ask.state[FLOATING_IPS].by("router_id", router.id):
        if floating.network_id in gone:
            raise Conflict(f"floating IP {floating.address} goes by external network {_name(ask, floating.network_id)}")
    for rule in rules_through(ask.state, router.id):
        if rule.network_id in gone:
            raise Conflict(
                f"a rule of floating IP {rule.address} goes by external network {_name(ask, rule.network_id)}"
            )


def what_breaks(ask: Ask, router: Router, changed: Router) -> Iterator[Reason]:
    """What is cut off when a router's ways out change: connections that are translated by one that moves or goes."""
    for uplink in router.uplinks:
        left = changed.uplink(uplink.network_id)
        if left is None or (left.link is None) != (uplink.link is None):
            own = " and ".join(uplink.addresses)
            becomes = "is given up" if left is None else "moves"
            says = f"connections that it translates are cut off: its uplink ({own}) {becomes}"
            yield Reason(about=f"external network {_name(ask, uplink.network_id)}", says=says)


def _external(ask: Ask, router: Router, id: str, field: str) -> Network:
    network = ask.state[NETWORKS].find(id)
    is_one = network is not None and network.kind is NetworkKind.EXTERNAL
    if network is None or not is_one or not is_for(ask.state, network, router.project_id):
        raise NotFound("there is no such external network", fields={field: "not found"})
    return network


def _uplink(ask: Ask, network: Network, known: Uplink | None) -> Uplink:
    id = NetworkId(network.id)
    versions = {version_of(subnet.cidr) for subnet in ask.state[SUBNETS].by("network_id", id)}
    had = known or Uplink(network_id=id, address=None)
    four, six = had.address, had.ipv6_address
    addresses = ask.view(Addresses)
    if six is None and 6 in versions:
        six = addresses.next_of(id, 6)[1]
    if four is None and (4 in versions or six is None):
        four = addresses.next_of(id, 4)[1]
    return msgspec.structs.replace(had, address=four, ipv6_address=six)


def _links(had: Sequence[int | None]) -> Iterator[int]:
    """A number for each further uplink: the one that it had, or the lowest that none of them has."""
    free = (number for number in range(len(had)) if number not in had)
    for number in had:
        yield next(free) if number is None else number


def _name(ask: Ask, network: str) -> str:
    return ask.state[NETWORKS].get(network).name
