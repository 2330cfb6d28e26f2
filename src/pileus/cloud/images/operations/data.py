"""The data of images in one piece: up, down, and to hosts."""

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial

import msgspec

from pileus.cloud.images.files import Expected, ImageFiles
from pileus.cloud.images.model import IMAGES, Image, ImageState
from pileus.cloud.images.operations.noun import images, must_be_queued
from pileus.cloud.images.quota import MAX_IMAGE, room
from pileus.diskimages.headers import AS_THEY_ARE
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import HostId, ImageId
from pileus.link.tickets import Tickets
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Parameter
from pileus.operations.plan import Plan
from pileus.state.state import put

TRANSFER = "image"
"""The purpose of tickets that fetch images."""
_TICKET_LASTS = timedelta(hours=1)
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})?")

RANGED = Parameter(
    name="Range", about="Only these bytes: `bytes=FIRST-LAST`, the last one left out for all", place="header"
)


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
    """Upload an image's data in one piece: raw, qcow2 or iso.

    It counts when all of it has arrived and been checked; until then nothing does. What is large, or to be converted,
    is better sent in parts: `PATCH /v1/images/{id}/upload`.
    """
    ask = exchange.ask
    must_be_queued(ask, image)
    if image.format not in AS_THEY_ARE:
        raise Conflict(f"a {image.format} image is converted when it has arrived: upload it in parts")
    sha256 = exchange.query("sha256")
    if sha256 and not (len(sha256) == 64 and set(sha256.lower()) <= set("0123456789abcdef")):
        raise Invalid("some parameters are wrong", fields={"sha256": "64 hexadecimal digits"})
    files: ImageFiles = exchange.services[ImageFiles]
    expected = Expected(format=image.format, sha256=sha256 or image.expected_sha256)
    most = room(ask.state, image, files.arrived)
    async with files.receiving(ImageId(image.id), exchange.body(), expected, at_most=most) as arriving:
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
        plan = Plan(summary=f"upload image {image.name}", changes=(put(active),), answers=active)
        answer = await exchange.commit(plan)
    await files.discard(ImageId(image.id))
    return answer


@images.special("GET", "/{id}/data", least=Role.READER, parameters=(RANGED,))
async def download(exchange: Exchange, image: Image) -> Answer:
    """Download an image's data, as it is kept."""
    return _data(exchange, image)


@images.special(
    "GET",
    "/{id}/transfer",
    least=None,
    parameters=(
        Parameter(name="ticket", about="What lets the host fetch this image"),
        Parameter(name="host", about="The host that the ticket was made for"),
        RANGED,
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
    send = partial(files.send, ImageId(image.id))
    return data_of(exchange, send, size_bytes=image.size_bytes, sha256=image.sha256)


def data_of(exchange: Exchange, send: Callable[..., AsyncIterator[bytes]], *, size_bytes: int, sha256: str) -> Answer:
    """The bytes of something, or the range of them that was asked for: `send(start=..., length=...)` brings them."""
    start, end = _range(exchange.header("range"), size_bytes)
    headers = {
        "content-length": str(end - start),
        "accept-ranges": "bytes",
        "etag": f'"{sha256}"',
        "repr-digest": f"sha-256=:{b64encode(bytes.fromhex(sha256)).decode()}:",
    }
    is_part = (start, end) != (0, size_bytes)
    if is_part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    return Answer(
        status=206 if is_part else 200,
        media_type="application/octet-stream",
        stream=send(start=start, length=end - start),
        headers=headers,
    )


def _range(wanted: str, size: int) -> tuple[int, int]:
    """From where to where; what is no range of this file is not heard, as RFC 9110, section 14.2, allows."""
    found = _RANGE.fullmatch(wanted)
    if found is None:
        return 0, size
    start, end = int(found[1]), min(int(found[2] or size) + 1, size)
    return (start, end) if start < end else (0, size)
