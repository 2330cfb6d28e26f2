"""What one may do with second factors: enrol one, confirm it, take it away, and say who must have one."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from pydantic import Field

from pileus.cloud.identity.factors import confirmed, spent
from pileus.cloud.identity.leaving import without_token
from pileus.cloud.identity.model import (
    POLICIES,
    POLICY_ID,
    SECOND_FACTORS,
    TOKENS,
    USERS,
    Policy,
    SecondFactor,
    SecondFactorPolicy,
    User,
)
from pileus.cloud.identity.operations.users import users
from pileus.cloud.identity.rights import nobody_manages_their_betters, not_by_a_token_with_a_scope
from pileus.cloud.identity.sealing import Sealer
from pileus.cloud.identity.totp import new_recovery_codes, new_secret, recovery_hash, uri
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import Conflict, NotFound
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Wire
from pileus.state.state import Change, put, remove

ISSUER = "Pileus"

Code = Annotated[str, Field(min_length=6, max_length=40)]


class CodeShown(Wire):
    code: Code
    """What the authenticator shows."""


class FactorRemove(Wire):
    code: Code | None = None
    """What the authenticator shows, or a recovery code; not for an administrator who removes another user's."""


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What an authenticator must be told, shown this once."""

    secret: str
    """In Base32, to be typed."""
    uri: str
    """The same as `otpauth://`, to be shown as a QR code."""


class RecoveryCodes(msgspec.Struct, frozen=True, kw_only=True):
    """Codes for when the authenticator is lost, good once each, shown this once."""

    recovery_codes: Sequence[str]


@users.special("POST", "/{id}/enrol-second-factor", least=Role.READER, answers=Enrolment)
async def enrol_second_factor(exchange: Exchange, user: User) -> Answer:
    """Begin with a second factor (TOTP) for oneself: get the secret for an authenticator, then confirm with a code."""
    ask = exchange.ask
    _own(ask, user)
    before = ask.state[SECOND_FACTORS].find(user.id)
    if before is not None and before.confirmed:
        raise Conflict("you have a second factor; remove it first")
    sealer: Sealer = exchange.services[Sealer]
    secret = new_secret()
    factor = SecondFactor(
        id=user.id,
        created_at=ask.now,
        revision=before.revision if before is not None else 0,
        sealed_secret=sealer.seal(secret, of=user.id),
    )
    await exchange.commit(Plan(summary="enrol a second factor", changes=(put(factor),)))
    enrolment = Enrolment(secret=secret, uri=uri(secret, user=_called(ask, user), issuer=ISSUER))
    return Answer(status=200, body=msgspec.json.encode(enrolment))


@users.special("POST", "/{id}/confirm-second-factor", least=Role.READER, answers=RecoveryCodes)
async def confirm_second_factor(exchange: Exchange, user: User, wish: CodeShown) -> Answer:
    """Confirm the second factor with a code: from now on signing in takes one. Other sessions end."""
    ask = exchange.ask
    _own(ask, user)
    factor = ask.state[SECOND_FACTORS].find(user.id)
    if factor is None or factor.confirmed:
        raise Conflict("there is no second factor to confirm")
    shown = spent(exchange, factor, wish.code)
    codes = new_recovery_codes()
    kept = msgspec.structs.replace(shown, confirmed=True, recovery_hashes=tuple(map(recovery_hash, codes)))
    changes: list[Change] = [put(kept), put(msgspec.structs.replace(ask.state[USERS].get(user.id), second_factor=True))]
    for token in ask.state[TOKENS].by("user", user.id):
        if token.id == ask.caller.token_id:
            changes.append(put(msgspec.structs.replace(token, second_factor=True)))
        elif token.expires_at is not None:
            changes += without_token(ask, token)
    await exchange.commit(Plan(summary="confirm the second factor", changes=changes))
    return Answer(status=200, body=msgspec.json.encode(RecoveryCodes(recovery_codes=codes)))


@users.special("POST", "/{id}/new-recovery-codes", least=Role.READER, answers=RecoveryCodes)
async def new_codes(exchange: Exchange, user: User, wish: CodeShown) -> Answer:
    """Make new recovery codes for oneself; those from before are good for nothing."""
    ask = exchange.ask
    _own(ask, user)
    factor = confirmed(ask.state, user)
    if factor is None:
        raise Conflict("you have no second factor")
    codes = new_recovery_codes()
    kept = msgspec.structs.replace(spent(exchange, factor, wish.code), recovery_hashes=tuple(map(recovery_hash, codes)))
    await exchange.commit(Plan(summary="make new recovery codes", changes=(put(kept),)))
    return Answer(status=200, body=msgspec.json.encode(RecoveryCodes(recovery_codes=codes)))


@users.special("POST", "/{id}/remove-second-factor", least=Role.READER, status=204)
async def remove_second_factor(exchange: Exchange, user: User, wish: FactorRemove) -> Answer:
    """Remove a second factor: one's own, by a code, or, as administrator, that of a user who has lost theirs.

    Other sessions of the user end.
    """
    ask = exchange.ask
    if user.id == ask.caller.user_id:
        not_by_a_token_with_a_scope(ask)
    else:
        nobody_manages_their_betters(ask, user)
    factor = ask.state[SECOND_FACTORS].find(user.id)
    if factor is None:
        raise Conflict(f"user {user.name} has no second factor")
    if user.id == ask.caller.user_id and factor.confirmed:
        spent(exchange, factor, wish.code or "")
    without = msgspec.structs.replace(ask.state[USERS].get(user.id), second_factor=False)
    ended = [
        change
        for token in ask.state[TOKENS].by("user", user.id)
        if token.expires_at is not None and token.id != ask.caller.token_id
        for change in without_token(ask, token)
    ]
    return await exchange.commit(
        Plan(summary=f"remove the second factor of {user.name}", changes=(remove(factor), put(without), *ended))
    )


def _own(ask: Ask, user: User) -> None:
    if user.id != ask.caller.user_id:
        raise NotFound("everybody sees to their own second factor")
    not_by_a_token_with_a_scope(ask)


def _called(ask: Ask, user: User) -> str:
    project = ask.state[PROJECTS].find(user.project_id)
    return f"{user.name}@{project.name}" if project is not None else user.name


class PolicyChange(Wire):
    second_factor: SecondFactorPolicy
    """Who must have one: nobody (`optional`), `administrators` of the cloud, or `everybody`."""


class ShownPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the cloud demands of people."""

    second_factor: SecondFactorPolicy


policy = Noun(
    POLICIES,
    plural="policy",
    columns=("second_factor",),
    about="The policy: what the whole cloud demands of people who sign in.",
    scope="",
)


@policy.special("GET", "", verb="show", least=Role.READER, answers=ShownPolicy)
async def show_policy(exchange: Exchange) -> Answer:
    """Show what the cloud demands of people who sign in."""
    found = exchange.ask.state[POLICIES].find(POLICY_ID)
    wanted = found.second_factor if found is not None else SecondFactorPolicy.OPTIONAL
    return Answer(status=200, body=msgspec.json.encode(ShownPolicy(second_factor=wanted)))


@policy.put("", verb="change", least=Role.PLATFORM)
def change_policy(ask: Ask, wish: PolicyChange) -> Plan:
    """Change what the cloud demands of people: it counts at once, also for who is signed in."""
    before = ask.state[POLICIES].find(POLICY_ID)
    changed = Policy(
        id=POLICY_ID,
        created_at=before.created_at if before is not None else ask.now,
        revision=before.revision if before is not None else 0,
        second_factor=wish.second_factor,
    )
    return Plan(
        summary=f"demand a second factor: {wish.second_factor}",
        changes=(put(changed),),
        answers=changed,
        undo="change it back",
    )
