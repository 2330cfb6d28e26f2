"""A web in memory, from which images are imported in simulated clouds."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from pileus.agent.faults import Faults
from pileus.cloud.images.web import Page
from pileus.kernel.errors import Conflict, Unavailable

_PIECE = 1000


class SimulatedWeb:
    """Pages by their URLs, and servers that break off."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.faults = Faults()
        self.breaks_after: int | None = None
        """Every answer ends after so many bytes; None lets it end as it should."""
        self.hangs = False
        """Whether an answer that breaks off stays silent instead, for ever."""
        self.says_size = True
        self.sends_parts = True
        self.asked: list[int] = []
        """From which byte on, of each request."""

    @asynccontextmanager
    async def fetch(self, url: str, *, start: int, validator: str) -> AsyncGenerator[Page]:
        await self.faults.before("web.fetch")
        self.asked.append(start)
        if url not in self.pages:
            raise Conflict("the server answers 404")
        data = self.pages[url]
        mark = str(hash(data))
        if not self.sends_parts or (validator and validator != mark):
            start = 0
        yield Page(start=start, size=len(data) if self.says_size else 0, validator=mark, body=self._body(data[start:]))
        self.faults.after("web.fetch")

    async def _body(self, data: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(data), _PIECE):
            if self.breaks_after is not None and at >= self.breaks_after:
                if self.hangs:
                    await asyncio.get_running_loop().create_future()
                raise Unavailable("the server broke off")
            yield data[at : at + _PIECE]
