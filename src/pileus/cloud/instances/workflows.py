"""The tasks of an instance's life."""

from functools import partial
from typing import Any

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS, without_port
from pileus.cloud.instances.model import FIRST_BOOTS, INSTANCES, Instance, InstanceState
from pileus.cloud.instances.specs import guest_spec, volume_spec
from pileus.cloud.networks.model import PORTS
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, VolumeState
from pileus.cloud.world import Nothing, World
from pileus.kernel.ids import InstanceId, VolumeId
from pileus.link.records import (
    GuestObserved,
    GuestReboot,
    GuestRemoval,
    Method,
    VolumeObserved,
    VolumeRemoval,
)
from pileus.state.records import Record
from pileus.state.state import Change, State, put, remove
from pileus.workflow.workflow import Changes, Run, Workflow, step, step_with, workflow

_COPY_S = 1800.0
"""How long a host may take to fetch and copy an image."""
_GUEST_S = 180.0
"""How long a host may take to start or stop a guest."""


class OfInstance(msgspec.Struct, frozen=True):
    """What a task of an instance needs to know: which one; all else is in the records."""

    instance: InstanceId


@workflow("instance.create")
async def create_instance(run: Run[World], wish: OfInstance) -> None:
    """Copy the image, connect the ports, start the guest."""
    await run(make_disks, wish)
    await run(connect, wish)
    await run(start_guest, wish)


@create_instance.finish
def open_for_use(state: State, wish: OfInstance) -> list[Change]:
    instance = state[INSTANCES].get(wish.instance)
    volumes = state[VOLUMES].by("instance", wish.instance)
    return [
        put(instance.to(InstanceState.RUNNING)),
        *(put(msgspec.structs.replace(volume, state=VolumeState.IN_USE)) for volume in volumes),
    ]


@create_instance.withdraw
def forget(state: State, wish: OfInstance) -> list[Change]:
    instance = state[INSTANCES].find(wish.instance)
    gone: list[Record] = [] if instance is None else [instance]
    ports = state[PORTS].by("instance_id", wish.instance)
    gone += ports
    volumes = state[VOLUMES].by("instance", wish.instance)
    gone += [volume for volume in volumes if volume.slot == BOOT_SLOT]
    if (told := state[FIRST_BOOTS].find(wish.instance)) is not None:
        gone.append(told)
    # A floating IP may have been given to the instance while it was on its way in or out.
    floating = [each for port in ports for each in state[FLOATING_IPS].by("port_id", port.id)]
    return [
        *(remove(record) for record in gone),
        *(put(volume.released()) for volume in volumes if volume.slot != BOOT_SLOT),
        *(put(without_port(each)) for each in floating),
    ]


@step_with(patience_s=120)
async def make_disks(world: World, wish: OfInstance) -> None:
    host = world.state[INSTANCES].get(wish.instance).host_id
    for volume in world.state[VOLUMES].by("instance", wish.instance):
        spec = volume_spec(world.state, volume, partial(world.images.url, host=host))
        await world.hosts.ask(host, Method.VOLUME_ENSURE, spec, VolumeObserved, timeout_s=_COPY_S)


@make_disks.undo
async def destroy_disks(world: World, wish: OfInstance) -> None:
    await _remove_disks(world, wish)


@step
async def connect(world: World, wish: OfInstance) -> None:
    # The ports are records, and the switches follow the records: there is nothing to do but wait, or to undo.
    await world.networks.settled()


@step
async def start_guest(world: World, wish: OfInstance) -> None:
    await _ensure(world, world.state[INSTANCES].get(wish.instance))


@start_guest.undo
async def remove_guest(world: World, wish: OfInstance) -> None:
    await _remove_guest(world, wish)


@workflow("instance.start")
async def start_instance(run: Run[World], wish: OfInstance) -> None:
    """Start the guest."""
    await run(apply_power, wish)


@start_instance.finish
def started(state: State, wish: OfInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.RUNNING))]


@start_instance.withdraw
def still_stopped(state: State, wish: OfInstance) -> list[Change]:
    return [put(_reverted(state[INSTANCES].get(wish.instance), wish))]


class StopInstance(OfInstance, frozen=True):
    """Which instance, and what it was before."""

    before: InstanceState = InstanceState.RUNNING


@workflow("instance.stop")
async def stop_instance(run: Run[World], wish: StopInstance) -> None:
    """Ask the guest to end, and end it if it does not."""
    await run(apply_power, wish)


