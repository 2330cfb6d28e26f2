"""Volumes on their way from one pool in a directory to another: every file of theirs is copied, and laid as it was."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from pileus.agent.storage import overlays
from pileus.agent.storage.files import in_thread, publish, resize, stoppable
from pileus.agent.storage.layers import BASE
from pileus.agent.storage.port import DiskSource, Told, VolumeContents
from pileus.agent.storage.scratch import Scratch
from pileus.agent.storage.sparse import clone
from pileus.agent.storage.volumefolder import Note, VolumeFolder
from pileus.agent.turns import Turns
from pileus.kernel.errors import NotFound, Unavailable
from pileus.kernel.ids import VolumeId, check_id

Reserving = Callable[[str, int, int], AbstractAsyncContextManager[None]]
"""Keeps so many bytes of the pool for something while it is made, of which so many are written at once."""


class DirectoryMoving:
    """Gives and takes the volumes of a directory (a Moving)."""

    def __init__(self, volumes: Path, turns: Turns, reserving: Reserving, scratch: Scratch) -> None:
        """For the volumes below this folder; the rest is that of their pool."""
        self._volumes = volumes
        self._turns = turns
        self._reserving = reserving
        self._scratch = scratch

    async def contents(self, id: VolumeId) -> VolumeContents:
        check_id(id)
        folder = VolumeFolder(self._volumes / id)
        if not await in_thread(folder.file(BASE).exists):
            raise NotFound(f"the storage pool has no volume {id}")
        note = await in_thread(folder.note)
        if note.becoming or note.layers.merging or note.layers.unconfirmed:
            raise Unavailable("something else of the volume is under way")
        for layer in (BASE, *note.layers.below):
            await in_thread(overlays.check, folder.chain(note.layers, layer))
        return VolumeContents(
            generation=note.generation,
            size_bytes=await in_thread(folder.size_bytes, note),
            layers=note.layers,
            files={layer: folder.source(layer) for layer in (BASE, *note.layers.below)},
            secure=note.secure,
        )

    async def receive(self, id: VolumeId, contents: VolumeContents, told: Told, *, filled: bool = True) -> DiskSource:
        check_id(id)
        layers, size = contents.layers, contents.size_bytes
        copied = [layer for layer in contents.files if filled or layer != layers.active]
        taken = {layer: await in_thread(_allocated, contents.files[layer].path) for layer in contents.files}
        async with self._turns.of(id):
            await in_thread(self._scratch.discard, self._volumes / id)
            frozen = sum(taken.values()) - taken[layers.active]
            room = size + frozen
            async with self._reserving(id, room, sum(taken.values())), self._scratch.making() as made:
                folder, done = VolumeFolder(made), 0
                for layer in copied:
                    part = _part_of(told, done, taken[layer], sum(taken[each] for each in copied))
                    await stoppable(part, clone, Path(contents.files[layer].path), folder.file(layer))
                    done += taken[layer]
                if not filled:
                    await self._leave_empty(folder, contents)
                for layer in layers.below:
                    if layer in copied:
                        await overlays.rebase(folder.file(layer), over=folder.file(layers.below[layer]))
                note = Note(
                    generation=contents.generation,
                    size_bytes=size if layers.below else 0,
                    layers=layers,
                    secure=contents.secure,
                )
                await in_thread(self._keep, id, folder, note)
        return VolumeFolder(self._volumes / id).source(layers.active)

    async def _leave_empty(self, folder: VolumeFolder, contents: VolumeContents) -> None:
        layers, size = contents.layers, contents.size_bytes
        active = folder.file(layers.active)
        if layers.active == BASE:
            await in_thread(lambda: active.touch(mode=0o600))
            await in_thread(resize, active, size)
        else:
            await overlays.create(active, over=folder.file(layers.below[layers.active]), size_bytes=size)

    def _keep(self, id: VolumeId, folder: VolumeFolder, note: Note) -> None:
        folder.path.chmod(0o711)
        folder.keep(note)
        publish(folder.path, self._volumes / id)


def _allocated(path: str) -> int:
    return Path(path).stat().st_blocks * 512


def _part_of(told: Told, before: int, of: int, total: int) -> Told:
    return lambda part: told((before + part * of) / max(1, total))
