"""Disks that somebody made without us, and that stay where they were found. Nothing is kept of them here."""

from pathlib import Path
from typing import Protocol

from pileus.agent.storage.files import in_thread
from pileus.agent.storage.port import DiskSource
from pileus.agent.storage.wiping import wipe
from pileus.link.volumes import FoundDisk, VolumeObserved, VolumeSpec


class FoundDisks(Protocol):
    """What can be done to them: nothing but to be rid of them. Idempotent."""

    async def remove(self, disk: FoundDisk, *, secure: bool) -> None:
        """Have the file no more, overwritten before if `secure`; a device node is left as it is."""
        ...


class FilesAsFound:
    """Removes files (FoundDisks)."""

    async def remove(self, disk: FoundDisk, *, secure: bool) -> None:
        """Remove the file; see the port. Raises Unavailable if the file system refuses."""
        if disk.kind == "file":
            await in_thread(_remove, Path(disk.path), secure)


class SimulatedFoundDisks:
    """Remembers what was removed (FoundDisks)."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    async def remove(self, disk: FoundDisk, *, secure: bool) -> None:
        del secure
        self.removed.append(disk.path)


def source_of(disk: FoundDisk) -> DiskSource:
    """Where a hypervisor finds it."""
    return DiskSource(kind=disk.kind, path=disk.path, format=disk.format)


def observed(spec: VolumeSpec) -> VolumeObserved:
    """What is said of it: nobody measures it."""
    return VolumeObserved(id=spec.id, generation=spec.generation, size_bytes=spec.size_bytes)


def _remove(file: Path, secure: bool) -> None:
    place = file.resolve()  # by a link somebody may have put it elsewhere
    if secure and place.is_file():
        wipe(place, lambda _: None, lambda: False)
    place.unlink(missing_ok=True)
    file.unlink(missing_ok=True)