@stop_instance.finish
def stopped(state: State, wish: StopInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.STOPPED))]


@stop_instance.withdraw
def not_stopped(state: State, wish: StopInstance) -> list[Change]:
    return [put(_reverted(state[INSTANCES].get(wish.instance), wish))]


@workflow("instance.pause")
async def pause_instance(run: Run[World], wish: OfInstance) -> None:
    """Stop the guest's CPUs; its memory stays."""
    await run(apply_power, wish)


@pause_instance.finish
def paused(state: State, wish: OfInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.PAUSED))]


@pause_instance.withdraw
def not_paused(state: State, wish: OfInstance) -> list[Change]:
    return [put(_reverted(state[INSTANCES].get(wish.instance), wish))]


@workflow("instance.resume")
async def resume_instance(run: Run[World], wish: OfInstance) -> None:
    """Let the guest's CPUs go on."""
    await run(apply_power, wish)


@resume_instance.finish
def resumed(state: State, wish: OfInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.RUNNING))]


@resume_instance.withdraw
def still_paused(state: State, wish: OfInstance) -> list[Change]:
    return [put(_reverted(state[INSTANCES].get(wish.instance), wish))]


@step
async def apply_power(world: World, wish: OfInstance) -> None:
    await _ensure(world, world.state[INSTANCES].get(wish.instance))


@apply_power.undo
async def restore_power(world: World, wish: OfInstance) -> None:
    await _ensure(world, _reverted(world.state[INSTANCES].get(wish.instance), wish))


_BEFORE = {
    InstanceState.STARTING: InstanceState.STOPPED,
    InstanceState.PAUSING: InstanceState.RUNNING,
    InstanceState.RESUMING: InstanceState.PAUSED,
}


def _reverted(instance: Instance, wish: OfInstance) -> Instance:
    """The instance as it was before the change of power that is under way; the host must take it for newer."""
    before = wish.before if isinstance(wish, StopInstance) else _BEFORE[instance.state]
    return msgspec.structs.replace(instance.to(before), generation=instance.generation + 1)


class RebootInstance(msgspec.Struct, frozen=True):
    """Which instance, and whether by the reset button."""

    instance: InstanceId
    hard: bool


@workflow("instance.reboot")
async def reboot_instance(run: Run[World], wish: RebootInstance) -> None:
    """Restart the guest."""
    await run(restart, wish)


@reboot_instance.finish
def rebooted(state: State, wish: RebootInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.RUNNING))]


@reboot_instance.withdraw
def not_rebooted(state: State, wish: RebootInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.RUNNING))]


@step
async def restart(world: World, wish: RebootInstance) -> None:
    host = world.state[INSTANCES].get(wish.instance).host_id
    reboot = GuestReboot(id=wish.instance, hard=wish.hard)
    await world.hosts.ask(host, Method.GUEST_REBOOT, reboot, GuestObserved, timeout_s=_GUEST_S)


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
    await _remove_guest(world, wish)


@step_with(forward_only=True)
async def take_disks_away(world: World, wish: OfInstance) -> None:
    await _remove_disks(world, wish)


WORKFLOWS: tuple[Workflow[World, Any], ...] = (
    create_instance,
    start_instance,
    stop_instance,
    pause_instance,
    resume_instance,
    reboot_instance,
    delete_instance,
)


async def _ensure(world: World, instance: Instance) -> None:
    spec = guest_spec(world.state, instance)
    await world.hosts.ask(instance.host_id, Method.GUEST_ENSURE, spec, GuestObserved, timeout_s=_GUEST_S)


async def _remove_guest(world: World, wish: OfInstance) -> None:
    instance = world.state[INSTANCES].get(wish.instance)
    removal = GuestRemoval(id=wish.instance, generation=instance.generation)
    await world.hosts.ask(instance.host_id, Method.GUEST_REMOVE, removal, Nothing, timeout_s=_GUEST_S)


async def _remove_disks(world: World, wish: OfInstance) -> None:
    host = world.state[INSTANCES].get(wish.instance).host_id
    for volume in world.state[VOLUMES].by("instance", wish.instance):
        if volume.slot != BOOT_SLOT:
            continue
        removal = VolumeRemoval(id=VolumeId(volume.id), generation=volume.generation, pool=volume.storage_pool)
        await world.hosts.ask(host, Method.VOLUME_REMOVE, removal, Nothing, timeout_s=_GUEST_S)
