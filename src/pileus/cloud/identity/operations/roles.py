"""What one may do with roles: the built-in ones are shown, custom ones are made of permissions."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from pydantic import Field, StringConstraints

from pileus.cloud.identity.model import GRANTS, ROLES, CustomRole
from pileus.cloud.identity.rights import nobody_gives_more
from pileus.cloud.identityproviders.model import GROUP_MAPPINGS
from pileus.kernel.errors import Conflict, Forbidden, Invalid, NotFound
from pileus.kernel.ids import ProjectId
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun, Parameter
from pileus.operations.listing import flag, number
from pileus.operations.permissions import PATTERN, Permissions
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Name, Wire
from pileus.state.state import put, remove

Permission = Annotated[str, StringConstraints(pattern=PATTERN, max_length=100)]
"""`instance.start`, `instance.*`, `*.list`."""

_MOST = 200
_ABOUT = {
    Role.READER: "Sees what is in the project.",
    Role.MEMBER: "Makes and changes what is in the project.",
    Role.ADMIN: "Manages the people of the project, too.",
    Role.PLATFORM: "Administers the whole cloud; not a role in a project, and granted by nobody.",
}


class RoleCreate(Wire):
    name: Name
    description: Description = ""
    permissions: Annotated[list[Permission], Field(min_length=1, max_length=_MOST)]
    """What it permits: operations such as `instance.start`, or all of a noun or verb: `instance.*`, `*.list`."""
    everywhere: bool = False
    """To be granted in every project; for administrators of the cloud."""


class RoleChange(Wire):
    name: Name | None = None
    description: Description | None = None
    permissions: Annotated[list[Permission], Field(min_length=1, max_length=_MOST)] | None = None


class ShownRole(msgspec.Struct, frozen=True, kw_only=True):
    """A role: a custom one, or a built-in one, whose id is its name."""

    id: str
    name: str
    description: str
    project_id: str
    permissions: Sequence[str]
    built_in: bool


class Roles(msgspec.Struct, frozen=True):
    """Roles, the built-in ones first."""

    items: Sequence[ShownRole]
    next: str | None


class ShownPermission(msgspec.Struct, frozen=True):
    """One thing that can be permitted."""

    name: str
    about: str
    role: Role
    """The least built-in role that has it."""
    yours: bool
    """Whether you have it, here and with this token."""


class ShownPermissions(msgspec.Struct, frozen=True):
    """All that can be permitted."""

    items: Sequence[ShownPermission]
    next: str | None


roles = Noun(
    ROLES,
    plural="roles",
    columns=("name", "description", "project_id"),
    about="Roles: sets of permissions, built-in or of one's own.",
    scope="",
)


@roles.special(
    "GET",
    "",
    verb="list",
    least=Role.READER,
    answers=Roles,
    parameters=(
        Parameter(name="name", about="Only with this `name`"),
        Parameter(name="limit", about="How many at most", schema={"type": "integer", "minimum": 1, "maximum": 1000}),
        Parameter(name="all_projects", about="Of every project; for administrators", schema={"type": "boolean"}),
    ),
)
async def list_roles(exchange: Exchange) -> Answer:
    """List roles."""
    ask, name = exchange.ask, exchange.query("name")
    limit, everywhere = number(exchange.query("limit", "1000")), flag(exchange.query("all_projects", "false"))
    wrong: dict[str, str] = {}
    if limit is None or not 1 <= limit <= 1000:
        wrong["limit"] = "a number from 1 to 1000"
    if everywhere is None:
        wrong["all_projects"] = "true or false"
    elif everywhere and not ask.caller.is_platform:
        wrong["all_projects"] = "only for administrators of the cloud"
    if wrong:
        raise Invalid("some parameters are wrong", fields=wrong)
    custom = (role for role in ask.state[ROLES] if everywhere or role.project_id in ("", ask.caller.project_id))
    found = [*(_built_in(ask, role) for role in Role), *map(_custom, custom)]
    named = [role for role in found if name in ("", role.name)]
    return Answer(status=200, body=msgspec.json.encode(Roles(named[:limit], None)))


@roles.special("GET", "/{id}", verb="show", least=Role.READER, answers=ShownRole)
async def show_role(exchange: Exchange) -> Answer:
    """Show a role, with all that it permits."""
    ask, id = exchange.ask, exchange.target
    if id in set(Role):
        return Answer(status=200, body=msgspec.json.encode(_built_in(ask, Role(id))))
    role = ask.state[ROLES].find(id)
    if role is None or not ask.may_see(role):
        raise NotFound(f"there is no role {id}")
    return Answer(status=200, body=msgspec.json.encode(_custom(role)))


@roles.special("GET", "/permissions", least=Role.READER, answers=ShownPermissions)
async def permissions(exchange: Exchange) -> Answer:
    """List what a role can be made of, and what of it one has oneself."""
    ask = exchange.ask
    items = [
        ShownPermission(each.id, each.about.splitlines()[0], each.least, ask.caller.may(each.id))
        for each in ask.view(Permissions)
        if each.least is not None
    ]
    items.sort(key=lambda each: each.name)
    return Answer(status=200, body=msgspec.json.encode(ShownPermissions(items, None)))


@roles.post(least=Role.ADMIN)
def create(ask: Ask, wish: RoleCreate) -> Plan:
    """Create a role. It can hold no more than one may do oneself, and nothing that concerns the whole cloud."""
    if wish.everywhere and not ask.caller.is_platform:
        raise Forbidden(
            "only administrators of the cloud make roles for all of it", fields={"everywhere": "not allowed"}
        )
    _check_name(wish.name)
    role = CustomRole(
        id=ask.new_id(),
        created_at=ask.now,
        name=wish.name,
        description=wish.description,
        project_id=ProjectId("") if wish.everywhere else ask.caller.project_id,
        permissions=_checked(ask, wish.permissions),
    )
    return Plan(summary=f"create role {wish.name}", changes=(put(role),), answers=role, undo="delete the role")


@roles.patch(least=Role.ADMIN)
def change(ask: Ask, role: CustomRole, wish: RoleChange) -> Plan:
    """Change a role: whoever has it may do, from now on, what it then permits."""
    _must_manage(ask, role)
    _check_name(wish.name or "")
    changed = msgspec.structs.replace(
        role,
        name=wish.name or role.name,
        description=role.description if wish.description is None else wish.description,
        permissions=role.permissions if wish.permissions is None else _checked(ask, wish.permissions),
    )
    return Plan(summary=f"change role {role.name}", changes=(put(changed),), answers=changed, undo="change it back")


@roles.delete(least=Role.ADMIN)
def delete(ask: Ask, role: CustomRole) -> Plan:
    """Delete a role that nobody has any more."""
    _must_manage(ask, role)
    if holders := ask.state[GRANTS].count_by("role", role.id):
        raise Conflict(f"{holders} grants give this role; delete them first (`grant list --role-id {role.id}`)")
    if mappings := ask.state[GROUP_MAPPINGS].count_by("role", role.id):
        raise Conflict(f"{mappings} group mappings give this role; delete them first (`group-mapping list`)")
    return Plan(summary=f"delete role {role.name}", changes=(remove(role),), undo="create the role again")


def _must_manage(ask: Ask, role: CustomRole) -> None:
    if not ask.caller.is_platform and role.project_id != ask.caller.project_id:
        raise Forbidden("this role is for the whole cloud; only its administrators change it")
    nobody_gives_more(ask, ask.view(Permissions).in_a_project(role.permissions))


def _check_name(name: str) -> None:
    if name in set(Role):
        raise Conflict(f"{name} is a built-in role", fields={"name": "taken"})


def _checked(ask: Ask, wanted: Sequence[str]) -> tuple[str, ...]:
    known = ask.view(Permissions)
    if wrong := known.wrong(wanted, within=Role.ADMIN):
        raise Invalid(
            "some permissions are none that a role can have",
            fields={f"permissions.{wanted.index(pattern)}": f"{pattern}: {why}" for pattern, why in wrong.items()},
        )
    patterns = tuple(sorted(set(wanted)))
    nobody_gives_more(ask, known.in_a_project(patterns))
    return patterns


def _built_in(ask: Ask, role: Role) -> ShownRole:
    return ShownRole(
        id=role,
        name=role,
        description=_ABOUT[role],
        project_id="",
        permissions=sorted(ask.view(Permissions).of_role(role)),
        built_in=True,
    )


def _custom(role: CustomRole) -> ShownRole:
    return ShownRole(
        id=role.id,
        name=role.name,
        description=role.description,
        project_id=role.project_id,
        permissions=role.permissions,
        built_in=False,
    )
