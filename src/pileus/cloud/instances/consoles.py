"""Consoles of instances: the tokens that open one, each good once and for a moment, and the records of open ones.

Tokens are kept in memory, and of each only its hash: whoever loses one, with the controller that gave it, asks for
another. What is kept of a console is that it is open, and with that, in the event log, who was at it and when.
"""

import secrets
from collections import OrderedDict
from datetime import datetime, timedelta
from hashlib import sha256

import msgspec

from pileus.cloud.instances.model import Instance, InstanceState
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Unauthenticated
from pileus.kernel.ids import InstanceId, ProjectId, UserId
from pileus.link.consoles import ConsoleKind
from pileus.operations.caller import Caller
from pileus.state.kinds import Kind
from pileus.state.records import Record

TOKEN_GOOD_FOR = timedelta(seconds=30)
UNUSED_AT_MOST = 16
"""Tokens that a user may have and not have used; asking for more makes the oldest worthless."""

_S = InstanceState
WITH_CONSOLE = frozenset({_S.RUNNING, _S.PAUSED, _S.PAUSING, _S.RESUMING, _S.REBOOTING, _S.STOPPING})
"""The states in which a guest has consoles: as long as there is a guest, whatever is done to it."""


class OpenConsole(Record, frozen=True, kw_only=True):
    """A console that somebody has open; gone when it is closed."""

    project_id: ProjectId
    instance_id: InstanceId
    user_id: UserId
    kind: ConsoleKind


CONSOLES = Kind("console", OpenConsole, indexes={"user": lambda console: console.user_id})


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a token is good for: one user, one instance, one kind of console."""

    caller: Caller
    instance_id: InstanceId
    project_id: ProjectId
    kind: ConsoleKind


class _Given(msgspec.Struct, frozen=True, kw_only=True):
    claim: Claim
    until: float


class ConsoleTokens:
    """The tokens that were given and not used yet."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._given: OrderedDict[str, _Given] = OrderedDict()
        """By hash, the oldest first."""

    def give(self, caller: Caller, instance: Instance, kind: ConsoleKind) -> tuple[str, datetime]:
        """A new token, and until when it is good."""
        self._forget_old(caller.user_id)
        token = secrets.token_urlsafe(32)
        claim = Claim(caller=caller, instance_id=InstanceId(instance.id), project_id=instance.project_id, kind=kind)
        until = self._clock.monotonic() + TOKEN_GOOD_FOR.total_seconds()
        self._given[_hash(token)] = _Given(claim=claim, until=until)
        return token, self._clock.now() + TOKEN_GOOD_FOR

    def redeem(self, token: str, instance: str) -> Claim:
        """Use a token up. Raises Unauthenticated if it is not good, or not for this instance."""
        given = self._given.pop(_hash(token), None)
        if given is None or given.until <= self._clock.monotonic() or given.claim.instance_id != instance:
            raise Unauthenticated("this console's token is not good, or no longer: ask for another")
        return given.claim

    def __len__(self) -> int:
        return len(self._given)

    def _forget_old(self, user: UserId) -> None:
        now = self._clock.monotonic()
        while self._given and next(iter(self._given.values())).until <= now:
            self._given.popitem(last=False)
        own = [hash for hash, given in self._given.items() if given.claim.caller.user_id == user]
        for hash in own[: max(0, len(own) - UNUSED_AT_MOST + 1)]:
            del self._given[hash]


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()
