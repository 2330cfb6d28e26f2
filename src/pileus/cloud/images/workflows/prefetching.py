"""Bringing copies of an image to hosts before anything is made from it."""

from typing import Final

import msgspec

from pileus.cloud.hosts.each import on_each
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.specs import image_source
from pileus.cloud.world import Nothing, World
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import HostId, ImageId
from pileus.link.images import ImageBring, ImageCopies, ImagesDrop
from pileus.link.messages import Message, Method
from pileus.workflow.workflow import Run, step_with, tell_progress, workflow

_ANSWER_S: Final = 60.0
_BRING_S: Final = 1800.0
_AT_ONCE: Final = 8
"""Hosts that fetch at a time: all of them fetch from the controller."""


class PrefetchImage(msgspec.Struct, frozen=True):
    """Which image, the hosts, and the storage pool on them."""

    image: ImageId
    hosts: tuple[HostId, ...]
    pool: str


@workflow("image.prefetch")
async def prefetch_image(run: Run[World], wish: PrefetchImage) -> None:
    """See which hosts have no copy, and have these bring one."""
    lacking = await run(look, wish)
    await run(bring, wish, lacking)


@step_with()
async def look(world: World, wish: PrefetchImage) -> tuple[HostId, ...]:
    lacking: list[HostId] = []

    async def one(host: HostId) -> None:
        found = await world.hosts.ask(host, Method.IMAGES_CACHED, Message(), ImageCopies, timeout_s=_ANSWER_S)
        if not any((copy.image, copy.pool) == (wish.image, wish.pool) for copy in found.images):
            lacking.append(host)

    await on_each(wish.hosts, one, at_once=_AT_ONCE)
    return tuple(sorted(lacking))


@step_with(patience_s=120)
async def bring(world: World, wish: PrefetchImage, lacking: tuple[HostId, ...]) -> None:
    image = world.state[IMAGES].find(wish.image)
    if image is None:
        raise NotFound("the image was deleted")
    tell, parts = tell_progress.get(), dict.fromkeys(lacking, 0.0)

    async def one(host: HostId) -> None:
        def told(_: str, part: float | None) -> None:
            parts[host] = part or 0.0
            tell(f"bringing it to {len(parts)} hosts", sum(parts.values()) / len(parts))

        tell_progress.set(told)
        wanted = ImageBring(image=image_source(image, world.images.url(wish.image, host)), pool=wish.pool)
        await world.hosts.ask(host, Method.IMAGE_BRING, wanted, Nothing, timeout_s=_BRING_S)
        told("", 1.0)

    await on_each(lacking, one, at_once=_AT_ONCE)


@bring.undo
async def drop(world: World, wish: PrefetchImage, lacking: tuple[HostId, ...]) -> None:
    async def one(host: HostId) -> None:
        if host in world.state[HOSTS]:
            no_more = ImagesDrop(images=(wish.image,))
            await world.hosts.ask(host, Method.IMAGES_DROP, no_more, Nothing, timeout_s=_ANSWER_S)

    await on_each(lacking, one, at_once=_AT_ONCE)
