"""What a server group is: instances to be kept apart, or together. No I/O."""

from pileus.kernel.ids import ProjectId
from pileus.scheduler.model import GroupPolicy
from pileus.state.kinds import Kind
from pileus.state.records import Record


class ServerGroup(Record, frozen=True, kw_only=True):
    """Instances that do the same work, and are to be kept apart; or that need each other, and are to be together."""

    project_id: ProjectId
    name: str
    policy: GroupPolicy = GroupPolicy.SOFT_ANTI_AFFINITY


SERVER_GROUPS = Kind(
    "server_group",
    ServerGroup,
    indexes={"project": lambda group: group.project_id},
    counts=lambda _: {"server_groups": 1},
)
