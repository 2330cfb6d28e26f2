"""What one may do with image exports."""

from datetime import timedelta
from functools import partial
from typing import Annotated, Final, Literal

from pileus.cloud.imageexports.files import ExportFiles
from pileus.cloud.imageexports.model import IMAGE_EXPORTS, ImageExport
from pileus.cloud.imageexports.workflows import ExportImage, create_export
from pileus.cloud.images.operations.data import RANGED, data_of
from pileus.cloud.images.operations.noun import usable_image
from pileus.diskimages.headers import DiskFormat
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import ImageExportId, ImageId
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import put, remove
from pileus.workflow.workflow import begin

KEPT: Final = timedelta(hours=1)
"""An export is forgotten so long after it was made, or last fetched of."""


class ImageExportCreate(Wire):
    image_id: Annotated[Id, ref("image")]
    format: Literal["raw", "qcow2", "vmdk", "vhdx"]
    """What to convert it to."""


image_exports = Noun(
    IMAGE_EXPORTS,
    plural="image-exports",
    columns=("name", "format", "state", "size_bytes"),
    about="Image exports: images in other formats, to be fetched within an hour.",
)
image_exports.list(filters=("name", "image_id", "format", "state", "project_id"), sorts=("name", "size_bytes"))
image_exports.show()


@image_exports.post(starts=create_export)
def create(ask: Ask, wish: ImageExportCreate) -> Plan:
    """Convert an image to another format, to be fetched from `GET /v1/image-exports/{id}/data`.

    It counts in the project's quota of image_gib, and is forgotten an hour after somebody last fetched of it. Of what
    is raw every byte counts and is sent, also zeroes.
    """
    image = usable_image(ask, wish.image_id)
    to = DiskFormat(wish.format)
    if image.format is to:
        raise Conflict(
            f"image {image.name} is kept as {image.format}: download it as it is", fields={"format": "is its own"}
        )
    export = ImageExport(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        name=image.name,
        image_id=ImageId(image.id),
        format=to,
        size_bytes=image.virtual_size_bytes if to is DiskFormat.RAW else image.size_bytes,
    )
    return Plan(
        summary=f"export image {image.name} as {to}",
        changes=(put(export),),
        begin=begin(create_export, ExportImage(ImageExportId(export.id))),
        answers=export,
        undo="delete the export",
    )


@image_exports.delete()
def delete(ask: Ask, export: ImageExport) -> Plan:
    """Delete an image export; the image stays. Whoever fetches it just now is given the rest."""
    del ask
    export.must_be_available()
    return Plan(
        summary=f"delete the export of image {export.name}", changes=(remove(export),), undo="export the image again"
    )


@image_exports.special("GET", "/{id}/data", least=Role.READER, parameters=(RANGED,))
async def download(exchange: Exchange, export: ImageExport) -> Answer:
    """Download an image export."""
    export.must_be_available()
    files: ExportFiles = exchange.services[ExportFiles]
    if files.used_at(ImageExportId(export.id)) is None:
        raise Conflict(f"the export of image {export.name} is not here any more: export it again")
    send = partial(files.send, ImageExportId(export.id))
    return data_of(exchange, send, size_bytes=export.size_bytes, sha256=export.sha256)
