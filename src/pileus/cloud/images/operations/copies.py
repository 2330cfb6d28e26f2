"""Where copies of an image are: asked of the hosts, which alone know."""

from collections.abc import Mapping
from typing import Final

import msgspec

from pileus.cloud.hosts.each import on_each
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.images.model import Image
from pileus.cloud.images.operations.noun import images
from pileus.cloud.world import Hosts
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import HostId, ImageId
from pileus.link.images import ImageCopies, ImageCopy
from pileus.link.messages import Message, Method
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange

_ANSWER_S: Final = 10.0
_AT_ONCE: Final = 64
"""Hosts that are asked at a time."""


class CopyOnHost(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of an image that a host keeps."""

    host_id: HostId
    host: str
    """Its name."""
    copy: ImageCopy


class CopiesOfImage(msgspec.Struct, frozen=True, kw_only=True):
    """Where copies of an image are."""

    image_id: ImageId
    allocated_bytes: int
    """What they take, all together."""
    copies: tuple[CopyOnHost, ...]
    not_known: Mapping[str, str]
    """The hosts that do not say, by name, each with the reason."""


@images.special("GET", "/{id}/copies", least=Role.PLATFORM, answers=CopiesOfImage)
async def copies(exchange: Exchange, image: Image) -> Answer:
    """Show which hosts keep copies of an image, what they take, and when they were last used."""
    agents: Hosts = exchange.services[Hosts]
    names = {HostId(host.id): host.name for host in exchange.ask.state[HOSTS]}
    found: list[CopyOnHost] = []
    not_known: dict[str, str] = {}

    async def look(host: HostId) -> None:
        try:
            told = await agents.ask(host, Method.IMAGES_CACHED, Message(), ImageCopies, timeout_s=_ANSWER_S)
        except PileusError as why:
            not_known[names[host]] = why.detail
            return
        of_it = (copy for copy in told.images if copy.image == image.id)
        found.extend(CopyOnHost(host_id=host, host=names[host], copy=copy) for copy in of_it)

    await on_each(names, look, at_once=_AT_ONCE)
    copies = tuple(sorted(found, key=lambda each: (each.host, each.copy.pool)))
    shown = CopiesOfImage(
        image_id=ImageId(image.id),
        allocated_bytes=sum(each.copy.allocated_bytes for each in copies),
        copies=copies,
        not_known=not_known,
    )
    return Answer(status=200, body=msgspec.json.encode(shown))
