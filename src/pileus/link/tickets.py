"""Tickets: a short-lived permission for one host to do one thing to one resource, shown to whoever serves the bytes.

The controller makes a ticket and hands it to the host that is to fetch or send; the one that serves checks it with the
key they share and asks nobody. A ticket is signed (HMAC-SHA256), not secret to its bearer, and no use to another host.
"""

import base64
import hashlib
import hmac
from datetime import timedelta
from typing import Final

import msgspec

from pileus.kernel.clock import Clock
from pileus.kernel.errors import Forbidden
from pileus.kernel.ids import HostId

_LONGEST: Final = 4096


class _Permission(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    purpose: str
    resource: str
    host: HostId
    expires: int


class Tickets:
    """Makes and checks tickets with one key, which only the controller and the side that serves may know."""

    def __init__(self, key: bytes, clock: Clock) -> None:
        self._key = key
        self._clock = clock

    def issue(self, purpose: str, resource: str, host: HostId, *, lasts: timedelta) -> str:
        """A ticket: URL-safe text."""
        expires = int((self._clock.now() + lasts).timestamp())
        said = _text(msgspec.json.encode(_Permission(purpose, resource, host, expires)))
        return f"{said}.{self._sign(said)}"

    def check(self, ticket: str, purpose: str, resource: str, host: HostId) -> None:
        """Accept a ticket that was made for exactly this, by this host, and is not over.

        Raises:
            Forbidden: anything else; the caller is not told which, the log is.
        """
        wanted = _Permission(purpose, resource, host, 0)
        granted = self._read(ticket)
        if msgspec.structs.replace(granted, expires=0) != wanted:
            raise Forbidden("the ticket is not valid", internal=f"it is for {granted}, {wanted} was asked")
        if self._clock.now().timestamp() >= granted.expires:
            raise Forbidden("the ticket is not valid", internal=f"it is over: {granted}")

    def _read(self, ticket: str) -> _Permission:
        said, _, signature = ticket[:_LONGEST].partition(".")
        # As bytes: text that is not ASCII cannot be compared in constant time.
        if not hmac.compare_digest(signature.encode(), self._sign(said).encode()):
            raise Forbidden("the ticket is not valid", internal="its signature is not ours")
        return msgspec.json.decode(_bytes(said), type=_Permission)

    def _sign(self, said: str) -> str:
        return _text(hmac.digest(self._key, said.encode(), hashlib.sha256))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
