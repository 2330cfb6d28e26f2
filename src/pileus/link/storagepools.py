"""What controller and agent say to each other about storage pools: which there ought to be, and what there is."""

from pileus.kernel.ids import StoragePoolId
from pileus.link.messages import Message

KEPT_FREE = 0.05
"""The part of a storage pool that promises more than it has in which nothing new is made."""


class DirectoryBacking(Message, frozen=True, kw_only=True, omit_defaults=True, tag_field="driver", tag="directory"):
    """A folder that is at the same path on every host that serves the pool, on a disk mounted for it."""

    path: str


Backing = DirectoryBacking
"""What is behind a storage pool, told apart by `driver`."""


class StoragePoolSpec(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A storage pool that a host is to serve if it has what is behind it."""

    id: StoragePoolId
    name: str
    """By which volumes name it; it does not change."""
    backing: Backing | None = None
    """None for the one that the host has by its own configuration."""
    overcommit: float = 1.0
    """How many times what it has it may promise to volumes."""


class StoragePools(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Every storage pool that a host is to serve; what it serves besides is to go, unless volumes are in it."""

    pools: tuple[StoragePoolSpec, ...] = ()


class PoolUse(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How full a storage pool is, in bytes."""

    total_bytes: int
    free_bytes: int
    """What can really be written yet."""
    promised_bytes: int = 0
    """What its volumes may grow to, all together."""
    unfilled_bytes: int = 0
    """How much of that may yet be written."""

    def promisable_bytes(self, overcommit: float) -> int:
        """What may be promised in all: so many times what there is for volumes, with what they have of it already."""
        there_is = self.free_bytes + self.promised_bytes - self.unfilled_bytes
        # Rounded down, but 100 times 1.15 is 115, whatever the floating point unit says.
        return max(0, int(there_is * overcommit + 1e-6))

    @property
    def has_room(self) -> bool:
        """Whether anything new may be written: a rest is kept for what is there already."""
        return self.free_bytes > KEPT_FREE * self.total_bytes


class PoolObserved(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A storage pool on a host, as it is."""

    name: str
    id: StoragePoolId | None = None
    """None for one that the host has by its configuration, and was not told of yet."""
    reason: str = ""
    """Why it is not to be had there, in words; empty if it is."""
    use: PoolUse | None = None
    """None if it is not to be had."""


class StoragePoolsObserved(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The storage pools of a host as they are."""

    pools: tuple[PoolObserved, ...] = ()
