"""Changing a user's password in the disk of an instance that is stopped."""

from pileus.cloud.instances.model import INSTANCES, PASSWORD_CHANGES
from pileus.cloud.instances.workflows.hosting import OfInstance, ensure_guest
from pileus.cloud.world import Nothing, World
from pileus.kernel.ids import InstanceId
from pileus.link.guests import DiskPassword
from pileus.link.messages import Method
from pileus.state.state import Change, State, put, remove
from pileus.workflow.workflow import Run, step_with, workflow

_LOOK_S = 300.0
"""How long a host may take to look into a disk, after those that it looks into already."""


@workflow("instance.set_password")
async def set_password(run: Run[World], wish: OfInstance) -> None:
    """Have its host look into the disk."""
    await run(change_in_disk, wish)


@set_password.finish
def is_set(state: State, wish: OfInstance) -> list[Change]:
    instance = state[INSTANCES].get(wish.instance)
    return [put(instance.at_rest()), remove(state[PASSWORD_CHANGES].get(wish.instance))]


@set_password.withdraw
def is_not_set(state: State, wish: OfInstance) -> list[Change]:
    former = state[INSTANCES].get(wish.instance).at_rest().newer()
    return [put(former), remove(state[PASSWORD_CHANGES].get(wish.instance))]


@step_with(patience_s=300)
async def change_in_disk(world: World, wish: OfInstance) -> None:
    change = world.state[PASSWORD_CHANGES].get(wish.instance)
    host = world.state[INSTANCES].get(wish.instance).host_id
    asked = DiskPassword(id=InstanceId(change.id), user=change.user, hash=change.hash)
    await world.hosts.ask(host, Method.DISK_PASSWORD, asked, Nothing, timeout_s=_LOOK_S)


@change_in_disk.undo
async def leave_the_disk(world: World, wish: OfInstance) -> None:
    # It comes to the guest's turn when nobody looks into its disk any more.
    await ensure_guest(world, world.state[INSTANCES].get(wish.instance).at_rest().newer(), timeout_s=_LOOK_S)
