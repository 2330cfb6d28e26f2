"""What one may do with server groups."""

from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.servergroups.model import SERVER_GROUPS, ServerGroup
from pileus.kernel.errors import Conflict
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Name, Wire
from pileus.scheduler.model import GroupPolicy
from pileus.state.state import put, remove


class ServerGroupCreate(Wire):
    name: Name
    policy: GroupPolicy = GroupPolicy.SOFT_ANTI_AFFINITY


server_groups = Noun(
    SERVER_GROUPS,
    plural="server-groups",
    columns=("name", "policy"),
    about="Server groups: instances to be kept apart on different hosts, or together on one.",
)
server_groups.list(filters=("name", "policy"), sorts=("name",))
server_groups.show()


@server_groups.post()
def create(ask: Ask, wish: ServerGroupCreate) -> Plan:
    """Create a server group."""
    group = ServerGroup(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        name=wish.name,
        policy=wish.policy,
    )
    return Plan(summary=f"create server group {wish.name}", changes=(put(group),), answers=group, undo="delete it")


@server_groups.delete()
def delete(ask: Ask, group: ServerGroup) -> Plan:
    """Delete a server group that has no members."""
    if members := ask.state[INSTANCES].count_by("server_group", group.id):
        raise Conflict(f"server group {group.name} has {members} members: delete these instances first")
    return Plan(summary=f"delete server group {group.name}", changes=(remove(group),), undo="create it again")
