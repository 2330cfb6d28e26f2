"""The supervisor of a machine without systemd: `python -m pileus.machine.supervisor DATA`.

One small process starts the daemons, each in a session of its own, and starts them again when they die. It watches them
by pidfd, which tells of a process's end at once and works for processes that it did not start: so it may itself die or
be replaced at any time, and its successor adopts what runs. Each daemon's pid file is written by the child before it
becomes the daemon; there is no moment at which one runs that nobody knows of.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from pileus.kernel.errors import PileusError
from pileus.kernel.files import write_atomically
from pileus.machine.daemons import (
    Daemon,
    DaemonFailed,
    DaemonStatus,
    answers,
    deaths_in_a_row,
    delay_before_restart_s,
    merge,
    until,
)
from pileus.machine.layout import Layout
from pileus.machine.processes import Identity, end, identify, read_pidfile, write_pidfile

log = structlog.get_logger()

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LOG_LIMIT_BYTES = 8 * 1024 * 1024
_LOG_TAIL_BYTES = 2000
_DEATHS_THAT_ARE_ENOUGH = 3


class Keep(msgspec.Struct, frozen=True, tag=True):
    """Ask the supervisor to have these running."""

    daemons: tuple[Daemon, ...]


class Drop(msgspec.Struct, frozen=True, tag=True):
    """Ask the supervisor to stop these."""

    names: tuple[str, ...]


class AskStatus(msgspec.Struct, frozen=True, tag=True):
    """Ask the supervisor how the daemons are."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor answers; `failed` says why a request was not fulfilled."""

    failed: str | None = None
    internal: str = ""
    daemons: tuple[DaemonStatus, ...] = ()


Request = Keep | Drop | AskStatus


class Files(msgspec.Struct, frozen=True):
    """The files by which supervisor, successor and client know of each other and of the daemons."""

    layout: Layout

    @property
    def socket(self) -> Path:
        return self.layout.run / "supervisor.sock"

    @property
    def pidfile(self) -> Path:
        return self.layout.run / "supervisor.pid"

    @property
    def lock(self) -> Path:
        return self.layout.run / "supervisor.lock"

    @property
    def kept(self) -> Path:
        return self.layout.machine / "daemons.json"

    def pidfile_of(self, name: str) -> Path:
        return self.layout.run / f"{name}.daemon"

    def log_of(self, name: str) -> Path:
        return self.layout.log / f"{name}.log"

    def read_kept(self) -> list[Daemon]:
        """The daemons to keep, in the order in which they start."""
        try:
            return msgspec.json.decode(self.kept.read_bytes(), type=list[Daemon])
        except FileNotFoundError:
            return []

    def write_kept(self, daemons: Sequence[Daemon]) -> None:
        # Environments may hold secrets.
        write_atomically(self.kept, msgspec.json.format(msgspec.json.encode(daemons)), mode=0o600)


