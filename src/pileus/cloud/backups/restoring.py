"""What is made of backups again: new volumes, and what volumes were."""

from typing import Annotated

from pydantic import Field

from pileus.cloud.backups.model import BACKUPS, BackedUpVolume, Backup, BackupState
from pileus.cloud.backups.workflows import RestoreVolume, restore_volume
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.instances.placement import Placer, room_on
from pileus.cloud.pools.model import POOLS
from pileus.cloud.snapshots.model import must_have_none
from pileus.cloud.snapshots.subject import must_have_no_others
from pileus.cloud.storagepools.choosing import as_before, candidates
from pileus.cloud.storagepools.model import StoragePool
from pileus.cloud.volumes.model import VOLUMES, Volume
from pileus.cloud.volumes.operations import SizeGib
from pileus.cloud.volumes.space import volumes
from pileus.kernel.errors import Conflict, Invalid, NoCapacity
from pileus.kernel.ids import BackupId, VolumeId
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Labels, Name, Wire, ref
from pileus.state.state import put
from pileus.workflow.workflow import begin

__all__ = ["volumes"]


class VolumeRestore(Wire):
    name: Name
    backup_id: Annotated[Id, ref("backup")]
    volume_id: Id | None = None
    """Which volume of the backup; not needed if there is but one."""
    size_gib: SizeGib | None = None
    """Without one, as large as it was."""
    storage_pool: Name | None = None
    """Where its disk is to be, by name; by default where it was, or in another pool of the same class."""
    storage_class: Name | None = None
    """Instead, the class of storage pool that it is to be in."""
    description: Description = ""
    labels: Labels = Field(default_factory=dict[str, str])
    secure_delete: bool | None = None
    """Whether its data is overwritten when it is deleted; without one, as the volume's was."""


@volumes.post("/restore", starts=restore_volume)
def restore(ask: Ask, wish: VolumeRestore) -> Plan:
    """Make a new volume of what a backup holds, on the host that has the backup."""
    backup = ask.see(BACKUPS, wish.backup_id, "backup_id", of=ask.caller.project_id)
    changed = backup.to(BackupState.RESTORING)
    kept = _one_of(backup, wish.volume_id)
    if wish.size_gib is not None and wish.size_gib < kept.size_gib:
        raise Invalid("some fields are wrong", fields={"size_gib": f"the volume had {kept.size_gib} GiB"})
    size_gib = wish.size_gib or kept.size_gib
    there = _storage_pool(ask, wish, backup, kept, size_gib)
    volume = Volume(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=backup.project_id,
        name=wish.name,
        description=wish.description,
        labels=wish.labels,
        size_gib=size_gib,
        host_id=backup.host_id,
        storage_pool=there.name,
        storage_class=there.storage_class,
        needs=kept.needs,
        secure_delete=kept.secure_delete if wish.secure_delete is None else wish.secure_delete,
    )
    deed = RestoreVolume(BackupId(backup.id), kept.id, VolumeId(volume.id))
    return Plan(
        summary=f"restore volume {kept.name} of backup {backup.name} as {volume.name}",
        changes=(put(volume), put(changed)),
        begin=begin(restore_volume, deed),
        answers=volume,
        undo="delete the volume",
    )


def _storage_pool(ask: Ask, wish: VolumeRestore, backup: Backup, kept: BackedUpVolume, size_gib: int) -> StoragePool:
    """Where a new volume goes: to the pool or class that is named, else to where it was.

    Raises:
        Invalid, NotFound, Conflict: it cannot go there.
        NoCapacity: there is no room.
    """
    placer, pool = ask.view(Placer), ask.state[POOLS].get(ask.state[HOSTS].get(backup.host_id).pool_id)
    if wish.storage_pool is not None or wish.storage_class is not None:
        chosen = candidates(ask.state, pool, name=wish.storage_pool, storage_class=wish.storage_class)
        return room_on(placer, ask.state, backup.host_id, size_gib, chosen)
    before = as_before(ask.state, pool, kept.storage_pool, kept.storage_class)
    try:
        return room_on(placer, ask.state, backup.host_id, size_gib, before)
    except NoCapacity as full:
        another = f"volume {kept.name} was in storage pool {kept.storage_pool}: {full.detail}; or name another one"
        raise NoCapacity(another, because=full.because) from full


def to_restore(ask: Ask, backup: Backup) -> list[Volume]:
    """The volumes of a backup, if they can become what they were.

    Raises:
        Conflict: they are not there or not as they were, are used by a guest that runs, or have snapshots.
    """
    if gone := [each.name for each in backup.volumes if each.id not in ask.state[VOLUMES]]:
        raise Conflict(f"{', '.join(gone)} is gone: restore what backup {backup.name} holds as new volumes")
    volumes = [ask.state[VOLUMES].get(id) for id in backup.volume_ids]
    for volume in volumes:
        must_have_none(ask.state, volume, "restored")
        user = ask.state[INSTANCES].find(volume.instance_id or "")
        if user is not None and user.state is not InstanceState.STOPPED:
            raise Conflict(f"volume {volume.name} is attached to instance {user.name}, which is {user.state}: stop it")
        if volume.host_id != backup.host_id:
            raise Conflict(f"volume {volume.name} is no longer on the host that has the backup: restore a new volume")
    if backup.instance_id is not None:
        _must_be_as_it_was(ask, backup, volumes)
    return volumes


def _must_be_as_it_was(ask: Ask, backup: Backup, volumes: list[Volume]) -> None:
    if away := [each.name for each in volumes if each.instance_id != backup.instance_id]:
        raise Conflict(f"{', '.join(away)} is not attached to the instance as it was: attach it first")
    instance = ask.state[INSTANCES].get(backup.instance_id or "")
    must_have_no_others(ask, instance, backup.volume_ids)


def _one_of(backup: Backup, volume_id: str | None) -> BackedUpVolume:
    if volume_id is None and len(backup.volumes) == 1:
        return backup.volumes[0]
    found = [each for each in backup.volumes if each.id == volume_id]
    if not found:
        names = ", ".join(f"{each.name} ({each.id})" for each in backup.volumes)
        raise Invalid("some fields are wrong", fields={"volume_id": f"name one of {names}"})
    return found[0]
