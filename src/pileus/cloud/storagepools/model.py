"""What a storage pool is: a place for volumes or backups, on every host that has what is behind it. No I/O."""

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum

import msgspec

from pileus.kernel.ids import HostId, PoolId, StoragePoolId
from pileus.kernel.units import size_text
from pileus.link.storagepools import Backing, PoolObserved, PoolUse
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import State

LOCAL = "local"
"""The pool that every host has by its own configuration."""
STANDARD = "standard"
"""The class of a pool if nobody says otherwise."""

WARN_AT, EASED_BELOW = 0.80, 0.75
"""How full a pool is, really or with promises, when that is told, and when it is over."""


class Purpose(StrEnum):
    """What a storage pool is for."""

    VOLUMES = "volumes"
    BACKUPS = "backups"


class StoragePool(Record, frozen=True, kw_only=True):
    """A place for volumes or backups. What is behind it is a `StorageBacking`, which is not for everybody."""

    name: str
    """By which volumes name it, also on hosts; it does not change."""
    description: str = ""
    storage_class: str = STANDARD
    """What users ask for who do not care which pool it is: `standard`, `performance`."""
    purposes: tuple[Purpose, ...] = (Purpose.VOLUMES,)
    pool_ids: tuple[PoolId, ...] = ()
    """The resource pools whose hosts serve it; empty for all."""
    overcommit: float = 1.0
    """How many times what it really has is promised to volumes at most."""
    iops: int = 0
    """Operations per second that each volume in it may do at most; 0 is as many as there are."""
    bytes_per_s: int = 0
    """Bytes per second that each volume in it may read and write at most; 0 is as many as there are."""

    def serves(self, pool: str) -> bool:
        """Whether hosts of this resource pool serve it."""
        return not self.pool_ids or pool in self.pool_ids


STORAGE_POOLS = Kind(
    "storage_pool",
    StoragePool,
    indexes={"class": lambda pool: pool.storage_class},
    many={"pool": lambda pool: pool.pool_ids},
    unique={"name": lambda pool: pool.name},
)


class StorageBacking(Record, frozen=True, kw_only=True):
    """What is behind a storage pool, under the pool's id."""

    backing: Backing


STORAGE_BACKINGS = Kind("storage_backing", StorageBacking)


class PoolOnHost(Record, frozen=True, kw_only=True):
    """A storage pool on one host: what is told of it once, when it changes."""

    storage_pool_id: StoragePoolId
    host_id: HostId
    reason: str = ""
    """Why it is not to be had there; empty if it is."""
    filled: bool = False
    """Whether so much of it is really in use that it has been told; it is told again when that is over."""
    promised: bool = False
    """Whether so much of what may be promised is promised that it has been told."""
    since: datetime
    """When one of these last changed."""

    def seen(self, found: PoolObserved, overcommit: float, now: datetime) -> "PoolOnHost":
        """The same record after this was found; itself if that is nothing new."""
        filled, promised = self.filled, self.promised
        if found.use is not None:
            filled = _is_high(used_part(found.use), was=filled)
            promised = _is_high(promised_part(found.use, overcommit), was=promised)
        now_is = msgspec.structs.replace(self, reason=found.reason, filled=filled, promised=promised)
        return self if now_is == self else msgspec.structs.replace(now_is, since=now)


POOLS_ON_HOSTS = Kind(
    "pool_on_host",
    PoolOnHost,
    indexes={"host": lambda each: each.host_id, "storage_pool": lambda each: each.storage_pool_id},
    unique={"place": lambda each: (each.storage_pool_id, each.host_id)},
)


def used_part(use: PoolUse) -> float:
    """How much of a pool is really in use, from 0 to 1."""
    return 1 - use.free_bytes / use.total_bytes if use.total_bytes else 1.0


def promised_part(use: PoolUse, overcommit: float) -> float:
    """How much of what a pool may promise is promised; above 1 if it has shrunk below its promises."""
    limit = use.promisable_bytes(overcommit)
    return use.promised_bytes / limit if limit else float(use.promised_bytes > 0)


def in_words(use: PoolUse, overcommit: float) -> str:
    """How full a pool is, for people."""
    promised = f"{size_text(use.promised_bytes)} of {size_text(use.promisable_bytes(overcommit))} promised"
    return f"{size_text(use.free_bytes)} of {size_text(use.total_bytes)} really free, {promised}"


def _is_high(part: float, *, was: bool) -> bool:
    return part >= (EASED_BELOW if was else WARN_AT)


def named(state: State, name: str) -> StoragePool | None:
    """The storage pool of this name."""
    return state[STORAGE_POOLS].one("name", name)


def served_by(state: State, pool: PoolId) -> Iterator[StoragePool]:
    """The storage pools that hosts of this resource pool serve."""
    return (each for each in state[STORAGE_POOLS] if each.serves(pool))
