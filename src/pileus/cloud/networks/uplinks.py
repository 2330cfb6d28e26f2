"""By which of its uplinks a router sends what leaves the cloud. Pure; the projection and `reach` both go by it.

Of what a packet fits, the first counts:

1. where a port forwarding ends, and a port with a floating IP, send by the uplink that the address is of: what came in
   by a line is answered by it;
2. a SNAT rule, the longest prefix first: by the uplink of its floating IP;
3. a static route to its destination whose next hop is outside, the longest prefix first;
4. a route of the router for its source, the longest prefix first;
5. a subnet whose prefix an external network delegated: by that one;
6. the first uplink.

Uplinks whose external network is out of service are passed over everywhere.
"""

from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address, ip_network
from typing import Final, NamedTuple

from pileus.cloud.networks.addresses import version_of
from pileus.cloud.networks.model import NETWORKS, SUBNETS, Network, Router, Subnet, Uplink
from pileus.state.state import State

EVERYWHERE: Final = {4: "0.0.0.0/0", 6: "::/0"}


class Leg(NamedTuple):
    """An uplink in one IP version."""

    uplink: Uplink
    network: Network
    subnet: Subnet
    """Of the external network: the one that the address is of."""
    address: str
    """The router's own."""

    @property
    def version(self) -> int:
        return version_of(self.address)

    @property
    def gateway(self) -> str | None:
        """Who takes what leaves; None while that is nobody."""
        return self.subnet.gateway if self.network.in_service else None


def legs(
    router: Router, network: Callable[[str], Network | None], subnets: Callable[[str], Iterable[Subnet]]
) -> list[Leg]:
    """The ways out of a router in its order; `network` finds one, `subnets` those of one."""
    found: list[Leg] = []
    for uplink in router.uplinks:
        if (external := network(uplink.network_id)) is None:
            continue
        there = list(subnets(uplink.network_id))
        for address in uplink.addresses:
            subnet = next((each for each in there if ip_address(address) in ip_network(each.cidr)), None)
            if subnet is not None:
                found.append(Leg(uplink, external, subnet, address))
    return found


def legs_of(state: State, router: Router) -> list[Leg]:
    """The ways out of a router in its order."""
    return legs(router, state[NETWORKS].find, lambda network: state[SUBNETS].by("network_id", network))


def preferred(among: Sequence[Leg], version: int) -> Leg | None:
    """Where a router sends what nothing says more about."""
    return next((each for each in among if each.version == version and each.gateway is not None), None)


def leg_by(among: Sequence[Leg], network: str, version: int) -> Leg | None:
    """The way out by an external network, if it is in service."""
    fitting = (each for each in among if each.network.id == network and each.version == version)
    return next((each for each in fitting if each.gateway is not None), None)


def leg_to(among: Sequence[Leg], next_hop: str) -> Leg | None:
    """The way out on which this next hop is, in service or not."""
    return next((each for each in among if ip_address(next_hop) in ip_network(each.subnet.cidr)), None)


def is_routed(subnet: Subnet, leg: Leg) -> bool:
    """Whether what a subnet sends out by this way keeps its addresses, because the world knows them there."""
    return subnet.delegated_by == leg.network.id and version_of(subnet.cidr) == leg.version


def has_default(router: Router, version: int) -> bool:
    """Whether a static route of its own says where a router sends everything else."""
    return any(route.destination == EVERYWHERE[version] for route in router.routes)
