"""Letting an instance go on without Pileus; and ending one that was taken over, whose disks are kept."""

from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.instances.specs import root_volume, volumes_of
from pileus.cloud.instances.workflows.creation import forget
from pileus.cloud.instances.workflows.deletion import take_guest_away
from pileus.cloud.instances.workflows.hosting import OfInstance, leave_disk, remove_guest
from pileus.cloud.schedules.model import gone_with
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES
from pileus.cloud.world import World
from pileus.link.guests import Leaving
from pileus.state.state import State, put, remove
from pileus.workflow.workflow import Changes, Run, step_with, workflow


class LeaveInstance(OfInstance, frozen=True):
    """Which instance, and how it goes on."""

    bridge: str
    """What those of its interfaces are on from its next start that are on networks of ours; empty for nothing."""


@workflow("instance.leave")
async def leave_instance(run: Run[World], wish: LeaveInstance) -> None:
    """Let go of the guest, then of its disks. Both go on as they are."""
    await run(let_guest_go, wish)
    await run(let_disks_go, wish)


@leave_instance.finish
def left(state: State, wish: LeaveInstance) -> Changes:
    volumes = state[VOLUMES].by("instance", wish.instance)
    those = {volume.id for volume in volumes}
    others = [volume.id for volume in volumes if volume.slot != BOOT_SLOT]
    return [
        *(change for change in forget(state, wish) if change.record.id not in those),
        *(remove(volume) for volume in volumes),
        *gone_with(state, *others),
    ]


@step_with(forward_only=True)
async def let_guest_go(world: World, wish: LeaveInstance) -> None:
    await remove_guest(world, world.state[INSTANCES].get(wish.instance), Leaving(bridge=wish.bridge))


@step_with(forward_only=True)
async def let_disks_go(world: World, wish: LeaveInstance) -> None:
    for volume in volumes_of(world.state, world.state[INSTANCES].get(wish.instance)):
        await leave_disk(world, volume)


@workflow("instance.delete_but_disks")
async def delete_but_disks(run: Run[World], wish: OfInstance) -> None:
    """Take the guest from the host; its disks stay."""
    await run(take_guest_away, wish)


@delete_but_disks.finish
def without_instance(state: State, wish: OfInstance) -> Changes:
    root = root_volume(state, state[INSTANCES].get(wish.instance))
    return [*(change for change in forget(state, wish) if change.record.id != root.id), put(root.released())]
