"""Work on files in threads, with errors that mean something to whoever asked."""

import asyncio
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import TypeVar

from pileus.agent.storage.port import Pieces
from pileus.kernel.errors import Conflict, NotFound, Unavailable

T = TypeVar("T")


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
