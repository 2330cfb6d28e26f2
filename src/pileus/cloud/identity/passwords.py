"""Passwords: hashed with Argon2id (RFC 9106), checked at the same cost whether the user exists or not."""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from pileus.kernel.errors import TooMany

_FAILURES_ALLOWED = 10
_WITHIN_S = 60.0
_SOURCES_REMEMBERED = 10_000

_hasher = PasswordHasher()  # the library's defaults are RFC 9106's second recommended option
_aside = ThreadPoolExecutor(2, "passwords")
"""Each check takes 64 MiB for a moment: a flood of guesses must not take the controller's memory."""


def hashed(password: str) -> str:
    return _hasher.hash(password)


async def hashed_aside(password: str) -> str:
    """The same beside the loop: what everybody may ask for must not hold all others up."""
    return await asyncio.get_running_loop().run_in_executor(_aside, hashed, password)


async def fits(password: str, hash: str | None) -> bool:
    """Whether this is the password; as slow for a user who does not exist (None) as for one who does."""
    return await asyncio.get_running_loop().run_in_executor(_aside, _verify, password, hash)


def _verify(password: str, hash: str | None) -> bool:
    nobodys = _nobodys()  # also for a user who exists: the first of all checks takes longer, whoever it is for
    try:
        _hasher.verify(hash or nobodys, password)
    except (VerifyMismatchError, VerificationError, InvalidHashError):
        return False
    return hash is not None


@cache
def _nobodys() -> str:
    return _hasher.hash(secrets.token_urlsafe(16))


class Guesses:
    """Counts failures, and refuses whoever has too many: per source address, and per user name.

    A guess counts as a failure from its beginning, so that many at once are no way around.
    """

    allowed = _FAILURES_ALLOWED
    within_s = _WITHIN_S

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._failures: dict[str, deque[float]] = {}

    def begin(self, *whose: str) -> None:
        """Count a guess. Raises TooMany, and counts nothing then."""
        for who in whose:
            recent = self._recent(who)
            if len(recent) >= self.allowed:
                wait = self.within_s - (self._monotonic() - recent[0])
                raise TooMany(f"too many failures; try again in {wait:.0f} s")

        for who in whose:
            if len(self._failures) >= _SOURCES_REMEMBERED:
                del self._failures[next(iter(self._failures))]
            self._failures.setdefault(who, deque(maxlen=self.allowed)).append(self._monotonic())

    def right(self, *whose: str) -> None:
        """A guess that was begun was right: it is not held against anybody."""
        for who in whose:
            if failures := self._failures.get(who):
                failures.pop()

    def _recent(self, who: str) -> deque[float]:
        failures = self._failures.get(who, deque[float]())
        while failures and self._monotonic() - failures[0] > self.within_s:
            failures.popleft()
        if not failures:
            self._failures.pop(who, None)
        return failures
