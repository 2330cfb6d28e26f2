"""Disk images of the volumes in a directory: compressed qcow2 files, made of frozen layers.

    packed/<image>/     image.qcow2, packed.json

One appears by a renaming, like everything in the pool, and stays until it is discarded.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import msgspec

from pileus.agent.storage import overlays
from pileus.agent.storage.directory_layers import DirectoryLayering, Reserving
from pileus.agent.storage.files import digest_of, in_thread, publish
from pileus.agent.storage.port import Told
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import ImageId, SnapshotId, VolumeId, check_id, is_id
from pileus.kernel.programs import ProgramFailed
from pileus.kernel.units import MIB
from pileus.link.images import ImagePacked

_READ: Final = 1 * MIB
_PACKING_SHARE: Final = 0.9
"""How much of the work is packing; the rest is reading what was packed once more."""

Making = Callable[[], AbstractAsyncContextManager[Path]]
"""A folder in which something is made; gone afterwards, unless it was published."""


class DirectoryPacking:
    """Packs the volumes of a directory (a Packing)."""

    def __init__(
        self,
        folder: Path,
        layering: DirectoryLayering,
        making: Making,
        discarding: Callable[[Path], None],
        reserving: Reserving,
    ) -> None:
        """Below this folder; `making`, `discarding` and `reserving` are those of the pool."""
        self._folder = folder
        self._layering = layering
        self._making = making
        self._discarding = discarding
        self._reserving = reserving

    async def pack(self, image: ImageId, volume: VolumeId, snapshot: SnapshotId, told: Told) -> ImagePacked:
        check_id(image)
        if (done := (await self.packed()).get(image)) is not None:
            return done
        chain = await self._layering.chain(volume, snapshot)
        most = sum([(await in_thread(file.stat)).st_blocks * 512 for file in chain])
        async with self._reserving(image, most), self._making() as made:
            file = made / "image.qcow2"
            try:
                await overlays.pack(chain, file, lambda part: told(part * _PACKING_SHARE))
            except ProgramFailed as failed:
                raise Conflict("the volume cannot be packed now", internal=failed.internal) from failed
            packed = ImagePacked(
                size_bytes=(await in_thread(file.stat)).st_size,
                virtual_size_bytes=await in_thread(overlays.size_of, chain[0]),
                sha256=await digest_of(file, lambda part: told(_PACKING_SHARE + part * (1 - _PACKING_SHARE))),
            )
            await in_thread(write_atomically, made / "packed.json", msgspec.json.encode(packed))
            await in_thread(publish, made, self._folder / image)
        return packed

    async def packed(self) -> dict[ImageId, ImagePacked]:
        return await in_thread(self._look)

    def _look(self) -> dict[ImageId, ImagePacked]:
        return {
            ImageId(entry.name): msgspec.json.decode((entry / "packed.json").read_bytes(), type=ImagePacked)
            for entry in self._folder.iterdir()
            if is_id(entry.name)
        }

    async def read(self, image: ImageId, start: int) -> AsyncIterator[bytes]:
        check_id(image)
        try:
            file = await in_thread((self._folder / image / "image.qcow2").open, "rb")
        except NotFound:
            raise NotFound(f"image {image} is not packed on this host") from None
        with file:
            while piece := await in_thread(os.pread, file.fileno(), _READ, start):
                start += len(piece)
                yield piece

    async def discard(self, image: ImageId) -> None:
        check_id(image)
        await in_thread(self._discarding, self._folder / image)
