"""Changing what is in the drives of an instance, running or stopped."""

import msgspec

from pileus.cloud.instances.model import INSTANCES, Instance, Medium
from pileus.cloud.instances.workflows.hosting import OfInstance, ensure_guest, ensure_media
from pileus.cloud.world import World
from pileus.state.state import Change, State, put
from pileus.workflow.workflow import Run, step, step_with, workflow


class ChangeMedia(OfInstance, frozen=True):
    """Which instance, and what was in its drives before."""

    before: tuple[Medium, ...]


@workflow("instance.change_media")
async def change_media(run: Run[World], wish: ChangeMedia) -> None:
    """Fetch the images to the host, and put them into the drives."""
    await run(fetch, wish)
    await run(exchange, wish)


@change_media.finish
def changed(state: State, wish: ChangeMedia) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).at_rest())]


@change_media.withdraw
def not_changed(state: State, wish: ChangeMedia) -> list[Change]:
    former = _with_former_media(state[INSTANCES].get(wish.instance), wish)
    return [put(former.at_rest())]


@step_with(patience_s=120)
async def fetch(world: World, wish: ChangeMedia) -> None:
    # Without an undo: the host lets go of media that no guest has.
    await ensure_media(world, world.state[INSTANCES].get(wish.instance))


@step
async def exchange(world: World, wish: ChangeMedia) -> None:
    await ensure_guest(world, world.state[INSTANCES].get(wish.instance))


@exchange.undo
async def exchange_back(world: World, wish: ChangeMedia) -> None:
    await ensure_guest(world, _with_former_media(world.state[INSTANCES].get(wish.instance), wish))


def _with_former_media(instance: Instance, wish: ChangeMedia) -> Instance:
    return msgspec.structs.replace(instance.newer(), media=wish.before)
