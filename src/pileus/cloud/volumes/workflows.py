"""The tasks of a volume's life.

While a volume is attached, detached or enlarged its instance is `busy_with` that: its guest is changed by one task at a
time, so that of two generations of it the later one always has what the earlier one had.
"""

from typing import Any

import msgspec

from pileus.cloud.instances.model import INSTANCES, Instance
from pileus.cloud.instances.specs import volumes_of
from pileus.cloud.instances.workflows.hosting import GUEST_S, ensure_disk, ensure_guest, remove_disk
from pileus.cloud.schedules.model import gone_with
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, Volume, VolumeLimits, VolumeState
from pileus.cloud.world import World
from pileus.kernel.ids import VolumeId
from pileus.state.state import Change, State, put, remove
from pileus.workflow.workflow import Changes, Run, Workflow, step, step_with, workflow


class OfVolume(msgspec.Struct, frozen=True):
    """Which volume; all else is in the records."""

    volume: VolumeId


class AttachVolume(msgspec.Struct, frozen=True):
    """Which volume, and whether its disk is yet to be made."""

    volume: VolumeId
    is_new: bool


@workflow("volume.attach")
async def attach_volume(run: Run[World], wish: AttachVolume) -> None:
    """Make the disk if there is none yet, and plug it in."""
    await run(make_disk, wish)
    await run(plug_in, wish)


@attach_volume.finish
def attached(state: State, wish: AttachVolume) -> list[Change]:
    volume = state[VOLUMES].get(wish.volume)
    instance = _instance(state, volume)
    return [
        put(volume.to(VolumeState.IN_USE)),
        put(_at_rest(instance, attached=(*instance.attached_volume_ids, wish.volume))),
    ]


@attach_volume.withdraw
def not_attached(state: State, wish: AttachVolume) -> list[Change]:
    volume = state[VOLUMES].get(wish.volume)
    released = volume.released()
    if wish.is_new:
        # Its host remembers that this generation was taken away again.
        pool = "" if volume.storage_class else volume.storage_pool
        released = msgspec.structs.replace(released, host_id=None, storage_pool=pool, generation=volume.generation + 1)
    return [put(released), put(_at_rest(_instance(state, volume).newer()))]


@step_with(patience_s=120)
async def make_disk(world: World, wish: AttachVolume) -> None:
    if wish.is_new:
        await ensure_disk(world, world.state[VOLUMES].get(wish.volume))


@make_disk.undo
async def destroy_disk(world: World, wish: AttachVolume) -> None:
    if wish.is_new:
        await remove_disk(world, world.state[VOLUMES].get(wish.volume))


@step
async def plug_in(world: World, wish: AttachVolume) -> None:
    await ensure_guest(world, _instance_of(world, wish.volume))


@plug_in.undo
async def pull_out(world: World, wish: AttachVolume) -> None:
    instance = _instance_of(world, wish.volume)
    others = [each for each in volumes_of(world.state, instance) if each.id != wish.volume]
    await ensure_guest(world, instance.newer(), others)


@workflow("volume.detach")
async def detach_volume(run: Run[World], wish: OfVolume) -> None:
    """Take the disk from the guest."""
    await run(unplug, wish)


@detach_volume.finish
def detached(state: State, wish: OfVolume) -> list[Change]:
    volume = state[VOLUMES].get(wish.volume)
    instance = _instance(state, volume)
    left = tuple(each for each in instance.attached_volume_ids if each != wish.volume)
    return [put(volume.released()), put(_at_rest(instance, attached=left))]


@detach_volume.withdraw
def still_attached(state: State, wish: OfVolume) -> list[Change]:
    volume = state[VOLUMES].get(wish.volume)
    return [put(volume.to(VolumeState.IN_USE)), put(_at_rest(_instance(state, volume).newer()))]


@step
async def unplug(world: World, wish: OfVolume) -> None:
    await ensure_guest(world, _instance_of(world, wish.volume))


@unplug.undo
async def plug_in_again(world: World, wish: OfVolume) -> None:
    instance = _instance_of(world, wish.volume)
    await ensure_guest(world, instance.newer(), volumes_of(world.state, instance))


class GrowVolume(msgspec.Struct, frozen=True):
    """Which volume, and how large it was."""

    volume: VolumeId
    from_gib: int


@workflow("volume.grow")
async def grow_volume(run: Run[World], wish: GrowVolume) -> None:
    """Enlarge the disk, and let a running guest see it."""
    await run(enlarge, wish)
    await run(tell_guest, wish)


