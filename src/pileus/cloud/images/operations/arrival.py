"""The data of an image in parts, so that a break costs a part and not all: after the shape of tus 1.0 (tus.io).

A part is sent with the header `Upload-Offset`, which says where it begins, and answered when it is on disk. After a
break one asks how much has arrived, and goes on there. What is complete is checked, and if need be converted, by a
task.
"""

from datetime import timedelta

import msgspec

from pileus.cloud.images.files import ImageFiles
from pileus.cloud.images.model import IMAGES, Image, ImageState
from pileus.cloud.images.operations.noun import images, must_be_queued
from pileus.cloud.images.operations.records import Sha256
from pileus.cloud.images.quota import MAX_IMAGE, room
from pileus.cloud.images.workflows import FinishUpload, finish_upload
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import ImageId
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Parameter
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Wire
from pileus.state.state import put
from pileus.workflow.workflow import begin

UPLOADS_KEPT = timedelta(hours=24)
"""What has arrived of an image is forgotten so long after its last part."""
OFFSET = "Upload-Offset"
FROM_WHERE = Parameter(
    name=OFFSET, about="Where the part begins: how much has arrived so far", place="header", required=True
)


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """How far an upload is."""

    image_id: str
    offset_bytes: int
    """How much has arrived, and where to go on."""
    size_bytes: int
    """How much is to arrive; 0 if nobody said so."""
    expires_at: str | None
    """When what has arrived is forgotten unless more comes; None if nothing has."""


class UploadFinish(Wire):
    sha256: Sha256 | None = None
    """What the SHA-256 of all that arrived must be, in hex; without it, what was declared."""


@images.special("GET", "/{id}/upload", least=Role.MEMBER, answers=Upload)
async def progress(exchange: Exchange, image: Image) -> Answer:
    """Show how much of an image has arrived, and so where an upload that broke off goes on."""
    must_be_queued(exchange.ask, image)
    return shown(exchange, image)


@images.special(
    "PATCH",
    "/{id}/upload",
    least=Role.MEMBER,
    answers=Upload,
    max_body=MAX_IMAGE,
    body_media_type="application/octet-stream",
    parameters=(FROM_WHERE,),
)
async def append(exchange: Exchange, image: Image) -> Answer:
    """Upload a part of an image's data; the answer comes when it is on disk.

    What arrived before a part broke off stays: ask for the offset, and go on there. Of two who send parts of one image
    the later one goes on.
    """
    must_be_queued(exchange.ask, image)
    return await appended(exchange, image, while_in=ImageState.QUEUED)


@images.special("DELETE", "/{id}/upload", least=Role.MEMBER, status=204)
async def abandon(exchange: Exchange, image: Image) -> Answer:
    """Forget what has arrived of an image; the upload can begin anew."""
    must_be_queued(exchange.ask, image)
    files: ImageFiles = exchange.services[ImageFiles]
    await files.discard(ImageId(image.id))
    return Answer(status=204)


@images.post("/{id}/upload/finish", starts=finish_upload)
def finish(ask: Ask, image: Image, wish: UploadFinish) -> Plan:
    """Finish an upload in parts: all of it is checked, and converted if hosts do not use its format."""
    must_be_queued(ask, image)
    changed = msgspec.structs.replace(
        image, state=ImageState.IMPORTING, expected_sha256=wish.sha256 or image.expected_sha256
    )
    return Plan(
        summary=f"finish the upload of image {image.name}",
        changes=(put(changed),),
        begin=begin(finish_upload, FinishUpload(ImageId(image.id), image.format)),
        answers=changed,
        undo="delete the image",
    )


async def appended(exchange: Exchange, image: Image, *, while_in: ImageState) -> Answer:
    """Add the body to what has arrived of an image, for as long as that is in this state."""
    said = exchange.header(OFFSET)
    if not (said.isascii() and said.isdigit() and len(said) <= len(str(MAX_IMAGE))):
        raise Invalid("some headers are wrong", fields={OFFSET: "a number of bytes"})
    files: ImageFiles = exchange.services[ImageFiles]
    state = exchange.ask.state

    def still_wanted() -> int:
        now = state[IMAGES].get(image.id)
        if now.state is not while_in:
            raise Conflict(f"image {now.name} is {now.state}: nothing can be added")
        return room(state, now, files.arrived)

    id = ImageId(image.id)
    await files.append(id, int(said), exchange.body(), still_wanted, expected_bytes=image.expected_bytes)
    return shown(exchange, image)


def shown(exchange: Exchange, image: Image) -> Answer:
    """How far an image is that arrives."""
    files: ImageFiles = exchange.services[ImageFiles]
    touched = files.touched_at(ImageId(image.id))
    told = Upload(
        image_id=image.id,
        offset_bytes=files.arrived.get(image.id, 0),
        size_bytes=image.expected_bytes,
        expires_at=(touched + UPLOADS_KEPT).isoformat() if touched else None,
    )
    headers = {OFFSET.lower(): str(told.offset_bytes)}
    return Answer(status=200, body=msgspec.json.encode(told), headers=headers)
