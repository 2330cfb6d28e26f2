"""Making an instance of what a backup holds."""

from pileus.cloud.backups.model import BACKUPS, BackupState
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.instances.workflows.creation import (
    CreateOfCopies,
    connect,
    destroy_copies,
    forget_copies,
    open_copies_for_use,
    start_guest,
)
from pileus.cloud.instances.workflows.hosting import WHOLE_DISK_S, ensure_disk, ensure_media
from pileus.cloud.volumes.model import VOLUMES
from pileus.cloud.world import World
from pileus.kernel.ids import BackupId
from pileus.state.state import Change, State, put
from pileus.workflow.workflow import Run, step_with, workflow


class CreateFromBackup(CreateOfCopies, frozen=True):
    """What is copied, and the backup that holds it."""

    backup: BackupId


@workflow("instance.create_from_backup")
async def create_instance_from_backup(run: Run[World], wish: CreateFromBackup) -> None:
    """Restore the volumes of the backup, connect the ports, start the guest."""
    await run(restore_disks, wish)
    await run(connect, wish)
    await run(start_guest, wish)


@create_instance_from_backup.finish
def restored(state: State, wish: CreateFromBackup) -> list[Change]:
    return [*open_copies_for_use(state, wish), _left(state, wish)]


@create_instance_from_backup.withdraw
def not_restored(state: State, wish: CreateFromBackup) -> list[Change]:
    return [*forget_copies(state, wish), _left(state, wish)]


@step_with(patience_s=120)
async def restore_disks(world: World, wish: CreateFromBackup) -> None:
    backup = world.state[BACKUPS].get(wish.backup)
    for new, source in wish.copies:
        volume = world.state[VOLUMES].get(new)
        await ensure_disk(world, volume, backup=backup.content_of(source), timeout_s=WHOLE_DISK_S)
    await ensure_media(world, world.state[INSTANCES].get(wish.instance))


restore_disks.undo(destroy_copies)


def _left(state: State, wish: CreateFromBackup) -> Change:
    """The backup as it was before."""
    return put(state[BACKUPS].get(wish.backup).to(BackupState.AVAILABLE))
