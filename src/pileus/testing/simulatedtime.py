"""An event loop whose time is simulated: when nobody has anything to do, it is as late as the next of them waits for.

    with asyncio.Runner(loop_factory=SimulatedTimeLoop) as runner:
        runner.run(...)

Nothing waits for real time there, and no deadline passes because a machine is slow. What goes on in threads takes no
time at all. It is for what lives in one process: a peer that answers from outside would always be too late.
"""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, TypeVarTuple

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class LoopClock:
    """A loop's time, in threads too."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> datetime:
        return _START + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return self._loop.time()


class SimulatedTimeLoop(asyncio.SelectorEventLoop):
    """A loop that never waits for a timer. Its time begins at 0 seconds."""

    def __init__(self) -> None:
        self._selector_of_time = _Selector()
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        return self._selector_of_time.now_s

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> "asyncio.Future[T]":
        done = super().run_in_executor(executor, func, *args)
        self._selector_of_time.threads += 1
        done.add_done_callback(self._thread_done)
        return done

    async def shutdown_default_executor(self, *timeout: float | None) -> None:
        self._selector_of_time.threads += 1
        try:
            await super().shutdown_default_executor(*timeout)
        finally:
            self._selector_of_time.threads -= 1

    def _thread_done(self, _: "asyncio.Future[Any]") -> None:
        self._selector_of_time.threads -= 1


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.threads = 0
        """How many are at work: they are waited for really."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0 or self.threads:
            return super().select(timeout)
        found = super().select(0)
        if not found:
            self.now_s += timeout
        return found
