"""For which projects a network is, and what of theirs is on it. No I/O."""

from collections.abc import Callable, Iterator

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.networks.model import NETWORK_SHARES, PORTS, ROUTERS, SUBNETS, Network
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import NetworkId, ProjectId
from pileus.state.state import State

_NAMED = 5


def is_for(state: State, network: Network, project: str) -> bool:
    """Whether this project may use the network: all may, or it is its own, or it is shared with it."""
    if network.shared or network.project_id == project:
        return True
    return state[NETWORK_SHARES].one("share", (NetworkId(network.id), ProjectId(project))) is not None


def is_for_others(state: State, network: Network) -> bool:
    """Whether projects besides its own may use the network."""
    return network.shared or state[NETWORK_SHARES].count_by("network", network.id) > 0


def must_not_be_missed(state: State, network: Network, loses: Callable[[ProjectId], bool], field: str = "") -> None:
    """Raises Conflict, with some of their names, if projects that are to lose the network have something on it."""
    found = [(project, what) for project, what in _uses(state, network) if loses(project)]
    if not found:
        return
    named = [f"{what} of project {state[PROJECTS].get(project).name}" for project, what in found[:_NAMED]]
    names = ", ".join(named) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
    first = "share it with these projects first, or delete that" if field else "delete that first"
    raise Conflict(
        f"network {network.name} is in use: {names}; {first}",
        fields={field: "in use"} if field else None,
    )


def must_speak_for_themselves(state: State, network: Network) -> None:
    """Raises Conflict if a port of a network that others are to be on may speak for more than itself."""
    for port in state[PORTS].by("network_id", network.id):
        if port.allowed_prefixes:
            raise Conflict(
                f"port {port.name} of network {network.name} may speak for {', '.join(port.allowed_prefixes)}: nobody"
                " may where several projects are; take that away first"
            )


def _uses(state: State, network: Network) -> Iterator[tuple[ProjectId, str]]:
    """Whose is what that is on a network, in words."""
    for port in state[PORTS].by("network_id", network.id):
        yield port.project_id, f"port {port.name} ({port.id})"
    for floating in state[FLOATING_IPS].by("network_id", network.id):
        yield floating.project_id, f"floating IP {floating.address}"
    for router in state[ROUTERS].by("external_network", network.id):
        yield router.project_id, f"router {router.name} ({router.id})"
    for subnet in state[SUBNETS].by("delegated_by", network.id):
        yield subnet.project_id, f"subnet {subnet.cidr} of its prefixes"
