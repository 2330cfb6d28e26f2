"""Which projects may use a flat or external network besides its own: records of their own, as of images."""

from typing import Annotated

from pileus.cloud.networks.model import NETWORK_SHARES, NETWORKS, PHYSICAL, NetworkShare
from pileus.cloud.networks.sharing import must_not_be_missed, must_speak_for_themselves
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import NetworkId, ProjectId
from pileus.operations.caller import Role
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import put, remove


class NetworkShareCreate(Wire):
    network_id: Annotated[Id, ref("network")]
    to_project_id: Annotated[Id, ref("project")]
    """The project that may use it."""


def _visible(ask: Ask, share: NetworkShare) -> bool:
    """A share is seen by administrators of the cloud, and by the project that has it."""
    return ask.caller.is_platform or share.to_project_id == ask.caller.project_id


network_shares = Noun(
    NETWORK_SHARES,
    plural="network-shares",
    columns=("network_id", "to_project_id"),
    about="Network shares: of flat and external networks, with projects that may use them.",
    visible=_visible,
    scope="",
)
network_shares.list(filters=("network_id", "to_project_id"))
network_shares.show()


@network_shares.post(least=Role.PLATFORM)
def create(ask: Ask, wish: NetworkShareCreate) -> Plan:
    """Let a project use a flat or external network. It stays the administrators' to change."""
    network = ask.see(NETWORKS, wish.network_id, "network_id")
    if network.kind not in PHYSICAL:
        raise Conflict(
            f"network {network.name} is inside of its project: only flat and external networks are shared; projects"
            " join theirs by a peering of routers",
            fields={"network_id": "neither flat nor external"},
        )
    project = ask.state[PROJECTS].find(wish.to_project_id)
    if project is None:
        raise NotFound(f"there is no project {wish.to_project_id}", fields={"to_project_id": "not found"})
    if project.id == network.project_id:
        raise Conflict(f"network {network.name} is this project's own", fields={"to_project_id": "its own"})
    must_speak_for_themselves(ask.state, network)
    share = NetworkShare(
        id=ask.new_id(),
        created_at=ask.now,
        network_id=NetworkId(network.id),
        to_project_id=ProjectId(project.id),
    )
    return Plan(
        summary=f"share network {network.name} with project {project.name}",
        changes=(put(share),),
        answers=share,
        undo="delete the share",
    )


@network_shares.delete(least=Role.PLATFORM)
def delete(ask: Ask, share: NetworkShare) -> Plan:
    """Take a network back from a project that has nothing on it."""
    network = ask.state[NETWORKS].get(share.network_id)
    if not network.shared:
        must_not_be_missed(ask.state, network, lambda project: project == share.to_project_id)
    return Plan(
        summary=f"take back the share of network {network.name}", changes=(remove(share),), undo="share it again"
    )
