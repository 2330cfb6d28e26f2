"""Faults to order, for simulated drivers: a call that fails, that waits, or that is the last thing to happen."""

import asyncio
from collections.abc import Callable

from pileus.kernel.errors import PileusError


class Faults:
    """What goes wrong in the simulated drivers of one host. Calls are named `hypervisor.define`, and so on."""

    def __init__(self) -> None:
        self.calls: list[str] | None = None
        """If a list, the name of every call is added to it."""
        self.watch: Callable[[str], None] | None = None
        """Called before and after each call has its effect; what it raises, the call raises."""
        self._failing: dict[str, tuple[PileusError, int]] = {}
        self._held: dict[str, asyncio.Event] = {}

    def fail(self, call: str, error: PileusError, *, times: int = 1) -> None:
        """Let the next calls of this name fail, without having had any effect."""
        self._failing[call] = (error, times)

    def hold(self, call: str) -> asyncio.Event:
        """Let calls of this name wait, before they have any effect, until the event that is returned is set."""
        self._held[call] = asyncio.Event()
        return self._held[call]

    def mend(self) -> None:
        """Let everything work from now on, and what was held go on."""
        self.watch = None
        self._failing.clear()
        for released in self._held.values():
            released.set()
        self._held.clear()

    async def before(self, call: str) -> None:
        """A driver is about to do what it was asked."""
        if self.calls is not None:
            self.calls.append(call)
        if self.watch is not None:
            self.watch(call)
        if (released := self._held.get(call)) is not None:
            await released.wait()
        if (failing := self._failing.pop(call, None)) is not None:
            error, times = failing
            if times > 1:
                self._failing[call] = (error, times - 1)
            raise error

    def after(self, call: str) -> None:
        """A driver has done what it was asked."""
        if self.watch is not None:
            self.watch(call)
