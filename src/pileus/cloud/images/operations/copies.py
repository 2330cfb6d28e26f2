"""Where copies of an image are: asked of the hosts, which alone know."""

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from pileus.cloud.hosts.model import HOSTS, Host
from pileus.cloud.images.model import Image
from pileus.cloud.images.operations.noun import images
from pileus.cloud.world import Hosts
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import HostId, ImageId
from pileus.link.images import ImageCopies, ImageCopy
from pileus.link.records import Message, Method
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
    turns = asyncio.Semaphore(_AT_ONCE)
    not_known: dict[str, str] = {}

    async def ask(host: Host) -> list[CopyOnHost]:
        id = HostId(host.id)
        try:
            async with turns:
                found = await agents.ask(id, Method.IMAGES_CACHED, Message(), ImageCopies, timeout_s=_ANSWER_S)
        except PileusError as why:
            not_known[host.name] = why.detail
            return []
        return [CopyOnHost(host_id=id, host=host.name, copy=copy) for copy in found.images if copy.image == image.id]

    found = await asyncio.gather(*(ask(host) for host in exchange.ask.state[HOSTS]))
    copies = tuple(sorted((copy for each in found for copy in each), key=lambda each: (each.host, each.copy.pool)))
    shown = CopiesOfImage(
        image_id=ImageId(image.id),
        allocated_bytes=sum(each.copy.allocated_bytes for each in copies),
        copies=copies,
        not_known=not_known,
    )
    return Answer(status=200, body=msgspec.json.encode(shown))
