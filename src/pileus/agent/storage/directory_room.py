"""The room of a pool in a directory: what is promised of it, and what is being made and counted already."""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from pileus.agent.storage.files import in_thread
from pileus.agent.storage.volumefolder import VolumeFolder
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import VolumeId, is_id
from pileus.kernel.units import size_text
from pileus.link.storagepools import KEPT_FREE, PoolUse


class DirectoryRoom:
    """Keeps count of what the volumes below a folder are promised."""

    def __init__(self, volumes: Path) -> None:
        self.overcommit = 1.0
        """How many times what there is may be promised."""
        self._volumes = volumes
        self._promising = asyncio.Lock()
        self._reserved: dict[str, int] = {}
        self._written: dict[str, int] = {}

    async def use(self) -> PoolUse:
        """How full the file system is, and what is promised of it."""
        return await in_thread(self._use)

    def _use(self) -> PoolUse:
        system = os.statvfs(self._volumes)
        return PoolUse(
            total_bytes=system.f_blocks * system.f_frsize,
            free_bytes=system.f_bavail * system.f_frsize,
            promised_bytes=sum(self._sizes()),
            unfilled_bytes=self._unfilled(),
        )

    @asynccontextmanager
    async def reserving(self, id: str, growth_bytes: int, written_bytes: int = 0) -> AsyncGenerator[None, None]:
        """Keep room for what is being made, so that two do not count on the same.

        `written_bytes` of it are written at once; the rest is promised.
        """
        async with self._promising:
            use = await in_thread(self._use)
            growable = use.promisable_bytes(self.overcommit) - use.promised_bytes - sum(self._reserved.values())
            if growth_bytes > 0 and growth_bytes > growable:
                raise Conflict(
                    f"the storage pool has room for {size_text(max(0, growable))} more,"
                    f" {size_text(growth_bytes)} are needed"
                )
            free = use.free_bytes - sum(self._written.values())
            if growth_bytes > 0 and self.overcommit > 1 and free - written_bytes < KEPT_FREE * use.total_bytes:
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

    def _sizes(self) -> Iterator[int]:
        for entry in self._volumes.iterdir():
            found = VolumeFolder(entry).look(VolumeId(entry.name)) if is_id(entry.name) else None
            if found is not None:
                yield found.size_bytes

    def _unfilled(self) -> int:
        folders = (VolumeFolder(entry) for entry in self._volumes.iterdir() if is_id(entry.name))
        return sum(folder.unused_bytes() for folder in folders)
