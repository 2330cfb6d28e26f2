"""Work on files in threads, with errors that mean something to whoever asked."""

import asyncio
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

from pileus.agent.storage.port import Pieces
from pileus.kernel.errors import Conflict, NotFound, Unavailable
from pileus.kernel.files import sync_folder
from pileus.kernel.units import MIB

T = TypeVar("T")
_DIGESTED: Final = 8 * MIB


@contextmanager
def _translated() -> Generator[None, None, None]:
    try:
        yield
    except FileNotFoundError as missing:
        raise NotFound("the storage pool has no such file", internal=str(missing)) from missing
    except OSError as why:
        if why.errno in {ENOSPC, EDQUOT}:
            raise Conflict("the storage pool is full", internal=str(why)) from why
        raise Unavailable("the storage pool cannot be used", internal=str(why)) from why


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    with _translated():
        return await asyncio.to_thread(work, *arguments)


async def assemble(file: Path, pieces: Pieces) -> None:
    """Make a new file of pieces, with holes where there are none; it has reached the disk when this returns.

    Raises:
        Conflict: there is no room.
        Unavailable: it cannot be written.
    """
    made = await in_thread(os.open, file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        async for start, content in pieces():
            await in_thread(_write, made, start, content)
        await in_thread(os.fsync, made)
    finally:
        os.close(made)


def _write(file: int, start: int, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += os.pwrite(file, content[written:], start + written)


async def stoppable(told: Callable[[float], None], work: Callable[..., T], *arguments: object) -> T:
    """Do long work in a thread: `work(*arguments, tell, stopped)`; it is stopped when nobody waits any more."""
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def tell(part: float) -> None:
        loop.call_soon_threadsafe(told, part)

    try:
        return await in_thread(work, *arguments, tell, stop.is_set)
    finally:
        stop.set()


async def digest_of(file: Path, told: Callable[[float], None]) -> str:
    """The SHA-256 of a file, in hex."""
    return await stoppable(told, _digest, file)


def _digest(file: Path, tell: Callable[[float], None], stopped: Callable[[], bool]) -> str:
    digest, done = sha256(), 0
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        while not stopped() and (data := opened.read(_DIGESTED)):
            digest.update(data)
            done += len(data)
            tell(done / size)
    return digest.hexdigest()


def resize(file: Path, size_bytes: int) -> None:
    """Have a file be so large, on disk. Blocking."""
    with file.open("rb+") as opened:
        os.ftruncate(opened.fileno(), size_bytes)
        os.fsync(opened.fileno())


def publish(made: Path, place: Path) -> None:
    """Have a folder that was made in its place, on disk, in one step. Blocking."""
    sync_folder(made)
    made.rename(place)
    sync_folder(place.parent)
