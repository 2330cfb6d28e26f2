"""One-time passwords by the clock (RFC 6238, over RFC 4226), and the codes that stand in for a lost device. Pure."""

import hmac
import secrets
from base64 import b32decode, b32encode
from datetime import datetime
from hashlib import sha256
from urllib.parse import quote, urlencode

DIGITS = 6
STEP_S = 30
RECOVERY_CODES = 10

_SECRET_BYTES = 20
"""As long as the digest (RFC 4226, section 4)."""
_DRIFT = 1
"""Steps that a device's clock may be off, either way (RFC 6238, section 5.2)."""


def new_secret() -> str:
    """160 random bits, in the Base32 that authenticators read."""
    return b32encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def uri(secret: str, *, user: str, issuer: str) -> str:
    """What a QR code for an authenticator holds: the `otpauth` URI."""
    label = quote(f"{issuer}:{user}", safe="")
    return f"otpauth://totp/{label}?" + urlencode(
        {"secret": secret, "issuer": issuer, "algorithm": "SHA1", "digits": DIGITS, "period": STEP_S}, quote_via=quote
    )


def step_at(moment: datetime) -> int:
    """The number of the step that a moment is in."""
    return int(moment.timestamp()) // STEP_S


def code_at(secret: str, step: int) -> str:
    """The code of a step (RFC 4226, section 5.3)."""
    digest = hmac.digest(b32decode(secret), step.to_bytes(8), "sha1")
    place = digest[-1] & 0x0F
    number = int.from_bytes(digest[place : place + 4]) & 0x7FFF_FFFF
    return f"{number % 10**DIGITS:0{DIGITS}d}"


def step_of(secret: str, code: str, *, now: datetime, after: int) -> int | None:
    """The step whose code this is: now's, or one beside it, and later than the last that was used; None if none's.

    A code that was used is used up, and so are those before it: who has seen one cannot show it again.
    """
    today = step_at(now)
    steps = range(max(after + 1, today - _DRIFT), today + _DRIFT + 1)
    fitting = [step for step in steps if hmac.compare_digest(code_at(secret, step).encode(), code.encode())]
    return fitting[0] if fitting else None


def new_recovery_codes() -> list[str]:
    """Codes that are good once each: 80 random bits, so that a plain hash keeps them."""
    texts = (b32encode(secrets.token_bytes(10)).decode().lower() for _ in range(RECOVERY_CODES))
    return ["-".join(text[place : place + 4] for place in range(0, 16, 4)) for text in texts]


def recovery_hash(code: str) -> str:
    """What is kept of a recovery code, however it was typed."""
    return sha256(code.strip().lower().replace("-", "").replace(" ", "").encode()).hexdigest()
