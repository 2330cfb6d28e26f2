"""Images from elsewhere: brought from a URL by a task."""

from typing import Annotated

import msgspec
from pydantic import Field, StringConstraints

from pileus.cloud.images.model import Image, ImageState
from pileus.cloud.images.operations.noun import images
from pileus.cloud.images.operations.records import ImageCreate, described
from pileus.cloud.images.web import source_of
from pileus.cloud.images.workflows import ImportImage, import_image
from pileus.kernel.ids import ImageId
from pileus.operations.plan import Ask, Plan
from pileus.state.state import put
from pileus.workflow.workflow import begin


class ImageImport(ImageCreate):
    url: Annotated[str, StringConstraints(min_length=1, max_length=4096), Field(json_schema_extra={"format": "uri"})]
    """Where it is: https or http, at a public address."""


@images.post("/import", verb="import", starts=import_image)
def import_(ask: Ask, wish: ImageImport) -> Plan:
    """Import an image from a URL: the controller fetches it, checks it, and converts it if hosts do not use its format.

    A transfer that breaks off goes on where it stopped. Only public addresses are asked, and those that an
    administrator of the cloud allows.
    """
    source = source_of(wish.url)
    image: Image = msgspec.structs.replace(
        described(ask, wish, wish.format, expected_bytes=wish.size_bytes or 0, expected_sha256=wish.sha256 or ""),
        state=ImageState.IMPORTING,
        source=source,
    )
    return Plan(
        summary=f"import image {wish.name} from {source}",
        changes=(put(image),),
        begin=begin(import_image, ImportImage(ImageId(image.id), image.format, wish.url)),
        answers=image,
        undo="delete the image",
    )