class _Watched:
    """One daemon and what has become of it."""

    def __init__(self, daemon: Daemon, files: Files, died: Callable[["_Watched"], None]) -> None:
        self.daemon = daemon
        self.identity: Identity | None = None
        self.gone = asyncio.Event()
        self.gone.set()
        self.wanted = True
        self.deaths = 0
        self.restarts = 0
        self.delayed: asyncio.TimerHandle | None = None
        self._files = files
        self._died = died
        self._child: subprocess.Popen[bytes] | None = None
        self._since = 0.0

    @property
    def log(self) -> Path:
        return self._files.log_of(self.daemon.name)

    def adopt(self) -> bool:
        """Watch the daemon if it runs already."""
        identity = read_pidfile(self._files.pidfile_of(self.daemon.name))
        return identity is not None and self._watch(identity)

    def start(self) -> None:
        """Start the daemon; whether it lives and works is seen later."""
        self.delayed = None
        if not self.wanted or not self.gone.is_set():
            return
        pidfile = self._files.pidfile_of(self.daemon.name)
        _rotate(self.log)
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                self.daemon.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={"PATH": _PATH, "LANG": "C.UTF-8", **self.daemon.environment},
                start_new_session=True,
                umask=0o022,
                preexec_fn=lambda: _sign(pidfile),  # noqa: PLW1509 - there is one thread in this process
            )
        identity = identify(self._child.pid)
        if identity is None or not self._watch(identity):
            self._child.wait()
            asyncio.get_running_loop().call_soon(self._died, self)

    def _watch(self, identity: Identity) -> bool:
        try:
            descriptor = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return False
        if not identity.lives():
            os.close(descriptor)
            return False
        self.identity = identity
        self.gone.clear()
        self._since = asyncio.get_running_loop().time()
        asyncio.get_running_loop().add_reader(descriptor, self._has_died, descriptor)
        return True

    def _has_died(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(descriptor)
        os.close(descriptor)
        if self._child is not None:
            self._child.wait()
            self._child = None
        self.identity = None
        self.deaths = deaths_in_a_row(self.deaths, loop.time() - self._since)
        self.gone.set()
        self._died(self)

    async def stop(self) -> None:
        """End the daemon, and do not start it again."""
        self.wanted = False
        if self.delayed is not None:
            self.delayed.cancel()
        if self.identity is not None:
            await end(self.identity, within_s=self.daemon.ends_within_s)
            await self.gone.wait()
        self._files.pidfile_of(self.daemon.name).unlink(missing_ok=True)


class Supervisor:
    """Keeps daemons running; answers requests at its socket."""

    def __init__(self, layout: Layout) -> None:
        self._files = Files(layout)
        self._watched: dict[str, _Watched] = {}
        self._changing = asyncio.Lock()

    async def serve(self) -> None:
        """Adopt or start what is to run, then look after it until told to end by SIGTERM: the daemons stay."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        for daemon in self._files.read_kept():
            watched = self._watched[daemon.name] = _Watched(daemon, self._files, self._restart_later)
            if not watched.adopt():
                self._start(watched)
        self._files.socket.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._converse, self._files.socket, limit=1 << 20)
        await log.ainfo("supervising", daemons=len(self._watched))
        await ended.wait()
        server.close()

    def _start(self, watched: _Watched) -> None:
        try:
            watched.start()
        except OSError as error:
            log.warning("daemon cannot be started", daemon=watched.daemon.name, error=str(error))
            watched.deaths += 1
            self._restart_later(watched)

    def _restart_later(self, watched: _Watched) -> None:
        if not watched.wanted:
            return
        delay_s = delay_before_restart_s(watched.deaths)
        watched.restarts += 1
        log.warning("daemon died", daemon=watched.daemon.name, deaths_in_a_row=watched.deaths, again_in_s=delay_s)
        watched.delayed = asyncio.get_running_loop().call_later(delay_s, self._start, watched)

    async def keep(self, daemons: Sequence[Daemon]) -> None:
        """Have these running and ready, one after the other."""
        async with self._changing:
            kept = merge([each.daemon for each in self._watched.values()], daemons)
            self._files.write_kept(kept)
            for daemon in daemons:
                before = self._watched.get(daemon.name)
                if before is not None and _differs(before.daemon, daemon):
                    await before.stop()
                    before = None
                if before is None:
                    self._watched[daemon.name] = _Watched(daemon, self._files, self._restart_later)
                else:
                    before.daemon = daemon
        for daemon in daemons:
            await self._have_ready(self._watched[daemon.name])

    async def _have_ready(self, watched: _Watched) -> None:
        daemon = watched.daemon
        restarts = watched.restarts
        if watched.gone.is_set():
            if watched.delayed is not None:
                watched.delayed.cancel()
            watched.deaths = 0
            self._start(watched)

        def hopeless() -> bool:
            return watched.restarts - restarts >= _DEATHS_THAT_ARE_ENOUGH or not watched.wanted

        async def ready() -> bool:
            return watched.identity is not None and (daemon.ready is None or await answers(daemon.ready))

        async def settled() -> bool:
            return hopeless() or await ready()

        if await until(settled, within_s=daemon.ready_within_s) and not hopeless():
            return
        why = "ends as soon as it is started" if hopeless() else f"is not ready after {daemon.ready_within_s:g} s"
        raise DaemonFailed(f"{daemon.name} {why}; its log: {watched.log}", internal=_tail(watched.log))

    async def drop(self, names: Sequence[str]) -> None:
        """Stop these, the last started first."""
        async with self._changing:
            for name in reversed([each for each in self._watched if each in names]):
                await self._watched[name].stop()
                del self._watched[name]
                self._files.write_kept([each.daemon for each in self._watched.values()])

    def status(self) -> tuple[DaemonStatus, ...]:
        """How the daemons are."""
        return tuple(
            DaemonStatus(
                name=name,
                running=each.identity is not None,
                pid=None if each.identity is None else each.identity.pid,
                restarts=each.restarts,
            )
            for name, each in self._watched.items()
        )

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            line = await reader.readline()
            if line:
                writer.write(msgspec.json.encode(await self._fulfil(line)) + b"\n")
                await writer.drain()
        writer.close()

    async def _fulfil(self, line: bytes) -> Answer:
        try:
            request: Request = msgspec.json.decode(line, type=Request)
            match request:
                case Keep(daemons):
                    await self.keep(daemons)
                case Drop(names):
                    await self.drop(names)
                case AskStatus():
                    pass
        except (PileusError, msgspec.MsgspecError) as error:
            return Answer(failed=str(error), internal=error.internal if isinstance(error, PileusError) else "")
        return Answer(daemons=self.status())


def _differs(before: Daemon, after: Daemon) -> bool:
    return (before.command, before.environment) != (after.command, after.environment)


def _sign(pidfile: Path) -> None:
    """Write this process's pid file; called in the child, before it becomes the daemon."""
    identity = identify(os.getpid())
    assert identity is not None
    write_pidfile(pidfile, identity)


def _rotate(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_LIMIT_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""


def main() -> None:
    """Supervise the daemons of the data folder named on the command line, unless that is being done already."""
    layout = Layout.of(Path(sys.argv[1]))
    files = Files(layout)
    os.umask(0o077)
    layout.make()
    with files.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _sign(files.pidfile)
        asyncio.run(Supervisor(layout).serve())


if __name__ == "__main__":
    main()
