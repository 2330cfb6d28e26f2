"""What a snapshot is, and which states it may pass through. No I/O."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from pileus.cloud.backups.model import must_not_be_backed_up
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.volumes.model import Volume
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import HostId, ImageId, InstanceId, ProjectId, ScheduleId, VolumeId
from pileus.link.templates import GuestTemplate
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import State


class SnapshotState(StrEnum):
    CREATING = "creating"
    AVAILABLE = "available"
    COPYING = "copying"
    """A volume is made from it."""
    REVERTING = "reverting"
    DELETING = "deleting"


_S = SnapshotState
ALLOWED: Mapping[SnapshotState, frozenset[SnapshotState]] = {
    _S.CREATING: frozenset({_S.AVAILABLE}),
    _S.AVAILABLE: frozenset({_S.COPYING, _S.REVERTING, _S.DELETING}),
    _S.COPYING: frozenset({_S.AVAILABLE}),
    _S.REVERTING: frozenset({_S.AVAILABLE}),
    _S.DELETING: frozenset(),
}
SETTLED = frozenset({_S.AVAILABLE})
"""The states in which no task is at work on the snapshot."""


class Snapshot(Record, frozen=True, kw_only=True):
    """What one volume, or all of an instance, were at one moment."""

    project_id: ProjectId
    name: str
    description: str = ""
    labels: Mapping[str, str] = msgspec.field(default_factory=dict[str, str])
    state: SnapshotState = SnapshotState.CREATING
    host_id: HostId
    instance_id: InstanceId | None = None
    """The instance that it is of as a whole; None if it is of a volume."""
    volume_ids: tuple[VolumeId, ...]
    """What it is of, the one that the instance boots from first."""
    size_gib: int
    """Of the volumes together, as large as they were."""
    memory: bool = False
    """Whether the instance goes on from what it had in memory."""
    memory_mib: int = 0
    """Of the instance that boots from it; 0 if none does. So are the next ones."""
    vcpus: int = 0
    template: GuestTemplate | None = None
    """The set of devices that its guest was given."""
    image_id: ImageId | None = None
    """What the disk was made from that is booted from."""
    consistency: str = ""
    """How the guest was taken: `file-systems` (it had written everything, and held still), `crash` (as by a power
    cut), `at-rest` (nobody was writing), `memory` (with what it had in memory)."""
    schedule_id: ScheduleId | None = None
    """The schedule that took it, and deletes it when it is no longer to be kept; None if a person did."""

    def to(self, state: SnapshotState) -> "Snapshot":
        """The same snapshot in its next state, or Conflict if there is no such way."""
        if state not in ALLOWED[self.state]:
            raise Conflict(f"snapshot {self.name} is {self.state} and cannot become {state}")
        return msgspec.structs.replace(self, state=state)


SNAPSHOTS = Kind(
    "snapshot",
    Snapshot,
    indexes={
        "project": lambda snapshot: snapshot.project_id,
        "instance": lambda snapshot: snapshot.instance_id,
        "host": lambda snapshot: snapshot.host_id,
        "schedule": lambda snapshot: snapshot.schedule_id,
    },
    many={"volume": lambda snapshot: snapshot.volume_ids},
    counts=lambda _: {"snapshots": 1},
)


def must_take_layers(state: State, volume: Volume, what: str) -> None:
    """Raises Conflict if a volume's disk, or the guest that has it, was found as it is: nothing is laid over it."""
    volume.must_be_ours(what)
    if (user := state[INSTANCES].find(volume.instance_id or "")) is not None:
        user.must_be_ours(f"a disk of it cannot be {what} while it has it")


def must_have_none(state: State, volume: Volume, doing: str) -> None:
    """Raises Conflict, with their names, if a volume has snapshots, or a backup of it is being made."""
    must_not_be_backed_up(state, volume)
    if found := state[SNAPSHOTS].by("volume", volume.id):
        names = ", ".join(each.name for each in found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        count = f"{len(found)} snapshots" if len(found) > 1 else "a snapshot"
        raise Conflict(f"volume {volume.name} cannot be {doing}: it has {count} ({names}); delete them first")
