import asyncio
import threading

import pytest

from pileus.agent.hypervisor.libvirt.threads import in_thread


async def test_a_call_gives_back_what_it_returns_or_raises() -> None:
    def fails() -> None:
        raise ValueError("why")

    assert await in_thread(lambda: 1, timeout_s=60, turn=asyncio.Lock()) == 1
    with pytest.raises(ValueError, match="why"):
        await in_thread(fails, timeout_s=60, turn=asyncio.Lock())


async def test_a_call_that_hangs_keeps_its_turn_until_it_comes_back() -> None:
    turn, hangs = asyncio.Lock(), threading.Event()
    with pytest.raises(TimeoutError):
        await in_thread(hangs.wait, timeout_s=0.01, turn=turn)
    with pytest.raises(TimeoutError):
        await in_thread(lambda: 1, timeout_s=0.01, turn=turn)
    hangs.set()
    assert await in_thread(lambda: 2, timeout_s=60, turn=turn) == 2


async def test_a_call_that_hangs_holds_up_no_other() -> None:
    hangs = threading.Event()
    waiting = [asyncio.ensure_future(in_thread(hangs.wait, timeout_s=60, turn=asyncio.Lock())) for _ in range(20)]
    assert await in_thread(lambda: 1, timeout_s=60, turn=asyncio.Lock()) == 1
    hangs.set()
    assert await asyncio.gather(*waiting) == [True] * 20


def test_a_process_ends_while_a_call_hangs() -> None:
    hangs = threading.Event()

    async def gives_up() -> None:
        with pytest.raises(TimeoutError):
            await in_thread(hangs.wait, timeout_s=0.01, turn=asyncio.Lock())

    asyncio.run(gives_up())
    hangs.set()
