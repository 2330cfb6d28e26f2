"""What one may do with backups."""

from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.backups.model import (
    BACKUPS,
    BackedUpInstance,
    BackedUpVolume,
    Backup,
    BackupState,
    must_not_be_backed_up,
)
from pileus.cloud.backups.places import place_for
from pileus.cloud.backups.restoring import to_restore
from pileus.cloud.backups.workflows import (
    OfBackup,
    RestoreBackup,
    create_backup,
    delete_backup,
    restore_backup,
    verify_backup,
)
from pileus.cloud.instances.model import Instance
from pileus.cloud.snapshots.model import must_take_layers
from pileus.cloud.snapshots.subject import subject
from pileus.cloud.snapshots.workflows import held
from pileus.cloud.storagepools.operations import PoolName
from pileus.cloud.volumes.model import Volume, VolumeState
from pileus.kernel.ids import BackupId, InstanceId, ScheduleId, VolumeId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Labels, Name, Wire, ref
from pileus.state.state import put
from pileus.workflow.workflow import begin


class BackupCreate(Wire):
    name: Name
    instance_id: Annotated[Id, ref("instance")] | None = None
    """Of all its volumes, at one moment."""
    volume_id: Annotated[Id, ref("volume")] | None = None
    """Of this volume alone."""
    storage_pool: PoolName | None = None
    """For backups, and another than it is in; without one, the only one that there is."""
    full: bool = False
    """Whether everything is read, also what has not changed since the last backup."""
    description: Description = ""
    labels: Labels = Field(default_factory=dict[str, str])

    @model_validator(mode="after")
    def _is_of_one(self) -> Self:
        if (self.instance_id is None) == (self.volume_id is None):
            raise ValueError("name either an instance or a volume")
        return self


class BackupChange(Wire):
    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None


backups = Noun(
    BACKUPS,
    plural="backups",
    columns=("name", "state", "instance_id", "size_gib", "stored_bytes", "consistency", "damaged", "created_at"),
    about="Backups: what volumes and whole instances were, kept in another storage pool. They outlive both.",
)
backups.list(
    filters=("name", "state", "instance_id", "host_id", "storage_pool", "schedule_id", "damaged", "labels"),
    sorts=("name", "size_gib", "stored_bytes"),
)
backups.show()


@backups.post(starts=create_backup)
def create(ask: Ask, wish: BackupCreate) -> Plan:
    """Back a volume or a whole instance up. Its guest runs on, and is asked to write everything before."""
    return make(ask, wish)


def make(ask: Ask, wish: BackupCreate, *, schedule_id: ScheduleId | None = None) -> Plan:
    """The plan of a backup that a person asks for, or a schedule."""
    instance, volumes = subject(ask, wish.instance_id, wish.volume_id, "back up")
    for volume in volumes:
        must_not_be_backed_up(ask.state, volume)
        must_take_layers(ask.state, volume, "backed up")
    place = place_for(ask.state, volumes, wish.storage_pool)
    host = volumes[0].host_id
    assert host is not None
    backup = Backup(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=volumes[0].project_id,
        name=wish.name,
        description=wish.description,
        labels=wish.labels,
        host_id=host,
        storage_pool=place.name,
        instance_id=InstanceId(instance.id) if instance else None,
        instance=_as_it_is(instance) if instance else None,
        volumes=tuple(
            BackedUpVolume(
                id=VolumeId(volume.id),
                name=volume.name,
                size_gib=volume.size_gib,
                slot=volume.slot,
                storage_pool=volume.storage_pool,
                storage_class=volume.storage_class,
                image_id=volume.image_id,
                needs=volume.needs,
                secure_delete=volume.secure_delete,
                since=None if wish.full else _comparable(ask, volume, place.name),
            )
            for volume in volumes
        ),
        size_gib=sum(volume.size_gib for volume in volumes),
        schedule_id=schedule_id,
    )
    what = f"instance {instance.name}" if instance else f"volume {volumes[0].name}"
    how = "all of it" if all(each.since is None for each in backup.volumes) else "what has changed"
    doing = f"backup {wish.name} is being taken"
    return Plan(
        summary=f"back up {what} to storage pool {place.name}, reading {how}",
        changes=(put(backup), *held(ask.state, volumes, VolumeState.SNAPSHOTTING, doing)),
        begin=begin(create_backup, OfBackup(BackupId(backup.id))),
        answers=backup,
        undo="delete the backup",
    )


@backups.patch()
def change(ask: Ask, backup: Backup, wish: BackupChange) -> Plan:
    """Rename a backup, describe it, label it."""
    del ask
    changed = msgspec.structs.replace(backup, **wish.model_dump(exclude_none=True))
    return Plan(summary=f"change backup {backup.name}", changes=(put(changed),), answers=changed, undo="change it back")


@backups.post("/{id}/verify", starts=verify_backup)
def verify(ask: Ask, backup: Backup) -> Plan:
    """Read all of a backup again, and say whether it is what was written. What is damaged also hurts others."""
    del ask
    changed = backup.to(BackupState.VERIFYING)
    return Plan(
        summary=f"verify backup {backup.name}",
        changes=(put(changed),),
        begin=begin(verify_backup, OfBackup(BackupId(backup.id))),
        answers=changed,
        undo="nothing: it is only looked at",
    )


@backups.post("/{id}/restore", starts=restore_backup)
def restore(ask: Ask, backup: Backup) -> Plan:
    """Have the volumes be what they were: what was written since is lost. Their instance must be stopped."""
    changed = backup.to(BackupState.RESTORING)
    volumes = to_restore(ask, backup)
    doing = f"backup {backup.name} is being restored"
    what = f"instance {backup.instance.name}" if backup.instance else f"volume {volumes[0].name}"
    return Plan(
        summary=f"restore {what} to what it was at backup {backup.name}",
        changes=(put(changed), *held(ask.state, volumes, VolumeState.REVERTING, doing)),
        begin=begin(restore_backup, RestoreBackup(BackupId(backup.id), to=ask.new_id())),
        answers=changed,
        undo="none: what was written since the backup is gone; back it up first to keep that",
    )


@backups.delete(starts=delete_backup)
def delete(ask: Ask, backup: Backup) -> Plan:
    """Delete a backup. Others stay whole, also those that were compared with it."""
    del ask
    changed = backup.to(BackupState.DELETING)
    return Plan(
        summary=f"delete backup {backup.name}",
        changes=(put(changed),),
        begin=begin(delete_backup, OfBackup(BackupId(backup.id))),
        answers=changed,
        undo="none: what it held is gone",
    )


def _comparable(ask: Ask, volume: Volume, storage_pool: str) -> BackupId | None:
    """The backup with which the volume can be compared, so that only what has changed is read."""
    found = [each for each in ask.state[BACKUPS].by("based", volume.id) if each.storage_pool == storage_pool]
    whole = [each for each in found if not each.damaged and each.state is not BackupState.DELETING]
    return BackupId(whole[0].id) if whole else None


def _as_it_is(instance: Instance) -> BackedUpInstance:
    return BackedUpInstance(
        name=instance.name,
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        max_vcpus=instance.max_vcpus,
        max_memory_mib=instance.max_memory_mib,
        flavor_id=instance.flavor_id,
        image_id=instance.image_id,
        template=instance.template,
        boot_order=instance.boot_order,
        restart=instance.restart,
        watchdog=instance.watchdog,
        config_drive=instance.config_drive,
    )
