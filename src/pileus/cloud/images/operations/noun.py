"""The noun, and who may do what with an image."""

from typing import Annotated

from pydantic import AfterValidator

from pileus.cloud.images.model import IMAGES, Image, ImageState
from pileus.cloud.images.sharing import is_shared_with
from pileus.kernel.errors import Conflict, Forbidden, NotFound
from pileus.link.templates import TO_BE_GIVEN, GuestTemplate
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask


def _can_be_given(template: GuestTemplate) -> GuestTemplate:
    if template not in TO_BE_GIVEN:
        raise ValueError("only guests that were taken over have it")
    return template


Template = Annotated[GuestTemplate, AfterValidator(_can_be_given)]
"""The set of devices that somebody asks for."""


def may_use(ask: Ask, image: Image) -> bool:
    """Whether the caller may know of an image, and make volumes from it."""
    return image.public or ask.may_see(image) or is_shared_with(ask, image)


images = Noun(
    IMAGES,
    plural="images",
    columns=("name", "format", "state", "virtual_size_bytes", "public"),
    about="Images: disks that the volumes of instances are made from, and ISO media.",
    visible=may_use,
    scope="",
)
images.list(filters=("name", "state", "format", "public", "project_id"), sorts=("name", "size_bytes"))
images.show()


def must_own(ask: Ask, image: Image) -> None:
    """Raises Forbidden if the image is of another project, which lets the caller only use it."""
    if not ask.may_see(image):
        raise Forbidden(f"image {image.name} belongs to another project")


def must_be_queued(ask: Ask, image: Image) -> None:
    """Raises Forbidden or Conflict unless the caller may send data to this image now."""
    must_own(ask, image)
    if image.state is ImageState.IMPORTING:
        raise Conflict(f"a task is at work on image {image.name}")
    if image.state is not ImageState.QUEUED:
        raise Conflict(f"image {image.name} has its data already")


def image_with_data(ask: Ask, id: str, field: str = "image_id") -> Image:
    """The image that a field of a wish names, disk or medium. Raises NotFound, or Conflict if it has no data yet."""
    image = ask.state[IMAGES].find(id)
    if image is None or not may_use(ask, image):
        raise NotFound(f"there is no image {id}", fields={field: "not found"})
    if image.state is not ImageState.ACTIVE:
        raise Conflict(f"image {image.name} has no data yet", fields={field: "no data yet"})
    return image


def usable_medium(ask: Ask, id: str, field: str = "image_id") -> Image:
    """The image that a field of a wish names to go into a drive. Raises NotFound, or Conflict if it cannot."""
    image = image_with_data(ask, id, field)
    if not image.is_medium:
        raise Conflict(
            f"image {image.name} is a disk in format {image.format}: only an ISO goes into a drive",
            fields={field: "no ISO"},
        )
    return image


def usable_image(ask: Ask, id: str) -> Image:
    """The image that a wish names to be copied. Raises NotFound, or Conflict if it cannot be."""
    image = image_with_data(ask, id)
    if image.is_medium:
        raise Conflict(f"image {image.name} is an ISO: a medium for a drive, not a disk", fields={"image_id": "is ISO"})
    return image
