"""What goes with a user, a token, a role, a group: what it takes for one to be no more."""

from collections.abc import Iterable, Sequence

import msgspec

from pileus.cloud.identity.model import (
    GRANTS,
    GROUPS,
    PASSWORDS,
    SECOND_FACTORS,
    TOKEN_SECRETS,
    TOKENS,
    USERS,
    Token,
    User,
)
from pileus.cloud.identityproviders.model import GROUP_MAPPINGS, GroupMapping
from pileus.cloud.keypairs.model import KEYPAIRS
from pileus.kernel.ids import ProjectId
from pileus.operations.plan import Ask
from pileus.state.state import Change, put, remove


def without_token(ask: Ask, token: Token) -> list[Change]:
    """What it takes for a token to be no more."""
    secret = ask.state[TOKEN_SECRETS].find(token.id)
    return [remove(token)] if secret is None else [remove(token), remove(secret)]


def without_users(ask: Ask, users: Sequence[User]) -> list[Change]:
    """What it takes for users to be no more: with them go their rights, and what is theirs alone."""
    changes = [change for user in users for change in _what_is_theirs(ask, user)]
    gone = {user.id for user in users}
    for id in dict.fromkeys(id for user in users for id in ask.state[GROUPS].ids_by("user", user.id)):
        group = ask.state[GROUPS].get(id)
        rest = tuple(each for each in group.user_ids if each not in gone)
        provided = tuple(each for each in group.provided if each.user_id not in gone)
        changes.append(put(msgspec.structs.replace(group, user_ids=rest, provided=provided)))
    return changes


def _what_is_theirs(ask: Ask, user: User) -> list[Change]:
    state = ask.state
    changes: list[Change] = [remove(user)]
    if (password := state[PASSWORDS].find(user.id)) is not None:
        changes.append(remove(password))
    if (factor := state[SECOND_FACTORS].find(user.id)) is not None:
        changes.append(remove(factor))
    changes += [remove(grant) for grant in state[GRANTS].by("user", user.id)]
    changes += [remove(keypair) for keypair in state[KEYPAIRS].by("user", user.id)]
    for token in state[TOKENS].by("user", user.id):
        changes += without_token(ask, token)
    return changes


def without_mapping(ask: Ask, mapping: GroupMapping) -> list[Change]:
    """What it takes for a mapping to be no more: with it go the roles and memberships that it has given."""
    changes: list[Change] = [remove(mapping)]
    changes += [remove(grant) for grant in ask.state[GRANTS].by("mapping", mapping.id)]
    for group in ask.state[GROUPS].by("mapping", mapping.id):
        provided = tuple(each for each in group.provided if each.mapping_id != mapping.id)
        changes.append(put(msgspec.structs.replace(group, provided=provided)))
    return changes


def with_a_project(ask: Ask, project: ProjectId) -> list[Change]:
    """What of people goes with a project besides its grants, groups, roles and tokens: the users who belong to it."""
    state = ask.state
    changes = without_users(ask, state[USERS].by("project", project))
    for group in state[GROUPS].by("project", project):
        changes += [remove(mapping) for mapping in state[GROUP_MAPPINGS].by("group", group.id)]
    changes += [
        remove(secret)
        for token in state[TOKENS].by("project", project)
        if (secret := state[TOKEN_SECRETS].find(token.id)) is not None
    ]
    return changes


def each_once(changes: Iterable[Change]) -> list[Change]:
    """The same changes without those of a record that another one removes, and with each removal once."""
    found: dict[tuple[type, str], Change] = {}
    for change in changes:
        key = type(change.record), change.record.id
        if key not in found or change.removes:
            found[key] = change
    return list(found.values())
