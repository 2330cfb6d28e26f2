"""Following the event log: server-sent events, taken up again behind the last one when the connection is lost."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from pileus.client.client import Client
from pileus.client.records import Record
from pileus.kernel.errors import Unavailable

_SILENCE_S = 45.0
"""The controller says something every 15 s; a connection that is silent for longer is lost."""
_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A server-sent event (WHATWG HTML, section 9.2)."""

    id: str
    data: str
    """Empty for one that only tells where the stream is."""


async def messages(lines: AsyncIterator[str]) -> AsyncIterator[Message]:
    """The events of a stream, from its lines."""
    id, data = "", list[str]()
    async for line in lines:
        if not line:
            if id or data:
                yield Message(id=id, data="\n".join(data))
            data = []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            id = value
        elif name == "data":
            data.append(value)


async def follow(
    client: Client, where: Mapping[str, Any] | None = None, *, patience_s: float = 120.0
) -> AsyncIterator[Record]:
    """Events as they are written, from now on or behind `where["after"]`, without end and without a gap.

    Args:
        client: of the cloud.
        where: the filters of `GET /v1/events/follow`.
        patience_s: for so long the controller may be away.

    Raises:
        PileusError: the API refuses it, or Unavailable.
    """
    query = dict(where or {})
    after = query.pop("after", None)
    last = "" if after is None else str(after)
    pause, away_since = _PAUSE_S, time.monotonic()
    while True:
        opened = False
        try:
            headers = {"last-event-id": last} if last else {}
            async with client.stream(
                "GET", "/v1/events/follow", query=query, headers=headers, read_timeout_s=_SILENCE_S
            ) as response:
                opened = True
                async for message in messages(response.aiter_lines()):
                    last = message.id
                    if message.data:
                        yield msgspec.json.decode(message.data)
        except Unavailable:
            if not opened and time.monotonic() - away_since > patience_s:
                raise
        if opened:
            pause, away_since = _PAUSE_S, time.monotonic()
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        pause = min(pause * 2, _LONGEST_PAUSE_S)
