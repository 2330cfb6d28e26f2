"""A guest's console, behind a socket of its QEMU."""

import asyncio
import socket as sockets
from pathlib import Path

from pileus.kernel.errors import Unavailable

_READ_AT_MOST = 65_536
_FLUSH_S = 1.0


class SocketConsole:
    """The two directions of a console (a ByteStream)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, socket: Path) -> "SocketConsole":
        """Take the serial console. QEMU serves one at a time: another that is open has to be closed first.

        Raises:
            Unavailable: nobody listens there.
        """
        try:
            return cls(*await asyncio.open_unix_connection(socket, limit=_READ_AT_MOST))
        except OSError as refused:
            raise Unavailable("the guest's console does not answer", internal=f"{socket}: {refused}") from refused

    @classmethod
    async def over(cls, socket: sockets.socket) -> "SocketConsole":
        """The console at the other end of this socket, which is taken over."""
        return cls(*await asyncio.open_unix_connection(sock=socket, limit=_READ_AT_MOST))

    async def read(self) -> bytes:
        """What came, at least one byte; b"" when the guest ended or somebody else took over."""
        try:
            return await self._reader.read(_READ_AT_MOST)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        """Raises Unavailable if the console has ended."""
        if self._writer.is_closing() or self._reader.at_eof():
            raise Unavailable("the console has ended")
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError as ended:
            raise Unavailable("the console has ended") from ended

    async def close(self) -> None:
        """Let go of it, once what was written has gone out, but not for longer than a second."""
        self._writer.close()
        try:
            async with asyncio.timeout(_FLUSH_S):
                await self._writer.wait_closed()
        except ConnectionError:
            pass  # the guest was faster
        except TimeoutError:
            self._writer.transport.abort()
