"""Asking many hosts the same, some at a time: what waits for answers is in memory, and what they fetch we send."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from pileus.kernel.ids import HostId


async def on_each(
    hosts: Iterable[HostId], deed: Callable[[HostId], Coroutine[Any, Any, None]], *, at_once: int
) -> None:
    """Do it on all of these, so many at a time; the first that fails ends it, and is what is raised."""
    turns = asyncio.Semaphore(at_once)

    async def one(host: HostId) -> None:
        async with turns:
            await deed(host)

    tasks = [asyncio.ensure_future(one(host)) for host in hosts]
    try:
        for each in asyncio.as_completed(tasks):
            await each
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
