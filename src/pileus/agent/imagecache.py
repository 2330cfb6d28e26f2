"""The copies of images that a host keeps to make volumes from: those that were not used for long make room.

A volume is a copy and needs its image no more. What is let go of is fetched again when it is needed again; of an image
that is deleted nothing is, and its copies go as soon as the host hears of it.
"""

from collections.abc import Callable, Container, Mapping
from datetime import datetime, timedelta
from typing import Final

import structlog

from pileus.agent.storage.port import CachedImage, PoolUse, StoragePool
from pileus.kernel.clock import Clock
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import ImageId
from pileus.link.images import ImageCopies, ImageCopy, ImagesDrop, PackedImage

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
        pools: Mapping[str, StoragePool],
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

    async def drop(self, wish: ImagesDrop) -> None:
        """Have no copies of these images, but of those from which a volume is being made.

        What guests have in their drives stays for them.

        Raises:
            Unavailable: a pool cannot be reached.
        """
        for name, pool in self._pools.items():
            for id in wish.images:
                if id in await pool.cached() and id not in self._copied():
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
