"""What one may do with projects."""

from collections.abc import Container, Mapping
from typing import Annotated, Any

import msgspec
from pydantic import Field

from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.identity.leaving import each_once, with_a_project
from pileus.cloud.identity.model import GRANTS, GROUPS, ROLES, TOKENS
from pileus.cloud.identityproviders.model import GROUP_MAPPINGS, IDENTITY_PROVIDERS
from pileus.cloud.imageexports.model import IMAGE_EXPORTS
from pileus.cloud.images.model import IMAGE_SHARES, IMAGES
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.keypairs.model import KEYPAIRS
from pileus.cloud.nat.model import PORT_FORWARDINGS, SNAT_RULES
from pileus.cloud.networks.model import NETWORK_SHARES, NETWORKS, PORTS, ROUTERS, SUBNETS, Network, NetworkKind
from pileus.cloud.networks.operations import default_network
from pileus.cloud.peerings.model import PEERINGS
from pileus.cloud.projects.model import DEFAULT_QUOTA, PROJECTS, Project, limits, of_its_own
from pileus.cloud.reservations.model import RESERVATIONS
from pileus.cloud.schedules.model import SCHEDULES
from pileus.cloud.securitygroups.model import SECURITY_GROUPS, SECURITY_RULES
from pileus.cloud.securitygroups.operations import default_group
from pileus.cloud.servergroups.model import SERVER_GROUPS
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.storagepools.model import STORAGE_POOLS, Purpose
from pileus.cloud.volumes.model import VOLUMES, gib_of_class
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import ProjectId
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.usage import Usage
from pileus.operations.wire import Description, Name, Wire
from pileus.state.kinds import Kind
from pileus.state.state import Change, State, put, remove

KEEP_A_PROJECT: tuple[Kind[Any], ...] = (INSTANCES, SNAPSHOTS, BACKUPS, VOLUMES, IMAGES, IMAGE_EXPORTS, FLOATING_IPS)
GO_WITH_A_PROJECT: tuple[Kind[Any], ...] = (
    SCHEDULES,
    PORT_FORWARDINGS,
    SNAT_RULES,
    PORTS,
    PEERINGS,
    ROUTERS,
    RESERVATIONS,
    SUBNETS,
    NETWORKS,
    SECURITY_RULES,
    SECURITY_GROUPS,
    SERVER_GROUPS,
    KEYPAIRS,
    GRANTS,
    GROUP_MAPPINGS,
    TOKENS,
    GROUPS,
    ROLES,
)

Limit = Annotated[int, Field(ge=-1, le=1_000_000_000)]
"""-1 is no limit."""


class ProjectCreate(Wire):
    name: Name
    description: Description = ""
    quota: dict[str, Limit] = Field(default_factory=dict)


class ProjectChange(Wire):
    name: Name | None = None
    description: Description | None = None
    quota: dict[str, Limit] | None = None
    """Limits to change; those not named stay as they are."""
    requires_second_factor: bool | None = None
    """Whether nobody works in the project without a second factor; counts at once."""


class QuotaLine(msgspec.Struct, frozen=True):
    """One thing that is counted. A limit of -1 is none."""

    used: int
    limit: int


class Quota(msgspec.Struct, frozen=True):
    """What a project may use, and does."""

    project_id: ProjectId
    usage: Mapping[str, QuotaLine]


projects = Noun(
    PROJECTS,
    plural="projects",
    columns=("name", "description"),
    about="Projects (tenants): everything that is made belongs to one.",
    visible=lambda ask, project: ask.caller.is_platform or project.id == ask.caller.project_id,
    scope="",
)
projects.list(filters=("name",), sorts=("name",))
projects.show()


@projects.post(least=Role.PLATFORM)
def create(ask: Ask, wish: ProjectCreate) -> Plan:
    """Create a project, with a security group and a network to begin with."""
    _check_quota(ask.state, wish.quota, known=())
    project = Project(
        id=ask.new_id(), created_at=ask.now, name=wish.name, description=wish.description, quota=of_its_own(wish.quota)
    )
    return Plan(
        summary=f"create project {wish.name}",
        changes=(put(project), *beginnings(ask, ProjectId(project.id))),
        answers=project,
        undo="delete the project",
    )


