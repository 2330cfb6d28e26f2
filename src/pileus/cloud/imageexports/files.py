"""Where the controller keeps image exports: one file each, there as a whole or not at all.

    <id>                     an export
    <id>.source              the image that it is made of, which may be deleted meanwhile
    <id>.made                what was converted, until it is in its place
    <id>.source.<id>.job     qemu-img at work

The folder shares its file system with the images. An export is made by qemu-img behind the same walls as what arrives.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Container
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from pileus.agent.storage.files import digest_of
from pileus.agent.turns import Turns
from pileus.cloud.images.diskfiles import allocated, move, remove, sent
from pileus.cloud.images.files import DiskTools, ImageFiles
from pileus.diskimages.headers import DiskFormat
from pileus.kernel.clock import Clock
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import ImageExportId, ImageId
from pileus.kernel.units import MIB

_AT_ONCE: Final = 1
"""Exports that are converted at the same time: what arrives is not to wait for them."""
_SLACK: Final = 1 * MIB


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What an export has become."""

    size_bytes: int
    sha256: str


class ExportFiles:
    """The export files of a controller, in one folder."""

    def __init__(self, folder: Path, images: ImageFiles, tools: DiskTools, clock: Clock) -> None:
        """In this folder, on the file system of the images."""
        self._folder = folder
        self._images = images
        self._tools = tools
        self._clock = clock
        self._turns = Turns()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._turn = asyncio.Lock()
        """Whoever puts exports in place or takes them away does so alone, together with looking at their records."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def make(
        self,
        id: ImageExportId,
        image: ImageId,
        *,
        format: DiskFormat,
        to: DiskFormat,
        virtual_size_bytes: int,
        at_most: int,
        told: Callable[[str, float], None],
    ) -> Exported:
        """Have the export. Doing it again is doing it once.

        Args:
            id: of the export.
            image: what it is made of.
            format: of the image.
            to: of the export.
            virtual_size_bytes: of the image; all of this is needed for a raw one, whatever is in it.
            at_most: bytes that the quota leaves for it; of a raw one is known before what it takes.
            told: is told what is being done and how far that is, between 0 and 1.

        Raises:
            NotFound: the image has no data here any more.
            Conflict: it takes more than `at_most`.
            NoRoom: the file system is full.
            Unavailable: there is nothing here to open it with.
        """
        place, made, source = self.path(id), self._folder / f"{id}.made", self._folder / f"{id}.source"
        async with self._turns.of(id), self._slots:
            if not await asyncio.to_thread(place.exists):
                is_raw = to is DiskFormat.RAW
                room = self._images.must_have_room(virtual_size_bytes if is_raw else 0)
                try:
                    await asyncio.to_thread(_link, self._images.path(image), source)
                    await self._tools.convert(
                        source,
                        made,
                        format=format,
                        to=to,
                        at_most_bytes=min(room, virtual_size_bytes + _SLACK if is_raw else at_most),
                        told=lambda fraction: told("converting", fraction),
                    )
                    async with self._turn:
                        await asyncio.to_thread(move, made, place)
                finally:
                    await asyncio.to_thread(_unlink, source, made)
            sha256 = await digest_of(place, lambda fraction: told("checking what was converted", fraction))
            self._touch(id)
            return Exported(size_bytes=(await asyncio.to_thread(place.stat)).st_size, sha256=sha256)

    def path(self, id: ImageExportId) -> Path:
        return self._folder / id

    async def discard(self, id: ImageExportId) -> None:
        """Have the export no more, and free its room."""
        async with self._turns.of(id):
            await asyncio.to_thread(_unlink, self.path(id))

    async def send(self, id: ImageExportId, *, start: int, length: int) -> AsyncIterator[bytes]:
        """So many bytes of an export from there on; it is used for as long as that takes. Raises NotFound."""
        async for piece in sent(self.path(id), start=start, length=length):
            self._touch(id)
            yield piece
            self._touch(id)

    def used_at(self, id: ImageExportId) -> datetime | None:
        """When the export was made, or somebody last fetched of it, if it is there."""
        try:
            return datetime.fromtimestamp(self.path(id).stat().st_mtime, UTC)
        except FileNotFoundError:
            return None

    def _touch(self, id: ImageExportId) -> None:
        now = self._clock.now().timestamp()
        try:
            os.utime(self.path(id), (now, now))
        except FileNotFoundError:
            return  # it was deleted; whoever reads it reads it to its end

    async def taken(self) -> int:
        """Bytes that exports take."""
        return await asyncio.to_thread(lambda: sum(allocated(each) for each in self._folder.iterdir()))

    async def keep_only(self, wanted: Callable[[], Container[str]]) -> None:
        """Remove what is of none of these exports, and what a controller that died has left of one."""
        async with self._turn:
            await asyncio.to_thread(self._sweep, wanted())

    def _sweep(self, wanted: Container[str]) -> None:
        for each in self._folder.iterdir():
            id, _, rest = each.name.partition(".")
            if self._turns.busy(id) or (not rest and id in wanted):
                continue
            remove(each)


def _link(image: Path, source: Path) -> None:
    source.unlink(missing_ok=True)
    try:
        source.hardlink_to(image)
    except FileNotFoundError:
        raise NotFound("the image has no data here any more") from None


def _unlink(*files: Path) -> None:
    for each in files:
        each.unlink(missing_ok=True)
