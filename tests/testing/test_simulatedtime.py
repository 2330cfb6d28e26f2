"""A loop whose time is simulated."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from pileus.testing.simulatedtime import LoopClock, SimulatedTimeLoop


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=SimulatedTimeLoop) as runner:
        yield runner


def test_whoever_waits_goes_on_in_their_order_each_at_their_time(runner: asyncio.Runner) -> None:
    clock, woken = LoopClock(runner.get_loop()), list[tuple[str, float]]()

    async def sleep(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append((name, clock.monotonic()))

    async def sleepers() -> None:
        await asyncio.gather(sleep("a day", 86_400), sleep("an hour", 3600), sleep("a moment", 0.25))

    before = clock.now()
    runner.run(sleepers())
    assert woken == [("a moment", 0.25), ("an hour", 3600), ("a day", 86_400)]
    assert (clock.now() - before).total_seconds() == 86_400


def test_a_deadline_passes_when_nothing_else_happens(runner: asyncio.Runner) -> None:
    async def too_long() -> None:
        async with asyncio.timeout(3600):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        runner.run(too_long())


def test_what_a_thread_does_takes_no_time(runner: asyncio.Runner) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> float:
        begun.set()
        assert go_on.wait(20)
        return clock.monotonic()

    async def beside() -> float:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(0.001):
            working = asyncio.ensure_future(asyncio.to_thread(work))
            while not begun.is_set():
                await asyncio.sleep(0)
            loop.call_soon(go_on.set)
            return await working

    clock = LoopClock(runner.get_loop())
    assert runner.run(beside()) == 0
