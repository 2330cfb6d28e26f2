"""What a volume is, and which states it may pass through. No I/O."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from pileus.cloud.images.model import GuestNeeds
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import HostId, ImageId, InstanceId, ProjectId
from pileus.link.volumes import FoundDisk
from pileus.state.kinds import Kind
from pileus.state.records import Record


class VolumeState(StrEnum):
    CREATING = "creating"
    """It is made together with the instance that boots from it, or as a copy."""
    AVAILABLE = "available"
    ATTACHING = "attaching"
    IN_USE = "in-use"
    DETACHING = "detaching"
    GROWING = "growing"
    SNAPSHOTTING = "snapshotting"
    """A snapshot of it is taken or deleted, or a copy of it made."""
    REVERTING = "reverting"
    """It becomes what it was at a snapshot."""
    MOVING = "moving"
    """It goes to another storage pool, and is where it was until it is there."""
    DELETING = "deleting"


_S = VolumeState
ALLOWED: Mapping[VolumeState, frozenset[VolumeState]] = {
    _S.CREATING: frozenset({_S.IN_USE, _S.AVAILABLE}),
    _S.AVAILABLE: frozenset({_S.ATTACHING, _S.GROWING, _S.SNAPSHOTTING, _S.REVERTING, _S.MOVING, _S.DELETING}),
    _S.ATTACHING: frozenset({_S.IN_USE, _S.AVAILABLE}),
    _S.IN_USE: frozenset({_S.DETACHING, _S.GROWING, _S.SNAPSHOTTING, _S.REVERTING, _S.MOVING, _S.AVAILABLE}),
    _S.DETACHING: frozenset({_S.AVAILABLE, _S.IN_USE}),
    _S.GROWING: frozenset({_S.AVAILABLE, _S.IN_USE}),
    _S.SNAPSHOTTING: frozenset({_S.AVAILABLE, _S.IN_USE}),
    _S.REVERTING: frozenset({_S.AVAILABLE, _S.IN_USE}),
    _S.MOVING: frozenset({_S.AVAILABLE, _S.IN_USE}),
    _S.DELETING: frozenset(),
}
SETTLED = frozenset({_S.AVAILABLE, _S.IN_USE})
"""The states in which no task is at work on the volume."""

BOOT_SLOT = 0
"""Where the disk is plugged in that an instance boots from: it was made with the instance, and goes with it."""


class VolumeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a volume may do, reads and writes together; 0 is as much as it can."""

    iops: int = 0
    """Operations per second."""
    bytes_per_s: int = 0


class Volume(Record, frozen=True, kw_only=True):
    """A block device."""

    project_id: ProjectId
    name: str
    description: str = ""
    labels: Mapping[str, str] = msgspec.field(default_factory=dict[str, str])
    size_gib: int
    state: VolumeState = VolumeState.CREATING
    storage_pool: str = "local"
    """Where its disk is; empty while that is to be one of a class, and it was never attached."""
    storage_class: str = ""
    """That of its storage pool, or that of which it is going to get one; empty if it is in no pool."""
    moving_to: str = ""
    """The storage pool that it is on its way to, which promises it room already; empty if it goes nowhere."""
    moving_to_class: str = ""
    """The class of that, of whose quota it takes already."""
    image_id: ImageId | None = None
    """What it was made from."""
    needs: GuestNeeds | None = None
    """What was said then of the image that it, or what it is a copy of, was made from or installed from. That may be
    gone; None if there was none."""
    instance_id: InstanceId | None = None
    slot: int | None = None
    """Where it is plugged into its instance; 0 is what that boots from."""
    host_id: HostId | None = None
    """Where it is, for storage that is a host's own; None for one that was never attached: it has no data yet."""
    protected: bool = False
    """Whether it is refused to be deleted."""
    secure_delete: bool = False
    """Whether its data is overwritten when its disk is removed."""
    limits: VolumeLimits | None = None
    """None for one that nobody has ever limited."""
    found: FoundDisk | None = None
    """Where on its host it is, if it is in no pool: it was the disk of a guest that was taken over."""
    generation: int = 1
    """Of what the host was told; every change of it adds one."""

    def to(self, state: VolumeState) -> "Volume":
        """The same volume in its next state, or Conflict if there is no such way."""
        if state not in ALLOWED[self.state]:
            raise Conflict(f"volume {self.name} is {self.state} and cannot become {state}")
        return msgspec.structs.replace(self, state=state)

    def released(self) -> "Volume":
        """The same volume without an instance, its data kept."""
        there = self.to(VolumeState.AVAILABLE)
        found = None if self.found is None else msgspec.structs.replace(self.found, target="")
        return msgspec.structs.replace(there, instance_id=None, slot=None, found=found)

    def must_be_ours(self, what: str) -> None:
        """Raises Conflict if its disk is one that was found, with which this cannot be done."""
        if self.found is not None:
            raise Conflict(
                f"volume {self.name} is the file {self.found.path}, as it was found: it cannot be {what}; copy what is"
                " in it to a volume of a pool for that"
            )


def gib_of_class(storage_class: str) -> str:
    """What the size of volumes in storage pools of a class is called in quotas."""
    return f"volume_gib.{storage_class}"


def _counts(volume: Volume) -> Mapping[str, int]:
    classes = {volume.storage_class, volume.moving_to_class} - {""}
    return {"volumes": 1, "volume_gib": volume.size_gib, **{gib_of_class(each): volume.size_gib for each in classes}}


def _with_slots(volume: dict[str, Any]) -> dict[str, Any]:
    """Version 2 knows volumes besides those that instances boot from."""
    return {**volume, "slot": BOOT_SLOT, "description": "", "labels": {}, "protected": False}


def _with_secure_delete(volume: dict[str, Any]) -> dict[str, Any]:
    """Version 3 knows volumes that are overwritten when they go or that move, storage classes, limits, disks found.

    Until then there was no storage pool but the one of which hosts have their own, which begins with this class. What
    images had said of the volumes that there were is not known.
    """
    moves = {"moving_to": "", "moving_to_class": ""}
    new = {"secure_delete": False, "storage_class": "standard", "limits": None, "found": None, "needs": None}
    return {**volume, **new, **moves}


VOLUMES = Kind(
    "volume",
    Volume,
    indexes={
        "project": lambda volume: volume.project_id,
        "instance": lambda volume: volume.instance_id,
        "host": lambda volume: volume.host_id,
        "image": lambda volume: volume.image_id,
        "storage_pool": lambda volume: volume.storage_pool or None,
        "moving_to": lambda volume: volume.moving_to or None,
    },
    counts=_counts,
    upgrades=(_with_slots, _with_secure_delete),
)
