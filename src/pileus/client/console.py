"""Consoles over a WebSocket: what is sent is typed, what comes is what the guest shows."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from pileus.client.client import Client
from pileus.client.errors import class_of
from pileus.client.records import Record
from pileus.kernel.errors import Forbidden, PileusError, Unavailable

_ERRORS = 4000
"""Beyond this a close code is the status of an error."""


class Console:
    """An open console."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def read(self) -> bytes:
        """What the guest shows next; empty when the console has ended. Raises PileusError if it broke."""
        try:
            shown = await self._connection.recv(decode=False)
        except ConnectionClosed as closed:
            return self._ended(closed)
        return shown

    async def write(self, data: bytes) -> None:
        """Type something. Raises PileusError if the console broke."""
        try:
            await self._connection.send(data)
        except ConnectionClosed as closed:
            self._ended(closed)

    def _ended(self, closed: ConnectionClosed) -> bytes:
        if closed.rcvd is None:
            raise Unavailable("the connection to the console was lost") from closed
        if closed.rcvd.code <= _ERRORS:
            return b""
        kind: type[PileusError] = class_of(closed.rcvd.code - _ERRORS)
        raise kind(closed.rcvd.reason or "the console was closed") from closed


async def asked(client: Client, instance: str, kind: str) -> Record:
    """The way to a console of an instance, by its id: as the API answers it. Raises PileusError."""
    return (await client.send("POST", f"/v1/instances/{instance}/consoles", {"kind": kind}, plans=False)).body


@asynccontextmanager
async def opened(client: Client, access: Record) -> AsyncGenerator[Console]:
    """The console that was asked for. Raises PileusError."""
    url = client.config.url.rstrip("/").replace("http", "ws", 1)
    try:
        connection = await connect(
            f"{url}{access['url']}",
            ssl=client.tls,
            server_hostname=client.server_name,
            proxy=None,
            compression=None,
        )
    except InvalidHandshake as refused:
        raise Forbidden("the console was refused") from refused
    except OSError as failed:
        raise Unavailable(f"the controller at {client.config.url} does not answer: {failed}") from failed
    async with connection:
        yield Console(connection)
