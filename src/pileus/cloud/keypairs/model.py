"""What a keypair is: a person's SSH public key, for instances to let them in. No I/O."""

from pileus.kernel.ids import ProjectId, UserId
from pileus.state.kinds import Kind
from pileus.state.records import Record


class Keypair(Record, frozen=True, kw_only=True):
    """An SSH public key. The private key never comes here."""

    project_id: ProjectId
    user_id: UserId
    name: str
    public_key: str
    """In OpenSSH's format: type, base64, comment."""
    fingerprint: str
    """As `ssh-keygen -l` prints it: `SHA256:...`."""


KEYPAIRS = Kind(
    "keypair",
    Keypair,
    indexes={"project": lambda keypair: keypair.project_id, "user": lambda keypair: keypair.user_id},
    unique={"name": lambda keypair: (keypair.project_id, keypair.user_id, keypair.name)},
    counts=lambda _: {"keypairs": 1},
)
