"""Moving volumes from one storage pool to another."""

import msgspec

from pileus.cloud.backups.model import must_not_be_backed_up
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.instances.placement import Placer, check_real_room, default_pool, host_name, room_on
from pileus.cloud.pools.model import POOLS, Pool
from pileus.cloud.snapshots.model import SETTLED, SNAPSHOTS, must_take_layers
from pileus.cloud.storagepools.choosing import candidates
from pileus.cloud.storagepools.model import StoragePool
from pileus.cloud.volumes.limits import volumes
from pileus.cloud.volumes.model import Volume, VolumeState
from pileus.cloud.volumes.moveworkflow import MoveVolume, move_volume
from pileus.kernel.errors import Conflict, Invalid, NoCapacity
from pileus.kernel.ids import VolumeId
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Name, Wire
from pileus.state.state import Change, State, put
from pileus.workflow.workflow import begin

__all__ = ["volumes"]


_MAY_BE = (InstanceState.RUNNING, InstanceState.PAUSED, InstanceState.STOPPED)
"""The states of an instance whose volumes move: QEMU copies the disks of one whose CPUs stand still, too."""


class VolumeMoveTo(Wire):
    storage_pool: Name | None = None
    """Where it is to be, by name."""
    storage_class: Name | None = None
    """Instead, the class of storage pool that it is to be in."""


@volumes.post("/{id}/move", starts=move_volume)
def move(ask: Ask, volume: Volume, wish: VolumeMoveTo) -> Plan:
    """Move a volume with its snapshots to another storage pool of its host. It may be in use meanwhile."""
    changed = volume.to(VolumeState.MOVING)
    _check_layers(ask.state, volume)
    there = _chosen(ask, volume, wish)
    changed = msgspec.structs.replace(
        changed, moving_to=there.name, moving_to_class=there.storage_class, generation=volume.generation + 1
    )
    changes: list[Change] = [put(changed)]
    where = f" on host {host_name(ask.state, volume.host_id)}" if volume.host_id is not None else ""
    if volume.instance_id is not None:
        instance = ask.state[INSTANCES].get(volume.instance_id)
        busy = instance.busy(f"volume {volume.name} is being moved", among=_MAY_BE)
        # Its guest is not told anything until the volume is there.
        changes.append(put(msgspec.structs.replace(busy, generation=instance.generation)))
        where += f", while instance {instance.name} is {instance.state}"
    before = volume.storage_pool or f"of class {volume.storage_class}"
    return Plan(
        summary=f"move volume {volume.name} from storage pool {before} to {there.name}{where}",
        changes=changes,
        begin=begin(move_volume, MoveVolume(VolumeId(volume.id), by_class=wish.storage_class is not None)),
        answers=changed,
        undo="move it back",
    )


def _check_layers(state: State, volume: Volume) -> None:
    """Raises Conflict if its layers, or what is kept beside them, cannot be taken along now."""
    must_take_layers(state, volume, "moved to another storage pool")
    must_not_be_backed_up(state, volume)
    for snapshot in state[SNAPSHOTS].by("volume", volume.id):
        if snapshot.state not in SETTLED:
            raise Conflict(f"snapshot {snapshot.name} of volume {volume.name} is {snapshot.state}: wait for that")
        if snapshot.memory and snapshot.volume_ids[0] == volume.id:
            raise Conflict(
                f"snapshot {snapshot.name} keeps what its instance had in memory beside volume {volume.name}, and that"
                " does not move: delete the snapshot first"
            )


def _chosen(ask: Ask, volume: Volume, wish: VolumeMoveTo) -> StoragePool:
    """The storage pool that it is to be in.

    Raises:
        Invalid: neither a pool nor a class is named, or both are.
        NotFound: there is no such pool or class.
        Conflict: it is there already, or the pool is not for it.
        NoCapacity: its host does not have the pool, or not in service, or that has no room.
    """
    if wish.storage_pool is None and wish.storage_class is None:
        raise Invalid("some fields are wrong", fields={"storage_pool": "name a storage pool, or a class"})
    found = candidates(ask.state, _pool_of(ask.state, volume), name=wish.storage_pool, storage_class=wish.storage_class)
    if volume.storage_pool in (each.name for each in found) or _waits_for(volume, wish):
        of_class = f", which is of class {wish.storage_class}" if wish.storage_class else ""
        raise Conflict(
            f"volume {volume.name} is in storage pool {volume.storage_pool or found[0].name} already{of_class}",
            fields={"storage_class" if wish.storage_class else "storage_pool": "it is there already"},
        )
    if volume.host_id is None:
        return found[0]
    try:
        there = room_on(ask.view(Placer), ask.state, volume.host_id, volume.size_gib, found)
    except NoCapacity as refused:
        raise _on_its_host(refused, host_name(ask.state, volume.host_id), volume) from refused
    check_real_room(ask.view(Placer), volume.host_id, there.name)
    return there


def _on_its_host(refused: NoCapacity, host: str, volume: Volume) -> NoCapacity:
    """What its host says; what others say is no use to a volume, which stays where it is."""
    because = {about: why for about, why in refused.because.items() if about == host or about.startswith(f"{host}, ")}
    return NoCapacity(
        f"host {host}, where volume {volume.name} is and stays, cannot have it there: {'; '.join(because.values())}",
        because=because,
    )


def _waits_for(volume: Volume, wish: VolumeMoveTo) -> bool:
    """Whether it gets a pool of this very class when it is first attached."""
    return not volume.storage_pool and volume.storage_class == wish.storage_class


def _pool_of(state: State, volume: Volume) -> Pool:
    """The resource pool whose hosts it is for; one that was never attached is for any, and begins with the default."""
    if volume.host_id is not None:
        return state[POOLS].get(state[HOSTS].get(volume.host_id).pool_id)
    pool = default_pool(state)
    if pool is None:
        raise Conflict(f"volume {volume.name} was never attached, and there is no default pool")
    return pool
