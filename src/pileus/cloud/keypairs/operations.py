"""What one may do with keypairs."""

from base64 import b64decode, b64encode
from hashlib import sha256
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.dsa import DSAPublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import AfterValidator, StringConstraints

from pileus.cloud.keypairs.model import KEYPAIRS, Keypair
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Name, Wire
from pileus.state.state import put, remove

_LEAST_RSA_BITS = 2048


def _public_key(text: str) -> str:
    key = " ".join(text.split())
    if not key.isprintable():
        raise ValueError("must not hold control characters")
    try:
        loaded = load_ssh_public_key(key.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("must be one OpenSSH public key, such as the content of ~/.ssh/id_ed25519.pub") from None
    if isinstance(loaded, DSAPublicKey) or (isinstance(loaded, RSAPublicKey) and loaded.key_size < _LEAST_RSA_BITS):
        raise ValueError(f"is too weak: use ed25519, ECDSA, or RSA of at least {_LEAST_RSA_BITS} bits")
    return key


PublicKey = Annotated[str, StringConstraints(min_length=1, max_length=16_384), AfterValidator(_public_key)]


class KeypairCreate(Wire):
    name: Name
    public_key: PublicKey


keypairs = Noun(
    KEYPAIRS,
    plural="keypairs",
    columns=("name", "fingerprint"),
    about="Keypairs: SSH public keys, which instances are given to let their owners in.",
    visible=lambda ask, keypair: ask.may_see(keypair) and keypair.user_id == ask.caller.user_id,
)
keypairs.list(filters=("name",), sorts=("name",))
keypairs.show()


@keypairs.post()
def create(ask: Ask, wish: KeypairCreate) -> Plan:
    """Store an SSH public key."""
    keypair = Keypair(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        user_id=ask.caller.user_id,
        name=wish.name,
        public_key=wish.public_key,
        fingerprint=fingerprint(wish.public_key),
    )
    return Plan(
        summary=f"store the public key {wish.name}", changes=(put(keypair),), answers=keypair, undo="delete the keypair"
    )


@keypairs.delete()
def delete(ask: Ask, keypair: Keypair) -> Plan:
    """Delete a keypair. Instances that were given it keep it."""
    return Plan(
        summary=f"delete the keypair {keypair.name}", changes=(remove(keypair),), undo="store the public key again"
    )


def fingerprint(public_key: str) -> str:
    """The fingerprint of an OpenSSH public key, as `ssh-keygen -l` prints it."""
    return "SHA256:" + b64encode(sha256(b64decode(public_key.split()[1])).digest()).decode().rstrip("=")
