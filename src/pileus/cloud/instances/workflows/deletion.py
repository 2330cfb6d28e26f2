"""Removing an instance, and what has to go with it."""

from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.instances.workflows.creation import forget
from pileus.cloud.instances.workflows.hosting import OfInstance, remove_boot_disk, remove_guest
from pileus.cloud.world import World
from pileus.state.state import State
from pileus.workflow.workflow import Changes, Run, step_with, workflow


@workflow("instance.delete")
async def delete_instance(run: Run[World], wish: OfInstance) -> None:
    """Take the guest and its disks from the host."""
    await run(take_guest_away, wish)
    await run(take_disks_away, wish)


@delete_instance.finish
def deleted(state: State, wish: OfInstance) -> Changes:
    return forget(state, wish)


@step_with(forward_only=True)
async def take_guest_away(world: World, wish: OfInstance) -> None:
    await remove_guest(world, world.state[INSTANCES].get(wish.instance))


@step_with(forward_only=True)
async def take_disks_away(world: World, wish: OfInstance) -> None:
    await remove_boot_disk(world, wish.instance)
