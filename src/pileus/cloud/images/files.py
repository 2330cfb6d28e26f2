"""Where the controller keeps images: one file each, checked as it arrives, there as a whole or not at all.

    <id>                    an image
    <id>.part               what has arrived of one so far; outlives the controller
    <id>.ready              the same, converted
    <id>.<id>.arriving      one that arrives in one piece
    <id>.part.<id>.job      qemu-img at work

How full its file system may become is said in `room`.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import msgspec

from pileus.agent.storage.files import digest_of
from pileus.agent.turns import Turns
from pileus.cloud.images.diskfiles import allocated, move, remove, sent, size_of, sync, write_at
from pileus.cloud.images.room import Space, must_have_room, room_is_short, room_of
from pileus.diskimages.headers import AS_THEY_ARE, DiskFormat
from pileus.diskimages.qemuimg import Told
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, Invalid, PileusError, QuotaExceeded
from pileus.kernel.files import sync_folder
from pileus.kernel.ids import ImageId, new_id
from pileus.kernel.units import size_text

_PART, _READY, _ARRIVING = ".part", ".ready", ".arriving"


class DiskTools(Protocol):
    """Opens disk images; see `pileus.diskimages.qemuimg.QemuImg`."""

    async def inspect(self, path: Path, format: DiskFormat) -> int: ...

    async def convert(
        self, source: Path, target: Path, *, format: DiskFormat, to: DiskFormat, at_most_bytes: int, told: Told
    ) -> None: ...


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """An image that has arrived and been checked."""

    size_bytes: int
    virtual_size_bytes: int
    sha256: str
    format: DiskFormat


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is said to be; 0 and empty where nothing is."""

    format: DiskFormat
    size_bytes: int = 0
    sha256: str = ""


class Arriving:
    """An image that has arrived beside its place, and been checked."""

    def __init__(self, file: Path, place: Path, found: Arrived) -> None:
        self._file = file
        self._place = place
        self.found = found
        self.placed = False

    async def place(self) -> None:
        """Have it under its id, on disk."""
        await asyncio.to_thread(move, self._file, self._place)
        self.placed = True

    async def withdraw(self) -> None:
        """Have nothing under its id again."""
        await asyncio.to_thread(self._place.unlink, missing_ok=True)
        self.placed = False


