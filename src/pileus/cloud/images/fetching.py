"""Brings an image from the web to the controller, and goes on where it stopped when the connection or a life ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec
import structlog

from pileus.cloud.images.model import IMAGES, Image
from pileus.cloud.images.quota import room
from pileus.cloud.images.web import Page
from pileus.cloud.world import World
from pileus.kernel.errors import Invalid, QuotaExceeded, Unavailable
from pileus.kernel.ids import ImageId
from pileus.kernel.units import MIB, size_text
from pileus.state.state import Origin, put

ATTEMPTS: Final = 5
"""In a row, without a single byte between them."""
_PAUSE_S: Final = 2.0
_TOLD_EVERY: Final = 8 * MIB

log = structlog.stdlib.get_logger()


class Fetching:
    """One image on its way."""

    def __init__(self, world: World, image: ImageId, url: str, told: Callable[[str, float | None], None]) -> None:
        """Fetch this image from this URL; `told` is told how far it is, between 0 and 1, where that is known."""
        self._world = world
        self._id = image
        self._url = url
        self._told = told
        self._validator = ""

    async def all(self) -> None:
        """Have all of it.

        Raises:
            Invalid: it is not as large as it was said to be.
            Conflict: the server does not give it.
            Forbidden: the URL leads to where nothing may be asked.
            QuotaExceeded: it is larger than the quota leaves room for.
            NoRoom: the controller's disk is full.
            Unavailable: the server does not answer, although asked several times.
        """
        failures = 0
        while True:
            before = self._arrived
            try:
                if await self._more():
                    return
                why = "it ended early"
            except Unavailable as broken:
                why = broken.detail
            failures = 1 if self._arrived > before else failures + 1
            log.info("import broke off", image=self._id, arrived=self._arrived, why=why)
            if failures >= ATTEMPTS:
                raise Unavailable(f"the image cannot be fetched: {why}")
            await asyncio.sleep(_PAUSE_S * (failures - 1))

    @property
    def _arrived(self) -> int:
        return self._world.files.arrived.get(self._id, 0)

    def _image(self) -> Image:
        return self._world.state[IMAGES].get(self._id)

    async def _more(self) -> bool:
        """Take in what the server sends; says whether that is all."""
        expected = self._image().expected_bytes
        if expected and self._arrived == expected:
            return True
        async with self._world.web.fetch(self._url, start=self._arrived, validator=self._validator) as page:
            if page.start != self._arrived:
                await self._world.files.discard(self._id)
            self._validator = page.validator
            await self._expect(page)
            await self._world.files.append(
                self._id, page.start, self._counted(page), self._room, expected_bytes=self._image().expected_bytes
            )
        return not page.size or self._arrived == page.size

    async def _expect(self, page: Page) -> None:
        image = self._image()
        if not page.size:
            return
        if image.expected_bytes and page.size != image.expected_bytes:
            raise Invalid(f"the image has {page.size} bytes, {image.expected_bytes} were expected")
        if page.size > (most := self._room()):
            raise QuotaExceeded(
                f"the image has {size_text(page.size)}, the project's quota leaves room for {size_text(most)}"
            )
        if not image.expected_bytes:
            # From here on it counts.
            expecting = msgspec.structs.replace(image, expected_bytes=page.size)
            await self._world.state.commit([put(expecting)], Origin(actor="system", operation="image.import"))

    def _room(self) -> int:
        return room(self._world.state, self._image(), self._world.files.arrived)

    async def _counted(self, page: Page) -> AsyncIterator[bytes]:
        told = 0
        async for piece in page.body:
            yield piece
            if self._arrived - told >= _TOLD_EVERY or self._arrived == page.size:
                told = self._arrived
                self._told(f"{size_text(told)} fetched", told / page.size if page.size else None)
