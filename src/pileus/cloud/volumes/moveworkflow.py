"""The task that moves a volume from one storage pool of its host to another.

Both pools promise it room meanwhile. What is copied can be thrown away until the host is told to switch; from then on
the task only goes forwards, and the host removes what is left in the old pool.
"""

import msgspec

from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.instances.specs import volumes_of
from pileus.cloud.instances.workflows.hosting import GUEST_S, WHOLE_DISK_S, WIPE_S_PER_GIB, ensure_guest
from pileus.cloud.snapshots.workflows import at_rest
from pileus.cloud.storagepools.model import named
from pileus.cloud.volumes.model import VOLUMES, Volume, VolumeLimits, VolumeState
from pileus.cloud.world import Nothing, World
from pileus.kernel.ids import VolumeId
from pileus.link.messages import Method
from pileus.link.moves import VolumeMove, VolumeMoveCopy
from pileus.state.state import Change, State, put
from pileus.workflow.workflow import Run, step_with, workflow


class MoveVolume(msgspec.Struct, frozen=True):
    """Which volume, and whether any storage pool of a class will do; its record says where to."""

    volume: VolumeId
    by_class: bool


@workflow("volume.move")
async def move_volume(run: Run[World], wish: MoveVolume) -> None:
    """Copy it, have it be what is used, tell its guest what may be done with it there."""
    await run(copy_over, wish)
    await run(switch, wish)
    await run(tell_guest, wish)


@move_volume.finish
def moved(state: State, wish: MoveVolume) -> list[Change]:
    volume = _as_moved(state, wish)
    if volume.host_id is None and wish.by_class:
        volume = msgspec.structs.replace(volume, storage_pool="")  # it gets one where it is first attached
    if volume.instance_id is None:
        return [put(volume.to(VolumeState.AVAILABLE))]
    instance = state[INSTANCES].get(volume.instance_id).newer()
    return [put(volume.to(VolumeState.IN_USE)), put(instance.at_rest())]


@move_volume.withdraw
def not_moved(state: State, wish: MoveVolume) -> list[Change]:
    volume = msgspec.structs.replace(state[VOLUMES].get(wish.volume), moving_to="", moving_to_class="")
    return at_rest(state, [volume])


@step_with(patience_s=120)
async def copy_over(world: World, wish: MoveVolume) -> None:
    volume = world.state[VOLUMES].get(wish.volume)
    if volume.host_id is not None:
        body = VolumeMoveCopy(**msgspec.structs.asdict(_named(volume)))
        await world.hosts.ask(volume.host_id, Method.MOVE_COPY, body, Nothing, timeout_s=WHOLE_DISK_S)


@copy_over.undo
async def stay(world: World, wish: MoveVolume) -> None:
    volume = world.state[VOLUMES].get(wish.volume)
    if volume.host_id is not None:
        body = msgspec.structs.replace(_named(volume), secure=False)
        await world.hosts.ask(volume.host_id, Method.MOVE_UNDO, body, Nothing, timeout_s=GUEST_S)


@step_with(forward_only=True)
async def switch(world: World, wish: MoveVolume) -> None:
    volume = world.state[VOLUMES].get(wish.volume)
    if volume.host_id is not None:
        timeout_s = GUEST_S + (WIPE_S_PER_GIB * volume.size_gib if volume.secure_delete else 0)
        await world.hosts.ask(volume.host_id, Method.MOVE_SWITCH, _named(volume), Nothing, timeout_s=timeout_s)


@step_with(forward_only=True)
async def tell_guest(world: World, wish: MoveVolume) -> None:
    volume = _as_moved(world.state, wish)
    if volume.instance_id is not None:
        instance = world.state[INSTANCES].get(volume.instance_id).newer()
        there = [volume if each.id == volume.id else each for each in volumes_of(world.state, instance)]
        await ensure_guest(world, instance, there)


def _as_moved(state: State, wish: MoveVolume) -> Volume:
    """The volume in its new pool, still moving."""
    volume = state[VOLUMES].get(wish.volume)
    before, limits = named(state, volume.storage_pool), volume.limits
    if limits is None and before is not None and (before.iops or before.bytes_per_s):
        # A guest that was told of its pool's limits has to be told that they are gone.
        limits = VolumeLimits()
    return msgspec.structs.replace(
        volume,
        storage_pool=volume.moving_to,
        storage_class=volume.moving_to_class,
        moving_to="",
        moving_to_class="",
        limits=limits,
    )


def _named(volume: Volume) -> VolumeMove:
    return VolumeMove(
        id=VolumeId(volume.id),
        generation=volume.generation,
        pool=volume.storage_pool,
        to=volume.moving_to,
        secure=volume.secure_delete,
    )
