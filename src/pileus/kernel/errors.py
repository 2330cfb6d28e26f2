"""Everything that can go wrong on purpose.

* PileusError
  - Invalid              400  the request itself is wrong; carries every field at fault
  - Unauthenticated      401  we do not know who is asking
    - SecondFactorRequired 401  the password was right; a code is missing
    - SignInRefused      401  the same to the caller whatever the reason; the audit has it
  - Forbidden            403  we do, and they may see it but not do this
    - QuotaExceeded      403  the project's quota is used up
  - NotFound             404  also when the caller may not know it exists
  - Conflict             409  the state of the resource forbids it now
  - Stale                412  somebody else changed it first: read, decide, retry
  - TooLarge             413  the body is larger than any request needs to be
  - TooMany              429  too many requests from this caller
  - Unavailable          503  a part of the cloud is down; the only one worth retrying
    - TimedOut           503  a part of the cloud did not answer in time
  - NoCapacity           507  no host fits; carries the reason per host
  - NoRoom               507  the controller's disk is full

Anything else that escapes is a bug: 500, logged with its chain, told to nobody.
"""

from collections.abc import Mapping
from typing import ClassVar


class PileusError(Exception):
    """An error with something to say to the caller (`detail`, `fields`) and something for the log (`internal`)."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        /,
        *,
        internal: str = "",
        fields: Mapping[str, str] | None = None,
        because: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        """What the caller may read."""
        self.internal = internal
        """What only the log may read."""
        self.fields = dict(fields or {})
        """Every field at fault, with what is wrong with it."""
        self.because = dict(because or {})
        """The reasons, by what they are about: per host why it will not do."""


class Invalid(PileusError):
    status, code, title = 400, "invalid", "The request is wrong"


class Unauthenticated(PileusError):
    status, code, title = 401, "unauthenticated", "Not signed in"


class SecondFactorRequired(Unauthenticated):
    code, title = "second-factor-required", "A code is missing"


class SignInRefused(Unauthenticated):
    """Somebody is not let in. A stranger learns nothing of the reason, `why`; the audit does."""

    def __init__(self, why: str = "", /, *, tried: str = "", detail: str = "user name or password is wrong") -> None:
        super().__init__(detail, internal=tried)
        self.why = why


class Forbidden(PileusError):
    status, code, title = 403, "forbidden", "Not allowed"


class QuotaExceeded(Forbidden):
    code, title = "quota-exceeded", "The quota is used up"


class NotFound(PileusError):
    status, code, title = 404, "not-found", "No such resource"


class Conflict(PileusError):
    status, code, title = 409, "conflict", "Not possible in the present state"


class Stale(PileusError):
    status, code, title = 412, "stale", "Changed since it was read"


class TooLarge(PileusError):
    status, code, title = 413, "too-large", "The request is too large"


class TooMany(PileusError):
    status, code, title = 429, "too-many", "Too many requests"


class Unavailable(PileusError):
    status, code, title, retryable = 503, "unavailable", "Temporarily unavailable", True


class TimedOut(Unavailable):
    code, title = "timed-out", "No answer in time"


class NoCapacity(PileusError):
    status, code, title = 507, "no-capacity", "No host fits"


class NoRoom(PileusError):
    status, code, title = 507, "no-room", "No room left"


def error_class(code: str) -> type[PileusError]:
    """The class for an error's code, as it arrives from another process; PileusError itself for a stranger."""
    return next((each for each in _descendants(PileusError) if each.code == code), PileusError)


def _descendants(of: type[PileusError]) -> list[type[PileusError]]:
    return [found for child in of.__subclasses__() for found in (child, *_descendants(child))]
