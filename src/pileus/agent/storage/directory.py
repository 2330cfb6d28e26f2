"""A storage pool in a directory: sparse raw files, cloned from images that are kept as raw files too.

    images/<id>/    image.raw, image.json     for the agent alone
    media/<id>.iso                            another name of an image's file, for all guests to read
    volumes/<id>/   disk.raw, volume.json     the way to the disk is open to QEMU's user, the disk is its own;
                                              with the layers of its snapshots, see `directory_layers.py`
    backups/        see `pileus.agent.backup`: what is kept of volumes in other pools
    packed/         see `directory_packing.py`
    memory/         <snapshot>.memory         what a guest had in memory when a snapshot was taken
    config-drives/  see `pileus.agent.configdrive`, which keeps them here, where QEMU's user may pass
    wiping/<id>/    a volume that is being overwritten, which goes on until it is gone
    scratch/        what is being made or removed; emptied when the pool is opened

A volume or image appears by one renaming of its folder and vanishes by another: there is no half of one, wherever the
power is cut. A qcow2 image is converted once, when it arrives: afterwards no hostile format is ever parsed. The pool
promises no more than it has: what all volumes may still grow to fits into what is free.
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog
from msgspec.structs import replace

from pileus.agent.backup.directory import DirectoryPlace
from pileus.agent.backup.port import BackupPlace
from pileus.agent.storage import overlays
from pileus.agent.storage.directory_layers import DirectoryLayering
from pileus.agent.storage.directory_packing import DirectoryPacking
from pileus.agent.storage.files import assemble, in_thread, publish, stoppable, sync_folder
from pileus.agent.storage.layers import BASE
from pileus.agent.storage.port import (
    CachedImage,
    DiskSource,
    Fetch,
    Layering,
    Packing,
    Pieces,
    Told,
)
from pileus.agent.storage.sparse import SparseWriter, clone, copy_extents
from pileus.agent.storage.volumefolder import Note, VolumeFolder
from pileus.agent.storage.wiping import wipe_folder
from pileus.agent.turns import Turns
from pileus.diskimages.headers import DiskFormat
from pileus.diskimages.qemuimg import QemuImg
from pileus.kernel.errors import Conflict, Invalid, NotFound, PileusError, Unavailable
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import ImageId, VolumeId, check_id, is_id, new_id
from pileus.kernel.units import MIB, size_text
from pileus.link.records import KEPT_FREE, ImageSource, PoolUse, VolumeCopy, VolumeObserved, VolumeSpec

_GATHER: Final = 1 * MIB
"""Bytes of an image that are written and hashed together."""
_FORMATS: Final = frozenset({"raw", "qcow2", "iso"})

log = structlog.stdlib.get_logger()


class _Image(msgspec.Struct, frozen=True, kw_only=True):
    """Beside an image."""

    sha256: str


class DirectoryPool:
    """Keeps volumes as files below a directory. Made by `open`."""

    def __init__(self, folder: Path) -> None:
        self._images = folder / "images"
        self._media = folder / "media"
        self._volumes = folder / "volumes"
        self._memory = folder / "memory"
        self._packed = folder / "packed"
        self._wiping = folder / "wiping"
        self._scratch = folder / "scratch"
        self._place = DirectoryPlace(folder / "backups")
        self._qemu_img = QemuImg()
        self._turns = Turns()
        self._promising = asyncio.Lock()
        self._reserved: dict[str, int] = {}
        self._written: dict[str, int] = {}
        self._overcommit = 1.0
        self._layering = DirectoryLayering(self._volumes, self._memory, self._turns, self._reserving)
        self._packing = DirectoryPacking(self._packed, self._layering, self._making, self._discard, self._reserving)

    @classmethod
    def open(cls, folder: Path) -> "DirectoryPool":
        """The pool in this directory, which is made if there is none; what was left half done is removed.

        Raises:
            OSError: the directory cannot be written.
        """
        pool = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(pool._scratch, ignore_errors=True)
        for place, mode in (
            (folder, 0o711),
            (pool._volumes, 0o711),
            (pool._media, 0o711),
            (pool._images, 0o700),
            (pool._memory, 0o700),
            (pool._packed, 0o700),
            (pool._wiping, 0o700),
            (pool._scratch, 0o700),
        ):
            place.mkdir(exist_ok=True)
            place.chmod(mode)
        DirectoryPlace.open(folder / "backups")
        for volume in pool._volumes.iterdir():
            with suppress(PileusError):  # who uses it is told
                VolumeFolder(volume).go_on()
        return pool

    @property
    def layering(self) -> Layering:
        return self._layering

    @property
    def place(self) -> BackupPlace:
        return self._place

    @property
    def packing(self) -> Packing:
        return self._packing

    # Images.

    async def ensure_image(self, image: ImageSource, fetch: Fetch, told: Told) -> None:
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
            async with self._reserving(image.id, room, room), self._making() as made:
                await self._bring(image, made, fetch, told)
                await in_thread(self._keep_image, image, made)
        log.info("image fetched", image=image.id, bytes=image.size_bytes)

    async def cached(self) -> dict[ImageId, CachedImage]:
        """Every image."""
        return await in_thread(self._look_at_images)

    async def remove_image(self, id: ImageId) -> None:
        """Have the image no more."""
        check_id(id)
        async with self._turns.of(id):
            await in_thread(self._discard, self._images / id)

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
        _resize(made / "image.raw", image.virtual_size_bytes)
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

    # Volumes.

    async def ensure(self, volume: VolumeSpec, told: Told) -> VolumeObserved:
        """Have the volume; see the port.

        Raises:
            NotFound: its image is not here.
            Conflict: its image is larger than it, or the pool has no room.
        """
        check_id(volume.id)
        if volume.image is not None:
            check_id(volume.image.id)
        async with self._turns.of(volume.id):
            known = await in_thread(self._look, volume.id)
            growth = volume.size_bytes - (known.size_bytes if known else 0)
            async with self._reserving(volume.id, growth, 0 if known else _written(volume)):
                if known is None:
                    await self._make(volume, told)
                elif known.generation != volume.generation or growth > 0:
                    await self._change(volume, max(volume.size_bytes, known.size_bytes))
            observed = await in_thread(self._look, volume.id)
            assert observed is not None
            return observed

    async def fill(self, volume: VolumeSpec, pieces: Pieces) -> VolumeObserved:
        """Have the volume, made of these pieces; see the port.

        Raises:
            Conflict: the pool has no room.
        """
        check_id(volume.id)
        async with self._turns.of(volume.id):
            known = await in_thread(self._look, volume.id)
            if known is not None:
                return known
            async with self._reserving(volume.id, volume.size_bytes), self._making() as made:
                await assemble(made / "disk.raw", pieces)
                await in_thread(self._keep_volume, volume, made)
            observed = await in_thread(self._look, volume.id)
            assert observed is not None
            return observed

    async def prepare(self, id: VolumeId, to: str, pieces: Pieces, *, room_bytes: int) -> None:
        """Have what the volume is to become ready beside it; see the port.

        Raises:
            NotFound: there is no such volume.
            Conflict: the pool has no room.
        """
        check_id(id)
        check_id(to)
        async with self._turns.of(to):
            folder = VolumeFolder(self._volumes / id)
            if (await in_thread(folder.note)).became == to or await in_thread(folder.prepared(to).exists):
                return
            async with self._reserving(to, room_bytes), self._making() as made:
                await assemble(made / "disk.raw", pieces)
                await in_thread((made / "disk.raw").rename, folder.prepared(to))

    async def drop(self, id: VolumeId, to: str) -> None:
        """Have what was prepared no more."""
        check_id(id)
        check_id(to)
        async with self._turns.of(to):
            folder = VolumeFolder(self._volumes / id)
            await in_thread(lambda: folder.prepared(to).unlink(missing_ok=True))

    async def exchange(self, id: VolumeId, to: str) -> None:
        """Have the volume be what was prepared; see the port.

        Raises:
            NotFound: there is no such volume, or nothing was prepared.
            Conflict: what was prepared is larger.
        """
        check_id(id)
        check_id(to)
        async with self._turns.of(id), self._turns.of(to):
            await in_thread(VolumeFolder(self._volumes / id).exchange, to)

    async def remove(self, id: VolumeId) -> None:
        """Have the volume no more."""
        check_id(id)
        async with self._turns.of(id):
            await in_thread(self._discard, self._volumes / id)

    async def wipe(self, id: VolumeId, told: Told) -> None:
        """Have the volume no more, and its data overwritten; see `wiping.py` for what that is worth."""
        check_id(id)
        async with self._turns.of(id):
            folder = self._wiping / id
            await in_thread(_move, self._volumes / id, folder)
            await stoppable(told, wipe_folder, folder)
        told(1.0)

    async def list(self) -> dict[VolumeId, VolumeObserved]:
        """Every volume."""
        return await in_thread(self._look_at_all)

    async def source(self, id: VolumeId) -> DiskSource:
        """The volume's file.

        Raises:
            NotFound: there is no such volume.
        """
        check_id(id)
        folder = VolumeFolder(self._volumes / id)
        if not await in_thread(folder.file(BASE).exists):
            raise NotFound(f"there is no volume {id} on this host")
        note = await in_thread(folder.note)
        if note.becoming:
            raise Unavailable("the volume is being restored")
        active = folder.file(note.layers.active)
        if note.size_bytes > await in_thread(overlays.size_of, active):
            # It was to grow while a guest used it, which had to do that, and has ended before it did.
            await overlays.enlarge(active, note.size_bytes)
        return folder.source(note.layers.active)

    async def use(self) -> PoolUse:
        """How full the file system is, and what is promised of it."""
        return await in_thread(self._use)

    def overcommit(self, ratio: float) -> None:
        """Promise so many times what there is."""
        self._overcommit = ratio

    async def _make(self, volume: VolumeSpec, told: Told) -> None:
        async with self._making() as made:
            disk = made / "disk.raw"
            if volume.copy_of is not None:
                await self._copy(volume, volume.copy_of, disk, told)
            elif volume.image is not None:
                await self._clone(volume, volume.image.id, disk, told)
            else:
                await in_thread(lambda: disk.touch(mode=0o600))
            await in_thread(self._keep_volume, volume, made)
        told(1.0)

    async def _clone(self, volume: VolumeSpec, image: ImageId, disk: Path, told: Told) -> None:
        source = self._images / image / "image.raw"
        try:
            size = (await in_thread(source.stat)).st_size
        except NotFound:
            raise NotFound(f"image {image} is not on this host") from None
        if size > volume.size_bytes:
            raise Conflict(f"the image needs {size_text(size)}, the volume has {size_text(volume.size_bytes)}")
        await stoppable(told, clone, source, disk)

    async def _copy(self, volume: VolumeSpec, copy: VolumeCopy, disk: Path, told: Told) -> None:
        chain = await self._layering.chain(copy.volume, copy.snapshot)
        size = await in_thread(overlays.size_of, chain[0])
        if size > volume.size_bytes:
            raise Conflict(f"the snapshot is of {size_text(size)}, the volume has {size_text(volume.size_bytes)}")
        if len(chain) == 1:
            await stoppable(told, clone, chain[0], disk)
            return
        extents = [each for each in await overlays.extents(chain) if each.data and not each.zero]
        parts = [(chain[each.depth], each.offset or 0, each.start, each.length) for each in extents]
        await stoppable(told, copy_extents, parts, disk)

    def _keep_volume(self, volume: VolumeSpec, made: Path) -> None:
        made.chmod(0o711)
        _resize(made / "disk.raw", volume.size_bytes)
        VolumeFolder(made).keep(Note(generation=volume.generation))
        publish(made, self._volumes / volume.id)

    async def _change(self, volume: VolumeSpec, size_bytes: int) -> None:
        folder = VolumeFolder(self._volumes / volume.id)
        note = await in_thread(folder.note)
        if note.layers.active == BASE:
            await in_thread(_resize, folder.file(BASE), size_bytes)
        else:
            await overlays.enlarge(folder.file(note.layers.active), size_bytes)
            note = replace(note, size_bytes=size_bytes)
        await in_thread(folder.keep, replace(note, generation=volume.generation))

    def _look(self, id: VolumeId) -> VolumeObserved | None:
        return VolumeFolder(self._volumes / id).look(id)

    def _look_at_all(self) -> dict[VolumeId, VolumeObserved]:
        ids = (VolumeId(entry.name) for entry in self._volumes.iterdir() if is_id(entry.name))
        return {id: found for id in ids if (found := self._look(id)) is not None}

    # Room.

    def _use(self) -> PoolUse:
        system = os.statvfs(self._volumes)
        return PoolUse(
            total_bytes=system.f_blocks * system.f_frsize,
            free_bytes=system.f_bavail * system.f_frsize,
            promised_bytes=sum(volume.size_bytes for volume in self._look_at_all().values()),
            unfilled_bytes=self._unfilled(),
        )

    @asynccontextmanager
    async def _reserving(self, id: str, growth_bytes: int, written_bytes: int = 0) -> AsyncGenerator[None, None]:
        """Keep room for what is being made, so that two do not count on the same.

        `written_bytes` of it are written at once; the rest is promised.
        """
        async with self._promising:
            use = await in_thread(self._use)
            growable = use.promisable_bytes(self._overcommit) - use.promised_bytes - sum(self._reserved.values())
            if growth_bytes > 0 and growth_bytes > growable:
                raise Conflict(
                    f"the storage pool has room for {size_text(max(0, growable))} more,"
                    f" {size_text(growth_bytes)} are needed"
                )
            free = use.free_bytes - sum(self._written.values())
            if growth_bytes > 0 and self._overcommit > 1 and free - written_bytes < KEPT_FREE * use.total_bytes:
                raise Conflict(
                    f"the storage pool has {size_text(free)} of {size_text(use.total_bytes)} really free, of which"
                    f" {KEPT_FREE:.0%} are kept for the volumes that it has"
                )
            self._reserved[id] = max(0, growth_bytes)
            self._written[id] = written_bytes
        try:
            yield
        finally:
            del self._reserved[id], self._written[id]

    def _unfilled(self) -> int:
        folders = (VolumeFolder(entry) for entry in self._volumes.iterdir() if is_id(entry.name))
        return sum(folder.unused_bytes() for folder in folders)

    # Appearing and vanishing.

    @asynccontextmanager
    async def _making(self) -> AsyncGenerator[Path, None]:
        """A folder in which something is made; gone afterwards, unless it was published."""
        folder = self._scratch / new_id()
        await in_thread(folder.mkdir, 0o700)
        try:
            yield folder
        finally:
            # Not in a thread: whoever is cancelled here would leave before it is done.
            shutil.rmtree(folder, ignore_errors=True)

    def _discard(self, folder: Path) -> None:
        gone = self._scratch / new_id()
        try:
            folder.rename(gone)
        except FileNotFoundError:
            return
        sync_folder(folder.parent)
        shutil.rmtree(gone)


def _written(volume: VolumeSpec) -> int:
    """What making the volume writes at the most."""
    if volume.copy_of is not None:
        return volume.size_bytes
    return volume.image.virtual_size_bytes if volume.image is not None else 0


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


def _resize(file: Path, size_bytes: int) -> None:
    with file.open("rb+") as opened:
        os.ftruncate(opened.fileno(), size_bytes)
        os.fsync(opened.fileno())


def _move(folder: Path, place: Path) -> None:
    with suppress(FileNotFoundError):
        folder.rename(place)
        sync_folder(place.parent)
        sync_folder(folder.parent)
