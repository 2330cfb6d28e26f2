"""The tasks of an instance's life."""

from functools import partial
from typing import Any

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS, without_port
from pileus.cloud.instances.model import FIRST_BOOTS, INSTANCES, Instance, InstanceState
from pileus.cloud.instances.specs import guest_spec, root_volume, serial_of, volume_spec, volumes_of
from pileus.cloud.networks.model import PORTS
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, Volume, VolumeState
from pileus.cloud.world import Nothing, World
from pileus.kernel.ids import FlavorId, HostId, ImageId, InstanceId, VolumeId
from pileus.link.records import (
    GuestObserved,
    GuestReboot,
    GuestRemoval,
    Method,
    Power,
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
        await _ensure_volume(world, host, volume)


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


class ResizeInstance(OfInstance, frozen=True):
    """Which instance, and how large it was before."""

    vcpus: int
    memory_mib: int
    disk_gib: int
    flavor_id: FlavorId | None


@workflow("instance.resize")
async def resize_instance(run: Run[World], wish: ResizeInstance) -> None:
    """Give the stopped guest another size, and its disk more room."""
    await run(redefine, wish)
    await run(grow_disk, wish)


@resize_instance.finish
def resized(state: State, wish: ResizeInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.STOPPED))]


@resize_instance.withdraw
def not_resized(state: State, wish: ResizeInstance) -> list[Change]:
    instance = state[INSTANCES].get(wish.instance)
    return [put(_of_former_size(instance, wish)), put(_former_root(state, instance, wish))]


@step
async def redefine(world: World, wish: ResizeInstance) -> None:
    await _ensure(world, world.state[INSTANCES].get(wish.instance))


@redefine.undo
async def define_as_before(world: World, wish: ResizeInstance) -> None:
    instance = world.state[INSTANCES].get(wish.instance)
    former = _former_root(world.state, instance, wish)
    volumes = [former if each.id == former.id else each for each in volumes_of(world.state, instance)]
    spec = guest_spec(world.state, _of_former_size(instance, wish), volumes)
    await world.hosts.ask(instance.host_id, Method.GUEST_ENSURE, spec, GuestObserved, timeout_s=_GUEST_S)


@step
async def grow_disk(world: World, wish: ResizeInstance) -> None:
    instance = world.state[INSTANCES].get(wish.instance)
    await _ensure_volume(world, instance.host_id, root_volume(world.state, instance))


@grow_disk.undo
async def promise_as_before(world: World, wish: ResizeInstance) -> None:
    # A disk that has grown already stays so on its host: none is ever shrunk.
    instance = world.state[INSTANCES].get(wish.instance)
    await _ensure_volume(world, instance.host_id, _former_root(world.state, instance, wish))


def _of_former_size(instance: Instance, wish: ResizeInstance) -> Instance:
    return msgspec.structs.replace(
        instance.to(InstanceState.STOPPED),
        vcpus=wish.vcpus,
        memory_mib=wish.memory_mib,
        disk_gib=wish.disk_gib,
        flavor_id=wish.flavor_id,
        generation=instance.generation + 1,
    )


def _former_root(state: State, instance: Instance, wish: ResizeInstance) -> Volume:
    volume = root_volume(state, instance)
    return msgspec.structs.replace(volume, size_gib=wish.disk_gib, generation=volume.generation + 1)


class RebuildInstance(OfInstance, frozen=True):
    """Which instance, its old root disk and its new one, and what it was before."""

    old: VolumeId
    new: VolumeId
    before: InstanceState
    image_id: ImageId


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
    ]


@rebuild_instance.withdraw
def not_rebuilt(state: State, wish: RebuildInstance) -> list[Change]:
    instance = state[INSTANCES].get(wish.instance)
    former = msgspec.structs.replace(
        instance.to(wish.before), image_id=wish.image_id, generation=instance.generation + _BACK
    )
    return [put(former), remove(state[VOLUMES].get(wish.new))]


# By how much the generation is later than when the task began: each step and each undo is news to the host.
_STOPPED, _EXCHANGED, _EXCHANGED_BACK, _BACK = range(4)


@step_with(patience_s=120)
async def make_new_disk(world: World, wish: RebuildInstance) -> None:
    host = world.state[INSTANCES].get(wish.instance).host_id
    await _ensure_volume(world, host, world.state[VOLUMES].get(wish.new))


@make_new_disk.undo
async def bring_back(world: World, wish: RebuildInstance) -> None:
    # Told to the host in any case: it then knows the generation that the record goes back to.
    await _ensure_with(world, wish, wish.old, _power_before(wish), _BACK)
    await _remove_volume(world, wish, wish.new)


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
    await _remove_volume(world, wish, wish.old)


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
    await world.hosts.ask(instance.host_id, Method.GUEST_ENSURE, spec, GuestObserved, timeout_s=_GUEST_S)


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
    resize_instance,
    rebuild_instance,
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
    for volume in world.state[VOLUMES].by("instance", wish.instance):
        if volume.slot == BOOT_SLOT:
            await _remove_volume(world, wish, VolumeId(volume.id))


async def _ensure_volume(world: World, host: HostId, volume: Volume) -> None:
    spec = volume_spec(world.state, volume, partial(world.images.url, host=host))
    await world.hosts.ask(host, Method.VOLUME_ENSURE, spec, VolumeObserved, timeout_s=_COPY_S)


async def _remove_volume(world: World, wish: OfInstance, id: VolumeId) -> None:
    host = world.state[INSTANCES].get(wish.instance).host_id
    volume = world.state[VOLUMES].get(id)
    removal = VolumeRemoval(id=id, generation=volume.generation, pool=volume.storage_pool)
    await world.hosts.ask(host, Method.VOLUME_REMOVE, removal, Nothing, timeout_s=_GUEST_S)
