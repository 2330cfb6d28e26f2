"""Where a pool in a directory makes and removes things: a folder appears by one renaming and vanishes by another."""

import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from pileus.agent.storage.files import in_thread
from pileus.kernel.files import sync_folder
from pileus.kernel.ids import new_id


class Scratch:
    """A folder for what is half made or half removed; on the same file system as where it goes or comes from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @asynccontextmanager
    async def making(self) -> AsyncGenerator[Path, None]:
        """A folder in which something is made; gone afterwards, unless it was published."""
        folder = self._folder / new_id()
        await in_thread(folder.mkdir, 0o700)
        try:
            yield folder
        finally:
            # Not in a thread: whoever is cancelled here would leave before it is done.
            shutil.rmtree(folder, ignore_errors=True)

    def discard(self, folder: Path) -> None:
        """Have a folder no more, if it is there. Blocking."""
        gone = self._folder / new_id()
        try:
            folder.rename(gone)
        except FileNotFoundError:
            return
        sync_folder(folder.parent)
        shutil.rmtree(gone)
