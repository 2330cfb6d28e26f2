"""What one may do with storage pools."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from pydantic import Field, StringConstraints

from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.pools.model import POOLS
from pileus.cloud.storagepools.choosing import check_suits
from pileus.cloud.storagepools.model import (
    LOCAL,
    POOLS_ON_HOSTS,
    STANDARD,
    STORAGE_BACKINGS,
    STORAGE_POOLS,
    PoolOnHost,
    Purpose,
    StorageBacking,
    StoragePool,
)
from pileus.cloud.storagepools.supply import Supplies
from pileus.cloud.volumes.model import VOLUMES, Volume
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import HostId, PoolId, StoragePoolId
from pileus.kernel.units import KIB, TIB
from pileus.link.storagepools import Backing, DirectoryBacking, PoolUse
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Wire, ref
from pileus.state.state import State, put, remove

PoolName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
"""A name that hosts know it by, too."""
ClassName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
Folder = Annotated[str, StringConstraints(pattern=r"^(/[a-zA-Z0-9._-]+)+$", max_length=1000)]
Overcommit = Annotated[float, Field(ge=1, le=64, allow_inf_nan=False)]
Purposes = Annotated[tuple[Purpose, ...], Field(min_length=1, max_length=2)]
Iops = Annotated[int, Field(ge=0, le=10_000_000)]
BytesPerS = Annotated[int, Field(ge=0, le=TIB)]
PoolIds = Annotated[tuple[Annotated[Id, ref("pool")], ...], Field(max_length=100)]

_LEAST_IOPS, _LEAST_BYTES_PER_S = 10, 64 * KIB
"""With less a guest does not come up any more."""


class StoragePoolCreate(Wire):
    name: PoolName
    """By which volumes name it; it does not change."""
    path: Folder
    """A folder, the same on every host that is to serve it, where a disk is mounted for it."""
    storage_class: ClassName = STANDARD
    """What users ask for who do not care which pool it is."""
    purposes: Purposes = (Purpose.VOLUMES,)
    pool_ids: PoolIds = ()
    """The resource pools whose hosts serve it; all without any."""
    overcommit: Overcommit = 1.0
    """How many times what it really has is promised to volumes at most."""
    iops: Iops = 0
    """Operations per second that each volume in it may do at most; 0 is as many as there are."""
    bytes_per_s: BytesPerS = 0
    """Bytes per second that each volume in it may read and write at most; 0 is as many as there are."""
    description: Description = ""


class StoragePoolChange(Wire):
    storage_class: ClassName | None = None
    purposes: Purposes | None = None
    pool_ids: PoolIds | None = None
    overcommit: Overcommit | None = None
    """How many times what it really has is promised to volumes at most."""
    iops: Iops | None = None
    """Counts for a guest from its next start or change on; 0 is as many as there are."""
    bytes_per_s: BytesPerS | None = None
    """Counts for a guest from its next start or change on; 0 is as many as there are."""
    description: Description | None = None


class PoolThere(msgspec.Struct, frozen=True, kw_only=True):
    """A storage pool on one host."""

    host_id: HostId
    host: str
    reason: str
    """Why it is not to be had there; empty if it is."""
    use: PoolUse | None
    """None if it is not to be had, or its agent has not reported yet."""
    promisable_bytes: int
    """What may be promised there in all."""
    filled: bool
    promised: bool


class StoragePoolUse(msgspec.Struct, frozen=True, kw_only=True):
    """What is behind a storage pool, and how full it is."""

    storage_pool_id: StoragePoolId
    backing: Backing | None
    """None for the one that hosts have by their own configuration."""
    volumes: int
    promised_gib: int
    """To all volumes in it, also to those that are not made yet."""
    hosts: Sequence[PoolThere]


storage_pools = Noun(
    STORAGE_POOLS,
    plural="storage-pools",
    columns=("name", "storage_class", "purposes", "overcommit"),
    about="Storage pools: where volumes and backups are kept.",
)
storage_pools.list(filters=("name", "storage_class"), sorts=("name", "storage_class"))
storage_pools.show()


@storage_pools.post(least=Role.PLATFORM)
def create(ask: Ask, wish: StoragePoolCreate) -> Plan:
    """Create a storage pool. Every host that has a disk mounted at its path serves it."""
    for id in wish.pool_ids:
        ask.see(POOLS, id, "pool_ids")
    for behind in ask.state[STORAGE_BACKINGS]:
        if _overlap(behind.backing.path, wish.path):
            other = ask.state[STORAGE_POOLS].get(behind.id)
            raise Conflict(
                f"storage pool {other.name} is at {behind.backing.path} already", fields={"path": "is in use"}
            )
    fields = wish.model_dump(exclude={"path", "pool_ids"})
    pool = StoragePool(
        id=ask.new_id(), created_at=ask.now, pool_ids=tuple(PoolId(id) for id in wish.pool_ids), **fields
    )
    _check_limits(pool)
    behind = StorageBacking(id=pool.id, created_at=ask.now, backing=DirectoryBacking(path=wish.path))
    return Plan(
        summary=f"create storage pool {pool.name} at {wish.path}",
        changes=(put(pool), put(behind)),
        answers=pool,
        undo="delete the storage pool",
    )


@storage_pools.patch(least=Role.PLATFORM)
def change(ask: Ask, pool: StoragePool, wish: StoragePoolChange) -> Plan:
    """Change a storage pool. Less overcommitment moves nothing: it only refuses what comes."""
    changed = msgspec.structs.replace(pool, **wish.model_dump(exclude_none=True))
    for id in wish.pool_ids or ():
        ask.see(POOLS, id, "pool_ids")
    _check_limits(changed)
    _check_use(ask, pool, changed)
    return Plan(
        summary=f"change storage pool {pool.name}", changes=(put(changed),), answers=changed, undo="change it back"
    )


@storage_pools.delete(least=Role.PLATFORM)
def delete(ask: Ask, pool: StoragePool) -> Plan:
    """Delete a storage pool with nothing in it. Hosts give its folder free."""
    if pool.name == LOCAL:
        raise Conflict(f"storage pool {LOCAL} is what every host has by itself")
    if kept := len(_volumes_of(ask.state, pool)):
        raise Conflict(f"the storage pool has {kept} volumes: move or delete them first")
    if kept := ask.state[BACKUPS].count_by("storage_pool", pool.name):
        raise Conflict(f"the storage pool has {kept} backups: delete them first")
    if by := [each.name for each in ask.state[POOLS] if each.storage_pool == pool.name]:
        raise Conflict(f"disks of pool {by[0]} go here unless somebody says otherwise: change that pool first")
    behind = ask.state[STORAGE_BACKINGS].find(pool.id)
    there = ask.state[POOLS_ON_HOSTS].by("storage_pool", pool.id)
    return Plan(
        summary=f"delete storage pool {pool.name}",
        changes=[remove(each) for each in (pool, behind, *there) if each is not None],
        undo="create it again",
    )


@storage_pools.special("GET", "/{id}/use", least=Role.PLATFORM, answers=StoragePoolUse)
async def use(exchange: Exchange, pool: StoragePool) -> Answer:
    """Show what is behind a storage pool, and how full it is on each host: what is real, and what is promised."""
    state, supplies = exchange.ask.state, exchange.services[Supplies]
    volumes = _volumes_of(state, pool)
    behind = state[STORAGE_BACKINGS].find(pool.id)
    shown = StoragePoolUse(
        storage_pool_id=StoragePoolId(pool.id),
        backing=None if behind is None else behind.backing,
        volumes=len(volumes),
        promised_gib=sum(each.size_gib for each in volumes),
        hosts=[
            _there(exchange.ask, supplies, pool, each) for each in state[POOLS_ON_HOSTS].by("storage_pool", pool.id)
        ],
    )
    return Answer(status=200, body=msgspec.json.encode(shown))


def _there(ask: Ask, supplies: Supplies, pool: StoragePool, there: PoolOnHost) -> PoolThere:
    found = supplies.of(there.host_id).get(pool.name)
    use = found.use if found is not None else None
    return PoolThere(
        host_id=there.host_id,
        host=ask.state[HOSTS].get(there.host_id).name,
        reason=there.reason,
        use=use,
        promisable_bytes=use.promisable_bytes(pool.overcommit) if use is not None else 0,
        filled=there.filled,
        promised=there.promised,
    )


def _check_limits(pool: StoragePool) -> None:
    wrong: dict[str, str] = {}
    if 0 < pool.iops < _LEAST_IOPS:
        wrong["iops"] = f"0 for no limit, or at least {_LEAST_IOPS}"
    if 0 < pool.bytes_per_s < _LEAST_BYTES_PER_S:
        wrong["bytes_per_s"] = f"0 for no limit, or at least {_LEAST_BYTES_PER_S}"
    if wrong:
        raise Invalid("some fields are wrong", fields=wrong)


def _check_use(ask: Ask, pool: StoragePool, changed: StoragePool) -> None:
    """Raises Conflict if volumes that are in the pool would be where they may not."""
    for each in ask.state[POOLS]:
        if each.storage_pool == pool.name:
            check_suits(changed, each)
    volumes = _volumes_of(ask.state, pool)
    if volumes and Purpose.VOLUMES not in changed.purposes:
        raise Conflict(f"the storage pool has {len(volumes)} volumes", fields={"purposes": "volumes are in it"})
    backups = ask.state[BACKUPS].by("storage_pool", pool.name)
    if backups and Purpose.BACKUPS not in changed.purposes:
        raise Conflict(f"the storage pool has {len(backups)} backups", fields={"purposes": "backups are in it"})
    if volumes and changed.storage_class != pool.storage_class:
        raise Conflict(
            f"the storage pool has {len(volumes)} volumes, whose owners asked for class {pool.storage_class}",
            fields={"storage_class": "volumes are in it"},
        )
    on = {ask.state[HOSTS].get(each.host_id).pool_id for each in (*volumes, *backups) if each.host_id}
    if any(not changed.serves(id) for id in on):
        raise Conflict(
            "hosts that would no longer serve it have volumes or backups in it", fields={"pool_ids": "is in use"}
        )


def _volumes_of(state: State, pool: StoragePool) -> Sequence[Volume]:
    """The volumes that it promises room to: those in it, and those on their way."""
    return (*state[VOLUMES].by("storage_pool", pool.name), *state[VOLUMES].by("moving_to", pool.name))


def _overlap(one: str, other: str) -> bool:
    """Whether one folder is the other, or in it."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