class ImageFiles:
    """The image files of a controller, in one folder."""

    def __init__(self, folder: Path, tools: DiskTools, clock: Clock) -> None:
        self._folder = folder
        self._tools = tools
        self._clock = clock
        self._arriving: set[str] = set()
        self._turn = asyncio.Lock()
        """Whoever puts images in place or takes them away does so alone, together with looking at their records."""
        self._turns = Turns()
        self._writers: dict[ImageId, object] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._arrived = {
            each.name.removesuffix(_PART): each.stat().st_size for each in folder.iterdir() if each.suffix == _PART
        }

    def path(self, id: ImageId) -> Path:
        return self._folder / id

    @property
    def arrived(self) -> Mapping[str, int]:
        """Bytes that there are of images that are not complete, by their ids."""
        return self._arrived

    # In one piece.

    @asynccontextmanager
    async def receiving(
        self, id: ImageId, body: AsyncIterator[bytes], expected: Expected, *, at_most: int
    ) -> AsyncGenerator[Arriving]:
        """Take an image in. The block looks whether it is still wanted, places it and commits its record.

        Blocks wait for each other. What a block that fails has placed is withdrawn; what is not placed is gone.

        Args:
            id: of the image.
            body: its bytes.
            expected: what it is said to be; of a format that is kept as it is.
            at_most: bytes that there is room for.

        Raises:
            Invalid: it is not what it is said to be, or reaches outside itself (a backing file, a data file).
            QuotaExceeded: it is larger than `at_most`.
            NoRoom: the folder is full.
        """
        file = self._folder / f"{id}.{new_id()}{_ARRIVING}"
        self._arriving.add(file.name)
        try:
            found = await self._take_in(file, body, expected, at_most)
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

    async def _take_in(self, file: Path, body: AsyncIterator[bytes], expected: Expected, at_most: int) -> Arrived:
        digest = sha256()
        size = 0
        with room_is_short(), await asyncio.to_thread(file.open, "xb") as writer:
            async for chunk in body:
                size += len(chunk)
                _check_quota(size, at_most)
                self.must_have_room(len(chunk))
                digest.update(chunk)
                await asyncio.to_thread(writer.write, chunk)
            await asyncio.to_thread(sync, writer)
        _check_digest(digest.hexdigest(), expected.sha256)
        virtual = await self._tools.inspect(file, expected.format)
        return Arrived(size_bytes=size, virtual_size_bytes=virtual, sha256=digest.hexdigest(), format=expected.format)

    # Piece by piece.

    async def append(
        self, id: ImageId, offset: int, body: AsyncIterator[bytes], wanted: Callable[[], int], *, expected_bytes: int
    ) -> int:
        """Add to what has arrived of an image; says how much that is then, all of it on disk.

        Of two who add to one image the later one goes on, and the other is refused: it may be a connection that is long
        dead. What arrived before a body broke off stays.

        Args:
            id: of the image.
            offset: where the body begins: how much has arrived so far.
            body: the bytes.
            wanted: says how many bytes the image may have, or raises if it is no longer wanted.
            expected_bytes: how many it is to have; 0 if nobody said so.

        Raises:
            Conflict: it is to go on somewhere else, or somebody else goes on.
            Invalid: it is more than was declared.
            QuotaExceeded: the quota leaves no room for it.
            NoRoom: the folder is full.
        """
        turn = self._writers[id] = object()
        part = self._folder / f"{id}{_PART}"
        with room_is_short():
            async with self._turns.of(id):
                wanted()
                at = await asyncio.to_thread(size_of, part)
                if offset != at:
                    raise Conflict(f"{at} bytes have arrived: go on there", because={"upload-offset": str(at)})
                self.must_have_room(max(expected_bytes - at, 0))
                opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._arrived[id] = at
            try:
                async for chunk in body:
                    async with self._turns.of(id):
                        if self._writers.get(id) is not turn:
                            raise Conflict("another request goes on with this upload")
                        if expected_bytes and at + len(chunk) > expected_bytes:
                            raise Invalid(f"more arrives than the {expected_bytes} bytes that were declared")
                        _check_quota(at + len(chunk), wanted())
                        self.must_have_room(len(chunk))
                        await asyncio.to_thread(write_at, opened, chunk, at)
                        self._arrived[id] = at = at + len(chunk)
            finally:
                await asyncio.to_thread(self._sync_part, opened, part)
        return at

    def _sync_part(self, opened: int, part: Path) -> None:
        try:
            os.fsync(opened)
            now = self._clock.now().timestamp()
            os.utime(opened, (now, now))
        finally:
            os.close(opened)
        sync_folder(part.parent)

    def touched_at(self, id: ImageId) -> datetime | None:
        """When something arrived of an image last, if anything has."""
        try:
            return datetime.fromtimestamp((self._folder / f"{id}{_PART}").stat().st_mtime, UTC)
        except FileNotFoundError:
            return None

    async def prepare(
        self, id: ImageId, expected: Expected, *, at_most: int, told: Callable[[str, float], None]
    ) -> Arrived:
        """Check what has arrived, and convert it if hosts do not use it as it is. Doing it again is doing it once.

        Args:
            id: of the image.
            expected: what it is said to be.
            at_most: bytes that the quota leaves for it.
            told: is told what is being done and how far that is, between 0 and 1.

        Raises:
            Conflict: not all of it has arrived.
            Invalid: it is not what it is said to be, or reaches outside itself.
            NoRoom: the folder is full.
            Unavailable: there is nothing here to open it with.
        """
        part, ready = self._folder / f"{id}{_PART}", self._folder / f"{id}{_READY}"
        async with self._turns.of(id):
            size = await asyncio.to_thread(size_of, part)
            if size != (expected.size_bytes or size) or not size:
                missing = (
                    f"{size} of {expected.size_bytes} bytes have arrived"
                    if expected.size_bytes
                    else "nothing has arrived"
                )
                raise Conflict(f"{missing}: the upload is not complete")
            found = await digest_of(part, lambda fraction: told("checking", fraction))
            _check_digest(found, expected.sha256)
            virtual = await self._tools.inspect(part, expected.format)
            if expected.format in AS_THEY_ARE:
                await asyncio.to_thread(ready.unlink, missing_ok=True)
                return Arrived(size_bytes=size, virtual_size_bytes=virtual, sha256=found, format=expected.format)
            most = min(at_most, self.must_have_room(0))
            await self._tools.convert(
                part,
                ready,
                format=expected.format,
                to=DiskFormat.QCOW2,
                at_most_bytes=most,
                told=lambda fraction: told("converting", fraction),
            )
            return Arrived(
                size_bytes=(await asyncio.to_thread(ready.stat)).st_size,
                virtual_size_bytes=virtual,
                sha256=await digest_of(ready, lambda fraction: told("checking what was converted", fraction)),
                format=DiskFormat.QCOW2,
            )

    async def place(self, id: ImageId) -> None:
        """Have what was prepared under its id, on disk. Doing it again is doing it once."""
        part, ready = self._folder / f"{id}{_PART}", self._folder / f"{id}{_READY}"
        async with self._turn, self._turns.of(id):
            await asyncio.to_thread(_place, part, ready, self.path(id))
            self._arrived.pop(id, None)

    async def withdraw(self, id: ImageId) -> None:
        """Have nothing under its id again."""
        async with self._turn:
            await asyncio.to_thread(self.path(id).unlink, missing_ok=True)

    async def discard_ready(self, id: ImageId) -> None:
        """Forget what was converted; what arrived stays."""
        await asyncio.to_thread((self._folder / f"{id}{_READY}").unlink, missing_ok=True)

    async def discard(self, id: ImageId) -> None:
        """Forget what has arrived, and free its room."""
        async with self._turns.of(id):
            self._writers.pop(id, None)
            for suffix in (_PART, _READY):
                await asyncio.to_thread((self._folder / f"{id}{suffix}").unlink, missing_ok=True)
            self._arrived.pop(id, None)

    # All of them.

    async def send(self, id: ImageId, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of an image, or so many from there on. Raises NotFound."""
        async for chunk in sent(self.path(id), start=start, length=length):
            yield chunk

    async def space(self) -> Space:
        """What images take, and what is left."""
        return await asyncio.to_thread(self._space)

    def _space(self) -> Space:
        images = arriving = 0
        for each in self._folder.iterdir():
            if each.suffix:
                arriving += allocated(each)
            else:
                images += allocated(each)
        room = msgspec.structs.asdict(room_of(self._folder))
        return Space(**room, images_bytes=images, arriving_bytes=arriving)

    def must_have_room(self, needed: int) -> int:
        """Bytes that there is room for. Raises NoRoom if that is less than this."""
        return must_have_room(self._folder, needed)

    async def keep_only(self, whole: Callable[[], Container[str]], arriving: Callable[[], Container[str]]) -> list[str]:
        """Remove what is of none of these images, whole or in part; says what."""
        async with self._turn:
            return await asyncio.to_thread(self._sweep, whole(), arriving())

    def _sweep(self, whole: Container[str], arriving: Container[str]) -> list[str]:
        gone: list[str] = []
        for each in self._folder.iterdir():
            id, _, rest = each.name.partition(".")
            wanted = id in (arriving if f".{rest}" in (_PART, _READY) else whole if not rest else ())
            if wanted or each.name in self._arriving or self._turns.busy(id):
                continue
            remove(each)
            gone.append(each.name)
            if f".{rest}" == _PART:
                self._arrived.pop(id, None)
        return gone


def _check_digest(found: str, expected: str) -> None:
    if expected and found != expected.lower():
        raise Invalid("the image is damaged", fields={"sha256": f"is {found}, {expected.lower()} was expected"})


def _check_quota(size: int, at_most: int) -> None:
    if size > at_most:
        raise QuotaExceeded(f"the project's quota leaves room for {size_text(at_most)} of this image")


def _place(part: Path, ready: Path, place: Path) -> None:
    if ready.exists():
        # First, so that what is found after a power cut in between is never taken for what was not to be converted.
        part.unlink(missing_ok=True)
        ready.replace(place)
    elif part.exists():
        part.replace(place)
    elif not place.exists():
        raise Conflict("what had arrived of the image is gone: upload it again")
    place.chmod(0o600)
    sync_folder(place.parent)
