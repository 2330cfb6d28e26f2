"""One-time join tokens: what a person carries to a new host, so that host and controller can trust each other.

A token holds the fingerprint of the cloud's CA (the host trusts no one else) and a secret (the controller lets its
bearer in, once). It is `pileus1.` and 80 characters of URL-safe base64: fingerprint, secret, and a checksum that tells
a typing mistake from a token that is used up.
"""

import base64
import hashlib
import hmac
import secrets
import zlib
from typing import Final

import msgspec

from pileus.kernel.errors import Invalid

_PREFIX: Final = "pileus1."
_SECRET_BYTES: Final = 24
_CHECKSUM_BYTES: Final = 4
_FINGERPRINT: Final = "sha256:"


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """A join token taken apart; `str()` puts it together."""

    authority: str
    """The fingerprint of the CA that the controller's certificate must come from: `sha256:…`."""
    secret: str
    """What shows the controller that its bearer was let in: hexadecimal digits."""

    def __str__(self) -> str:
        body = bytes.fromhex(self.authority.removeprefix(_FINGERPRINT)) + bytes.fromhex(self.secret)
        return _PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode()


def new_token(authority: str) -> JoinToken:
    """A fresh token for the cloud whose CA has this fingerprint (`sha256:…`)."""
    return JoinToken(authority=authority, secret=secrets.token_hex(_SECRET_BYTES))


def read_token(text: str) -> JoinToken:
    """Take a token apart.

    Raises:
        Invalid: it is cut short, mistyped, or no join token at all.
    """
    text = text.strip()
    if not text.startswith(_PREFIX):
        raise Invalid(f"a join token begins with {_PREFIX}", fields={"token": "not a join token"})
    try:
        whole = base64.b64decode(text.removeprefix(_PREFIX).encode(), altchars=b"-_", validate=True)
    except ValueError as garbled:
        raise Invalid("the join token has a typing mistake", fields={"token": "mistyped"}) from garbled
    body, checksum = whole[:-_CHECKSUM_BYTES], whole[-_CHECKSUM_BYTES:]
    if len(body) != hashlib.sha256().digest_size + _SECRET_BYTES or _checksum(body) != checksum:
        raise Invalid("the join token has a typing mistake", fields={"token": "mistyped"})
    authority, secret = body[:-_SECRET_BYTES], body[-_SECRET_BYTES:]
    return JoinToken(authority=_FINGERPRINT + authority.hex(), secret=secret.hex())


def hashed(secret: str) -> str:
    """What is stored of a secret. It has 192 random bits: a slow hash would add nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, stored: str) -> bool:
    """Whether a secret is the one stored as a hash; takes the same time either way."""
    return hmac.compare_digest(hashed(secret), stored)


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(_CHECKSUM_BYTES)
