"""The guests that changed, as libvirt tells it."""

import asyncio

from pileus.agent.hypervisor.libvirt.connection import Connection
from pileus.kernel.ids import InstanceId


class Changes:
    """An iterator over the guests that changed; each is named once, however often it changed meanwhile."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[InstanceId, None] = {}
        self._news = asyncio.Event()
        self._ended = False

    def tell(self, id: InstanceId) -> None:
        self._waiting[id] = None
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    def __aiter__(self) -> "Changes":
        return self

    async def __anext__(self) -> InstanceId:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._connection.ready()
            await self._news.wait()
        id = next(iter(self._waiting))
        del self._waiting[id]
        return id
