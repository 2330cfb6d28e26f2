"""Daemons as data: what is to run, how one sees that it is ready, when one that died is started again."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from pileus.kernel.errors import Invalid, Unavailable

_STEADY_S = 10.0
_LONGEST_DELAY_S = 30.0


class DaemonFailed(Unavailable):
    """A daemon did not become ready; `internal` has the end of its log."""

    code, title = "daemon-failed", "A daemon does not run"


class Daemon(msgspec.Struct, frozen=True, kw_only=True):
    """A program that is to run in the foreground of a process of its own, for as long as it is wanted."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = {}
    """Beside PATH and the locale; nothing else is inherited."""
    ready: str | None = None
    """What accepts connections once it is ready: `unix:PATH` or `tcp:HOST:PORT`; None: running is enough."""
    ready_within_s: float = 60.0
    ends_within_s: float = 10.0
    """How long it may take to end after SIGTERM before it is killed."""
    unit: str | None = None
    """The distribution's systemd unit that is used instead on a machine that has systemd."""


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a daemon is."""

    name: str
    running: bool
    pid: int | None = None
    restarts: int = 0
    """How often it was started again after it died by itself, since the supervisor began to look after it."""


class Daemons(Protocol):
    """The port to whatever keeps daemons running. Every call is idempotent."""

    async def keep(self, daemons: Sequence[Daemon]) -> None:
        """Have these running and ready, started in this order and after those kept earlier.

        One that runs already is left alone; one whose command or environment is now another is started anew.

        Raises:
            DaemonFailed: one of them did not become ready in time.
        """
        ...

    async def drop(self, names: Sequence[str]) -> None:
        """Stop these, the last started first, and look after them no more."""
        ...

    async def drop_all(self) -> None:
        """Stop everything that was ever kept, and whatever did the keeping."""
        ...

    async def status(self) -> list[DaemonStatus]:
        """All that are kept, in the order in which they start."""
        ...


def delay_before_restart_s(deaths_in_a_row: int) -> float:
    """How long to wait before a daemon is started again: at once, then longer each time up to half a minute."""
    return 0.0 if deaths_in_a_row <= 1 else min(_LONGEST_DELAY_S, 0.25 * 2 ** min(deaths_in_a_row - 2, 10))


def deaths_in_a_row(before: int, lived_s: float) -> int:
    """How many deaths to count against a daemon that has just died; a steady life wipes out the earlier ones."""
    return 1 if lived_s >= _STEADY_S else before + 1


def merge(kept: Sequence[Daemon], wanted: Sequence[Daemon]) -> list[Daemon]:
    """The daemons to keep from now on: known ones stay in their place, new ones come last."""
    fresh = {each.name: each for each in wanted}
    if len(fresh) != len(wanted):
        raise Invalid("two daemons have the same name")
    return [*(fresh.pop(each.name, each) for each in kept), *fresh.values()]


async def answers(address: str) -> bool:
    """Whether something accepts connections at `unix:PATH` or `tcp:HOST:PORT`."""
    kind, _, rest = address.partition(":")
    try:
        if kind == "unix":
            _, writer = await asyncio.open_unix_connection(rest)
        else:
            host, _, port = rest.rpartition(":")
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:
        return False
    writer.close()
    return True


async def until(holds: Callable[[], Awaitable[bool]], *, within_s: float) -> bool:
    """Wait for a condition; False if it does not hold after so many seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not await holds():
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(0.02)
    return True
