"""What hosts send: the data of images that are made of their volumes, with a ticket."""

from datetime import timedelta

from pileus.cloud.images.model import IMAGES, Image, ImageState
from pileus.cloud.images.operations.arrival import FROM_WHERE, Upload, appended, shown
from pileus.cloud.images.operations.noun import images
from pileus.cloud.images.quota import MAX_IMAGE
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import HostId, ImageId
from pileus.link.tickets import Tickets
from pileus.operations.declare import Answer, Exchange, Parameter

ARRIVAL = "image arrival"
"""The purpose of tickets that send images."""
_TICKET_LASTS = timedelta(hours=24)
"""As long as the largest image may take; it is good for nothing once the image is whole."""

_TICKET = (
    Parameter(name="ticket", about="What lets the host send this image"),
    Parameter(name="host", about="The host that the ticket was made for"),
)


@images.special("GET", "/{id}/arrival", least=None, answers=Upload, parameters=_TICKET)
async def arrived(exchange: Exchange) -> Answer:
    """Show with a ticket how much of an image has arrived, as hosts do before they go on."""
    return shown(exchange, _arriving(exchange))


@images.special(
    "PATCH",
    "/{id}/arrival",
    least=None,
    answers=Upload,
    max_body=MAX_IMAGE,
    body_media_type="application/octet-stream",
    parameters=(*_TICKET, FROM_WHERE),
)
async def deliver(exchange: Exchange) -> Answer:
    """Send a part of an image's data with a ticket, as hosts do with what they make of their volumes."""
    return await appended(exchange, _arriving(exchange), while_in=ImageState.IMPORTING)


def arrival_url(tickets: Tickets, image: ImageId, host: HostId) -> str:
    """Where this host may send this image to: a path of the API, with a ticket in it."""
    ticket = tickets.issue(ARRIVAL, image, host, lasts=_TICKET_LASTS)
    return f"/v1/images/{image}/arrival?ticket={ticket}&host={host}"


def _arriving(exchange: Exchange) -> Image:
    """The image that the ticket is for. Raises Forbidden, or NotFound or Conflict if it is not being made any more."""
    tickets: Tickets = exchange.services[Tickets]
    tickets.check(exchange.query("ticket"), ARRIVAL, exchange.target, HostId(exchange.query("host")))
    image = exchange.ask.state[IMAGES].get(exchange.target)
    if image.state is not ImageState.IMPORTING or image.packing:
        raise Conflict(f"image {image.name} is not waiting for its data")
    return image
