"""What was refused, for the audit: attempts to sign in, and operations that somebody may not do.

Each is told to the log once; what is repeated within a minute is counted and told when the minute is over. So a flood
of attempts is seen as what it is, and cannot fill the disk.
"""

from collections.abc import Callable

import msgspec

from pileus.kernel.errors import Forbidden, PileusError, SignInRefused, TooMany, Unauthenticated
from pileus.operations.caller import Caller
from pileus.operations.declare import Operation
from pileus.state.state import Origin, State
from pileus.state.store import REFUSAL

REFUSED = (Unauthenticated, Forbidden, TooMany)
"""The errors that say: not you, or not now. What is merely wrong, or not there, is no attempt on anything."""

MOST_A_MINUTE = 100
"""Different attempts that are told apart; those beyond are counted together."""
_MINUTE_S = 60.0
_LONGEST = 64


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """What the log keeps of a refusal."""

    code: str
    detail: str
    tried: str = ""
    """As whom, of somebody who was not let in."""
    why: str = ""
    """The reason, where whoever tried was not told it."""
    times: int = 1


class _Attempt(msgspec.Struct, frozen=True):
    """What makes two attempts the same."""

    origin: Origin
    project: str
    target: str
    refused: Refused


class Refusals:
    """Tells refusals to the log."""

    def __init__(self, state: State, monotonic: Callable[[], float]) -> None:
        self._state = state
        self._monotonic = monotonic
        self._began = monotonic()
        self._repeated: dict[_Attempt, int] = {}

    def note(self, operation: Operation, caller: Caller, target: str, error: PileusError) -> None:
        """Tell of a refusal, or count it."""
        if not isinstance(error, REFUSED):
            return
        if self._monotonic() - self._began >= _MINUTE_S:
            self.tell_of_the_repeated()
        tried = error.internal[:_LONGEST] if operation.least is None else ""
        why = error.why if isinstance(error, SignInRefused) else ""
        attempt = _Attempt(
            Origin(actor=caller.actor if caller.user_id else "nobody", operation=operation.id, source=caller.source),
            caller.project_id,
            target[:_LONGEST],
            Refused(code=error.code, detail=error.detail, tried=tried, why=why),
        )
        if attempt not in self._repeated and len(self._repeated) >= MOST_A_MINUTE:
            attempt = _Attempt(Origin(actor="many", operation="many"), "", "", Refused(code=error.code, detail="many"))
        elif attempt not in self._repeated:
            self._tell(attempt, 1, caller.request)
            self._repeated[attempt] = 0
            return
        self._repeated[attempt] = self._repeated.get(attempt, 0) + 1

    def tell_of_the_repeated(self) -> None:
        """The minute is over: tell how often each attempt was made again."""
        repeated, self._repeated, self._began = self._repeated, {}, self._monotonic()
        for attempt, times in repeated.items():
            if times:
                self._tell(attempt, times)

    def _tell(self, attempt: _Attempt, times: int, request: str = "") -> None:
        refused = msgspec.structs.replace(attempt.refused, times=times)
        origin = msgspec.structs.replace(attempt.origin, request=request)
        self._state.tell(REFUSAL, attempt.target, msgspec.json.encode(refused), origin, project=attempt.project)
