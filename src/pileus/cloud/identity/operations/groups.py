"""What one may do with groups of users."""

from collections.abc import Iterable
from typing import Annotated

import msgspec
from pydantic import Field

from pileus.cloud.identity.model import GRANTS, GROUPS, USERS, Group
from pileus.cloud.identity.rights import nobody_gives_more, permitted
from pileus.cloud.identityproviders.model import GROUP_MAPPINGS
from pileus.cloud.images.model import IMAGE_SHARES
from pileus.kernel.errors import Conflict, Forbidden, NotFound
from pileus.kernel.ids import ProjectId, UserId
from pileus.operations.caller import Role
from pileus.operations.declare import Noun
from pileus.operations.permissions import Permissions
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Name, Wire, ref
from pileus.state.state import put, remove

MOST_MEMBERS = 1000


class GroupCreate(Wire):
    name: Name
    description: Description = ""
    everywhere: bool = False
    """Of the whole cloud, not of a project; for administrators of the cloud."""


class GroupChange(Wire):
    name: Name | None = None
    description: Description | None = None


class GroupMembers(Wire):
    user_ids: Annotated[list[Annotated[Id, ref("user")]], Field(min_length=1, max_length=100)]


def _visible(ask: Ask, group: Group) -> bool:
    """A project's groups are seen in it, and every group by its members."""
    own = group.project_id == ask.caller.project_id
    return ask.caller.is_platform or own or ask.caller.user_id in group.member_ids


groups = Noun(
    GROUPS,
    plural="groups",
    columns=("name", "description", "project_id", "user_ids"),
    about="Groups: users who are given roles, and shown things, together.",
    visible=_visible,
    scope="",
)
groups.list(filters=("name", "project_id"), sorts=("name",))
groups.show()


@groups.post(least=Role.ADMIN)
def create(ask: Ask, wish: GroupCreate) -> Plan:
    """Create a group."""
    if wish.everywhere and not ask.caller.is_platform:
        raise Forbidden(
            "only administrators of the cloud make groups for all of it", fields={"everywhere": "not allowed"}
        )
    group = Group(
        id=ask.new_id(),
        created_at=ask.now,
        name=wish.name,
        description=wish.description,
        project_id=ProjectId("") if wish.everywhere else ask.caller.project_id,
    )
    return Plan(summary=f"create group {wish.name}", changes=(put(group),), answers=group, undo="delete the group")


@groups.patch(least=Role.ADMIN)
def change(ask: Ask, group: Group, wish: GroupChange) -> Plan:
    """Rename a group, or describe it."""
    _must_manage(ask, group)
    changed = msgspec.structs.replace(group, **wish.model_dump(exclude_none=True))
    return Plan(summary=f"change group {group.name}", changes=(put(changed),), answers=changed, undo="change it back")


@groups.post("/{id}/add", least=Role.ADMIN)
def add(ask: Ask, group: Group, wish: GroupMembers) -> Plan:
    """Add users to a group: they have its roles, and see what is shown to it, from now on."""
    _must_manage(ask, group)
    for id in wish.user_ids:
        user = ask.state[USERS].find(id)
        if user is None or (user.project_id and user.project_id != group.project_id):
            raise NotFound(f"there is no user {id}", fields={"user_ids": f"{id} not found"})
    return _with_members(ask, group, [*group.user_ids, *map(UserId, wish.user_ids)], undo="remove them")


@groups.post("/{id}/remove", verb="remove", least=Role.ADMIN)
def remove_members(ask: Ask, group: Group, wish: GroupMembers) -> Plan:
    """Remove users from a group: what they had by it they have no longer."""
    _must_manage(ask, group)
    if provided := set(wish.user_ids) & set(group.provided_user_ids):
        raise Conflict(
            "an identity provider puts them into this group: take them out of theirs, or the mapping away",
            fields={"user_ids": ", ".join(sorted(provided))},
        )
    return _with_members(ask, group, [id for id in group.user_ids if id not in wish.user_ids], undo="add them again")


@groups.delete(least=Role.ADMIN)
def delete(ask: Ask, group: Group) -> Plan:
    """Delete a group, with its roles. Its members stay what they are otherwise."""
    _must_manage(ask, group)
    changes = [remove(group), *(remove(grant) for grant in ask.state[GRANTS].by("group", group.id))]
    changes += [remove(share) for share in ask.state[IMAGE_SHARES].by("to_group", group.id)]
    changes += [remove(mapping) for mapping in ask.state[GROUP_MAPPINGS].by("group", group.id)]
    return Plan(summary=f"delete group {group.name}", changes=changes, undo="none: who was in it is forgotten")


def _with_members(ask: Ask, group: Group, members: Iterable[UserId], *, undo: str) -> Plan:
    user_ids = tuple(dict.fromkeys(members))
    if len(user_ids) > MOST_MEMBERS:
        raise Conflict(f"a group has at most {MOST_MEMBERS} members", fields={"user_ids": "too many"})
    changed = msgspec.structs.replace(group, user_ids=user_ids)
    return Plan(
        summary=f"make group {group.name} one of {len(user_ids)} users",
        changes=(put(changed),) if changed != group else (),
        answers=changed,
        undo=undo,
    )


def _must_manage(ask: Ask, group: Group) -> None:
    """A group is managed by its project's administrators, as far as their own rights go; else by those of the cloud."""
    if not ask.caller.is_platform and group.project_id != ask.caller.project_id:
        raise Forbidden("this group belongs to somebody else: you are only a member of it")
    permissions = ask.view(Permissions)
    for grant in ask.state[GRANTS].by("group", group.id):
        nobody_gives_more(ask, permitted(ask.state, permissions, grant))
