"""One at a time for each thing, while different things go on side by side."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Turns:
    """Locks by name, which are only there while someone holds or awaits them."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._interested: dict[str, int] = {}

    def busy(self, name: str) -> bool:
        """Whether someone holds or awaits this turn."""
        return name in self._interested

    @asynccontextmanager
    async def of(self, name: str) -> AsyncGenerator[None, None]:
        """Wait for the turn, first come first served, and hold it."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        self._interested[name] = self._interested.get(name, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._interested[name] -= 1
            if not self._interested[name]:
                del self._interested[name], self._locks[name]
