"""How much of a project's quota is left for an image, while it arrives."""

from collections.abc import Mapping

from pileus.cloud.imageexports.model import IMAGE_EXPORTS
from pileus.cloud.images.model import IMAGES, Image
from pileus.cloud.projects.model import limits
from pileus.kernel.ids import ProjectId
from pileus.kernel.units import GIB, TIB
from pileus.state.state import State

MAX_IMAGE = 2 * TIB


def room(state: State, image: Image, arrived: Mapping[str, int]) -> int:
    """Bytes that an image may have; `arrived` is what there is already of images that are not complete."""
    return left(state, image.project_id, image.id, arrived)


def left(state: State, project: ProjectId, id: str, arrived: Mapping[str, int]) -> int:
    """Bytes that the image or export of this id may have, with all others of the project as they are."""
    limit = limits(state, project).get("image_gib")
    if limit is None:
        return MAX_IMAGE
    sizes = {each.id: max(each.taken_bytes, arrived.get(each.id, 0)) for each in state[IMAGES].by("project", project)}
    sizes |= {each.id: each.size_bytes for each in state[IMAGE_EXPORTS].by("project", project)}
    taken = sum(-(-size // GIB) for other, size in sizes.items() if other != id)
    return min(max(limit - taken, 0) * GIB, MAX_IMAGE)
