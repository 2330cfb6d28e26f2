"""What an image is: what a volume is a copy of, or a medium to put into a drive. No I/O."""

from enum import StrEnum
from typing import Any

import msgspec

from pileus.diskimages.headers import DiskFormat
from pileus.kernel.ids import GroupId, ImageId, ProjectId
from pileus.kernel.units import GIB
from pileus.link.templates import GuestTemplate
from pileus.state.kinds import Kind
from pileus.state.records import Record


class ImageState(StrEnum):
    QUEUED = "queued"
    """Its record is there, its data is not yet, or not all of it."""
    IMPORTING = "importing"
    """A task brings its data, checks or converts it."""
    ACTIVE = "active"


class GuestNeeds(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an image says of guests that boot from it, as it goes with the disks that are made from it."""

    template: GuestTemplate = GuestTemplate.LINUX
    default_user: str = ""
    architecture: str = ""
    min_memory_mib: int = 0


class Image(Record, frozen=True, kw_only=True):
    """A disk to make volumes from, or an ISO. Made in two steps, the record and then its data, or by a task."""

    project_id: ProjectId
    name: str
    description: str = ""
    format: DiskFormat
    """Of its data: as it is to arrive, and when it has arrived as it is kept."""
    public: bool = False
    """Whether every project may use it."""
    protected: bool = False
    state: ImageState = ImageState.QUEUED
    size_bytes: int = 0
    virtual_size_bytes: int = 0
    """How large the disk is that it describes."""
    sha256: str = ""
    default_user: str = ""
    """Who to sign in as."""
    expected_bytes: int = 0
    """How much is to arrive, as declared; 0 if nobody said so."""
    expected_sha256: str = ""
    """What the SHA-256 of what arrives must be, in hex; empty if nobody said so."""
    source: str = ""
    """Where it came from, in words; empty for one that was uploaded."""
    template: GuestTemplate = GuestTemplate.LINUX
    """The set of devices that guests are given that boot from it, unless they ask for another."""
    architecture: str = ""
    """Such as `x86_64`, for people: which hosts run it is not looked at."""
    min_disk_gib: int = 0
    min_memory_mib: int = 0
    packing: bool = False
    """Whether what it is made of is held for it: a volume or a snapshot, until it is packed."""
    consistency: str = ""
    """How the volume was taken that it was made of, as of a snapshot; empty for one that was not made of any."""

    def complete(self) -> "Image":
        """The same image, with all its data."""
        return msgspec.structs.replace(self, state=ImageState.ACTIVE)

    @property
    def needs(self) -> GuestNeeds:
        """What disks keep of it that are made from it."""
        return GuestNeeds(
            template=self.template,
            default_user=self.default_user,
            architecture=self.architecture,
            min_memory_mib=self.min_memory_mib,
        )

    @property
    def taken_bytes(self) -> int:
        """What it takes of its project's quota."""
        return self.size_bytes if self.state is ImageState.ACTIVE else self.expected_bytes

    @property
    def is_medium(self) -> bool:
        """Whether it goes into a drive, and is nothing to copy volumes from."""
        return self.format is DiskFormat.ISO

    @property
    def least_gib(self) -> int:
        """How large a disk has to be to hold it, in GiB."""
        return max(-(-self.virtual_size_bytes // GIB), self.min_disk_gib, 1)


def _with_sources(image: dict[str, Any]) -> dict[str, Any]:
    """Version 2 knows what is to arrive, where it came from, and what guests need that boot from it."""
    return {
        **image,
        "expected_bytes": 0,
        "expected_sha256": "",
        "source": "",
        "template": GuestTemplate.LINUX,
        "architecture": "",
        "min_disk_gib": 0,
        "min_memory_mib": 0,
        "packing": False,
        "consistency": "",
    }


IMAGES = Kind(
    "image",
    Image,
    indexes={"project": lambda image: image.project_id, "state": lambda image: image.state},
    counts=lambda image: {"images": 1, "image_gib": -(-image.taken_bytes // GIB)},
    upgrades=(_with_sources,),
)


class ImageShare(Record, frozen=True, kw_only=True):
    """That another project, or every member of a group, may use an image."""

    project_id: ProjectId
    """The image's own."""
    image_id: ImageId
    to_project_id: ProjectId | None = None
    to_group_id: GroupId | None = None


IMAGE_SHARES = Kind(
    "image_share",
    ImageShare,
    indexes={
        "project": lambda share: share.project_id,
        "image": lambda share: share.image_id,
        "to_project": lambda share: share.to_project_id,
        "to_group": lambda share: share.to_group_id,
    },
    unique={"share": lambda share: (share.image_id, share.to_project_id, share.to_group_id)},
    counts=lambda _: {"image_shares": 1},
)
