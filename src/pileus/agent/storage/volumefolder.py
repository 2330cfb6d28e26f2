"""The folder of one volume in a directory: its files, and the note beside them. Blocking.

disk.raw            the base
<id>.qcow2          a layer over it, called after the snapshot or revert that made it
volume.json         the generation, and how the layers lie on each other
"""

from pathlib import Path

import msgspec
import structlog

from pileus.agent.storage import overlays
from pileus.agent.storage.layers import BASE, Layers
from pileus.agent.storage.port import DiskSource
from pileus.agent.storage.wiping import wipe
from pileus.kernel.errors import Unavailable
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import VolumeId
from pileus.link.records import VolumeObserved

log = structlog.stdlib.get_logger()


class Note(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the files of a volume cannot tell."""

    generation: int
    size_bytes: int = 0
    """As large as it is to be, if that is not the size of its base."""
    layers: Layers = Layers()
    secure: bool = False
    """Whether a layer is overwritten before its space is given back."""


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
