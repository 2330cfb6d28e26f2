"""A place for backups in memory. It outlives its agent as a real one does: hand the same one to the next agent."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from pileus.agent.faults import Faults
from pileus.kernel.errors import NotFound


class SimulatedPlace:
    """Keeps objects in a dictionary (a BackupPlace)."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.objects: dict[str, bytes] = {}
        self._held = Counter[str]()
        self._freed = asyncio.Condition()
        self._alone: set[str] = set()

    async def put(self, name: str, data: bytes) -> None:
        await self.faults.before("backups.put")
        self.objects[name] = data
        self.faults.after("backups.put")

    async def get(self, name: str) -> bytes:
        await self.faults.before("backups.source")
        if name not in self.objects:
            raise NotFound(f"the place has no {name}")
        return self.objects[name]

    async def has(self, name: str) -> bool:
        return name in self.objects

    async def names(self, under: str) -> list[str]:
        await self.faults.before("backups.list")
        return [name for name in self.objects if not under or name.startswith(f"{under}/")]

    async def remove(self, name: str) -> None:
        await self.faults.before("backups.remove")
        self.objects.pop(name, None)
        self.faults.after("backups.remove")

    @asynccontextmanager
    async def holding(self, name: str, *, alone: bool) -> AsyncGenerator[bool, None]:
        async with self._freed:
            if alone and (self._held[name] or name in self._alone):
                yield False
                return
            await self._freed.wait_for(lambda: name not in self._alone)
            self._held[name] += 1
            if alone:
                self._alone.add(name)
        try:
            yield True
        finally:
            self._held[name] -= 1
            self._alone.discard(name)
            async with self._freed:
                self._freed.notify_all()
