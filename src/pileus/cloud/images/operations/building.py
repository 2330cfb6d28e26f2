"""Images of what instances, volumes and snapshots hold."""

from typing import Annotated, Self

import msgspec
from pydantic import model_validator

from pileus.cloud.images.model import IMAGES, GuestNeeds, ImageState
from pileus.cloud.images.operations.noun import Template, images, may_use
from pileus.cloud.images.operations.records import (
    Architecture,
    ImageDescription,
    MinDiskGib,
    MinMemoryMib,
    UserName,
    described,
)
from pileus.cloud.images.quota import room
from pileus.cloud.images.workflows import BuildImage, build_image
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.instances.specs import root_volume
from pileus.cloud.snapshots.model import SNAPSHOTS, Snapshot, SnapshotState, must_take_layers
from pileus.cloud.snapshots.workflows import held
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, Volume, VolumeState
from pileus.diskimages.headers import DiskFormat
from pileus.kernel.errors import Conflict, QuotaExceeded
from pileus.kernel.ids import ImageId, ProjectId, SnapshotId, VolumeId
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Name, Wire, ref
from pileus.state.state import Change, put
from pileus.workflow.workflow import begin

_ALL_BUT_ONE = 2


class ImageBuild(Wire):
    name: Name
    instance_id: Annotated[Id, ref("instance")] | None = None
    """Of the disk that it boots from, as it is now."""
    volume_id: Annotated[Id, ref("volume")] | None = None
    """Of this volume, as it is now."""
    snapshot_id: Annotated[Id, ref("snapshot")] | None = None
    """Of what it keeps: its volume, or of an instance the disk that that booted from."""
    description: Description = ""
    public: bool = False
    default_user: UserName | None = None
    """Who to sign in as; without one, as for what the disk was made from."""
    template: Template | None = None
    """The set of devices that guests are given; without one, that of the instance."""
    architecture: Architecture | None = None
    """Such as x86_64, for people to know."""
    min_disk_gib: MinDiskGib = 0
    min_memory_mib: MinMemoryMib | None = None
    """Without one, as for what the disk was made from."""

    @model_validator(mode="after")
    def _is_of_one(self) -> Self:
        if [self.instance_id, self.volume_id, self.snapshot_id].count(None) != _ALL_BUT_ONE:
            raise ValueError("name an instance, a volume or a snapshot")
        return self


@images.post("/build", starts=build_image)
def build(ask: Ask, wish: ImageBuild) -> Plan:
    """Build an image from an instance's disk, a volume or a snapshot. A guest that uses it runs on.

    Its guest is asked to write everything before. What is in the image is what is on the disk, with host keys and all.
    """
    what, volume, snapshot = _source(ask, wish)
    must_take_layers(ask.state, volume, "made an image of")
    if volume.host_id is None:
        raise Conflict(f"volume {volume.name} was never attached: there is nothing in it to make an image of")
    image = msgspec.structs.replace(
        described(ask, _description(ask, wish, volume), DiskFormat.QCOW2),
        state=ImageState.IMPORTING,
        source=what,
        packing=True,
    )
    if not room(ask.state, image, {}):
        raise QuotaExceeded("the project's quota leaves no room for an image: delete one first")
    if snapshot is not None:
        moment = SnapshotId(snapshot.id)
        changes: list[Change] = [put(snapshot.to(SnapshotState.COPYING))]
    else:
        moment = SnapshotId(ask.new_id())
        changes = held(ask.state, [volume], VolumeState.SNAPSHOTTING, f"image {wish.name} is being made of it")
    deed = BuildImage(
        source=VolumeId(volume.id),
        snapshot=moment,
        is_taken=snapshot is not None,
        image=ImageId(image.id),
        host=volume.host_id,
        pool=volume.storage_pool,
    )
    return Plan(
        summary=f"build image {wish.name} from {what}",
        changes=(put(image), *changes),
        begin=begin(build_image, deed),
        answers=image,
        undo="delete the image",
    )


def _source(ask: Ask, wish: ImageBuild) -> tuple[str, Volume, Snapshot | None]:
    """What the image is made of, in words, its volume, and its snapshot if it is of one. Raises NotFound."""
    project = ProjectId(ask.caller.project_id)
    if wish.instance_id is not None:
        instance = ask.see(INSTANCES, wish.instance_id, "instance_id", of=project)
        return f"instance {instance.name}", root_volume(ask.state, instance), None
    if wish.volume_id is not None:
        volume = ask.see(VOLUMES, wish.volume_id, "volume_id", of=project)
        return f"volume {volume.name}", volume, None
    snapshot = ask.see(SNAPSHOTS, wish.snapshot_id or "", "snapshot_id", of=project)
    return f"snapshot {snapshot.name}", ask.state[VOLUMES].get(snapshot.volume_ids[0]), snapshot


def _description(ask: Ask, wish: ImageBuild, volume: Volume) -> ImageDescription:
    """What is said of the image: what the wish says, or else what is known of the disk."""
    instance = ask.state[INSTANCES].find(volume.instance_id or "") if volume.slot == BOOT_SLOT else None
    origin = ask.state[IMAGES].find(volume.image_id or (instance.image_id if instance else None) or "")
    known = origin.needs if origin is not None and may_use(ask, origin) else volume.needs or GuestNeeds()
    return ImageDescription(
        name=wish.name,
        description=wish.description,
        public=wish.public,
        default_user=known.default_user if wish.default_user is None else wish.default_user,
        template=wish.template or (instance.template if instance else known.template),
        architecture=known.architecture if wish.architecture is None else wish.architecture,
        min_disk_gib=wish.min_disk_gib,
        min_memory_mib=known.min_memory_mib if wish.min_memory_mib is None else wish.min_memory_mib,
    )
