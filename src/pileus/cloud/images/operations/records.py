"""The records of images: made, changed, deleted."""

from typing import Annotated

import msgspec
from pydantic import Field, StringConstraints

from pileus.cloud.images.model import IMAGE_SHARES, Image, ImageState
from pileus.cloud.images.operations.noun import Template, images, must_own
from pileus.cloud.images.quota import MAX_IMAGE
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.volumes.model import VOLUMES, VolumeState
from pileus.diskimages.headers import DiskFormat
from pileus.kernel.errors import Conflict, Forbidden
from pileus.link.templates import GuestTemplate
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Name, Wire
from pileus.state.state import put, remove
from pileus.workflow.task import TASKS, UNFINISHED

_COPIES = frozenset({InstanceState.BUILDING, InstanceState.REBUILDING})
"""The states of instances whose hosts may be copying their image."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]
UserName = Annotated[str, StringConstraints(pattern=r"^([a-z_][a-z0-9_-]{0,31})?$")]
Architecture = Annotated[str, StringConstraints(pattern=r"^([a-z][a-z0-9_]{0,15})?$")]
MinDiskGib = Annotated[int, Field(ge=0, le=65_536)]
MinMemoryMib = Annotated[int, Field(ge=0, le=64 * 1024 * 1024)]


class ImageDescription(Wire):
    """What is said of an image besides its data."""

    name: Name
    description: Description = ""
    public: bool = False
    default_user: UserName = ""
    """Who to sign in as."""
    template: Template = GuestTemplate.LINUX
    """The set of devices that guests are given, unless they ask for another."""
    architecture: Architecture = ""
    """Such as x86_64, for people to know."""
    min_disk_gib: MinDiskGib = 0
    min_memory_mib: MinMemoryMib = 0


class ImageCreate(ImageDescription):
    format: DiskFormat
    """Of what is going to arrive."""
    size_bytes: Annotated[int, Field(ge=1, le=MAX_IMAGE)] | None = None
    """How much is going to arrive; the quota is taken at once."""
    sha256: Sha256 | None = None
    """What its SHA-256 must be, in hex."""


class ImageChange(Wire):
    name: Name | None = None
    description: Description | None = None
    public: bool | None = None
    protected: bool | None = None
    default_user: UserName | None = None
    template: Template | None = None
    architecture: Architecture | None = None
    min_disk_gib: MinDiskGib | None = None
    min_memory_mib: MinMemoryMib | None = None


@images.post()
def create(ask: Ask, wish: ImageCreate) -> Plan:
    """Create an image's record; its data is uploaded next."""
    image = described(ask, wish, wish.format, expected_bytes=wish.size_bytes or 0, expected_sha256=wish.sha256 or "")
    return Plan(summary=f"create image {wish.name}", changes=(put(image),), answers=image, undo="delete the image")


def described(
    ask: Ask, wish: ImageDescription, format: DiskFormat, *, expected_bytes: int = 0, expected_sha256: str = ""
) -> Image:
    """A new image without data. Raises Forbidden if it is to be everybody's and the caller may not say so."""
    _may_publish(ask, public=wish.public)
    return Image(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        name=wish.name,
        description=wish.description,
        format=format,
        public=wish.public,
        default_user=wish.default_user,
        expected_bytes=expected_bytes,
        expected_sha256=expected_sha256,
        template=wish.template,
        architecture=wish.architecture,
        min_disk_gib=wish.min_disk_gib,
        min_memory_mib=wish.min_memory_mib,
    )


@images.patch()
def change(ask: Ask, image: Image, wish: ImageChange) -> Plan:
    """Rename an image, describe it, share it with everybody, protect it, say what its guests need."""
    must_own(ask, image)
    if wish.public is not None:
        _may_publish(ask, public=True)
    changed = msgspec.structs.replace(image, **wish.model_dump(exclude_none=True))
    return Plan(summary=f"change image {image.name}", changes=(put(changed),), answers=changed, undo="change it back")


def _may_publish(ask: Ask, *, public: bool) -> None:
    if public and not ask.caller.is_platform:
        raise Forbidden(
            "only administrators of the cloud share images with everybody", fields={"public": "not allowed"}
        )


@images.delete()
def delete(ask: Ask, image: Image) -> Plan:
    """Delete an image. Instances made from it are copies, and stay."""
    must_own(ask, image)
    if image.protected:
        raise Conflict(f"image {image.name} is protected; take the protection away first")
    if image.state is ImageState.IMPORTING:
        raise Conflict(f"a task is at work on image {image.name}: cancel it first")
    if any(task.state in UNFINISHED for task in ask.state[TASKS].by("subject", image.id)):
        raise Conflict(f"a task is at work on image {image.name}: wait for it, or cancel it")
    being_built = [each for each in ask.state[INSTANCES].by("image", image.id) if each.state in _COPIES]
    if being_built:
        raise Conflict(f"instance {being_built[0].name} is being made from it")
    for volume in ask.state[VOLUMES].by("image", image.id):
        if volume.host_id is None or volume.state is VolumeState.ATTACHING:
            raise Conflict(f"volume {volume.name} is to be a copy of it, and has not been attached yet")
    shares = (remove(share) for share in ask.state[IMAGE_SHARES].by("image", image.id))
    return Plan(summary=f"delete image {image.name}", changes=(remove(image), *shares), undo="none: its data is gone")
