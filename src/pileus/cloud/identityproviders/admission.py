"""Whom a provider vouches for becomes somebody here: found, made or brought up to date, with what their groups give.

Pure. Somebody is known again by the provider's subject alone. A name is what people may change or inherit, so it leads
to a user only once: to one whom an administrator made for this provider, and who has not signed in yet.
"""

import re
from collections.abc import Iterable

import msgspec
import structlog

from pileus.cloud.identity.model import GRANTS, GROUPS, USER_NAME, USERS, Grant, ProvidedMember, User
from pileus.cloud.identityproviders.model import GROUP_MAPPINGS, IDENTITY_PROVIDERS, GroupMapping, IdentityProvider
from pileus.cloud.identityproviders.port import Person
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import SignInRefused
from pileus.kernel.ids import GroupMappingId, IdentityProviderId, UserId
from pileus.operations.plan import Ask
from pileus.state.state import Change, State, put, remove

log = structlog.stdlib.get_logger()

MOST_PROVIDED = 1000
"""Members that providers may put into one group; a role in a project can be given to any number."""


def admitted(ask: Ask, provider: IdentityProvider, person: Person) -> tuple[User, list[Change]]:
    """The user that this person is, and what has to change for it to be true.

    Raises:
        SignInRefused: they are not to be let in.
    """
    user = known(ask.state, provider, person) or _made(ask, provider, person)
    if not user.enabled:
        raise SignInRefused(f"user {user.name} is disabled here", tried=person.name)
    if not person.enabled:
        raise SignInRefused(f"{provider.name} has disabled {person.name}", tried=person.name)
    return user, followed(ask, provider, user, person)


def known(state: State, provider: IdentityProvider, person: Person) -> User | None:
    """The user that this person is already.

    Raises:
        SignInRefused: their name is somebody else's here, or they were deleted here.
    """
    if (user := state[USERS].one("subject", (provider.id, person.subject))) is not None:
        return user
    name = person.name.lower()
    if (user := state[USERS].one("awaited", (provider.id, name))) is not None:
        return user
    if (other := named_alike(state, provider, name)) is not None:
        raise SignInRefused(f"the name {name} is taken here by {_whose(state, other)}", tried=name)
    if person.subject in provider.turned_away:
        raise SignInRefused(
            f"{name} was deleted here; creating a user of that name for {provider.name} lets them in", tried=name
        )
    return None


def named_alike(state: State, provider: IdentityProvider, name: str) -> User | None:
    """Who would be taken for somebody of this name: also a sub-account, that signs in as `name@project`."""
    users = state[USERS]
    own, _, of = name.rpartition("@")
    project = state[PROJECTS].one("name", of)
    found = (
        users.one("name", (provider.users_project_id, name)),
        users.one("name", ("", name)),
        users.one("name", (project.id, own)) if project is not None else None,
    )
    return next((user for user in found if user is not None), None)


def _whose(state: State, user: User) -> str:
    if user.provider_id is None:
        return "a local user"
    return f"somebody else of {state[IDENTITY_PROVIDERS].get(user.provider_id).name}"


def _made(ask: Ask, provider: IdentityProvider, person: Person) -> User:
    name = person.name.lower()
    if not provider.makes_users:
        raise SignInRefused(f"there is no user {name} of {provider.name}, which makes none by itself", tried=name)
    if not re.fullmatch(USER_NAME, name):
        raise SignInRefused(f"{provider.name} calls them {name[:64]!r}, which cannot be a user's name here", tried=name)
    return User(
        id=ask.new_id(),
        created_at=ask.now,
        name=name,
        project_id=provider.users_project_id,
        provider_id=IdentityProviderId(provider.id),
        subject=person.subject,
    )


def followed(ask: Ask, provider: IdentityProvider, user: User, person: Person) -> list[Change]:
    """What has to change for a user to be what the provider says of this person, and to have what that gives."""
    today = msgspec.structs.replace(
        user,
        name=_name(ask.state, provider, user, person),
        subject=person.subject,
        display_name=person.display_name[:255],
        mail=person.mail[:255],
        barred=not person.enabled,
    )
    changes = [put(today)] if today != user or not user.revision else []
    groups = {provider.group(name) for name in person.groups}
    given = [
        mapping
        for mapping in ask.state[GROUP_MAPPINGS].by("provider", provider.id)
        if provider.group(mapping.external_group) in groups
    ]
    return [*changes, *_roles(ask, user, given), *_memberships(ask.state, user, given)]


def _name(state: State, provider: IdentityProvider, user: User, person: Person) -> str:
    """What they are called now, unless somebody else is called so here."""
    name = person.name.lower()
    taken = state[USERS].one("name", (user.project_id, name)) or named_alike(state, provider, name)
    return name if taken is None and re.fullmatch(USER_NAME, name) else user.name


def _roles(ask: Ask, user: User, given: Iterable[GroupMapping]) -> list[Change]:
    wanted = {
        GroupMappingId(each.id): each
        for each in given
        if each.group_id is None and user.project_id in ("", each.project_id)
    }
    found = {grant.mapping_id: grant for grant in ask.state[GRANTS].by("user", user.id) if grant.mapping_id is not None}
    changes = [remove(grant) for id, grant in found.items() if id not in wanted]
    return changes + [
        put(
            Grant(
                id=ask.new_id(),
                created_at=ask.now,
                project_id=mapping.project_id,
                user_id=UserId(user.id),
                role=mapping.role,
                role_id=mapping.role_id,
                mapping_id=id,
            )
        )
        for id, mapping in wanted.items()
        if id not in found
    ]


def _memberships(state: State, user: User, given: Iterable[GroupMapping]) -> list[Change]:
    wanted = {(each.group_id, each.id) for each in given if each.group_id is not None}
    changes: list[Change] = []
    for id in dict.fromkeys([*(group for group, _ in wanted), *state[GROUPS].ids_by("user", user.id)]):
        group = state[GROUPS].get(id)
        mappings = sorted(mapping for of, mapping in wanted if of == id and user.project_id in ("", group.project_id))
        others = [each for each in group.provided if each.user_id != user.id]
        if len(others) + len(mappings) > MOST_PROVIDED:
            log.warning("group is full", group=group.id, user=user.id, most=MOST_PROVIDED)
            mappings = []
        own = [ProvidedMember(user_id=UserId(user.id), mapping_id=GroupMappingId(each)) for each in mappings]
        if own != [each for each in group.provided if each.user_id == user.id]:
            changes.append(put(msgspec.structs.replace(group, provided=(*others, *own))))
    return changes
