"""The tasks of a backup's life.

A backup begins as a snapshot, and only while that is taken are its volumes held. What the snapshot kept is then
written to the storage pool, while the guest goes on as it likes. The snapshot itself stays until the next backup of the
same volumes, which is compared with it.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from pileus.cloud.backups.model import BACKUPS, Backup, BackupState, former
from pileus.cloud.copies import copy_of
from pileus.cloud.instances.workflows.hosting import WHOLE_DISK_S, ensure_disk, remove_disk
from pileus.cloud.schedules.model import gone_with
from pileus.cloud.snapshots.workflows import MERGE_S, TAKE_S, at_rest, named
from pileus.cloud.volumes.model import VOLUMES, VolumeState
from pileus.cloud.world import Nothing, World
from pileus.kernel.ids import BackupId, SnapshotId, VolumeId
from pileus.link.backups import (
    BackupChecked,
    BackupObserved,
    BackupOf,
    BackupRestore,
    BackupSpec,
    VolumeRestore,
    VolumeToBackUp,
)
from pileus.link.messages import Method
from pileus.link.snapshots import SnapshotObserved, SnapshotRemoval, SnapshotSpec
from pileus.state.state import Change, Origin, State, put, remove
from pileus.workflow.workflow import Changes, Run, Workflow, step_with, workflow


class OfBackup(msgspec.Struct, frozen=True):
    """Which backup; all else is in the records."""

    backup: BackupId


@workflow("backup.create")
async def create_backup(run: Run[World], wish: OfBackup) -> None:
    """Keep what the volumes are now, let them go on, write it out, let go of what the last backup was compared by."""
    taken = await run(take, wish)
    await run(let_go_on, wish, taken)
    written = await run(write_out, wish)
    await run(note_written, wish, written)
    await run(let_go_of_former, wish)


@create_backup.finish
def made(state: State, wish: OfBackup) -> Changes:
    backup = state[BACKUPS].get(wish.backup)
    there = tuple(id for id in backup.volume_ids if id in state[VOLUMES])
    return [
        put(msgspec.structs.replace(backup.to(BackupState.AVAILABLE), based_volume_ids=there)),
        *(put(each.without(volumes)) for each, volumes in former(state, backup)),
    ]


@create_backup.withdraw
def not_made(state: State, wish: OfBackup) -> Changes:
    backup = state[BACKUPS].get(wish.backup)
    return [remove(backup), *_released(state, backup)]


@step_with(patience_s=60)
async def take(world: World, wish: OfBackup) -> SnapshotObserved:
    backup = world.state[BACKUPS].get(wish.backup)
    volumes = [world.state[VOLUMES].get(id) for id in backup.volume_ids]
    spec = SnapshotSpec(
        id=SnapshotId(backup.id), volumes=named(world.state, backup.volume_ids), guest=volumes[0].instance_id
    )
    return await world.hosts.ask(backup.host_id, Method.SNAPSHOT_ENSURE, spec, SnapshotObserved, timeout_s=TAKE_S)


@take.undo
async def take_back(world: World, wish: OfBackup) -> None:
    backup = world.state[BACKUPS].get(wish.backup)
    await _let_go(world, backup, backup.volume_ids)


@step_with()
async def let_go_on(world: World, wish: OfBackup, taken: SnapshotObserved) -> None:
    backup = world.state[BACKUPS].get(wish.backup)
    if backup.state is BackupState.CREATING:
        writing = msgspec.structs.replace(backup.to(BackupState.WRITING), consistency=str(taken.consistency))
        changes = [put(writing), *_released(world.state, backup)]
        await world.state.commit(changes, Origin(actor="system", operation="backup.create: let go on"))


@step_with(patience_s=120)
async def write_out(world: World, wish: OfBackup) -> BackupObserved:
    backup = world.state[BACKUPS].get(wish.backup)
    volumes = tuple(
        VolumeToBackUp(id=each.id, pool=world.state[VOLUMES].get(each.id).storage_pool, since=each.since)
        for each in backup.volumes
    )
    spec = BackupSpec(
        id=wish.backup,
        place=backup.storage_pool,
        project=backup.project_id,
        volumes=volumes,
        record=copy_of(world.state, backup),
    )
    return await world.hosts.ask(backup.host_id, Method.BACKUP_ENSURE, spec, BackupObserved, timeout_s=WHOLE_DISK_S)


@write_out.undo
async def remove_what_was_written(world: World, wish: OfBackup) -> None:
    await _remove_data(world, world.state[BACKUPS].get(wish.backup))


@step_with()
async def note_written(world: World, wish: OfBackup, written: BackupObserved) -> None:
    backup = world.state[BACKUPS].get(wish.backup)
    noted = msgspec.structs.replace(
        backup,
        data_bytes=written.data_bytes,
        read_bytes=written.read_bytes,
        stored_bytes=written.stored_bytes,
        volumes=tuple(
            each if each.id in written.compared else msgspec.structs.replace(each, since=None)
            for each in backup.volumes
        ),
    )
    if noted != backup:
        await world.state.commit([put(noted)], Origin(actor="system", operation="backup.create: note"))


@step_with(forward_only=True)
async def let_go_of_former(world: World, wish: OfBackup) -> None:
    backup = world.state[BACKUPS].get(wish.backup)
    for each, volumes in former(world.state, backup):
        await _let_go(world, each, volumes)


@workflow("backup.verify")
async def verify_backup(run: Run[World], wish: OfBackup) -> None:
    """Read all of it again, and note what was found."""
    found = await run(look_through, wish)
    await run(note_found, wish, found)


@verify_backup.finish
@verify_backup.withdraw
def looked_through(state: State, wish: OfBackup) -> Changes:
    return [put(state[BACKUPS].get(wish.backup).to(BackupState.AVAILABLE))]


@step_with(patience_s=120)
async def look_through(world: World, wish: OfBackup) -> BackupChecked:
    backup = world.state[BACKUPS].get(wish.backup)
    return await world.hosts.ask(
        backup.host_id, Method.BACKUP_CHECK, _data_of(backup), BackupChecked, timeout_s=WHOLE_DISK_S
    )


@step_with()
async def note_found(world: World, wish: OfBackup, found: BackupChecked) -> None:
    backup = world.state[BACKUPS].get(wish.backup)
    noted = msgspec.structs.replace(backup, verified_at=world.clock.now(), damaged=bool(found.damaged))
    others = [each for id in found.others if (each := world.state[BACKUPS].find(id)) is not None and not each.damaged]
    changes = [put(noted), *(put(msgspec.structs.replace(each, damaged=True)) for each in others)]
    await world.state.commit(changes, Origin(actor="system", operation="backup.verify: note"))


@workflow("backup.delete")
async def delete_backup(run: Run[World], wish: OfBackup) -> None:
    """Remove what it alone needs, and what its volumes kept for the next one to be compared with."""
    await run(take_away, wish)


@delete_backup.finish
def deleted(state: State, wish: OfBackup) -> Changes:
    return [remove(state[BACKUPS].get(wish.backup))]


@step_with(forward_only=True)
async def take_away(world: World, wish: OfBackup) -> None:
    backup = world.state[BACKUPS].get(wish.backup)
    await _remove_data(world, backup)
    await _let_go(world, backup, backup.based_volume_ids)


class RestoreVolume(OfBackup, frozen=True):
    """Which backup, which of its volumes, and the new one."""

    source: VolumeId
    volume: VolumeId


@workflow("backup.restore_volume")
async def restore_volume(run: Run[World], wish: RestoreVolume) -> None:
    """Make a volume of what the backup holds."""
    await run(make_volume, wish)


@restore_volume.finish
def restored(state: State, wish: RestoreVolume) -> Changes:
    return [
        put(state[VOLUMES].get(wish.volume).to(VolumeState.AVAILABLE)),
        put(state[BACKUPS].get(wish.backup).to(BackupState.AVAILABLE)),
    ]


@restore_volume.withdraw
def not_restored(state: State, wish: RestoreVolume) -> Changes:
    return [
        remove(state[VOLUMES].get(wish.volume)),
        *gone_with(state, wish.volume),
        put(state[BACKUPS].get(wish.backup).to(BackupState.AVAILABLE)),
    ]


@step_with(patience_s=120)
async def make_volume(world: World, wish: RestoreVolume) -> None:
    backup = world.state[BACKUPS].get(wish.backup)
    volume = world.state[VOLUMES].get(wish.volume)
    await ensure_disk(world, volume, backup=backup.content_of(wish.source), timeout_s=WHOLE_DISK_S)


@make_volume.undo
async def remove_volume(world: World, wish: RestoreVolume) -> None:
    await remove_disk(world, world.state[VOLUMES].get(wish.volume))


class RestoreBackup(OfBackup, frozen=True):
    """Which backup, and the id of this deed."""

    to: str


@workflow("backup.restore")
async def restore_backup(run: Run[World], wish: RestoreBackup) -> None:
    """Have everything ready beside what there is, then exchange it: until then there is a way back."""
    await run(prepare, wish)
    await run(exchange, wish)
    await run(let_go_of_all, wish)


@restore_backup.finish
def became(state: State, wish: RestoreBackup) -> Changes:
    backup = state[BACKUPS].get(wish.backup)
    others = {each.id: each for id in backup.volume_ids for each in state[BACKUPS].by("based", id)}
    changed = {**others, backup.id: backup.to(BackupState.AVAILABLE)}
    return [
        *(put(each.without(backup.volume_ids)) for each in changed.values()),
        *at_rest(state, [state[VOLUMES].get(id) for id in backup.volume_ids]),
    ]


@restore_backup.withdraw
def did_not_become(state: State, wish: RestoreBackup) -> Changes:
    backup = state[BACKUPS].get(wish.backup)
    volumes = [state[VOLUMES].get(id) for id in backup.volume_ids]
    return [put(backup.to(BackupState.AVAILABLE)), *at_rest(state, volumes)]


@step_with(patience_s=120)
async def prepare(world: World, wish: RestoreBackup) -> None:
    await _of_restore(world, wish, Method.RESTORE_PREPARE)


@prepare.undo
async def drop(world: World, wish: RestoreBackup) -> None:
    await _of_restore(world, wish, Method.RESTORE_DROP)


@step_with(forward_only=True)
async def exchange(world: World, wish: RestoreBackup) -> None:
    await _of_restore(world, wish, Method.RESTORE_EXCHANGE)


@step_with(forward_only=True)
async def let_go_of_all(world: World, wish: RestoreBackup) -> None:
    """What the volumes were at their last backups is not below what they are now."""
    volumes = world.state[BACKUPS].get(wish.backup).volume_ids
    based = {each.id: each for id in volumes for each in world.state[BACKUPS].by("based", id)}
    for _, each in sorted(based.items()):
        await _let_go(world, each, [id for id in each.based_volume_ids if id in volumes])


WORKFLOWS: tuple[Workflow[World, Any], ...] = (
    create_backup,
    verify_backup,
    delete_backup,
    restore_volume,
    restore_backup,
)


async def _of_restore(world: World, wish: RestoreBackup, method: Method) -> None:
    backup = world.state[BACKUPS].get(wish.backup)
    volumes = tuple(
        VolumeRestore(volume=each, backup=backup.content_of(each.id)) for each in named(world.state, backup.volume_ids)
    )
    body = BackupRestore(to=wish.to, volumes=volumes)
    await world.hosts.ask(backup.host_id, method, body, Nothing, timeout_s=WHOLE_DISK_S)


def _data_of(backup: Backup) -> BackupOf:
    return BackupOf(id=BackupId(backup.id), place=backup.storage_pool, project=backup.project_id)


async def _remove_data(world: World, backup: Backup) -> None:
    await world.hosts.ask(backup.host_id, Method.BACKUP_REMOVE, _data_of(backup), Nothing, timeout_s=MERGE_S)


async def _let_go(world: World, backup: Backup, volumes: Sequence[VolumeId]) -> None:
    """Have the volumes' host keep what they were at a backup no more. One that is gone has taken that with it."""
    there = [id for id in volumes if id in world.state[VOLUMES]]
    removal = SnapshotRemoval(id=SnapshotId(backup.id), volumes=named(world.state, there), later=True)
    await world.hosts.ask(backup.host_id, Method.SNAPSHOT_REMOVE, removal, Nothing, timeout_s=MERGE_S)


def _released(state: State, backup: Backup) -> list[Change]:
    """The volumes at rest, if it is this backup that holds them."""
    if backup.state is not BackupState.CREATING:
        return []
    return at_rest(state, [state[VOLUMES].get(id) for id in backup.volume_ids])
