"""IPv6 prefixes that external networks delegate to subnets inside: given out and taken back as addresses are."""

from ipaddress import IPv6Network
from itertools import chain

from pileus.cloud.networks.model import NETWORKS, SUBNETS, Network, NetworkKind
from pileus.cloud.networks.sharing import is_for
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.ids import ProjectId
from pileus.operations.plan import Ask

_OF_A_SUBNET = 64


def next_prefix(ask: Ask, network_id: str, project: ProjectId) -> str:
    """The lowest prefix that an external network of a project has left. Raises Conflict if none is, or NotFound."""
    network = ask.state[NETWORKS].find(network_id)
    if network is None or network.kind is not NetworkKind.EXTERNAL or not is_for(ask.state, network, project):
        raise NotFound("there is no such external network", fields={"prefix_network_id": "not found"})
    taken = {subnet.cidr for subnet in ask.state[SUBNETS].by("delegated_by", network.id)}
    pools = (IPv6Network(prefix).subnets(new_prefix=_OF_A_SUBNET) for prefix in network.ipv6_prefixes)
    free = next((prefix for prefix in map(str, chain.from_iterable(pools)) if prefix not in taken), None)
    if free is None:
        left = "has delegated all its prefixes" if network.ipv6_prefixes else "has no IPv6 prefixes to delegate"
        raise Conflict(f"external network {network.name} {left}", fields={"prefix_network_id": "none left"})
    return free


def check_prefixes(ask: Ask, network: Network, prefixes: tuple[str, ...]) -> None:
    """Raises Conflict or Invalid if an external network cannot delegate these."""
    if network.kind is not NetworkKind.EXTERNAL:
        raise Conflict(f"network {network.name} is not external", fields={"ipv6_prefixes": "for external networks"})
    wrong = {
        f"ipv6_prefixes.{at}": f"must be an IPv6 prefix of length 16 to {_OF_A_SUBNET}"
        for at, prefix in enumerate(prefixes)
        if ":" not in prefix or not 16 <= IPv6Network(prefix).prefixlen <= _OF_A_SUBNET
    }
    if wrong:
        raise Invalid("some prefixes cannot be delegated", fields=wrong)
    pools = [IPv6Network(prefix) for prefix in prefixes]
    others = [
        (other.name, IPv6Network(prefix))
        for other in ask.state[NETWORKS].by("kind", NetworkKind.EXTERNAL)
        for prefix in other.ipv6_prefixes
        if other.id != network.id
    ]
    others += [(network.name, pool) for at, pool in enumerate(pools) if any(pool.overlaps(x) for x in pools[:at])]
    for subnet in ask.state[SUBNETS].by("network_id", network.id):
        if ":" in subnet.cidr:
            others.append((network.name, IPv6Network(subnet.cidr)))
    for name, other in others:
        if any(other.overlaps(pool) for pool in pools):
            raise Conflict(f"{other} of external network {name} overlaps", fields={"ipv6_prefixes": "overlap"})
    for subnet in ask.state[SUBNETS].by("delegated_by", network.id):
        if not any(IPv6Network(subnet.cidr).subnet_of(pool) for pool in pools):
            raise Conflict(f"{subnet.cidr} is delegated to a subnet", fields={"ipv6_prefixes": "in use"})
