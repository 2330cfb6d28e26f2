"""What one may do with grants: the roles that users and groups have in projects."""

from typing import Annotated

from pydantic import StringConstraints

from pileus.cloud.identity.leaving import without_token
from pileus.cloud.identity.model import GRANTS, GROUPS, ROLES, TOKENS, USERS, CustomRole, Grant, Group, User
from pileus.cloud.identity.rights import nobody_gives_more, permitted
from pileus.cloud.projects.model import PROJECTS, Project
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.ids import GroupId, ProjectId, RoleId, UserId
from pileus.operations.caller import Role
from pileus.operations.declare import Noun
from pileus.operations.permissions import Permissions
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import Change, put, remove


class GrantCreate(Wire):
    user_id: Annotated[Id, ref("user")] | None = None
    group_id: Annotated[Id, ref("group")] | None = None
    """Instead of a user: every member of the group has the role for as long as they are in it."""
    project_id: Annotated[Id, ref("project")]
    role: Annotated[str, StringConstraints(min_length=1, max_length=64), ref("role")]
    """`reader`, `member` or `admin`, of which one replaces another; or the id of a custom role, which adds to them."""


grants = Noun(
    GRANTS,
    plural="grants",
    columns=("user_id", "group_id", "project_id", "role", "role_id"),
    about="Grants: the roles that users and groups have in projects.",
)
grants.list(filters=("user_id", "group_id", "project_id", "role", "role_id"), least=Role.ADMIN)
grants.show(least=Role.ADMIN)


@grants.post(least=Role.ADMIN)
def create(ask: Ask, wish: GrantCreate) -> Plan:
    """Give a user or a group a role in a project. Nobody gives more than they may do themselves."""
    project = ask.state[PROJECTS].find(wish.project_id)
    if project is None or not (ask.caller.is_platform or project.id == ask.caller.project_id):
        raise NotFound(f"there is no project {wish.project_id}", fields={"project_id": "not found"})
    holder = _holder(ask, wish, project)
    role = _role(ask, wish.role, project)
    given = Grant(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ProjectId(project.id),
        user_id=UserId(holder.id) if isinstance(holder, User) else None,
        group_id=GroupId(holder.id) if isinstance(holder, Group) else None,
        role=role if isinstance(role, Role) else None,
        role_id=RoleId(role.id) if isinstance(role, CustomRole) else None,
    )
    permissions = ask.view(Permissions)
    nobody_gives_more(ask, permitted(ask.state, permissions, given))
    before = ask.state[GRANTS].one("grant", (holder.id, project.id, given.role_id, None))
    if before is not None:
        nobody_gives_more(ask, permitted(ask.state, permissions, before))
        given = Grant(
            id=before.id,
            created_at=before.created_at,
            revision=before.revision,
            project_id=before.project_id,
            user_id=before.user_id,
            group_id=before.group_id,
            role=given.role,
            role_id=given.role_id,
        )
    called = role if isinstance(role, Role) else role.name
    return Plan(
        summary=f"make {holder.name} {called} of {project.name}",
        changes=(put(given),),
        answers=given,
        undo="delete the grant",
    )


def _holder(ask: Ask, wish: GrantCreate, project: Project) -> User | Group:
    if (wish.user_id is None) == (wish.group_id is None):
        wrong = "either a user or a group"
        raise Invalid(wrong, fields={"user_id": wrong, "group_id": wrong})
    if wish.group_id is not None:
        group = ask.see(GROUPS, wish.group_id, "group_id")
        if group.project_id not in ("", project.id):
            raise Conflict("a group of a project has roles in that project only", fields={"group_id": "of another"})
        return group
    user = ask.state[USERS].find(wish.user_id or "")
    if user is None or (user.project_id not in ("", project.id) and not ask.caller.is_platform):
        raise NotFound(f"there is no user {wish.user_id}", fields={"user_id": "not found"})
    if user.project_id not in ("", project.id):
        raise Conflict("a user who belongs to a project stays in it", fields={"user_id": "belongs to another project"})
    return user


def _role(ask: Ask, wanted: str, project: Project) -> Role | CustomRole:
    if wanted == Role.PLATFORM:
        raise Conflict(
            "this is not a role in a project", fields={"role": "one of reader, member, admin, or a custom one"}
        )
    if wanted in set(Role):
        return Role(wanted)
    return ask.see(ROLES, wanted, "role", of=project.id if _is_projects_own(ask, wanted) else None)


def _is_projects_own(ask: Ask, role: str) -> bool:
    found = ask.state[ROLES].find(role)
    return found is not None and found.project_id != ""


@grants.delete(least=Role.ADMIN)
def delete(ask: Ask, grant: Grant) -> Plan:
    """Take a role away. If a user has no other in the project, their tokens for it end."""
    permissions = ask.view(Permissions)
    nobody_gives_more(ask, permitted(ask.state, permissions, grant))
    if grant.mapping_id is not None:
        raise Conflict(
            "an identity provider gives this role: take its user out of the group there, or the mapping away"
        )
    changes: list[Change] = [remove(grant)]
    if grant.user_id is not None and not _is_left_with_a_role(ask, grant):
        for token in ask.state[TOKENS].by("user", grant.user_id):
            if token.project_id == grant.project_id:
                changes += without_token(ask, token)
    return Plan(summary="take a role away", changes=changes, undo="grant it again")


def _is_left_with_a_role(ask: Ask, grant: Grant) -> bool:
    state = ask.state
    holders = (grant.holder, *state[GROUPS].ids_by("user", grant.holder))
    return any(
        other.id != grant.id for holder in holders for other in state[GRANTS].by("place", (holder, grant.project_id))
    )
