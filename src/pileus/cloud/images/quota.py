"""How much of a project's quota is left for an image, while it arrives."""

from collections.abc import Mapping

from pileus.cloud.images.model import IMAGES, Image
from pileus.cloud.projects.model import limits
from pileus.kernel.units import GIB, TIB
from pileus.state.state import State

MAX_IMAGE = 2 * TIB


def room(state: State, image: Image, arrived: Mapping[str, int]) -> int:
    """Bytes that an image may have; `arrived` is what there is already of images that are not complete."""
    limit = limits(state, image.project_id).get("image_gib")
    if limit is None:
        return MAX_IMAGE
    others = (each for each in state[IMAGES].by("project", image.project_id) if each.id != image.id)
    taken = sum(-(-max(each.taken_bytes, arrived.get(each.id, 0)) // GIB) for each in others)
    return min(max(limit - taken, 0) * GIB, MAX_IMAGE)
