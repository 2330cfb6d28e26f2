"""What an image export is: an image's data in another format, there for a while. No I/O."""

from enum import StrEnum

import msgspec

from pileus.diskimages.headers import DiskFormat
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import ImageId, ProjectId
from pileus.kernel.units import GIB
from pileus.state.kinds import Kind
from pileus.state.records import Record


class ImageExportState(StrEnum):
    CONVERTING = "converting"
    AVAILABLE = "available"
    """It can be fetched."""


class ImageExport(Record, frozen=True, kw_only=True):
    """An image's data in another format. It is of the project that asked for it, whosever the image is."""

    project_id: ProjectId
    name: str
    """That of the image."""
    image_id: ImageId
    format: DiskFormat
    state: ImageExportState = ImageExportState.CONVERTING
    size_bytes: int = 0
    """Until it is available, what it is to be taken for."""
    sha256: str = ""

    def made(self, size_bytes: int, sha256: str) -> "ImageExport":
        """The same export, of which is known what it is."""
        return msgspec.structs.replace(self, size_bytes=size_bytes, sha256=sha256)

    def available(self) -> "ImageExport":
        """The same export, for somebody to fetch."""
        return msgspec.structs.replace(self, state=ImageExportState.AVAILABLE)

    def must_be_available(self) -> None:
        """Raises Conflict while it is being converted."""
        if self.state is not ImageExportState.AVAILABLE:
            raise Conflict(f"a task is at work on the export of image {self.name}: wait for it, or cancel it")


IMAGE_EXPORTS = Kind(
    "image_export",
    ImageExport,
    indexes={
        "project": lambda export: export.project_id,
        "image": lambda export: export.image_id,
        "state": lambda export: export.state,
    },
    counts=lambda export: {"image_exports": 1, "image_gib": -(-export.size_bytes // GIB)},
)
