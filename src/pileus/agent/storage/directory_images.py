"""The images of a pool in a directory, kept as raw files, and the media that guests read of them.

A qcow2 image is converted once, when it arrives: afterwards no hostile format is ever parsed.
"""

import hashlib
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog

from pileus.agent.storage.directory_room import DirectoryRoom
from pileus.agent.storage.files import in_thread, publish, resize
from pileus.agent.storage.port import CachedImage, DiskSource, Fetch, Told
from pileus.agent.storage.scratch import Scratch
from pileus.agent.storage.sparse import SparseWriter
from pileus.agent.turns import Turns
from pileus.diskimages.headers import DiskFormat
from pileus.diskimages.qemuimg import QemuImg
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import ImageId, check_id, is_id
from pileus.kernel.units import MIB, size_text
from pileus.link.images import ImageSource

_GATHER: Final = 1 * MIB
"""Bytes of an image that are written and hashed together."""
_FORMATS: Final = frozenset({"raw", "qcow2", "iso"})

log = structlog.stdlib.get_logger()


class _Image(msgspec.Struct, frozen=True, kw_only=True):
    """Beside an image."""

    sha256: str


class DirectoryImages:
    """Keeps images below one folder, and media below another."""

    def __init__(self, images: Path, media: Path, turns: Turns, room: DirectoryRoom, scratch: Scratch) -> None:
        """`turns`, `room` and `scratch` are those of their pool."""
        self._images = images
        self._media = media
        self._turns = turns
        self._room = room
        self._scratch = scratch
        self._qemu_img = QemuImg()

    def raw(self, id: ImageId) -> Path:
        """Where the content of an image is, if it is here."""
        return self._images / id / "image.raw"

    async def ensure(self, image: ImageSource, fetch: Fetch, told: Told) -> None:
        """Have the image; see the port.

        Raises:
            Conflict: it is not the promised one, it is refused, or the pool has no room.
            Unavailable: it cannot be brought here.
        """
        check_id(image.id)
        if image.format not in _FORMATS:
            raise Invalid("the image has an unknown format", fields={"format": f"must be one of {sorted(_FORMATS)}"})
        async with self._turns.of(image.id):
            if await in_thread(self._has_image, image):
                return
            room = image.virtual_size_bytes + (image.size_bytes if image.format == DiskFormat.QCOW2 else 0)
            async with self._room.reserving(image.id, room, room), self._scratch.making() as made:
                await self._bring(image, made, fetch, told)
                await in_thread(self._keep_image, image, made)
        log.info("image fetched", image=image.id, bytes=image.size_bytes)

    async def cached(self) -> dict[ImageId, CachedImage]:
        """Every image."""
        return await in_thread(self._look_at_images)

    async def remove(self, id: ImageId) -> None:
        """Have the image no more."""
        check_id(id)
        async with self._turns.of(id):
            await in_thread(self._scratch.discard, self._images / id)

    # Media.

    async def offer(self, id: ImageId) -> DiskSource:
        """The image as a file that any guest can read.

        Raises:
            NotFound: the image is not here.
        """
        check_id(id)
        async with self._turns.of(id):
            await in_thread(self._link, id)
        return DiskSource(kind="file", path=str(self._medium(id)), format="raw")

    async def withdraw(self, id: ImageId) -> None:
        """Have the medium no more."""
        check_id(id)
        async with self._turns.of(id):
            await in_thread(self._medium(id).unlink, True)

    async def media(self) -> frozenset[ImageId]:
        """Every medium."""
        names = await in_thread(lambda: [each.stem for each in self._media.iterdir()])
        return frozenset(ImageId(name) for name in names if is_id(name))

    def _medium(self, id: ImageId) -> Path:
        return self._media / f"{id}.iso"

    def _link(self, id: ImageId) -> None:
        if self._medium(id).exists():
            return
        image = self._images / id / "image.raw"
        image.chmod(0o444)
        with suppress(FileExistsError):
            os.link(image, self._medium(id))

    async def _bring(self, image: ImageSource, made: Path, fetch: Fetch, told: Told) -> None:
        arrived, raw = made / f"arrived.{image.format}", made / "image.raw"
        await _receive(image, arrived, fetch, told)
        if image.format != DiskFormat.QCOW2:
            await in_thread(arrived.rename, raw)
        else:
            await self._convert(arrived, raw, DiskFormat(image.format), image.virtual_size_bytes)
            await in_thread(arrived.unlink)
        if raw.stat().st_size > image.virtual_size_bytes:
            raise Conflict("the image is larger than was declared")

    async def _convert(self, arrived: Path, raw: Path, format: DiskFormat, size_bytes: int) -> None:
        try:
            if (found := await self._qemu_img.inspect(arrived, format)) != size_bytes:
                raise Conflict(f"the image is a disk of {size_text(found)}, declared were {size_text(size_bytes)}")
            await self._qemu_img.convert(
                arrived,
                raw,
                format=format,
                to=DiskFormat.RAW,
                at_most_bytes=size_bytes + MIB,
                told=lambda _: None,
            )
        except Invalid as wrong:
            raise Conflict(wrong.detail, internal=wrong.internal) from wrong

    def _keep_image(self, image: ImageSource, made: Path) -> None:
        resize(made / "image.raw", image.virtual_size_bytes)
        write_atomically(made / "image.json", msgspec.json.encode(_Image(sha256=image.sha256)))
        publish(made, self._images / image.id)

    def _look_at_images(self) -> dict[ImageId, CachedImage]:
        found: dict[ImageId, CachedImage] = {}
        for entry in self._images.iterdir():
            with suppress(FileNotFoundError):  # it is being removed
                content, note = (entry / "image.raw").stat(), (entry / "image.json").stat()
                found[ImageId(entry.name)] = CachedImage(
                    allocated_bytes=content.st_blocks * 512,
                    used_at=datetime.fromtimestamp(note.st_mtime, UTC),
                    offered=content.st_nlink > 1,
                )
        return found

    def _has_image(self, image: ImageSource) -> bool:
        try:
            file = self._images / image.id / "image.json"
            kept = msgspec.json.decode(file.read_bytes(), type=_Image)
            os.utime(file)
        except FileNotFoundError:
            return False
        if kept.sha256 != image.sha256:
            raise Conflict(f"image {image.id} is here with another content")
        return True


async def _receive(image: ImageSource, target: Path, fetch: Fetch, told: Told) -> None:
    """Write what arrives to a file, and refuse it unless it is what was promised, byte for byte."""
    writer, digest, gathered = await in_thread(SparseWriter, target), hashlib.sha256(), bytearray()

    def store() -> None:
        digest.update(gathered)
        writer.write(bytes(gathered))
        gathered.clear()

    try:
        async for piece in fetch(image):
            gathered += piece
            if writer.size + len(gathered) > image.size_bytes:
                raise Conflict("more arrived than the image was promised to have")
            if len(gathered) >= _GATHER:
                await in_thread(store)
                told(writer.size / image.size_bytes)
        await in_thread(store)
        if writer.size != image.size_bytes or digest.hexdigest() != image.sha256:
            raise Conflict("the image that arrived is not the one that was promised")
        await in_thread(writer.finish)
        told(1.0)
    finally:
        writer.close()
