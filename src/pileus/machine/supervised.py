"""Daemons on a machine without systemd: the side of the supervisor that others call."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence

import msgspec

from pileus.kernel.errors import TimedOut, Unavailable
from pileus.machine.daemons import Daemon, DaemonFailed, DaemonStatus, answers, until
from pileus.machine.layout import Layout
from pileus.machine.processes import end, python_environment, read_pidfile
from pileus.machine.supervisor import Answer, AskStatus, Drop, Files, Keep, Request

_STARTS_WITHIN_S = 60.0
_ATTEMPTS = 3


class Supervised:
    """The port `Daemons` by a supervisor of our own, which is started when it is needed."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._files = Files(layout)
        self._address = f"unix:{self._files.socket}"

    async def keep(self, daemons: Sequence[Daemon]) -> None:
        await self._ask(Keep(tuple(daemons)))

    async def drop(self, names: Sequence[str]) -> None:
        if self._files.read_kept():
            await self._ask(Drop(tuple(names)))

    async def drop_all(self) -> None:
        # The supervisor first, or it would start again what we stop; then by pid file, which works without it as well.
        supervisor = read_pidfile(self._files.pidfile)
        if supervisor is not None:
            await end(supervisor, within_s=5.0)
        for daemon in reversed(self._files.read_kept()):
            pidfile = self._files.pidfile_of(daemon.name)
            identity = read_pidfile(pidfile)
            if identity is not None:
                await end(identity, within_s=daemon.ends_within_s)
            pidfile.unlink(missing_ok=True)
        for file in (self._files.kept, self._files.socket, self._files.pidfile):
            file.unlink(missing_ok=True)

    async def status(self) -> list[DaemonStatus]:
        if await answers(self._address):
            return list((await self._ask(AskStatus())).daemons)
        found = ((each.name, read_pidfile(self._files.pidfile_of(each.name))) for each in self._files.read_kept())
        return [DaemonStatus(name=name, running=one is not None, pid=one.pid if one else None) for name, one in found]

    async def have_supervisor(self) -> None:
        """Start the supervisor unless it runs; it adopts the daemons that run and starts those that died meanwhile."""
        if await answers(self._address):
            return
        self._layout.make()
        log = self._layout.log / "supervisor.log"
        with log.open("ab") as output:
            # Forked once more, so that it is nobody's child: it outlives us.
            process = await asyncio.create_subprocess_exec(
                "setsid",
                "--fork",
                *(sys.executable, "-m", "pileus.machine.supervisor", str(self._layout.data)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={**os.environ, **python_environment()},
            )
        await process.wait()
        if not await until(lambda: answers(self._address), within_s=_STARTS_WITHIN_S):
            raise TimedOut(f"the supervisor does not answer; its log: {log}")

    async def _ask(self, request: Request) -> Answer:
        """Ask the supervisor; once more if it dies while it is asked, because every request may be made twice."""
        for _ in range(_ATTEMPTS):
            await self.have_supervisor()
            with contextlib.suppress(ConnectionError):
                line = await self._exchange(msgspec.json.encode(request) + b"\n")
                if line:
                    answer = msgspec.json.decode(line, type=Answer)
                    if answer.failed is not None:
                        raise DaemonFailed(answer.failed, internal=answer.internal)
                    return answer
        raise Unavailable(f"the supervisor ends whenever it is asked; its log: {self._layout.log / 'supervisor.log'}")

    async def _exchange(self, line: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._files.socket, limit=1 << 20)
        try:
            writer.write(line)
            return await reader.readline()
        finally:
            writer.close()
