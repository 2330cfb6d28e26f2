"""Giving an instance another size."""

import msgspec

from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState, Limits
from pileus.cloud.instances.specs import root_volume, volumes_of
from pileus.cloud.instances.workflows.hosting import OfInstance, ensure_disk, ensure_guest
from pileus.cloud.instances.workflows.limits import limit_ports, ports_limited
from pileus.cloud.volumes.model import Volume
from pileus.cloud.world import World
from pileus.kernel.ids import FlavorId
from pileus.state.state import Change, State, put
from pileus.workflow.workflow import Run, step, workflow


class ResizeInstance(OfInstance, frozen=True):
    """Which instance, and how large it was before."""

    vcpus: int
    memory_mib: int
    disk_gib: int
    flavor_id: FlavorId | None
    max_vcpus: int | None = None
    max_memory_mib: int | None = None
    limits: Limits | None = None


@workflow("instance.resize")
async def resize_instance(run: Run[World], wish: ResizeInstance) -> None:
    """Give the stopped guest another size and other limits, and its disk more room."""
    await run(redefine, wish)
    await run(grow_disk, wish)
    await run(limit_ports, wish)


@resize_instance.finish
def resized(state: State, wish: ResizeInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.STOPPED))]


@resize_instance.withdraw
def not_resized(state: State, wish: ResizeInstance) -> list[Change]:
    instance = state[INSTANCES].get(wish.instance)
    former = _of_former_size(instance, wish)
    return [put(former), put(_former_root(state, instance, wish)), *ports_limited(state, former)]


@step
async def redefine(world: World, wish: ResizeInstance) -> None:
    await ensure_guest(world, world.state[INSTANCES].get(wish.instance))


@redefine.undo
async def define_as_before(world: World, wish: ResizeInstance) -> None:
    instance = world.state[INSTANCES].get(wish.instance)
    former = _former_root(world.state, instance, wish)
    volumes = [former if each.id == former.id else each for each in volumes_of(world.state, instance)]
    await ensure_guest(world, _of_former_size(instance, wish), volumes)


@step
async def grow_disk(world: World, wish: ResizeInstance) -> None:
    instance = world.state[INSTANCES].get(wish.instance)
    await ensure_disk(world, root_volume(world.state, instance))


@grow_disk.undo
async def promise_as_before(world: World, wish: ResizeInstance) -> None:
    # A disk that has grown already stays so on its host: none is ever shrunk.
    instance = world.state[INSTANCES].get(wish.instance)
    await ensure_disk(world, _former_root(world.state, instance, wish))


def _of_former_size(instance: Instance, wish: ResizeInstance) -> Instance:
    return msgspec.structs.replace(_former_size(instance, wish).to(InstanceState.STOPPED), disk_gib=wish.disk_gib)


def _former_size(instance: Instance, wish: ResizeInstance) -> Instance:
    return msgspec.structs.replace(
        instance.at_rest().newer(),
        vcpus=wish.vcpus,
        memory_mib=wish.memory_mib,
        max_vcpus=wish.max_vcpus,
        max_memory_mib=wish.max_memory_mib,
        flavor_id=wish.flavor_id,
        # Never None again: a guest that was limited has to be told that it no longer is.
        limits=wish.limits or (None if instance.limits is None else Limits()),
    )


def _former_root(state: State, instance: Instance, wish: ResizeInstance) -> Volume:
    volume = root_volume(state, instance)
    return msgspec.structs.replace(volume, size_gib=wish.disk_gib, generation=volume.generation + 1)


@workflow("instance.resize_running")
async def resize_running_instance(run: Run[World], wish: ResizeInstance) -> None:
    """Give the running guest other vCPUs, memory and limits."""
    await run(change_size, wish)
    await run(limit_ports, wish)


@resize_running_instance.finish
def size_changed(state: State, wish: ResizeInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).at_rest())]


@resize_running_instance.withdraw
def size_not_changed(state: State, wish: ResizeInstance) -> list[Change]:
    former = _former_size(state[INSTANCES].get(wish.instance), wish)
    return [put(former), *ports_limited(state, former)]


@step
async def change_size(world: World, wish: ResizeInstance) -> None:
    await ensure_guest(world, world.state[INSTANCES].get(wish.instance))


@change_size.undo
async def change_size_back(world: World, wish: ResizeInstance) -> None:
    await ensure_guest(world, _former_size(world.state[INSTANCES].get(wish.instance), wish))
