"""The snapshots of volumes in a directory: qcow2 overlays over the raw file.

Every change is one replacement of `volume.json`; a layer that is not in it is not there, whatever file is left of it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from pileus.agent.storage import moments, overlays
from pileus.agent.storage.files import in_thread
from pileus.agent.storage.layers import BASE, Layers
from pileus.agent.storage.overlays import Extent
from pileus.agent.storage.port import DiskSource, Moment
from pileus.agent.storage.volumefolder import Note, VolumeFolder
from pileus.agent.turns import Turns
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import SnapshotId, VolumeId, check_id
from pileus.kernel.programs import ProgramFailed

T = TypeVar("T")

Reserving = Callable[[str, int], AbstractAsyncContextManager[None]]
"""Keeps so many bytes of the pool for something while it is made. Raises Conflict if there are not as many."""


class DirectoryLayering:
    """Lays the volumes of a directory in layers (a Layering)."""

    def __init__(self, volumes: Path, memory: Path, turns: Turns, reserving: Reserving) -> None:
        """For the volumes below this folder, and what guests had in memory in another.

        `turns` and `reserving` are those of their pool.
        """
        self._volumes = volumes
        self._memory = memory
        self._turns = turns
        self._reserving = reserving

    async def layers(self, id: VolumeId) -> Layers:
        return (await self._note(id)).layers

    async def lay(self, id: VolumeId, snapshot: SnapshotId) -> DiskSource:
        check_id(snapshot)
        async with self._turns.of(id):
            folder, note = self._folder(id), await self._note(id)
            if snapshot in note.layers.frozen:
                return folder.source(snapshot)
            if note.layers.unconfirmed or note.layers.merging:
                raise Conflict("another snapshot of the volume is under way")
            active = note.layers.active
            # What was written so far stays, and all of it may be written anew.
            async with self._reserving(id, await in_thread(folder.allocated_bytes, active)):
                await self._create(folder, snapshot, over=active, note=note)
                await in_thread(folder.keep, self._sized(folder, replace(note, layers=note.layers.taken(snapshot))))
            return folder.source(snapshot)

    async def confirm(self, id: VolumeId, snapshot: SnapshotId) -> None:
        await self._change(id, lambda layers: layers.confirmed() if layers.unconfirmed == snapshot else layers)

    async def take_back(self, id: VolumeId, snapshot: SnapshotId) -> None:
        await self._change(id, lambda layers: layers.untaken() if layers.unconfirmed == snapshot else layers)

    async def revert(self, id: VolumeId, snapshot: SnapshotId, to: str) -> None:
        check_id(to)
        async with self._turns.of(id):
            folder, note = self._folder(id), await self._note(id)
            if note.layers.active == to:
                return
            frozen = note.layers.of(snapshot)
            await self._create(folder, to, over=frozen, note=note)
            await in_thread(folder.keep, self._sized(folder, replace(note, layers=note.layers.reverted(snapshot, to))))

    async def forget(self, id: VolumeId, snapshot: SnapshotId) -> None:
        await self._change(id, lambda layers: layers.without(snapshot))

    async def secure(self, id: VolumeId, wanted: bool) -> None:
        async with self._turns.of(id):
            folder, note = self._folder(id), await self._note(id)
            if note.secure != wanted:
                await in_thread(folder.keep, replace(note, secure=wanted))

    async def begin_merge(self, id: VolumeId, layer: str) -> None:
        await self._change(id, lambda layers: layers.begun(layer))

    async def merge(self, id: VolumeId) -> None:
        async with self._turns.of(id):
            folder, note = self._folder(id), await self._note(id)
            chain = await in_thread(folder.chain, note.layers, note.layers.merging)
            try:
                await overlays.merge_down(chain)
                for layer in note.layers.above(note.layers.merging):
                    await overlays.rebase(folder.file(layer), over=chain[1])
            except ProgramFailed as failed:
                raise Conflict("a snapshot's space cannot be given back now", internal=failed.internal) from failed

    async def end_merge(self, id: VolumeId) -> None:
        await self._change(id, lambda layers: layers.merged() if layers.merging else layers)

    async def source(self, id: VolumeId, layer: str) -> DiskSource:
        return (await self._found(id)).source(layer)

    async def chain(self, id: VolumeId, snapshot: SnapshotId) -> list[Path]:
        folder, note = await self._found(id), await self._note(id)
        return folder.chain(note.layers, note.layers.of(snapshot))

    async def extents(self, id: VolumeId, snapshot: SnapshotId) -> list[Extent]:
        return await overlays.extents(await self.chain(id, snapshot))

    @asynccontextmanager
    async def reading(
        self, id: VolumeId, snapshot: SnapshotId, since: SnapshotId | None
    ) -> AsyncGenerator[Moment, None]:
        folder, note = await self._found(id), await self._note(id)
        async with moments.opened(folder, note.layers, snapshot, since) as moment:
            yield moment

    async def memory(self, snapshot: SnapshotId) -> Path:
        check_id(snapshot)
        return self._memory / f"{snapshot}.memory"

    async def memory_bytes(self, snapshot: SnapshotId) -> int:
        file = await self.memory(snapshot)
        return (await in_thread(file.stat)).st_size

    async def forget_memory(self, snapshot: SnapshotId) -> None:
        file = await self.memory(snapshot)
        await in_thread(lambda: file.unlink(missing_ok=True))

    async def space(self, id: VolumeId) -> Mapping[SnapshotId, int]:
        folder, note = await self._found(id), await self._note(id)
        return {
            SnapshotId(snapshot): await in_thread(folder.space_bytes, note.layers, snapshot)
            for snapshot in note.layers.frozen
        }

    async def _change(self, id: VolumeId, change: Callable[[Layers], Layers]) -> None:
        async with self._turns.of(id):
            folder, note = self._folder(id), await self._note(id)
            changed = change(note.layers)
            if changed != note.layers:
                await in_thread(folder.keep, self._sized(folder, replace(note, layers=changed)))

    async def _create(self, folder: VolumeFolder, layer: str, *, over: str, note: Note) -> None:
        # One that is there is of an attempt that was never noted.
        await in_thread(lambda: folder.file(layer).unlink(missing_ok=True))
        size = await in_thread(folder.size_bytes, note)
        await overlays.create(folder.file(layer), over=folder.file(over), size_bytes=size)

    def _sized(self, folder: VolumeFolder, note: Note) -> Note:
        """With the size noted while layers can be larger than the base."""
        return replace(note, size_bytes=folder.size_bytes(note) if note.layers.below else 0)

    def _folder(self, id: VolumeId) -> VolumeFolder:
        check_id(id)
        return VolumeFolder(self._volumes / id)

    async def _found(self, id: VolumeId) -> VolumeFolder:
        folder = self._folder(id)
        if not await asyncio.to_thread(folder.file(BASE).exists):
            raise NotFound(f"the storage pool has no volume {id}")
        return folder

    async def _note(self, id: VolumeId) -> Note:
        return await in_thread((await self._found(id)).note)
