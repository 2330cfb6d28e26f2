"""Telling a host what becomes of a guest that ends by itself or hangs."""

import msgspec

from pileus.cloud.instances.model import INSTANCES, Instance
from pileus.cloud.instances.workflows.hosting import OfInstance, ensure_guest
from pileus.cloud.world import World
from pileus.link.guests import Restart, Watchdog
from pileus.state.state import Change, State, put
from pileus.workflow.workflow import Run, step, workflow


class SetRecovery(OfInstance, frozen=True):
    """Which instance, and how it was before."""

    restart: Restart
    watchdog: Watchdog


@workflow("instance.set_recovery")
async def set_recovery(run: Run[World], wish: SetRecovery) -> None:
    """Tell the host."""
    await run(tell_host, wish)


@set_recovery.finish
def is_set(state: State, wish: SetRecovery) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).at_rest())]


@set_recovery.withdraw
def is_not_set(state: State, wish: SetRecovery) -> list[Change]:
    return [put(_as_before(state[INSTANCES].get(wish.instance), wish))]


@step
async def tell_host(world: World, wish: SetRecovery) -> None:
    await ensure_guest(world, world.state[INSTANCES].get(wish.instance))


@tell_host.undo
async def tell_former(world: World, wish: SetRecovery) -> None:
    await ensure_guest(world, _as_before(world.state[INSTANCES].get(wish.instance), wish))


def _as_before(instance: Instance, wish: SetRecovery) -> Instance:
    return msgspec.structs.replace(instance.at_rest().newer(), restart=wish.restart, watchdog=wish.watchdog)
