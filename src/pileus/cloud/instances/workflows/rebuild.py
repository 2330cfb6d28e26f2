"""Giving an instance a new disk from an image."""

import msgspec

from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.instances.specs import guest_spec, serial_of
from pileus.cloud.instances.workflows.hosting import OfInstance, ensure_disk, ensure_spec, remove_disk
from pileus.cloud.schedules.model import gone_with
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, VolumeState
from pileus.cloud.world import World
from pileus.kernel.ids import ImageId, VolumeId
from pileus.link.guests import Power
from pileus.state.state import Change, State, put, remove
from pileus.workflow.workflow import Run, step, step_with, workflow


class RebuildInstance(OfInstance, frozen=True):
    """Which instance, its old root disk and its new one, and what it was before."""

    old: VolumeId
    new: VolumeId
    before: InstanceState
    image_id: ImageId | None


@workflow("instance.rebuild")
async def rebuild_instance(run: Run[World], wish: RebuildInstance) -> None:
    """Copy the image, stop the guest, give it the new disk; the old one goes when the guest has come back."""
    await run(make_new_disk, wish)
    await run(stop_guest, wish)
    await run(exchange_disks, wish)
    await run(take_old_disk_away, wish)


@rebuild_instance.finish
def rebuilt(state: State, wish: RebuildInstance) -> list[Change]:
    instance = state[INSTANCES].get(wish.instance)
    new = state[VOLUMES].get(wish.new)
    return [
        put(msgspec.structs.replace(instance.to(wish.before), generation=instance.generation + _EXCHANGED)),
        put(msgspec.structs.replace(new, instance_id=wish.instance, slot=BOOT_SLOT, state=VolumeState.IN_USE)),
        remove(state[VOLUMES].get(wish.old)),
        *gone_with(state, wish.old),
    ]


@rebuild_instance.withdraw
def not_rebuilt(state: State, wish: RebuildInstance) -> list[Change]:
    instance = state[INSTANCES].get(wish.instance)
    former = msgspec.structs.replace(
        instance.to(wish.before), image_id=wish.image_id, generation=instance.generation + _BACK
    )
    return [put(former), remove(state[VOLUMES].get(wish.new)), *gone_with(state, wish.new)]


# By how much the generation is later than when the task began: each step and each undo is news to the host.
_STOPPED, _EXCHANGED, _EXCHANGED_BACK, _BACK = range(4)


@step_with(patience_s=120)
async def make_new_disk(world: World, wish: RebuildInstance) -> None:
    await ensure_disk(world, world.state[VOLUMES].get(wish.new))


@make_new_disk.undo
async def bring_back(world: World, wish: RebuildInstance) -> None:
    # Told to the host in any case: it then knows the generation that the record goes back to.
    await _ensure_with(world, wish, wish.old, _power_before(wish), _BACK)
    await remove_disk(world, world.state[VOLUMES].get(wish.new))


@step
async def stop_guest(world: World, wish: RebuildInstance) -> None:
    await _ensure_with(world, wish, wish.old, Power.STOPPED, _STOPPED)


@step
async def exchange_disks(world: World, wish: RebuildInstance) -> None:
    await _ensure_with(world, wish, wish.new, _power_before(wish), _EXCHANGED)


@exchange_disks.undo
async def exchange_back(world: World, wish: RebuildInstance) -> None:
    await _ensure_with(world, wish, wish.old, Power.STOPPED, _EXCHANGED_BACK)


@step_with(forward_only=True)
async def take_old_disk_away(world: World, wish: RebuildInstance) -> None:
    await remove_disk(world, world.state[VOLUMES].get(wish.old))


def _power_before(wish: RebuildInstance) -> Power:
    return Power.RUNNING if wish.before is InstanceState.RUNNING else Power.STOPPED


async def _ensure_with(world: World, wish: RebuildInstance, root: VolumeId, power: Power, later: int) -> None:
    """Have the guest with this root disk and power, so many generations after the one that the task began with."""
    instance = world.state[INSTANCES].get(wish.instance)
    spec = guest_spec(world.state, instance)
    disks = (
        msgspec.structs.replace(disk, volume=root, serial=serial_of(root)) if disk.volume == wish.old else disk
        for disk in spec.disks
    )
    spec = msgspec.structs.replace(spec, disks=tuple(disks), power=power, generation=spec.generation + later)
    await ensure_spec(world, instance, spec)
