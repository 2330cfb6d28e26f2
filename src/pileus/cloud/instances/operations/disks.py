"""Where the disks of a new instance go: each to a storage pool, all to the host that the instance goes to."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from pileus.cloud.backups.model import BackedUpVolume
from pileus.cloud.instances.operations.origin import Origin
from pileus.cloud.instances.placement import Placer, host_name, placed, room_for_volume, room_on
from pileus.cloud.pools.model import Pool
from pileus.cloud.storagepools.choosing import as_before, candidates
from pileus.cloud.storagepools.model import StoragePool
from pileus.cloud.volumes.model import BOOT_SLOT, Volume
from pileus.kernel.errors import Invalid, NoCapacity
from pileus.operations.plan import Ask
from pileus.scheduler import Demand, Placement

_SHORT = 120
"""Of two names that become one."""


class Disk(msgspec.Struct, frozen=True):
    """A disk that is to be made."""

    size_gib: int
    storage_pools: tuple[StoragePool, ...]
    """Where it may be, the likeliest first."""


def disks_of(
    ask: Ask, origin: Origin, pool: Pool, boots_gib: int, storage_pool: str | None, storage_class: str | None
) -> Sequence[Disk]:
    """The disks of an instance on a host of this resource pool, the one that it boots from first.

    Args:
        ask: who asks.
        origin: what they are copies of.
        pool: the resource pool.
        boots_gib: how large the first is to be; the others are as large as they were.
        storage_pool: where all of them are to be; without it, copies go to where their originals are or were.
        storage_class: instead, the class of storage pool.

    Raises:
        Invalid: both are named, or one for the copies of a snapshot, which stay beside its volumes.
        NotFound: there is no such storage pool or class.
        Conflict: it is not for volumes, or not for this resource pool.
    """
    if origin.kept is None or (origin.backup is not None and (storage_pool or storage_class)):
        chosen = tuple(candidates(ask.state, pool, name=storage_pool, storage_class=storage_class))
        return [Disk(size_gib, chosen) for size_gib in (boots_gib, *(each.size_gib for each in origin.volumes[1:]))]
    given = {"storage_pool": storage_pool, "storage_class": storage_class}
    if wrong := [name for name, value in given.items() if value is not None]:
        copied = "copies of a snapshot are made where its volumes are"
        raise Invalid("some fields are wrong", fields=dict.fromkeys(wrong, copied))
    sizes = (boots_gib, *(volume.size_gib for volume in origin.volumes[1:]))
    return [
        Disk(size_gib, tuple(_where_it_was(ask, pool, volume)))
        for size_gib, volume in zip(sizes, origin.volumes, strict=True)
    ]


def beside_boots_gib(disks: Sequence[Disk]) -> int:
    """How much goes to one storage pool with the disk to boot from, itself included."""
    return sum(disk.size_gib for disk in disks if disk.storage_pools == disks[0].storage_pools)


def placed_with(
    ask: Ask, demand: Demand, origin: Origin, disks: Sequence[Disk]
) -> tuple[Placement, Demand, Sequence[StoragePool]]:
    """The host that an instance goes to, the demand as it was then, and for each disk its storage pool.

    Disks that may be in the same storage pools stay together.

    Raises:
        NoCapacity: no host fits, or one of the storage pools has no room there.
    """
    placer = ask.view(Placer)
    try:
        placement, demand, boots = placed(placer.fleet, demand, disks[0].storage_pools)
        chosen = {disks[0].storage_pools: boots}
        sizes, taken = Counter[tuple[StoragePool, ...]](), Counter[str]()
        for disk in disks:
            sizes[disk.storage_pools] += disk.size_gib
        for pools, size_gib in sizes.items():
            if pools not in chosen:
                chosen[pools] = room_on(placer, ask.state, placement.host, size_gib, pools)
            taken[chosen[pools].name] += size_gib
        if len(taken) < len(chosen):  # those that may be in different ones have found the same one
            for name, size_gib in taken.items():
                room_for_volume(ask.state, placer.fleet, placement.host, size_gib, name)
    except NoCapacity as full:
        if origin.kept is None:
            raise
        raise NoCapacity(_only_there(ask, origin, full), because=full.because) from full
    return placement, demand, [chosen[disk.storage_pools] for disk in disks]


def further(ask: Ask, boots: Volume, origin: Origin, storage_pools: Sequence[StoragePool]) -> list[Volume]:
    """The copies of what a snapshot or backup has besides the volume to boot from, which the instance has as well."""
    copied = zip(origin.volumes[1:], storage_pools[1:], strict=True)
    return [
        msgspec.structs.replace(
            boots,
            id=ask.new_id(),
            name=f"{boots.name[:_SHORT]}-{volume.name[:_SHORT]}",
            size_gib=volume.size_gib,
            slot=slot,
            needs=volume.needs,
            storage_pool=there.name,
            storage_class=there.storage_class,
        )
        for slot, (volume, there) in enumerate(copied, BOOT_SLOT + 1)
    ]


def _where_it_was(ask: Ask, pool: Pool, volume: Volume | BackedUpVolume) -> Sequence[StoragePool]:
    if isinstance(volume, Volume):
        return candidates(ask.state, pool, name=volume.storage_pool, storage_class=None)
    return as_before(ask.state, pool, volume.storage_pool, volume.storage_class)


def _only_there(ask: Ask, origin: Origin, full: NoCapacity) -> str:
    assert origin.kept is not None
    where = host_name(ask.state, origin.kept.host_id)
    detail = f"{origin.words} is on host {where}, and can be copied only there: {full.detail}"
    return f"{detail}; or name another storage pool or class for its disks" if origin.backup is not None else detail
