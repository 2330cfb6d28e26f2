"""What an image is: what a volume is a copy of. No I/O."""

from enum import StrEnum

from pileus.kernel.ids import ProjectId
from pileus.kernel.units import GIB
from pileus.state.kinds import Kind
from pileus.state.records import Record


class ImageState(StrEnum):
    QUEUED = "queued"
    """Its record is there, its data is not yet."""
    ACTIVE = "active"


class ImageFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


class Image(Record, frozen=True, kw_only=True):
    """A disk to make volumes from. Made in two steps: the record, then its data."""

    project_id: ProjectId
    name: str
    description: str = ""
    format: ImageFormat
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


IMAGES = Kind(
    "image",
    Image,
    indexes={"project": lambda image: image.project_id},
    counts=lambda image: {"images": 1, "image_gib": -(-image.size_bytes // GIB)},
)
