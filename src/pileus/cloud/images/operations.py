"""What one may do with images."""

from base64 import b64encode
from datetime import timedelta
from typing import Annotated

import msgspec
from pydantic import StringConstraints

from pileus.cloud.images.files import ImageFiles
from pileus.cloud.images.model import IMAGES, Image, ImageFormat, ImageState
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.projects.model import limits
from pileus.cloud.volumes.model import VOLUMES, VolumeState
from pileus.kernel.errors import Conflict, Forbidden, Invalid
from pileus.kernel.ids import HostId, ImageId, ProjectId
from pileus.kernel.units import GIB, TIB
from pileus.link.tickets import Tickets
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun, Parameter
from pileus.operations.plan import Ask, Plan
from pileus.operations.usage import Usage
from pileus.operations.wire import Description, Name, Wire
from pileus.state.state import put, remove

MAX_IMAGE = 2 * TIB
TRANSFER = "image"
"""The purpose of tickets that fetch images."""
_TICKET_LASTS = timedelta(hours=1)

_COPIES = frozenset({InstanceState.BUILDING, InstanceState.REBUILDING})
"""The states of instances whose hosts may be copying their image."""


class ImageCreate(Wire):
    name: Name
    format: ImageFormat
    description: Description = ""
    public: bool = False
    default_user: Annotated[str, StringConstraints(pattern=r"^([a-z_][a-z0-9_-]{0,31})?$")] = ""


class ImageChange(Wire):
    name: Name | None = None
    description: Description | None = None
    public: bool | None = None
    protected: bool | None = None


images = Noun(
    IMAGES,
    plural="images",
    columns=("name", "format", "state", "virtual_size_bytes", "public"),
    about="Images: disks that the volumes of instances are made from.",
    visible=lambda ask, image: image.public or ask.may_see(image),
    scope="",
)
images.list(filters=("name", "state", "format", "public", "project_id"), sorts=("name", "size_bytes"))
images.show()


@images.post()
def create(ask: Ask, wish: ImageCreate) -> Plan:
    """Create an image's record; its data is uploaded next."""
    if wish.public and not ask.caller.is_platform:
        raise Forbidden(
            "only administrators of the cloud share images with everybody", fields={"public": "not allowed"}
        )
    image = Image(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        name=wish.name,
        description=wish.description,
        format=wish.format,
        public=wish.public,
        default_user=wish.default_user,
    )
    return Plan(summary=f"create image {wish.name}", changes=(put(image),), answers=image, undo="delete the image")


@images.patch()
def change(ask: Ask, image: Image, wish: ImageChange) -> Plan:
    """Rename an image, describe it, share it, protect it."""
    _must_own(ask, image)
    if wish.public is not None and not ask.caller.is_platform:
        raise Forbidden(
            "only administrators of the cloud share images with everybody", fields={"public": "not allowed"}
        )
    changed = msgspec.structs.replace(image, **wish.model_dump(exclude_none=True))
    return Plan(summary=f"change image {image.name}", changes=(put(changed),), answers=changed, undo="change it back")


@images.delete()
def delete(ask: Ask, image: Image) -> Plan:
    """Delete an image. Instances made from it are copies, and stay."""
    _must_own(ask, image)
    if image.protected:
        raise Conflict(f"image {image.name} is protected; take the protection away first")
    being_built = [each for each in ask.state[INSTANCES].by("image", image.id) if each.state in _COPIES]
    if being_built:
        raise Conflict(f"instance {being_built[0].name} is being made from it")
    for volume in ask.state[VOLUMES].by("image", image.id):
        if volume.host_id is None or volume.state is VolumeState.ATTACHING:
            raise Conflict(f"volume {volume.name} is to be a copy of it, and has not been attached yet")
    return Plan(summary=f"delete image {image.name}", changes=(remove(image),), undo="none: its data is gone")


@images.special(
    "PUT",
    "/{id}/data",
    least=Role.MEMBER,
    answers=Image,
    max_body=MAX_IMAGE,
    body_media_type="application/octet-stream",
    parameters=(Parameter(name="sha256", about="What the data's SHA-256 must be, in hex"),),
)
async def upload(exchange: Exchange, image: Image) -> Answer:
    """Upload an image's data. It counts when all of it has arrived and been checked; until then nothing does."""
    ask = exchange.ask
    _must_own(ask, image)
    if image.state is not ImageState.QUEUED:
        raise Conflict(f"image {image.name} has its data already")
    expected = exchange.query("sha256")
    if expected and not (len(expected) == 64 and set(expected.lower()) <= set("0123456789abcdef")):
        raise Invalid("some parameters are wrong", fields={"sha256": "64 hexadecimal digits"})
    files: ImageFiles = exchange.services[ImageFiles]
    room = _room(ask, image.project_id)
    body = exchange.body()
    async with files.receiving(ImageId(image.id), body, image.format, expected, at_most=room) as arriving:
        if ask.state[IMAGES].get(image.id).state is not ImageState.QUEUED:
            raise Conflict(f"image {image.name} got its data from somebody else in the meantime")
        await arriving.place()
        found = arriving.found
        active = msgspec.structs.replace(
            ask.state[IMAGES].get(image.id),
            state=ImageState.ACTIVE,
            size_bytes=found.size_bytes,
            virtual_size_bytes=found.virtual_size_bytes,
            sha256=found.sha256,
        )
        return await exchange.commit(Plan(summary=f"upload image {image.name}", changes=(put(active),), answers=active))


@images.special("GET", "/{id}/data", least=Role.READER)
async def download(exchange: Exchange, image: Image) -> Answer:
    """Download an image's data."""
    return _data(exchange, image)


@images.special(
    "GET",
    "/{id}/transfer",
    least=None,
    parameters=(
        Parameter(name="ticket", about="What lets the host fetch this image"),
        Parameter(name="host", about="The host that the ticket was made for"),
    ),
)
async def transfer(exchange: Exchange) -> Answer:
    """Fetch an image's data with a ticket, as hosts do."""
    tickets: Tickets = exchange.services[Tickets]
    id = exchange.target
    tickets.check(exchange.query("ticket"), TRANSFER, id, HostId(exchange.query("host")))
    return _data(exchange, exchange.ask.state[IMAGES].get(id))


def transfer_url(tickets: Tickets, image: ImageId, host: HostId) -> str:
    """Where this host may fetch this image for an hour: a path of the API, with a ticket in it."""
    ticket = tickets.issue(TRANSFER, image, host, lasts=_TICKET_LASTS)
    return f"/v1/images/{image}/transfer?ticket={ticket}&host={host}"


def _data(exchange: Exchange, image: Image) -> Answer:
    if image.state is not ImageState.ACTIVE:
        raise Conflict(f"image {image.name} has no data yet")
    files: ImageFiles = exchange.services[ImageFiles]
    digest = b64encode(bytes.fromhex(image.sha256)).decode()
    return Answer(
        status=200,
        media_type="application/octet-stream",
        stream=files.send(ImageId(image.id)),
        headers={
            "content-length": str(image.size_bytes),
            "repr-digest": f"sha-256=:{digest}:",
        },
    )


def _room(ask: Ask, project: ProjectId) -> int:
    """Bytes that the project's quota leaves for an image."""
    limit = limits(ask.state, project).get("image_gib")
    if limit is None:
        return MAX_IMAGE
    return max(limit - ask.view(Usage).of(project).get("image_gib", 0), 0) * GIB


def _must_own(ask: Ask, image: Image) -> None:
    if not ask.may_see(image):
        raise Forbidden(f"image {image.name} belongs to another project")
