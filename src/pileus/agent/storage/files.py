"""Work on files in threads, with errors that mean something to whoever asked."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from typing import TypeVar

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
