"""The copies of images that hosts keep."""

import msgspec

from pileus.cloud.hosts.model import Host
from pileus.cloud.hosts.operations import hosts
from pileus.cloud.world import Hosts
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import HostId
from pileus.link.images import ImageCopies, ImageCopy
from pileus.link.messages import Message, Method
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange

__all__ = ["hosts"]

_ANSWER_S = 10.0


class HostImages(msgspec.Struct, frozen=True, kw_only=True):
    """The copies of images on a host."""

    host_id: HostId
    allocated_bytes: int
    """What they take, all together."""
    images: tuple[ImageCopy, ...]
    """The least recently used first: in this order the host lets go of them."""


@hosts.special("GET", "/{id}/images", least=Role.PLATFORM, answers=HostImages, raises=(Unavailable,))
async def images(exchange: Exchange, host: Host) -> Answer:
    """Show which images a host keeps copies of, what they take, and when they were last used."""
    agents: Hosts = exchange.services[Hosts]
    found = await agents.ask(HostId(host.id), Method.IMAGES_CACHED, Message(), ImageCopies, timeout_s=_ANSWER_S)
    shown = HostImages(
        host_id=HostId(host.id),
        allocated_bytes=sum(image.allocated_bytes for image in found.images),
        images=tuple(sorted(found.images, key=lambda image: image.used_at)),
    )
    return Answer(status=200, body=msgspec.json.encode(shown))
