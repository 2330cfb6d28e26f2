"""Making an instance."""

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS, without_port
from pileus.cloud.instances.model import FIRST_BOOTS, INSTANCES, InstanceState
from pileus.cloud.instances.workflows.hosting import (
    OfInstance,
    ensure_disk,
    ensure_guest,
    ensure_media,
    remove_boot_disk,
    remove_disk,
    remove_guest,
)
from pileus.cloud.nat.model import rules_at
from pileus.cloud.networks.model import PORTS
from pileus.cloud.schedules.model import gone_with
from pileus.cloud.snapshots.model import SNAPSHOTS, SnapshotState
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, VolumeState
from pileus.cloud.world import World
from pileus.kernel.ids import SnapshotId, VolumeId
from pileus.state.records import Record
from pileus.state.state import Change, State, put, remove
from pileus.workflow.workflow import Run, step, step_with, workflow


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
    kept, own = [each for each in ports if each.kept], [each for each in ports if not each.kept]
    gone += own
    volumes = state[VOLUMES].by("instance", wish.instance)
    gone += [rule for port in own for rule in rules_at(state, port.id)]
    gone += [volume for volume in volumes if volume.slot == BOOT_SLOT]
    if (told := state[FIRST_BOOTS].find(wish.instance)) is not None:
        gone.append(told)
    # A floating IP may have been given to the instance while it was on its way in or out.
    floating = [each for port in own for each in state[FLOATING_IPS].by("port_id", port.id)]
    return [
        *(remove(record) for record in gone),
        *gone_with(state, wish.instance, *(volume.id for volume in volumes if volume.slot == BOOT_SLOT)),
        *(put(volume.released()) for volume in volumes if volume.slot != BOOT_SLOT),
        *(put(port.released()) for port in kept),
        *(put(without_port(each)) for each in floating),
    ]


@step_with(patience_s=120)
async def make_disks(world: World, wish: OfInstance) -> None:
    for volume in world.state[VOLUMES].by("instance", wish.instance):
        await ensure_disk(world, volume)
    await ensure_media(world, world.state[INSTANCES].get(wish.instance))


@make_disks.undo
async def destroy_disks(world: World, wish: OfInstance) -> None:
    await remove_boot_disk(world, wish.instance)


@step_with(only_waits=True)
async def connect(world: World, wish: OfInstance) -> None:
    # The ports are records, and the switches follow the records: there is nothing to do but wait, or to undo.
    await world.networks.settled()


@step
async def start_guest(world: World, wish: OfInstance) -> None:
    await ensure_guest(world, world.state[INSTANCES].get(wish.instance))


@start_guest.undo
async def take_guest_away(world: World, wish: OfInstance) -> None:
    await remove_guest(world, world.state[INSTANCES].get(wish.instance))


class CreateOfCopies(OfInstance, frozen=True):
    """Which instance, and each volume of it with the one that it is a copy of, the one to boot from first."""

    copies: tuple[tuple[VolumeId, VolumeId], ...]


def open_copies_for_use(state: State, wish: CreateOfCopies) -> list[Change]:
    instance, *volumes = open_for_use(state, wish)
    attached = tuple(new for new, _ in wish.copies[1:])
    return [put(msgspec.structs.replace(instance.record, attached_volume_ids=attached)), *volumes]


def forget_copies(state: State, wish: CreateOfCopies) -> list[Change]:
    further = [new for new, _ in wish.copies[1:]]
    return [
        *(change for change in forget(state, wish) if change.record.id not in further),
        *(remove(state[VOLUMES].get(id)) for id in further),
        *gone_with(state, *further),
    ]


async def destroy_copies(world: World, wish: CreateOfCopies) -> None:
    for new, _ in wish.copies:
        await remove_disk(world, world.state[VOLUMES].get(new))


class CreateFromSnapshot(CreateOfCopies, frozen=True):
    """What is copied, and the snapshot that it is copied from."""

    snapshot: SnapshotId


@workflow("instance.create_from_snapshot")
async def create_instance_from_snapshot(run: Run[World], wish: CreateFromSnapshot) -> None:
    """Copy the volumes of the snapshot, connect the ports, start the guest."""
    await run(copy_disks, wish)
    await run(connect, wish)
    await run(start_guest, wish)


@create_instance_from_snapshot.finish
def copied(state: State, wish: CreateFromSnapshot) -> list[Change]:
    return [*open_copies_for_use(state, wish), _left(state, wish)]


@create_instance_from_snapshot.withdraw
def not_copied(state: State, wish: CreateFromSnapshot) -> list[Change]:
    return [*forget_copies(state, wish), _left(state, wish)]


@step_with(patience_s=120)
async def copy_disks(world: World, wish: CreateFromSnapshot) -> None:
    for new, source in wish.copies:
        await ensure_disk(world, world.state[VOLUMES].get(new), copy_of=(source, wish.snapshot))
    await ensure_media(world, world.state[INSTANCES].get(wish.instance))


copy_disks.undo(destroy_copies)


def _left(state: State, wish: CreateFromSnapshot) -> Change:
    """The snapshot as it was before."""
    return put(state[SNAPSHOTS].get(wish.snapshot).to(SnapshotState.AVAILABLE))
