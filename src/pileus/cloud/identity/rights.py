"""What people may do: the sum of their own roles and of those of their groups, looked up each time that they ask.

So whatever changes (a grant, a membership, a role, a user who is kept out) counts from the next request on.
"""

from collections.abc import Iterable

import msgspec

from pileus.cloud.identity.model import GRANTS, GROUPS, ROLES, USERS, Grant, User
from pileus.cloud.identityproviders.model import IDENTITY_PROVIDERS
from pileus.kernel.errors import Forbidden
from pileus.kernel.ids import ProjectId, UserId
from pileus.operations.caller import Role, highest
from pileus.operations.permissions import Permissions
from pileus.operations.plan import Ask
from pileus.state.state import State


class Rights(msgspec.Struct, frozen=True):
    """What somebody may do in a project."""

    role: Role | None
    """The highest of their built-in roles there."""
    permissions: frozenset[str]
    held_back_by: str = ""
    """Why it is less than what their roles give; empty if it is all of that."""


def rights_in(state: State, permissions: Permissions, user: UserId, project: ProjectId) -> Rights | None:
    """What a user may do in a project; None if nothing."""
    found = state[USERS].find(user)
    return None if found is None or not is_let_in(state, found) else rights_of(state, permissions, found, project)


def is_let_in(state: State, user: User) -> bool:
    """Whether a user may come in at all: not disabled here, and vouched for by a provider that is in use."""
    if user.provider_id is None:
        return user.enabled
    provider = state[IDENTITY_PROVIDERS].get(user.provider_id)
    return user.enabled and provider.enabled and not user.barred


def rights_of(state: State, permissions: Permissions, user: User, project: ProjectId) -> Rights | None:
    """What a user may do in a project, or might if they were let in; None if nothing."""
    if user.project_id not in ("", project):
        return None
    if user.is_platform:
        return Rights(Role.PLATFORM, permissions.of_role(Role.PLATFORM))
    holders = (user.id, *state[GROUPS].ids_by("user", user.id))
    grants = [grant for holder in holders for grant in state[GRANTS].by("place", (holder, project))]
    return rights_by(state, permissions, grants)


def rights_by(state: State, permissions: Permissions, grants: Iterable[Grant]) -> Rights | None:
    """What these grants give together; None if there are none."""
    grants = list(grants)
    if not grants:
        return None
    gives = {permitted(state, permissions, grant) for grant in grants}
    role = highest(grant.role for grant in grants if grant.role is not None)
    return Rights(role, gives.pop() if len(gives) == 1 else frozenset[str]().union(*gives))


def permitted(state: State, permissions: Permissions, grant: Grant) -> frozenset[str]:
    """What one grant permits."""
    if grant.role is not None:
        return permissions.of_role(grant.role)
    role = state[ROLES].find(grant.role_id or "")
    return permissions.in_a_project(role.permissions) if role is not None else frozenset()


def projects_of(state: State, user: UserId) -> list[ProjectId]:
    """The projects in which a user has a role, oldest grant first, their own before those of their groups."""
    own = [grant.project_id for grant in state[GRANTS].by("user", user)]
    groups = state[GROUPS].ids_by("user", user)
    shared = [grant.project_id for group in groups for grant in state[GRANTS].by("group", group)]
    return list(dict.fromkeys([*own, *shared]))


def nobody_gives_more(ask: Ask, permissions: frozenset[str]) -> None:
    """What one gives to others, or takes from them, one must be allowed to do oneself.

    Raises:
        Forbidden: with the permissions that the caller lacks.
    """
    missing = permissions - ask.caller.permissions
    if missing:
        because = dict.fromkeys(sorted(missing), "you do not have this permission")
        raise Forbidden("nobody manages rights that go beyond their own", because=because)


def not_by_a_token_with_a_scope(ask: Ask) -> None:
    """What would be a way from a token with a scope to all that its user may.

    Raises:
        Forbidden: it has one.
    """
    if ask.caller.limited:
        raise Forbidden("this takes a token without a scope: sign in for it")


def nobody_manages_their_betters(ask: Ask, user: User) -> None:
    """Who can set somebody's password, or let them in again, can become them: so they must have all of their rights.

    Raises:
        Forbidden: with the permissions that the caller lacks, or if their token has a scope.
    """
    not_by_a_token_with_a_scope(ask)
    if ask.caller.is_platform:
        return
    theirs = rights_of(ask.state, ask.view(Permissions), user, ask.caller.project_id)
    if theirs is not None:
        nobody_gives_more(ask, theirs.permissions)
