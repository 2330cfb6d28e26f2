"""The images that are made of a host's volumes: packed here, sent to the controller, and forgotten."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from pileus.agent.storage.port import Packing, StoragePool, Told
from pileus.agent.turns import Turns
from pileus.agent.volumes import Tell
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import ImageId
from pileus.link.images import ImageForget, ImagePack, ImagePacked, ImageSend
from pileus.link.messages import Progress

AT_ONCE: Final = 1
"""Images that are packed at the same time: it takes a whole CPU, to which the guests have the better claim."""

Read = Callable[[int], AsyncIterator[bytes]]
"""The bytes of something, from a place on."""

Send = Callable[[str, int, Read, Told], Awaitable[None]]
"""Brings something of a size to a path of the controller's API."""

T = TypeVar("T")
log = structlog.stdlib.get_logger()


class ImagePacking:
    """Packs volumes as images, and sends them."""

    def __init__(self, pools: Mapping[str, StoragePool], send: Send) -> None:
        self._pools = pools
        self._send = send
        self._turns = Turns()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._at_work: dict[ImageId, asyncio.Future[Any]] = {}

    async def pack(self, wish: ImagePack, tell: Tell) -> ImagePacked:
        """Have the image packed.

        Raises:
            NotFound: there is no such pool, volume or snapshot here.
            Conflict: the pool has no room, or the image is forgotten meanwhile.
            Unavailable: the pool cannot be reached.
        """
        packing = self._packing(wish.pool)
        async with self._turns.of(wish.image), self._slots:
            told = partial(_tell, tell, "packing")
            packed = await self._until_forgotten(wish.image, packing.pack(wish.image, wish.volume, wish.snapshot, told))
        log.info("image packed", image=wish.image, volume=wish.volume, bytes=packed.size_bytes)
        return packed

    async def send(self, wish: ImageSend, tell: Tell) -> None:
        """Have all of it arrive at the controller.

        Raises:
            NotFound: it is not packed here.
            Conflict: it is forgotten meanwhile.
            PileusError: the controller does not take it.
            Unavailable: the controller cannot be reached.
        """
        packing = self._packing(wish.pool)
        async with self._turns.of(wish.image):
            packed = (await packing.packed()).get(wish.image)
            if packed is None:
                raise NotFound(f"image {wish.image} is not packed on this host")
            told = partial(_tell, tell, "sending")
            sending = self._send(wish.url, packed.size_bytes, partial(packing.read, wish.image), told)
            await self._until_forgotten(wish.image, sending)

    async def forget(self, wish: ImageForget) -> None:
        """Have it packed no more; what is being done with it is broken off.

        Raises:
            NotFound: there is no such pool.
            Unavailable: the pool cannot be reached.
        """
        packing = self._packing(wish.pool)
        if (work := self._at_work.get(wish.image)) is not None:
            work.cancel()
        async with self._turns.of(wish.image):
            await packing.discard(wish.image)

    async def _until_forgotten(self, image: ImageId, work: Awaitable[T]) -> T:
        task = self._at_work[image] = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task})
            if task.cancelled():
                raise Conflict("the image is not wanted any more")
            return task.result()
        finally:
            del self._at_work[image]
            task.cancel()

    def _packing(self, name: str) -> Packing:
        pool = self._pools.get(name)
        if pool is None:
            raise NotFound(f"there is no storage pool {name!r} on this host")
        return pool.packing


def _tell(tell: Tell, step: str, part: float) -> None:
    tell(Progress(step=step, fraction=part))
