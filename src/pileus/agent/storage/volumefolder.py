"""The folder of one volume in a directory: its files, and the note beside them. Blocking.

disk.raw            the base
<id>.qcow2          a layer over it, called after the snapshot or revert that made it
<id>.raw            what it is to become when it is restored
volume.json         the generation, and how the layers lie on each other
"""

import os
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from pileus.agent.storage import overlays
from pileus.agent.storage.layers import BASE, Layers
from pileus.agent.storage.port import DiskSource
from pileus.agent.storage.wiping import wipe
from pileus.kernel.errors import Conflict, NotFound, Unavailable
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import VolumeId
from pileus.link.volumes import VolumeObserved

log = structlog.stdlib.get_logger()


class Note(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the files of a volume cannot tell."""

    generation: int
    size_bytes: int = 0
    """As large as it is to be, if that is not the size of its base."""
    layers: Layers = Layers()
    secure: bool = False
    """Whether a layer is overwritten before its space is given back."""
    becoming: str = ""
    """What it becomes that was prepared under this id: from then on there is no way back."""
    became: str = ""
    """What it has become last."""


class VolumeFolder:
    """The files of one volume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self) -> Note:
        """What was noted.

        Raises:
            Unavailable: it cannot be read, and there are layers that nobody can tell the order of without it.
        """
        try:
            return msgspec.json.decode((self.path / "volume.json").read_bytes(), type=Note)
        except (OSError, msgspec.DecodeError) as why:
            if any(self.path.glob("*.qcow2")):
                raise Unavailable("the layers of a volume are not known", internal=f"{self.path}: {why}") from why
            # The disk is what counts; whoever asks for a generation writes a new file.
            log.warning("volume's generation cannot be read", folder=str(self.path), why=str(why))
            return Note(generation=0)

    def keep(self, note: Note) -> None:
        """Note this from now on, in one step; then remove the layers not in it, which nobody may have open."""
        write_atomically(self.path / "volume.json", msgspec.json.encode(note))
        wanted = {self.file(layer) for layer in note.layers.below}
        for file in self.path.glob("*.qcow2"):
            if file in wanted:
                continue
            if note.secure:
                wipe(file, _nobody, _never)
            file.unlink()

    def prepared(self, to: str) -> Path:
        """Where that is which the volume is to become."""
        return self.path / f"{to}.raw"

    def exchange(self, to: str) -> None:
        """Have the volume be what was prepared; goes on where it was interrupted.

        Raises:
            NotFound: nothing was prepared.
            Conflict: it is larger than the volume.
        """
        note = self.note()
        if note.became == to:
            return
        if not note.becoming:
            if not self.prepared(to).exists():
                raise NotFound("there is nothing prepared that the volume could become")
            size = self.size_bytes(note)
            if self.prepared(to).stat().st_size > size:
                raise Conflict("what the volume is to become is larger than it is")
            with self.prepared(to).open("rb+") as opened:
                os.ftruncate(opened.fileno(), size)
                os.fsync(opened.fileno())
            note = replace(note, becoming=to)
            self.keep(note)
        self.go_on()

    def go_on(self) -> None:
        """Finish an exchange that was begun: layers are of the old content, and must never lie over the new one."""
        note = self.note()
        if not note.becoming:
            return
        prepared, gone = self.prepared(note.becoming), self.path / f"{note.becoming}.gone"
        if prepared.exists():
            if note.secure and not gone.exists():
                os.link(self.file(BASE), gone)
            prepared.replace(self.file(BASE))
        self.keep(Note(generation=note.generation, secure=note.secure, became=note.becoming))
        if gone.exists():
            wipe(gone, _nobody, _never)
            gone.unlink()

    def file(self, layer: str) -> Path:
        return self.path / (f"{layer}.qcow2" if layer != BASE else "disk.raw")

    def chain(self, layers: Layers, layer: str) -> list[Path]:
        """The files that hold what is seen through a layer, from the top."""
        return [self.file(each) for each in layers.chain(layer)]

    def source(self, layer: str) -> DiskSource:
        file = self.file(layer)
        return DiskSource(kind="file", path=str(file), format=overlays.format_of(file))

    def allocated_bytes(self, layer: str) -> int:
        return self.file(layer).stat().st_blocks * 512

    def size_bytes(self, note: Note) -> int:
        return max(self.file(BASE).stat().st_size, note.size_bytes)

    def look(self, id: VolumeId) -> VolumeObserved | None:
        """The volume as it is; None if there is none."""
        if not self.file(BASE).exists():
            return None
        try:
            note = self.note()
            return VolumeObserved(
                id=id,
                generation=note.generation,
                size_bytes=self.size_bytes(note),
                allocated_bytes=sum(self.allocated_bytes(layer) for layer in (BASE, *note.layers.below)),
            )
        except FileNotFoundError:
            return None  # it is being removed

    def unused_bytes(self) -> int:
        """What may still be written to it without anybody asking."""
        try:
            note = self.note()
            return max(0, self.size_bytes(note) - self.allocated_bytes(note.layers.active))
        except FileNotFoundError:
            return 0  # it is being removed

    def space_bytes(self, layers: Layers, snapshot: str) -> int:
        """What is kept for a snapshot: what was written over what it froze."""
        return sum(self.allocated_bytes(layer) for layer in layers.above(layers.of(snapshot)))


def _nobody(_: float) -> None:
    """Nobody wants to know how far it is."""


def _never() -> bool:
    return False
