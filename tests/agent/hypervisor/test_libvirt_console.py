import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pileus.agent.hypervisor.libvirt.console import SocketConsole
from pileus.kernel.errors import Unavailable


@pytest.fixture
def socket() -> Iterator[Path]:
    # pytest's own folders are too deep for a socket.
    with tempfile.TemporaryDirectory(prefix="pl") as folder:
        yield Path(folder) / "serial"


@pytest.fixture
async def guest(socket: Path) -> AsyncIterator[asyncio.Queue[asyncio.StreamWriter]]:
    """A guest that says again what it is told; in the queue is what lets go of the console on its side."""
    ends = asyncio.Queue[asyncio.StreamWriter]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.put_nowait(writer)
        while said := await reader.read(100):
            writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(talk, socket):
        yield ends


async def test_a_console_carries_both_directions(socket: Path, guest: asyncio.Queue[asyncio.StreamWriter]) -> None:
    console = await SocketConsole.open(socket)
    await console.write(b"hello")
    assert await console.read() == b"hello"
    await console.close()


async def test_a_console_ends_with_its_guest(socket: Path, guest: asyncio.Queue[asyncio.StreamWriter]) -> None:
    console = await SocketConsole.open(socket)
    (await guest.get()).close()
    assert await console.read() == b""
    with pytest.raises(Unavailable):
        await console.write(b"anybody there?")
    await console.close()


async def test_whoever_reads_is_told_when_the_console_is_closed(
    socket: Path, guest: asyncio.Queue[asyncio.StreamWriter]
) -> None:
    console = await SocketConsole.open(socket)
    reading = asyncio.ensure_future(console.read())
    await console.close()
    await console.close()
    assert await reading == b""
    with pytest.raises(Unavailable):
        await console.write(b"too late")


async def test_where_nobody_listens_there_is_no_console(socket: Path) -> None:
    with pytest.raises(Unavailable):
        await SocketConsole.open(socket)
