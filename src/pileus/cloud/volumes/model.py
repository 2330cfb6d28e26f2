"""What a volume is, and which states it may pass through. No I/O."""

from enum import StrEnum

from pileus.kernel.ids import HostId, ImageId, InstanceId, ProjectId
from pileus.state.kinds import Kind
from pileus.state.records import Record


class VolumeState(StrEnum):
    CREATING = "creating"
    IN_USE = "in-use"
    DELETING = "deleting"


class Volume(Record, frozen=True, kw_only=True):
    """A block device."""

    project_id: ProjectId
    name: str
    size_gib: int
    state: VolumeState = VolumeState.CREATING
    storage_pool: str = "local"
    image_id: ImageId | None = None
    """What it was made from."""
    instance_id: InstanceId | None = None
    host_id: HostId | None = None
    """Where it is, for storage that is a host's own."""
    generation: int = 1
    """Of what the host was told; every change of it adds one."""


VOLUMES = Kind(
    "volume",
    Volume,
    indexes={
        "project": lambda volume: volume.project_id,
        "instance": lambda volume: volume.instance_id,
        "host": lambda volume: volume.host_id,
        "image": lambda volume: volume.image_id,
    },
    counts=lambda volume: {"volumes": 1, "volume_gib": volume.size_gib},
)