@grow_volume.finish
def grown(state: State, wish: GrowVolume) -> list[Change]:
    volume = state[VOLUMES].get(wish.volume)
    if volume.instance_id is None:
        return [put(volume.to(VolumeState.AVAILABLE))]
    return [put(volume.to(VolumeState.IN_USE)), put(_at_rest(_instance(state, volume)))]


@grow_volume.withdraw
def not_grown(state: State, wish: GrowVolume) -> list[Change]:
    volume = state[VOLUMES].get(wish.volume)
    before = msgspec.structs.replace(volume, size_gib=wish.from_gib, generation=volume.generation + 1)
    if volume.instance_id is None:
        return [put(before.to(VolumeState.AVAILABLE))]
    instance = _instance(state, volume).newer()
    if volume.slot == BOOT_SLOT:
        instance = msgspec.structs.replace(instance, disk_gib=wish.from_gib)
    return [put(before.to(VolumeState.IN_USE)), put(_at_rest(instance))]


@step
async def enlarge(world: World, wish: GrowVolume) -> None:
    # Without an undo: cutting off the end of a disk could cost data, and a disk that is larger than its record harms
    # nobody. The next growth takes it up.
    volume = world.state[VOLUMES].get(wish.volume)
    if volume.host_id is not None:
        await ensure_disk(world, volume, timeout_s=GUEST_S)


@step_with(forward_only=True)
async def tell_guest(world: World, wish: GrowVolume) -> None:
    # The disk has grown: there is no way back, and a guest that starts sees it anyway.
    if world.state[VOLUMES].get(wish.volume).instance_id is not None:
        await ensure_guest(world, _instance_of(world, wish.volume))


class LimitVolume(msgspec.Struct, frozen=True):
    """Which volume, and how it was limited before."""

    volume: VolumeId
    before: VolumeLimits


@workflow("volume.set_limits")
async def limit_volume(run: Run[World], wish: LimitVolume) -> None:
    """Tell the host of the instance that has the volume."""
    await run(tell_limits, wish)


@limit_volume.finish
def limited(state: State, wish: LimitVolume) -> list[Change]:
    volume = state[VOLUMES].get(wish.volume)
    return [] if volume.instance_id is None else [put(_at_rest(_instance(state, volume)))]


@limit_volume.withdraw
def not_limited(state: State, wish: LimitVolume) -> list[Change]:
    volume = state[VOLUMES].get(wish.volume)
    before = put(_limited_before(volume, wish))
    return [before] if volume.instance_id is None else [before, put(_at_rest(_instance(state, volume).newer()))]


@step
async def tell_limits(world: World, wish: LimitVolume) -> None:
    if world.state[VOLUMES].get(wish.volume).instance_id is not None:
        await ensure_guest(world, _instance_of(world, wish.volume))


@tell_limits.undo
async def tell_former_limits(world: World, wish: LimitVolume) -> None:
    if world.state[VOLUMES].get(wish.volume).instance_id is None:
        return
    instance = _instance_of(world, wish.volume)
    there = volumes_of(world.state, instance)
    before = [_limited_before(each, wish) if each.id == wish.volume else each for each in there]
    await ensure_guest(world, instance.newer(), before)


@workflow("volume.delete")
async def delete_volume(run: Run[World], wish: OfVolume) -> None:
    """Remove the disk from its host."""
    await run(take_away, wish)


@delete_volume.finish
def deleted(state: State, wish: OfVolume) -> Changes:
    return [remove(state[VOLUMES].get(wish.volume)), *gone_with(state, wish.volume)]


@step_with(forward_only=True)
async def take_away(world: World, wish: OfVolume) -> None:
    volume = world.state[VOLUMES].get(wish.volume)
    if volume.host_id is not None:
        await remove_disk(world, volume)


WORKFLOWS: tuple[Workflow[World, Any], ...] = (attach_volume, detach_volume, grow_volume, limit_volume, delete_volume)


def _limited_before(volume: Volume, wish: LimitVolume) -> Volume:
    # Never None again: a guest that was told of limits has to be told that they are gone.
    return msgspec.structs.replace(volume, limits=wish.before)


def _instance(state: State, volume: Volume) -> Instance:
    assert volume.instance_id is not None
    return state[INSTANCES].get(volume.instance_id)


def _instance_of(world: World, volume: VolumeId) -> Instance:
    return _instance(world.state, world.state[VOLUMES].get(volume))


def _at_rest(instance: Instance, *, attached: tuple[VolumeId, ...] | None = None) -> Instance:
    instance = instance.at_rest()
    return instance if attached is None else msgspec.structs.replace(instance, attached_volume_ids=attached)
