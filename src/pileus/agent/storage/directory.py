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

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from pileus.agent.backup.directory import DirectoryPlace
from pileus.agent.backup.port import BackupPlace
from pileus.agent.storage import overlays
from pileus.agent.storage.directory_images import DirectoryImages
from pileus.agent.storage.directory_layers import DirectoryLayering
from pileus.agent.storage.directory_moving import DirectoryMoving
from pileus.agent.storage.directory_packing import DirectoryPacking
from pileus.agent.storage.directory_room import DirectoryRoom
from pileus.agent.storage.files import assemble, in_thread, publish, resize, stoppable
from pileus.agent.storage.layers import BASE
from pileus.agent.storage.port import (
    CachedImage,
    DiskSource,
    Fetch,
    Layering,
    Moving,
    Packing,
    Pieces,
    Told,
)
from pileus.agent.storage.scratch import Scratch
from pileus.agent.storage.sparse import clone, copy_extents
from pileus.agent.storage.volumefolder import Note, VolumeFolder
from pileus.agent.storage.wiping import wipe_folder
from pileus.agent.turns import Turns
from pileus.kernel.errors import Conflict, NotFound, PileusError, Unavailable
from pileus.kernel.files import sync_folder
from pileus.kernel.ids import ImageId, VolumeId, check_id, is_id
from pileus.kernel.units import size_text
from pileus.link.images import ImageSource
from pileus.link.storagepools import PoolUse
from pileus.link.volumes import VolumeCopy, VolumeObserved, VolumeSpec

_PLACES: Final = (
    ("", 0o711),
    ("volumes", 0o711),
    ("media", 0o711),
    ("images", 0o700),
    ("memory", 0o700),
    ("packed", 0o700),
    ("wiping", 0o700),
    ("scratch", 0o700),
)
"""The folders of a pool, with who may pass."""


class DirectoryPool:
    """Keeps volumes as files below a directory. Made by `open`."""

    def __init__(self, folder: Path) -> None:
        self._volumes = folder / "volumes"
        self._wiping = folder / "wiping"
        self._place = DirectoryPlace(folder / "backups")
        self._turns = Turns()
        self._room = DirectoryRoom(self._volumes)
        self._scratch = Scratch(folder / "scratch")
        self._images = DirectoryImages(folder / "images", folder / "media", self._turns, self._room, self._scratch)
        self._layering = DirectoryLayering(self._volumes, folder / "memory", self._turns, self._room.reserving)
        self._moving = DirectoryMoving(self._volumes, self._turns, self._room.reserving, self._scratch)
        self._packing = DirectoryPacking(
            folder / "packed", self._layering, self._scratch.making, self._scratch.discard, self._room.reserving
        )

    @classmethod
    def open(cls, folder: Path) -> "DirectoryPool":
        """The pool in this directory, which is made if there is none; what was left half done is removed.

        Raises:
            OSError: the directory cannot be written.
        """
        pool = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        for name, mode in _PLACES:
            place = folder / name
            place.mkdir(exist_ok=True)
            place.chmod(mode)
        DirectoryPlace.open(folder / "backups")
        for volume in (folder / "volumes").iterdir():
            with suppress(PileusError):  # who uses it is told
                VolumeFolder(volume).go_on()
        return pool

    @property
    def layering(self) -> Layering:
        return self._layering

    @property
    def moving(self) -> Moving:
        return self._moving

    @property
    def place(self) -> BackupPlace:
        return self._place

    @property
    def packing(self) -> Packing:
        return self._packing

    # Images.

    async def ensure_image(self, image: ImageSource, fetch: Fetch, told: Told) -> None:
        await self._images.ensure(image, fetch, told)

    async def cached(self) -> dict[ImageId, CachedImage]:
        return await self._images.cached()

    async def remove_image(self, id: ImageId) -> None:
        await self._images.remove(id)

    async def offer(self, id: ImageId) -> DiskSource:
        return await self._images.offer(id)

    async def withdraw(self, id: ImageId) -> None:
        await self._images.withdraw(id)

    async def media(self) -> frozenset[ImageId]:
        return await self._images.media()

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
            async with self._room.reserving(volume.id, growth, 0 if known else _written(volume)):
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
            async with self._room.reserving(volume.id, volume.size_bytes), self._scratch.making() as made:
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
            async with self._room.reserving(to, room_bytes), self._scratch.making() as made:
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
            await in_thread(self._scratch.discard, self._volumes / id)

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
        return await self._room.use()

    def overcommit(self, ratio: float) -> None:
        self._room.overcommit = ratio

    async def _make(self, volume: VolumeSpec, told: Told) -> None:
        async with self._scratch.making() as made:
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
        source = self._images.raw(image)
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
        resize(made / "disk.raw", volume.size_bytes)
        VolumeFolder(made).keep(Note(generation=volume.generation))
        publish(made, self._volumes / volume.id)

    async def _change(self, volume: VolumeSpec, size_bytes: int) -> None:
        folder = VolumeFolder(self._volumes / volume.id)
        note = await in_thread(folder.note)
        if note.layers.active == BASE:
            await in_thread(resize, folder.file(BASE), size_bytes)
        else:
            await overlays.enlarge(folder.file(note.layers.active), size_bytes)
            note = replace(note, size_bytes=size_bytes)
        await in_thread(folder.keep, replace(note, generation=volume.generation))

    def _look(self, id: VolumeId) -> VolumeObserved | None:
        return VolumeFolder(self._volumes / id).look(id)

    def _look_at_all(self) -> dict[VolumeId, VolumeObserved]:
        ids = (VolumeId(entry.name) for entry in self._volumes.iterdir() if is_id(entry.name))
        return {id: found for id in ids if (found := self._look(id)) is not None}


def _written(volume: VolumeSpec) -> int:
    """What making the volume writes at the most."""
    if volume.copy_of is not None:
        return volume.size_bytes
    return volume.image.virtual_size_bytes if volume.image is not None else 0


def _move(folder: Path, place: Path) -> None:
    with suppress(FileNotFoundError):
        folder.rename(place)
        sync_folder(place.parent)
        sync_folder(folder.parent)
