"""Blocking calls, each in a thread of its own.

No pool: a call to a guest whose QEMU hangs comes back when QEMU does, so a few such guests would use up any pool, and
the threads of Python's own executors hold up the end of the process.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T], *, timeout_s: float, turn: asyncio.Lock) -> T:
    """What a blocking call returns.

    `turn` is held until the call really ends, also when nobody waits for it any more: what shares a turn never piles up
    more than one hanging thread.

    Raises:
        TimeoutError: after `timeout_s`, the wait for the turn included. The call itself cannot be broken off.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        turn.release()
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # pyright: ignore[reportArgumentType] - without an error there is a result

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001 - it is raised where the call is awaited
            error = raised
        with suppress(RuntimeError):  # the event loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    async with asyncio.timeout(timeout_s):
        await turn.acquire()
        Thread(target=work, name="libvirt call", daemon=True).start()
        return await done
