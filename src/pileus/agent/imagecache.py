"""The copies of images that a host keeps to make volumes from: those that were not used for long make room.

A volume is a copy and needs its image no more. What is let go of is fetched again when it is needed again; of an image
that is deleted nothing is, and its copies go as soon as the host hears of it.
"""

import asyncio
from collections.abc import Callable, Container, Mapping
from datetime import datetime, timedelta
from typing import Final

import structlog

from pileus.agent.pools import Pools
from pileus.agent.storage.port import CachedImage, Fetch, PoolUse
from pileus.agent.volumes import Tell
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, PileusError
from pileus.kernel.ids import ImageId
from pileus.link.images import ImageBring, ImageCopies, ImageCopy, ImagesDrop, PackedImage
from pileus.link.messages import Progress

UNUSED: Final = timedelta(days=7)
"""What no volume was made from for so long goes."""
AT_MOST: Final = 0.25
"""How much of a pool images may take if nobody says otherwise: beyond that the least recently used go."""
KEPT_FREE: Final = 0.2
"""How much of a pool is to be free as long as images can make room."""
JUST_USED: Final = timedelta(hours=1)
"""For so long nothing goes: a volume may be about to be made from it."""

log = structlog.stdlib.get_logger()


class ImageCache:
    """Lets go of images in the pools of a host."""

    def __init__(
        self,
        pools: Pools,
        fetch: Fetch,
        clock: Clock,
        copied: Callable[[], Container[ImageId]],
        *,
        at_most: float = AT_MOST,
    ) -> None:
        """Images in these pools, of each of which they take no more than `at_most`.

        `copied` says of which images volumes are being made.
        """
        self._at_most = at_most
        self._pools = pools
        self._fetch = fetch
        self._brought: dict[ImageId, set[asyncio.Future[None]]] = {}
        """What is being brought for the time when a volume is made from it."""
        self._clock = clock
        self._copied = copied

    async def told(self) -> ImageCopies:
        """All that is here.

        Raises:
            Unavailable: a pool cannot be reached.
        """
        images = [
            ImageCopy(
                image=id,
                pool=name,
                allocated_bytes=image.allocated_bytes,
                used_at=image.used_at,
                in_drives=image.offered,
            )
            for name, pool in self._pools.items()
            for id, image in (await pool.cached()).items()
        ]
        packed = [
            PackedImage(image=id, pool=name) for name, pool in self._pools.items() for id in await pool.packing.packed()
        ]
        return ImageCopies(images=tuple(images), packed=tuple(packed))

    async def bring(self, wish: ImageBring, tell: Tell) -> None:
        """Have a copy of the image, as if a volume had just been made from it.

        Raises:
            NotFound: there is no such pool here.
            Conflict: the pool has no room, the image is not what it claims to be, or it is dropped meanwhile.
            Unavailable: the pool, or where the image comes from, cannot be reached.
        """
        pool, id = self._pools.find(wish.pool), wish.image.id
        bringing = pool.ensure_image(wish.image, self._fetch, lambda part: tell(Progress(step="image", fraction=part)))
        task = asyncio.ensure_future(bringing)
        self._brought.setdefault(id, set()).add(task)
        try:
            await asyncio.wait({task})
            if task.cancelled():
                raise Conflict("the image is not wanted any more")
            task.result()
        finally:
            task.cancel()
            self._brought[id].discard(task)
            if not self._brought[id]:
                del self._brought[id]

    async def drop(self, wish: ImagesDrop) -> None:
        """Have no copies of these images, but of those from which a volume is being made.

        What guests have in their drives stays for them.

        Raises:
            Unavailable: a pool cannot be reached.
        """
        for id in wish.images:
            for task in self._brought.get(id, ()):
                task.cancel()
        for name, pool in self._pools.items():
            for id in wish.images:
                # Whatever is there: what is brought no more may have arrived just now.
                if id not in self._copied():
                    await pool.remove_image(id)
                    log.info("image dropped", image=id, pool=name)

    async def settle(self) -> None:
        """Let those go that are to."""
        for name, pool in self._pools.items():
            try:
                images = await pool.cached()
                if all(self._clock.now() - image.used_at < JUST_USED for image in images.values()):
                    continue
                for id in to_let_go(images, await pool.use(), self._clock.now(), at_most=self._at_most):
                    await pool.remove_image(id)
                    log.info("image let go", image=id, pool=name, bytes=images[id].allocated_bytes)
            except PileusError as why:
                log.warning("images not looked after", pool=name, why=str(why), internal=why.internal)


def to_let_go(
    images: Mapping[ImageId, CachedImage], use: PoolUse, now: datetime, *, at_most: float = AT_MOST
) -> list[ImageId]:
    """The images to let go of, least recently used first. Pure."""
    taken, free = sum(image.allocated_bytes for image in images.values()), use.free_bytes
    gone: list[ImageId] = []
    for id, image in sorted(images.items(), key=lambda each: each[1].used_at):
        unused = now - image.used_at
        if image.offered or unused < JUST_USED:
            continue
        if unused > UNUSED or taken > at_most * use.total_bytes or free < KEPT_FREE * use.total_bytes:
            gone.append(id)
            taken -= image.allocated_bytes
            free += image.allocated_bytes
    return gone
