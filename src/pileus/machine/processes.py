"""Processes by identity, not by number: a pid alone may be somebody else's by now."""

import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path

import msgspec

import pileus
from pileus.kernel.errors import TimedOut
from pileus.machine.layout import boot_id


class Identity(msgspec.Struct, frozen=True):
    """A process for all time: its number, when the kernel started it, and in which boot."""

    pid: int
    started_ticks: int
    boot: str

    def lives(self) -> bool:
        """Whether this very process still runs; one that has ended and waits for its parent does not."""
        return _started_ticks(self.pid) == self.started_ticks and self.boot == boot_id()


def identify(pid: int) -> Identity | None:
    """Who has this number now; None if nobody runs under it."""
    started = _started_ticks(pid)
    return None if started is None else Identity(pid, started, boot_id())


def write_pidfile(path: Path, identity: Identity) -> None:
    """Write `pid start boot`: the first word is what other programs expect to find in such a file."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(f"{identity.pid} {identity.started_ticks} {identity.boot}\n", encoding="ascii")
    fresh.replace(path)


def read_pidfile(path: Path) -> Identity | None:
    """The living process that a pid file names; None without the file, the process, or sense in the file."""
    try:
        pid, started, boot = path.read_text(encoding="ascii").split()
        identity = Identity(int(pid), int(started), boot)
    except (OSError, ValueError):
        return None
    return identity if identity.lives() else None


async def end(identity: Identity, *, within_s: float) -> None:
    """Ask a process to end, and kill it if it has not within so many seconds; returns when it is gone."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        # Asked after the descriptor was opened: from here on it can only mean this process.
        if not identity.lives():
            return
        for number, patience_s in ((signal.SIGTERM, within_s), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if await _ended(descriptor, patience_s):
                return
    finally:
        os.close(descriptor)
    raise TimedOut(f"process {identity.pid} does not end, not even when killed")


async def _ended(descriptor: int, within_s: float) -> bool:
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        async with asyncio.timeout(within_s):
            await gone.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True


def python_environment() -> dict[str, str]:
    """The environment in which a Python process finds this very package, however we have found it."""
    return {"PYTHONPATH": str(Path(pileus.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}


def processes_below(folder: Path) -> list[int]:
    """The processes that name something below a folder on their command line; never this one or its ancestors."""
    kin = set[int]()
    pid = os.getpid()
    while pid > 0:
        kin.add(pid)
        pid = _parent(pid)
    mention = re.compile(rb"(?:^|[=:,\0])" + re.escape(bytes(folder)) + rb"(?:$|[/,\0])")
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in kin:
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if mention.search(command):
            found.append(int(entry.name))
    return sorted(found)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, from the state on: proc(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def _started_ticks(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return 0 if fields is None else int(fields[1])
