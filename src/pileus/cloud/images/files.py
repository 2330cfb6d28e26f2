"""Where the controller keeps images: one file each, checked as it arrives, there as a whole or not at all."""

import asyncio
import errno
import os
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container
from contextlib import asynccontextmanager
from hashlib import sha256
from io import BufferedWriter
from pathlib import Path

import msgspec

from pileus.cloud.images.model import ImageFormat
from pileus.kernel.errors import Invalid, NotFound, PileusError, QuotaExceeded, Unavailable
from pileus.kernel.ids import ImageId, new_id
from pileus.kernel.units import MIB, TIB

_CHUNK = 1 * MIB
_ARRIVING = ".arriving"

# The qcow2 header, docs/interop/qcow2.txt of QEMU: magic, version, backing file's offset and size, cluster bits, size;
# of version 3 also the incompatible features.
_QCOW2 = struct.Struct(">4sIQIIQ")
_QCOW2_FEATURES = struct.Struct(">Q")
_QCOW2_FEATURES_AT = 72
_QCOW2_EXTERNAL_DATA = 1 << 2
_QCOW2_KNOWN = 0b11111


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """An image that has arrived and been checked."""

    size_bytes: int
    virtual_size_bytes: int
    sha256: str


class Arriving:
    """An image that has arrived beside its place, and been checked."""

    def __init__(self, file: Path, place: Path, found: Arrived) -> None:
        self._file = file
        self._place = place
        self.found = found
        self.placed = False

    async def place(self) -> None:
        """Have it under its id, on disk."""
        await asyncio.to_thread(_move, self._file, self._place)
        self.placed = True

    async def withdraw(self) -> None:
        """Have nothing under its id again."""
        await asyncio.to_thread(self._place.unlink, missing_ok=True)
        self.placed = False


class ImageFiles:
    """The image files of a controller, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arriving: set[str] = set()
        self._turn = asyncio.Lock()
        """Whoever puts images in place or takes them away does so alone, together with looking at their records."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, id: ImageId) -> Path:
        return self._folder / id

    @asynccontextmanager
    async def receiving(
        self, id: ImageId, body: AsyncIterator[bytes], format: ImageFormat, expected: str, *, at_most: int
    ) -> AsyncGenerator[Arriving]:
        """Take an image in. The block looks whether it is still wanted, places it and commits its record.

        Blocks wait for each other. What a block that fails has placed is withdrawn; what is not placed is gone.

        Args:
            id: of the image.
            body: its bytes.
            format: what it is said to be.
            expected: its SHA-256 in hex, or empty.
            at_most: bytes that there is room for.

        Raises:
            Invalid: it is not what it is said to be, or reaches outside itself (a backing file, a data file).
            QuotaExceeded: it is larger than `at_most`.
            Unavailable: the folder is full.
        """
        file = self._folder / f"{id}.{new_id()}{_ARRIVING}"
        self._arriving.add(file.name)
        try:
            found = await _take_in(file, body, format, expected, at_most)
            async with self._turn:
                arriving = Arriving(file, self.path(id), found)
                try:
                    yield arriving
                except PileusError as refused:
                    # Without an answer of the log nobody knows whether the record is there: the next start will.
                    if arriving.placed and not refused.retryable:
                        await arriving.withdraw()
                    raise
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)
            self._arriving.discard(file.name)

    async def send(self, id: ImageId) -> AsyncIterator[bytes]:
        """The bytes of an image. Raises NotFound."""
        try:
            file = await asyncio.to_thread(self.path(id).open, "rb")
        except FileNotFoundError:
            raise NotFound("the image has no data here") from None
        with file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                yield chunk

    async def keep_only(self, wanted: Callable[[], Container[str]]) -> list[str]:
        """Remove every file that is of none of the wanted images, and what a crash left half arrived; says which."""
        async with self._turn:
            return await asyncio.to_thread(self._sweep, wanted())

    def _sweep(self, ids: Container[str]) -> list[str]:
        gone = [each for each in self._folder.iterdir() if each.name not in ids and each.name not in self._arriving]
        for each in gone:
            each.unlink(missing_ok=True)
        return [each.name for each in gone]


async def _take_in(file: Path, body: AsyncIterator[bytes], format: ImageFormat, expected: str, at_most: int) -> Arrived:
    digest = sha256()
    size = 0
    try:
        with await asyncio.to_thread(file.open, "xb") as writer:
            async for chunk in body:
                size += len(chunk)
                if size > at_most:
                    raise QuotaExceeded(f"the project's quota leaves room for {at_most} bytes of images")
                digest.update(chunk)
                await asyncio.to_thread(writer.write, chunk)
            await asyncio.to_thread(_sync, writer)
    except OSError as failed:
        if failed.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Unavailable("the controller has no room for this image", internal=str(failed)) from failed
    found = digest.hexdigest()
    if expected and found != expected.lower():
        raise Invalid("the image is damaged", fields={"sha256": f"is {found}, {expected.lower()} was expected"})
    virtual_size = await asyncio.to_thread(inspect, file, format)
    return Arrived(size_bytes=size, virtual_size_bytes=virtual_size, sha256=found)


def _move(file: Path, place: Path) -> None:
    file.replace(place)
    # The new name is durable only when the folder is.
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def inspect(path: Path, format: ImageFormat) -> int:
    """The size in bytes of the disk that a file describes.

    The file may come from anybody: only its header is read, and what refers to other files is refused, because whoever
    opens it later might follow.

    Raises:
        Invalid: it is not of this format, or refers to other files.
    """
    with path.open("rb") as file:
        header = file.read(512)
    size = path.stat().st_size
    if format is ImageFormat.RAW:
        if header.startswith(b"QFI\xfb"):
            raise Invalid("the image is qcow2, not raw", fields={"format": "is qcow2"})
        if size == 0:
            raise Invalid("the image is empty")
        return size
    if len(header) < _QCOW2_FEATURES_AT + 8 or not header.startswith(b"QFI\xfb"):
        raise Invalid("the image is not qcow2", fields={"format": "is not qcow2"})
    _, version, backing_at, _, cluster_bits, virtual_size = _QCOW2.unpack_from(header)
    if version not in (2, 3) or not 9 <= cluster_bits <= 21 or not 0 < virtual_size <= 64 * TIB:
        raise Invalid("the image's header is damaged")
    if backing_at:
        raise Invalid("the image needs another file (a backing file); flatten it with `qemu-img convert`")
    if version == 3:
        (features,) = _QCOW2_FEATURES.unpack_from(header, _QCOW2_FEATURES_AT)
        if features & _QCOW2_EXTERNAL_DATA:
            raise Invalid("the image keeps its data in another file; flatten it with `qemu-img convert`")
        if features & ~_QCOW2_KNOWN:
            raise Invalid("the image uses features of qcow2 that are not known here")
    return virtual_size


def _sync(file: BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())