@projects.patch(least=Role.PLATFORM)
def change(ask: Ask, project: Project, wish: ProjectChange) -> Plan:
    """Rename a project, describe it, change its quota. What is used beyond a lower quota stays."""
    _check_quota(ask.state, wish.quota or {}, known=project.quota)
    changed = msgspec.structs.replace(
        project,
        name=wish.name or project.name,
        description=project.description if wish.description is None else wish.description,
        quota=of_its_own({**project.quota, **(wish.quota or {})}),
        requires_second_factor=(
            project.requires_second_factor if wish.requires_second_factor is None else wish.requires_second_factor
        ),
    )
    return Plan(
        summary=f"change project {project.name}", changes=(put(changed),), answers=changed, undo="change it back"
    )


@projects.delete(least=Role.PLATFORM)
def delete(ask: Ask, project: Project) -> Plan:
    """Delete a project; its own networks and users go with it. Its instances, volumes and images must not."""
    if project.id == ask.caller.project_id:
        raise Conflict("you are working in this project")
    state = ask.state
    gone = [each for each in state[INSTANCES].by("project", project.id) if each.state is InstanceState.DELETED]
    if gone:
        raise Conflict(f"the project still keeps {len(gone)} deleted instances: purge them, or wait")
    for kind in KEEP_A_PROJECT:
        if left := state.table(kind).count_by("project", project.id):
            raise Conflict(f"the project still has {left} {kind.name.replace('_', ' ')}s")
    if providers := state[IDENTITY_PROVIDERS].by("project", project.id):
        raise Conflict(f"the users whom identity provider {providers[0].name} makes belong to the project")
    physical = [each for each in state[NETWORKS].by("project", project.id) if each.is_physical]
    if physical:
        raise Conflict(f"the project still has the {physical[0].kind} network {physical[0].name}")
    changes: list[Change] = [remove(project)]
    for kind in GO_WITH_A_PROJECT:
        changes += [remove(record) for record in state.table(kind).by("project", project.id)]
    changes += [remove(share) for share in state[IMAGE_SHARES].by("to_project", project.id)]
    changes += [remove(share) for share in state[NETWORK_SHARES].by("to_project", project.id)]
    for group in state[GROUPS].by("project", project.id):
        changes += [remove(share) for share in state[IMAGE_SHARES].by("to_group", group.id)]
    changes += with_a_project(ask, ProjectId(project.id))
    return Plan(
        summary=f"delete project {project.name}",
        changes=each_once(changes),
        undo="none: its networks and keys are gone",
    )


@projects.special("GET", "/{id}/quota", least=Role.READER, answers=Quota)
async def quota(exchange: Exchange, project: Project) -> Answer:
    """Show what a project may use, and does."""
    ask = exchange.ask
    id = ProjectId(project.id)
    allowed = limits(ask.state, id)
    used = ask.view(Usage).of(id)
    in_use = (what for what, amount in used.items() if amount)
    lines = {
        what: QuotaLine(used.get(what, 0), allowed.get(what, -1))
        for what in sorted({*DEFAULT_QUOTA, *_of_classes(ask.state), *in_use, *allowed})
    }
    return Answer(status=200, body=msgspec.json.encode(Quota(id, lines)))


def beginnings(ask: Ask, project: ProjectId) -> list[Change]:
    """What every project begins with."""
    return [*default_group(ask, project), *default_network(ask, project, _way_out(ask))]


def _way_out(ask: Ask) -> Network | None:
    external = ask.state[NETWORKS].by("kind", NetworkKind.EXTERNAL)
    return next((each for each in external if each.shared), None)


def _of_classes(state: State) -> list[str]:
    """What is counted besides: the volumes of each class of storage pool."""
    classes = {each.storage_class for each in state[STORAGE_POOLS] if Purpose.VOLUMES in each.purposes}
    return sorted(map(gib_of_class, classes))


def _check_quota(state: State, quota: Mapping[str, int], *, known: Container[str]) -> None:
    """Raises Invalid if what is limited is not counted, and was not limited either before its class was gone."""
    counted = [*DEFAULT_QUOTA, *_of_classes(state)]
    wrong = {f"quota.{what}": "is not counted" for what in quota if what not in counted and what not in known}
    if wrong:
        raise Invalid(f"counted are {', '.join(counted)}", fields=wrong)
