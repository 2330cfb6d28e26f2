"""What a backup is, and which states it may pass through. No I/O."""

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum

import msgspec

from pileus.cloud.images.model import GuestNeeds
from pileus.cloud.volumes.model import Volume
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import BackupId, FlavorId, HostId, ImageId, InstanceId, ProjectId, ScheduleId, VolumeId
from pileus.kernel.units import GIB
from pileus.link.guests import BOOT_ORDER, BootDevice, Restart, Watchdog
from pileus.link.templates import GuestTemplate
from pileus.link.volumes import VolumeBackup
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import State


class BackupState(StrEnum):
    CREATING = "creating"
    """Its volumes are kept as they are at one moment; nothing else is done with them meanwhile."""
    WRITING = "writing"
    """What was kept is written to its storage pool; its instance may do anything meanwhile."""
    AVAILABLE = "available"
    VERIFYING = "verifying"
    RESTORING = "restoring"
    DELETING = "deleting"


_S = BackupState
ALLOWED: Mapping[BackupState, frozenset[BackupState]] = {
    _S.CREATING: frozenset({_S.WRITING}),
    _S.WRITING: frozenset({_S.AVAILABLE}),
    _S.AVAILABLE: frozenset({_S.VERIFYING, _S.RESTORING, _S.DELETING}),
    _S.VERIFYING: frozenset({_S.AVAILABLE}),
    _S.RESTORING: frozenset({_S.AVAILABLE}),
    _S.DELETING: frozenset(),
}
SETTLED = frozenset({_S.AVAILABLE})
"""The states in which no task is at work on the backup."""
BEING_MADE = frozenset({_S.CREATING, _S.WRITING})


class BackedUpVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as it was. It may be gone."""

    id: VolumeId
    name: str
    size_gib: int
    slot: int | None = None
    """Where it was plugged into its instance; 0 is what that booted from."""
    storage_pool: str
    """Where it was; a new volume that is made of it goes there, or to another pool of its class."""
    storage_class: str
    image_id: ImageId | None = None
    needs: GuestNeeds | None = None
    """As of volumes."""
    secure_delete: bool = False
    since: BackupId | None = None
    """The backup with which it was compared, so that only changes were read; None if all of it was."""


class BackedUpInstance(msgspec.Struct, frozen=True, kw_only=True):
    """An instance as it was: enough to make another like it. It may be gone."""

    name: str
    vcpus: int
    memory_mib: int
    max_vcpus: int | None = None
    max_memory_mib: int | None = None
    flavor_id: FlavorId | None = None
    image_id: ImageId | None
    template: GuestTemplate = GuestTemplate.LINUX
    boot_order: tuple[BootDevice, ...] = BOOT_ORDER
    restart: Restart = Restart.ON_FAILURE
    watchdog: Watchdog = Watchdog.RESET
    config_drive: bool = False


class Backup(Record, frozen=True, kw_only=True):
    """What one volume, or all of an instance, were at one moment, kept in a storage pool. It outlives them."""

    project_id: ProjectId
    name: str
    description: str = ""
    labels: Mapping[str, str] = msgspec.field(default_factory=dict[str, str])
    state: BackupState = BackupState.CREATING
    host_id: HostId
    """Whose storage pool it is in."""
    storage_pool: str
    instance_id: InstanceId | None = None
    """The instance that it is of as a whole; None if it is of a volume."""
    instance: BackedUpInstance | None = None
    volumes: tuple[BackedUpVolume, ...]
    """What the instance boots from first."""
    size_gib: int
    """Of the volumes together, as large as they were."""
    consistency: str = ""
    """How the guest was taken; as of snapshots."""
    data_bytes: int = 0
    """What was in the volumes."""
    read_bytes: int = 0
    """What was read of them: less than was in them if it was compared with an earlier backup."""
    stored_bytes: int = 0
    """By how much it made the storage pool fuller: compressed, and without what was there already."""
    verified_at: datetime | None = None
    """When all of it was read again last."""
    damaged: bool = False
    """Whether something was found to be damaged or lost then."""
    schedule_id: ScheduleId | None = None
    """The schedule that made it, and deletes it when it is no longer to be kept; None if a person did."""
    based_volume_ids: tuple[VolumeId, ...] = ()
    """Of which volumes what they were then is still kept beside them, for the next backup to be compared with."""

    def to(self, state: BackupState) -> "Backup":
        """The same backup in its next state, or Conflict if there is no such way."""
        if state not in ALLOWED[self.state]:
            raise Conflict(f"backup {self.name} is {self.state} and cannot become {state}")
        return msgspec.structs.replace(self, state=state)

    def without(self, gone: Collection[str]) -> "Backup":
        """The same backup, with which these volumes cannot be compared any more."""
        return msgspec.structs.replace(
            self, based_volume_ids=tuple(each for each in self.based_volume_ids if each not in gone)
        )

    def made_by(self, schedule: ScheduleId | None) -> "Backup":
        return msgspec.structs.replace(self, schedule_id=schedule)

    def content_of(self, volume: VolumeId) -> VolumeBackup:
        """Where its host finds what a volume was."""
        return VolumeBackup(id=BackupId(self.id), place=self.storage_pool, project=self.project_id, volume=volume)

    @property
    def volume_ids(self) -> tuple[VolumeId, ...]:
        return tuple(volume.id for volume in self.volumes)


BACKUPS = Kind(
    "backup",
    Backup,
    indexes={
        "project": lambda backup: backup.project_id,
        "host": lambda backup: backup.host_id,
        "instance": lambda backup: backup.instance_id,
        "schedule": lambda backup: backup.schedule_id,
        "storage_pool": lambda backup: backup.storage_pool,
    },
    many={"volume": lambda backup: backup.volume_ids, "based": lambda backup: backup.based_volume_ids},
    # What it will take nobody can tell: it counts as 1 GiB until that is known.
    counts=lambda backup: {"backups": 1, "backup_gib": max(1, -(-backup.stored_bytes // GIB))},
)


def must_not_be_backed_up(state: State, volume: Volume) -> None:
    """Raises Conflict, with its name, if a backup of a volume is being made."""
    for backup in state[BACKUPS].by("volume", volume.id):
        if backup.state in BEING_MADE:
            raise Conflict(
                f"backup {backup.name} is being made of volume {volume.name}: wait for it, or cancel its task"
            )


def former(state: State, backup: Backup) -> list[tuple[Backup, list[VolumeId]]]:
    """The backups that a new one takes the place of, as what the next is compared with, and for which volumes."""
    found: dict[str, list[VolumeId]] = {}
    for id in backup.volume_ids:
        for each in state[BACKUPS].by("based", id):
            if each.id != backup.id and each.storage_pool == backup.storage_pool:
                found.setdefault(each.id, []).append(id)
    return [(state[BACKUPS].get(id), volumes) for id, volumes in sorted(found.items())]
