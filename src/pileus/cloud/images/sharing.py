"""Who besides its project may use an image: records of their own, so that no image tells who else has it."""

from typing import Annotated

from pileus.cloud.identity.model import GROUPS
from pileus.cloud.images.model import IMAGE_SHARES, IMAGES, Image, ImageShare
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import Forbidden, Invalid, NotFound
from pileus.kernel.ids import GroupId, ImageId, ProjectId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import put, remove


def is_shared_with(ask: Ask, image: Image) -> bool:
    """Whether the caller has an image by a share: of their project, or of a group that they are in."""
    shares = ask.state[IMAGE_SHARES].by("image", image.id)
    return any(_is_for(ask, share) for share in shares)


def _is_for(ask: Ask, share: ImageShare) -> bool:
    if share.to_project_id is not None:
        return share.to_project_id == ask.caller.project_id
    group = ask.state[GROUPS].find(share.to_group_id or "")
    return group is not None and ask.caller.user_id in group.member_ids


class ImageShareCreate(Wire):
    image_id: Annotated[Id, ref("image")]
    to_project_id: Annotated[Id, ref("project")] | None = None
    """The project that may use it; whoever knows its id may share with it."""
    to_group_id: Annotated[Id, ref("group")] | None = None
    """Or the group whose members may, in whichever project they work."""


def _visible(ask: Ask, share: ImageShare) -> bool:
    """A share is seen by those who gave it and those who have it."""
    return ask.may_see(share) or _is_for(ask, share)


image_shares = Noun(
    IMAGE_SHARES,
    plural="image-shares",
    columns=("image_id", "project_id", "to_project_id", "to_group_id"),
    about="Image shares: with another project, or with a group of users.",
    visible=_visible,
    scope="",
)
image_shares.list(filters=("image_id", "project_id", "to_project_id", "to_group_id"))
image_shares.show()


@image_shares.post()
def create(ask: Ask, wish: ImageShareCreate) -> Plan:
    """Share an image with a project or a group, to make volumes and instances from. It stays its owner's to change."""
    if (wish.to_project_id is None) == (wish.to_group_id is None):
        said = "name a project or a group" if wish.to_project_id is None else "a project and a group exclude each other"
        raise Invalid("some fields are wrong", fields={"to_project_id": said})
    image = ask.see(IMAGES, wish.image_id, "image_id")
    if wish.to_project_id is not None and wish.to_project_id not in ask.state[PROJECTS]:
        raise NotFound(f"there is no project {wish.to_project_id}", fields={"to_project_id": "not found"})
    if wish.to_group_id is not None:
        _must_know_group(ask, wish.to_group_id)
    share = ImageShare(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=image.project_id,
        image_id=ImageId(image.id),
        to_project_id=ProjectId(wish.to_project_id) if wish.to_project_id else None,
        to_group_id=GroupId(wish.to_group_id) if wish.to_group_id else None,
    )
    return Plan(summary=f"share image {image.name}", changes=(put(share),), answers=share, undo="delete the share")


def _must_know_group(ask: Ask, id: str) -> None:
    group = ask.state[GROUPS].find(id)
    caller = ask.caller
    if group is None or not (
        caller.is_platform or group.project_id == caller.project_id or caller.user_id in group.member_ids
    ):
        raise NotFound(f"there is no group {id}", fields={"to_group_id": "not found"})


@image_shares.delete()
def delete(ask: Ask, share: ImageShare) -> Plan:
    """Take a share back, or do without one. What was made from the image is a copy, and stays."""
    if not ask.may_see(share) and share.to_project_id is None:
        raise Forbidden("the share is of a whole group: whoever gave it takes it back")
    return Plan(summary="take back a share of an image", changes=(remove(share),), undo="share it again")
