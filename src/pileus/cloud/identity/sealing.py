"""Seals what the cloud must be able to read again but its database must not tell: AES-256-GCM under a key beside it."""

import secrets
from base64 import b64decode, b64encode
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pileus.kernel.errors import Conflict
from pileus.kernel.files import write_atomically

_NONCE_BYTES = 12


class Sealer:
    """Seals and opens with one key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def load_or_create(cls, path: Path) -> "Sealer":
        """With the key in this file, which is made if it is not there."""
        if not path.exists():
            write_atomically(path, AESGCM.generate_key(256), mode=0o600)
        return cls(path.read_bytes())

    def seal(self, secret: str, *, of: str) -> str:
        """The secret, readable only with the key, and only as that of this record."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return b64encode(nonce + self._cipher.encrypt(nonce, secret.encode(), of.encode())).decode()

    def open(self, sealed: str, *, of: str) -> str:
        """What was sealed.

        Raises:
            Conflict: the key is another than it was sealed with.
        """
        raw = b64decode(sealed)
        try:
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], of.encode()).decode()
        except InvalidTag:
            raise Conflict(
                "this secret was sealed with another key than this controller has",
                internal=f"secret of {of}: secrets.key is not the one that it was sealed with",
            ) from None
