"""The second factor of users: whether one is demanded, and whether a code is theirs."""

import msgspec

from pileus.cloud.identity.model import POLICIES, POLICY_ID, SECOND_FACTORS, SecondFactor, SecondFactorPolicy, User
from pileus.cloud.identity.passwords import Guesses
from pileus.cloud.identity.sealing import Sealer
from pileus.cloud.identity.totp import DIGITS, recovery_hash, step_of
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import Forbidden, Unauthenticated
from pileus.kernel.ids import ProjectId
from pileus.operations.declare import Exchange
from pileus.state.state import State

ENROLMENT = frozenset(
    {
        "token.current",
        "token.delete",
        "token.list",
        "token.show",
        "user.confirm_second_factor",
        "user.enrol_second_factor",
        "user.list",
        "user.show",
    }
)
"""What one may do without a second factor where one is demanded: get one."""


class SecondFactorGuesses(Guesses):
    """Counts wrong codes of users: five within fifteen minutes, for six digits are soon guessed by who may go on."""

    allowed = 5
    within_s = 900.0


def is_demanded(state: State, user: User, project: ProjectId) -> bool:
    """Whether this user needs a second factor to work in this project."""
    policy = state[POLICIES].find(POLICY_ID)
    wanted = policy.second_factor if policy is not None else SecondFactorPolicy.OPTIONAL
    if wanted is SecondFactorPolicy.EVERYBODY or (wanted is SecondFactorPolicy.ADMINISTRATORS and user.is_platform):
        return True
    found = state[PROJECTS].find(project)
    return found is not None and found.requires_second_factor


def confirmed(state: State, user: User) -> SecondFactor | None:
    """The user's second factor, if they have shown that they have it."""
    factor = state[SECOND_FACTORS].find(user.id)
    return factor if factor is not None and factor.confirmed else None


def spent(exchange: Exchange, factor: SecondFactor, code: str) -> SecondFactor:
    """The factor as it is when this code has been used: good once.

    To be committed without anything in between, or the code could be used twice.

    Raises:
        Unauthenticated: the code is wrong, too old, or used already; Forbidden, if the caller is signed in.
        TooMany: too many were wrong.
    """
    guesses: SecondFactorGuesses = exchange.services[SecondFactorGuesses]
    who = f"user:{factor.id}"
    guesses.begin(who)
    after = _by_clock(exchange, factor, code) if len(code) == DIGITS and code.isdecimal() else _by_paper(factor, code)
    if after is None:
        wrong = "the code is wrong, or was used already"
        raise Forbidden(wrong) if exchange.caller.user_id else Unauthenticated(wrong)
    guesses.right(who)
    return after


def _by_clock(exchange: Exchange, factor: SecondFactor, code: str) -> SecondFactor | None:
    sealer: Sealer = exchange.services[Sealer]
    secret = sealer.open(factor.sealed_secret, of=factor.id)
    step = step_of(secret, code, now=exchange.ask.now, after=factor.last_step)
    return msgspec.structs.replace(factor, last_step=step) if step is not None else None


def _by_paper(factor: SecondFactor, code: str) -> SecondFactor | None:
    hash = recovery_hash(code)
    if hash not in factor.recovery_hashes:
        return None
    rest = tuple(each for each in factor.recovery_hashes if each != hash)
    return msgspec.structs.replace(factor, recovery_hashes=rest)
