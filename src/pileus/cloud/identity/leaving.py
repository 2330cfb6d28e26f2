"""What goes with a user, a token, a role, a group: what it takes for one to be no more."""

from collections.abc import Iterable

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
from pileus.cloud.keypairs.model import KEYPAIRS
from pileus.kernel.ids import ProjectId
from pileus.operations.plan import Ask
from pileus.state.state import Change, put, remove


def without_token(ask: Ask, token: Token) -> list[Change]:
    """What it takes for a token to be no more."""
    secret = ask.state[TOKEN_SECRETS].find(token.id)
    return [remove(token)] if secret is None else [remove(token), remove(secret)]


def without_user(ask: Ask, user: User) -> list[Change]:
    """What it takes for a user to be no more: with them go their rights, and what is theirs alone."""
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
    for group in state[GROUPS].by("user", user.id):
        rest = tuple(each for each in group.user_ids if each != user.id)
        changes.append(put(msgspec.structs.replace(group, user_ids=rest)))
    return changes


def with_a_project(ask: Ask, project: ProjectId) -> list[Change]:
    """What of people goes with a project besides its grants, groups, roles and tokens: the users who belong to it."""
    state = ask.state
    changes = [change for user in state[USERS].by("project", project) for change in without_user(ask, user)]
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
