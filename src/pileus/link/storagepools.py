"""What controller and agent say to each other about storage pools: which there ought to be, and what there is."""

from pileus.kernel.ids import StoragePoolId
from pileus.link.records import Message, PoolObserved

__all__ = ["Backing", "DirectoryBacking", "PoolObserved", "StoragePoolSpec", "StoragePools", "StoragePoolsObserved"]


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


class StoragePoolsObserved(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The storage pools of a host as they are."""

    pools: tuple[PoolObserved, ...] = ()
