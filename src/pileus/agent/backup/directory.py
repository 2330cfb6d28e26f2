"""A place for backups in a directory, which may be a share that several hosts have mounted."""

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from pileus.agent.storage.files import in_thread
from pileus.kernel.files import write_atomically

_LOOK_AGAIN_S: Final = 0.1
LOCKS: Final = ".locks"
"""The folder in it that no backup is in."""


class DirectoryPlace:
    """Keeps objects as files below a directory (a BackupPlace). Made by `open`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def open(cls, folder: Path) -> "DirectoryPlace":
        """The place in this directory, which is made if there is none.

        Raises:
            OSError: the directory cannot be written.
        """
        (folder / LOCKS).mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        return cls(folder)

    async def put(self, name: str, data: bytes) -> None:
        await in_thread(self._put, self._folder / name, data)

    async def get(self, name: str) -> bytes:
        return await in_thread((self._folder / name).read_bytes)

    async def has(self, name: str) -> bool:
        return await in_thread((self._folder / name).is_file)

    async def names(self, under: str) -> list[str]:
        return await in_thread(self._names, under)

    async def remove(self, name: str) -> None:
        await in_thread(self._remove, self._folder / name)

    @asynccontextmanager
    async def holding(self, name: str, *, alone: bool) -> AsyncGenerator[bool, None]:
        lock = await in_thread(self._open_lock, name)
        try:
            while not (held := await in_thread(_lock, lock, alone)) and not alone:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(_LOOK_AGAIN_S)
            yield held
        finally:
            os.close(lock)

    def _put(self, file: Path, data: bytes) -> None:
        made = [folder for folder in file.parents if not folder.exists()]
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in made:
            _sync(folder.parent)
        write_atomically(file, data)

    def _names(self, under: str) -> list[str]:
        found: list[str] = []
        for folder, folders, files in os.walk(self._folder / under):
            folders[:] = [each for each in folders if each != LOCKS]
            # With what a power cut has left of a write, so that it can be removed.
            found += [str((Path(folder) / each).relative_to(self._folder)) for each in files]
        return found

    def _remove(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        if file.parent.is_dir():
            _sync(file.parent)

    def _open_lock(self, name: str) -> int:
        return os.open(self._folder / LOCKS / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(lock: int, alone: bool) -> bool:
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
