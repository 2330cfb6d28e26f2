"""Storage pools in folders on disks that are mounted for them.

A disk that is not mounted leaves its mount point, an empty folder on the root file system, and volumes that were made
there would fill that. So a folder is a pool only with a marker in it, which holds the pool's id. It is written once, on
a disk other than the root file system's; a folder without it that had one before is a disk that is away.
"""

import shutil
from pathlib import Path
from typing import Final

import msgspec

from pileus.agent.backup.directory import LOCKS
from pileus.agent.records import PoolRecord, on_record
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.files import in_thread
from pileus.agent.storage.port import StoragePool
from pileus.kernel.errors import Unavailable
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import StoragePoolId
from pileus.link.storagepools import StoragePoolSpec

MARKER: Final = "pileus-pool.json"
_OF_THE_FILE_SYSTEM: Final = frozenset({"lost+found"})


class _Marker(msgspec.Struct, frozen=True, kw_only=True):
    """Whose folder it is."""

    id: StoragePoolId
    name: str


class MountedFolders:
    """Opens the pools of a host whose backing is a folder (a Backings)."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is on the file system that pools are kept off."""
        self._root = root

    async def open(self, spec: StoragePoolSpec, *, accepted: bool) -> StoragePool:
        """The pool in its folder; see the port.

        Raises:
            Unavailable: the folder is not there, or is not this pool's.
        """
        folder = _folder(spec)
        if why := await in_thread(self._why_not, folder, spec, accepted):
            raise Unavailable(why)
        if not (folder / MARKER).exists():
            marker = msgspec.json.encode(_Marker(id=spec.id, name=spec.name))
            await in_thread(lambda: write_atomically(folder / MARKER, marker, mode=0o644))
        pool = await in_thread(DirectoryPool.open, folder)
        pool.overcommit(spec.overcommit)
        return pool

    def missing(self, spec: StoragePoolSpec) -> str:
        """Why the folder is not the pool's any more; empty if it is."""
        return self._why_not(_folder(spec), spec, accepted=True)

    async def retire(self, spec: StoragePoolSpec) -> None:
        """Take away what the pool keeps of images, and its marker."""
        folder = _folder(spec)
        if self.missing(spec):
            return
        await in_thread(_clear, folder)

    def _why_not(self, folder: Path, spec: StoragePoolSpec, accepted: bool) -> str:
        try:
            marker = msgspec.json.decode((folder / MARKER).read_bytes(), type=_Marker)
        except FileNotFoundError:
            return self._why_not_taken(folder, accepted=accepted)
        except (OSError, msgspec.DecodeError) as why:
            return f"{folder / MARKER} cannot be read: {why}"
        if marker.id != spec.id:
            return f"{folder} belongs to another storage pool, {marker.name} ({marker.id})"
        return ""

    def _why_not_taken(self, folder: Path, *, accepted: bool) -> str:
        if not folder.is_dir():
            return f"there is no folder {folder} on this host"
        if accepted:
            return f"{folder} has lost its marker {MARKER}: is its disk mounted?"
        if folder.stat().st_dev == self._root.stat().st_dev:
            return f"{folder} is on the root file system: mount a disk there"
        if strange := sorted({each.name for each in folder.iterdir()} - _OF_THE_FILE_SYSTEM):
            return f"{folder} is not empty: it has {', '.join(strange[:3])}"
        return ""


def served(records: Path) -> dict[Path, StoragePoolSpec]:
    """The pools that an agent was told to serve and has had here, by their folders.

    Args:
        records: the folder of the agent's records; it may be running or not.
    """
    pools = on_record(records / "pools", msgspec.json.Decoder(PoolRecord).decode).values()
    # One that was never opened here is on other hosts.
    return {_folder(each.spec): each.spec for each in pools if each.accepted and each.spec.backing is not None}


def _clear(folder: Path) -> None:
    for name in ("images", "media", "packed", "scratch"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("volumes", "memory", "wiping", "backups"):
        if not any(each.is_file() and LOCKS not in each.parts for each in (folder / name).rglob("*")):
            shutil.rmtree(folder / name, ignore_errors=True)
    (folder / MARKER).unlink(missing_ok=True)


def _folder(spec: StoragePoolSpec) -> Path:
    assert spec.backing is not None, "what a host is configured with is not opened"
    return Path(spec.backing.path)
