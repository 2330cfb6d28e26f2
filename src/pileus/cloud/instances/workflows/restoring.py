"""Making an instance of what a backup holds."""

import msgspec

from pileus.cloud.backups.model import BACKUPS, BackupState
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.instances.workflows.creation import connect, forget, open_for_use, start_guest
from pileus.cloud.instances.workflows.hosting import OfInstance, ensure_disk, ensure_media, remove_disk
from pileus.cloud.schedules.model import gone_with
from pileus.cloud.volumes.model import VOLUMES
from pileus.cloud.world import World
from pileus.kernel.ids import BackupId, VolumeId
from pileus.state.state import Change, State, put, remove
from pileus.workflow.workflow import Run, step_with, workflow

RESTORE_S = 86_400.0
"""How long a host may take to restore a volume."""


class CreateFromBackup(OfInstance, frozen=True):
    """Which instance, the backup, and each volume of the instance with the one in the backup that it is made of."""

    backup: BackupId
    copies: tuple[tuple[VolumeId, VolumeId], ...]


@workflow("instance.create_from_backup")
async def create_instance_from_backup(run: Run[World], wish: CreateFromBackup) -> None:
    """Restore the volumes of the backup, connect the ports, start the guest."""
    await run(restore_disks, wish)
    await run(connect, wish)
    await run(start_guest, wish)


@create_instance_from_backup.finish
def open_restored_for_use(state: State, wish: CreateFromBackup) -> list[Change]:
    instance, *volumes = open_for_use(state, wish)
    attached = tuple(new for new, _ in wish.copies[1:])
    return [put(msgspec.structs.replace(instance.record, attached_volume_ids=attached)), *volumes, _left(state, wish)]


@create_instance_from_backup.withdraw
def forget_restored(state: State, wish: CreateFromBackup) -> list[Change]:
    further = [new for new, _ in wish.copies[1:]]
    return [
        *(change for change in forget(state, wish) if change.record.id not in further),
        *(remove(state[VOLUMES].get(id)) for id in further),
        *gone_with(state, *further),
        _left(state, wish),
    ]


@step_with(patience_s=120)
async def restore_disks(world: World, wish: CreateFromBackup) -> None:
    backup = world.state[BACKUPS].get(wish.backup)
    for new, source in wish.copies:
        volume = world.state[VOLUMES].get(new)
        await ensure_disk(world, volume, backup=backup.content_of(source), timeout_s=RESTORE_S)
    await ensure_media(world, world.state[INSTANCES].get(wish.instance))


@restore_disks.undo
async def destroy_restored(world: World, wish: CreateFromBackup) -> None:
    for new, _ in wish.copies:
        await remove_disk(world, world.state[VOLUMES].get(new))


def _left(state: State, wish: CreateFromBackup) -> Change:
    """The backup as it was before."""
    return put(state[BACKUPS].get(wish.backup).to(BackupState.AVAILABLE))
