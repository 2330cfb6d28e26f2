"""Byte streams over the link, for consoles: ordered, both ways, and with a window.

A slow reader holds up its own stream and nothing else: a side may send as many bytes as the other has granted, and the
grant is given back when the bytes are read. What waits here for a reader is never more than WINDOW.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Final

from pileus.kernel.errors import PileusError, Unavailable
from pileus.link.envelope import Malformed, StreamFrame, credit

WINDOW: Final = 256 * 1024
"""Bytes that may be under way or waiting to be read, per stream and direction."""
_PIECE: Final = 32 * 1024
"""Bytes in one frame: other messages get their turn in between."""


class Stream:
    """One open stream. Either side's `close` ends it for both; what was written before is still read."""

    def __init__(self, send: Callable[[StreamFrame, bytes], Awaitable[None]], forget: Callable[[], object]) -> None:
        self._send = send
        self._forget = forget
        self._unread = bytearray()
        self._readable = asyncio.Event()
        self._granted = WINDOW  # what the other side may still send
        self._read = 0  # what was read and not granted again
        self._room = WINDOW  # what we may still send
        self._writable = asyncio.Event()
        self._writable.set()
        self._writing = asyncio.Lock()
        self._ended = False
        self._error: PileusError | None = None

    @property
    def unread(self) -> int:
        """Bytes that have arrived and wait to be read."""
        return len(self._unread)

    async def read(self) -> bytes:
        """What has arrived, at least one byte; b"" when the other side has closed.

        Raises:
            Unavailable: the link was lost.
            PileusError: the other side failed, with this error.
        """
        await self._give_back()
        await self._readable.wait()
        # No await from here on: a reader that is cancelled has lost nothing.
        if not self._unread:
            if self._error is not None:
                raise self._error
            return b""
        data = bytes(self._unread)
        self._unread.clear()
        self._read += len(data)
        if not self._ended:
            self._readable.clear()
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the other side has no room for them.

        Raises:
            Unavailable: the stream is closed, or the link was lost.
            PileusError: the other side failed, with this error.
        """
        rest = memoryview(data)
        async with self._writing:
            while rest:
                await self._writable.wait()
                if self._ended:
                    raise self._error or Unavailable("the stream is closed")
                piece = rest[: min(self._room, _PIECE)]
                rest = rest[len(piece) :]
                self._room -= len(piece)
                if not self._room:
                    self._writable.clear()
                await self._send(StreamFrame.DATA, bytes(piece))

    async def close(self, failure: bytes = b"") -> None:
        """End the stream for both sides; does nothing when it has ended. Unread bytes are lost."""
        if self._ended:
            return
        self._unread.clear()
        self.ended(None)
        await self._send(StreamFrame.END, failure)

    async def _give_back(self) -> None:
        """Grant again what was read. In halves of the window, which keeps the writer going and the credits few."""
        if self._ended or self._read < WINDOW // 2:
            return
        amount, self._read = self._read, 0
        self._granted += amount
        # If the link is lost, the reader is told after what has arrived.
        with suppress(Unavailable):
            await self._send(StreamFrame.CREDIT, credit(amount))

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # The channel calls what follows, as frames arrive.

    def arrived(self, data: bytes) -> None:
        """Bytes from the other side.

        Raises:
            Malformed: they are more than were granted.
        """
        if len(data) > self._granted:
            raise Malformed("more bytes on a stream than were granted")
        self._granted -= len(data)
        self._unread += data
        if data:
            self._readable.set()

    def credited(self, amount: int) -> None:
        """The other side has room for more."""
        # A credit that was never owed must not make us send without bounds.
        self._room = min(self._room + amount, WINDOW)
        if self._room:
            self._writable.set()

    def ended(self, error: PileusError | None) -> None:
        """The other side has closed or failed, or the link was lost."""
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._readable.set()
        self._writable.set()
        self._forget()
