"""What controller and agent say to each other of backups."""

from pileus.kernel.ids import BackupId, ProjectId, VolumeId
from pileus.link.copies import Copy
from pileus.link.messages import Message
from pileus.link.snapshots import VolumeOf
from pileus.link.volumes import VolumeBackup


class VolumeToBackUp(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume of which the snapshot that is called after the backup is to be kept elsewhere."""

    id: VolumeId
    pool: str = "local"
    since: BackupId | None = None
    """The backup with which it may be compared; None to read all of it."""


class BackupSpec(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Volumes of one host, as they are in a snapshot of the same id, which are to be kept in a place."""

    id: BackupId
    place: str
    project: ProjectId
    volumes: tuple[VolumeToBackUp, ...]
    record: Copy | None = None
    """The controller's record, which is kept beside the data."""


class BackupObserved(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A backup as it is."""

    id: BackupId
    read_bytes: int
    """Read from the volumes to make it."""
    stored_bytes: int
    """By which the place became fuller."""
    data_bytes: int
    """What its volumes hold, before it was compressed."""
    compared: tuple[VolumeId, ...] = ()
    """Of which volumes only what had changed was read."""


class BackupOf(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A backup that is meant: to be looked through, or to be had no more."""

    id: BackupId
    place: str
    project: ProjectId


class BackupChecked(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What was found when everything in a backup was read again."""

    id: BackupId
    damaged: tuple[VolumeId, ...] = ()
    """Volumes that cannot be restored from it."""
    others: tuple[BackupId, ...] = ()
    """Other backups that need what is damaged."""


class VolumeRestore(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume that is to become what a backup holds."""

    volume: VolumeOf
    backup: VolumeBackup


class BackupRestore(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Volumes that are to become what a backup holds: all of them are prepared first, then all are exchanged."""

    to: str
    """The id of this deed: a second one with the same does nothing."""
    volumes: tuple[VolumeRestore, ...]
