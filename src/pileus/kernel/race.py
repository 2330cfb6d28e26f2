"""Doing several things until the first of them has ended."""

import asyncio
from collections.abc import Coroutine


async def first_of(*works: Coroutine[None, None, None]) -> None:
    """Do all of these until the first has ended, and end the others; what the first raises is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
