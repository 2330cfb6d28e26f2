"""Signing in that has begun in a browser and is not over: kept in memory, for a few minutes, each known by a secret."""

import secrets
from datetime import datetime, timedelta

import msgspec

from pileus.cloud.identityproviders.port import Person, SignInRequest
from pileus.kernel.clock import Clock
from pileus.kernel.errors import TooMany
from pileus.kernel.ids import IdentityProviderId

GOOD_FOR = timedelta(minutes=10)
OPEN_AT_MOST = 10_000
OPEN_FROM_ONE_SOURCE = 20


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt."""

    provider_id: IdentityProviderId
    """Of the provider that it began with: an answer by another is none."""
    request: SignInRequest
    source: str
    until: datetime
    person: Person | None = None
    """Who it is, once the provider has said so and only a second factor is missing."""


class Attempts:
    """All that are under way. Each is taken once; what is not over with it is put back."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[str, Attempt] = {}

    def begin(self, provider: IdentityProviderId, redirect_uri: str, source: str) -> tuple[str, Attempt]:
        """A new attempt, with the secret by which whoever began it is known.

        Raises:
            TooMany: too many are under way.
        """
        now = self._clock.now()
        self._open = {secret: each for secret, each in self._open.items() if each.until > now}
        from_there = sum(each.source == source for each in self._open.values())
        if len(self._open) >= OPEN_AT_MOST or from_there >= OPEN_FROM_ONE_SOURCE:
            raise TooMany("too many are signing in; try again in some minutes")
        request = SignInRequest(
            redirect_uri=redirect_uri,
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(48),
        )
        attempt = Attempt(provider_id=provider, request=request, source=source, until=now + GOOD_FOR)
        secret = secrets.token_urlsafe(32)
        self._open[secret] = attempt
        return secret, attempt

    def take(self, secret: str) -> Attempt | None:
        """The attempt that is known by this; None if there is none, or no longer."""
        attempt = self._open.pop(secret, None)
        return attempt if attempt is not None and attempt.until > self._clock.now() else None

    def put_back(self, secret: str, attempt: Attempt, person: Person) -> None:
        """Somebody has shown who they are, and must show something else."""
        self._open[secret] = msgspec.structs.replace(attempt, person=person)
