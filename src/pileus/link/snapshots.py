"""What controller and agent say to each other of snapshots."""

from collections.abc import Mapping
from enum import StrEnum

from pileus.kernel.ids import InstanceId, SnapshotId, VolumeId
from pileus.link.messages import Message


class Consistency(StrEnum):
    """What can be relied on in a snapshot."""

    FILE_SYSTEMS = "file-systems"
    """The guest had written everything to its file systems, and held them still."""
    CRASH = "crash"
    """As after a power cut at that moment: the guest could not be asked, or did not answer."""
    AT_REST = "at-rest"
    """Nobody was writing."""
    MEMORY = "memory"
    """The guest's memory of the same moment is kept too."""


class VolumeSpace(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a volume really takes of its pool, in bytes."""

    allocated_bytes: int = 0
    """All together, with what is kept for its snapshots."""
    snapshots: Mapping[SnapshotId, int] = {}
    """What is kept for each snapshot alone: what was written since."""


class VolumeOf(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume that is meant, and its pool."""

    id: VolumeId
    pool: str = "local"
    secure: bool = False
    """Whether layers of it that are needed no more are overwritten before their space is given back."""


class SnapshotSpec(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What volumes of one host were at one moment, which is to be kept."""

    id: SnapshotId
    volumes: tuple[VolumeOf, ...]
    guest: InstanceId | None = None
    """Whose disks they are."""
    memory: bool = False
    """Whether the guest's memory is kept too; it must run."""


class SnapshotObserved(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A snapshot as it was taken."""

    id: SnapshotId
    consistency: Consistency
    memory_bytes: int = 0


class SnapshotRemoval(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A snapshot that must no longer be. The volumes stay what they are."""

    id: SnapshotId
    volumes: tuple[VolumeOf, ...]
    guest: InstanceId | None = None
    """Whose disks they are now, if any's."""
    later: bool = False
    """Whether what was written since may be merged later, if it cannot be now."""


class SnapshotRevert(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Volumes that are to be what they were."""

    id: SnapshotId
    to: str
    """The id of this deed: a second one with the same does nothing."""
    volumes: tuple[VolumeOf, ...]
    guest: InstanceId | None = None
    """Whose disks they are: stopped at once if it runs, for what it has in mind is of a time that is taken back."""
    memory: bool = False
    """Whether the guest is to go on from the memory that was kept."""
