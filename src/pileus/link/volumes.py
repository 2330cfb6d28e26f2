"""What controller and agent say to each other of volumes: as they ought to be, and as they are."""

from pileus.kernel.ids import BackupId, ProjectId, SnapshotId, VolumeId
from pileus.link.images import ImageSource
from pileus.link.messages import Message


class VolumeCopy(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a volume is a copy of: another one of the same pool, as it was at a snapshot."""

    volume: VolumeId
    snapshot: SnapshotId


class VolumeBackup(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a volume is restored from: a volume as it is in a backup."""

    id: BackupId
    place: str
    project: ProjectId
    volume: VolumeId


class FoundDisk(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A disk that somebody made without us, and that stays where it was found."""

    path: str
    kind: str = "file"
    """`file` or `block` (a device node)."""
    format: str = "raw"
    target: str = ""
    """As the definition of the guest calls it that it was found with; empty when that guest has it no more."""


class VolumeSpec(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume as it ought to be on a host."""

    id: VolumeId
    generation: int
    size_bytes: int
    pool: str = "local"
    """The name of the storage pool on the host."""
    image: ImageSource | None = None
    """What it is a copy of when it is made; empty without."""
    copy_of: VolumeCopy | None = None
    """What it is a copy of when it is made, instead of an image."""
    backup: VolumeBackup | None = None
    """What it is restored from when it is made, instead of an image."""
    found: FoundDisk | None = None
    """Where it is, if it is in no pool of ours: nothing is made, and it is what it is."""


class VolumeRemoval(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume that must no longer be."""

    id: VolumeId
    generation: int
    pool: str = "local"
    secure: bool = False
    """Whether its data is to be overwritten before its space is given back."""
    left: bool = False
    """Whether its data is to stay where it is, for others."""


class VolumeObserved(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume as it is."""

    id: VolumeId
    generation: int
    size_bytes: int
    allocated_bytes: int = 0
