"""In front of an instance: its screen for a viewer on this machine, a picture of it, and what was said before."""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from pileus.cli.commands import Command
from pileus.cli.session import COMMON, AsCommon, Session
from pileus.kernel.errors import Invalid, TimedOut, Unavailable
from pileus.kernel.race import first_of

if TYPE_CHECKING:
    from pileus.client.console import Console

_WAITS_FOR_VIEWER_S: Final = 120.0
_READ_AT_MOST: Final = 65_536
# Sequences that begin with ESC (ECMA-48): control sequences, operating system commands, and those of one letter.
_SEQUENCES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)", re.DOTALL)

_Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def commands(session: Session) -> Mapping[str, Command]:
    """The commands, by verb."""

    async def vnc(
        record: Annotated[str, Parameter(help="Name or id.")],
        /,
        *,
        common: AsCommon = COMMON,
    ) -> None:
        """Let a VNC viewer on this machine see and use an instance's screen.

        Prints where the viewer is to connect to, on this machine only, and the password that it will be asked for; both
        are good for one viewer, who has two minutes to come. Ends with the viewer.
        """
        from pileus.cli.names import Names
        from pileus.client.console import asked, opened

        session.use(common)
        async with session.client() as client:
            instance = await Names(client, session.document).record("instance", record)
            access = await asked(client, instance["id"], "vnc")
            async with opened(client, access) as screen, _one_viewer() as (port, viewer):
                place = {"address": f"127.0.0.1:{port}", "password": access["password"]}
                if not session.printer.document(place):
                    session.terminal.out(f"{place['address']}\n{place['password']}")
                session.say(f"screen of {instance['name']}: connect a VNC viewer to this address, with this password")
                try:
                    async with asyncio.timeout(_WAITS_FOR_VIEWER_S):
                        reader, writer = await viewer
                except TimeoutError as late:
                    raise TimedOut("no viewer has come: ask again") from late
                await _both_ways(reader, writer, screen)
        session.say("the viewer has left")

    async def screenshot(
        record: Annotated[str, Parameter(help="Name or id.")],
        /,
        *,
        file: Annotated[Path, Parameter(help="Where to write it, as PNG.")],
        common: AsCommon = COMMON,
    ) -> None:
        """Write a picture of what an instance's screen shows to a file, as PNG."""
        from pileus.cli.names import Names

        session.use(common)
        async with session.client() as client:
            instance = await Names(client, session.document).record("instance", record)
            picture = (await client.get(f"/v1/instances/{instance['id']}/screenshot")).content
        try:
            file.expanduser().write_bytes(picture)
        except OSError as failed:
            raise Invalid(f"{file} cannot be written: {failed.strerror}", fields={"file": "not written"}) from failed
        session.say(f"{file}: {len(picture)} bytes")

    async def log(
        record: Annotated[str, Parameter(help="Name or id.")],
        /,
        *,
        tail: Annotated[int | None, Parameter(help="Only this many lines from the end.")] = None,
        common: AsCommon = COMMON,
    ) -> None:
        """Print the end of what an instance has said on its serial console, also when it is stopped.

        On a terminal without what would steer the terminal; into a file or a pipe as the guest said it.
        """
        from pileus.cli.names import Names

        session.use(common)
        async with session.client() as client:
            instance = await Names(client, session.document).record("instance", record)
            said = (await client.get(f"/v1/instances/{instance['id']}/console-log", {"tail": tail})).content
        stdout = session.terminal.stdout
        if stdout.isatty():
            stdout.write(harmless(said))
        else:
            stdout.buffer.write(said)
        stdout.flush()

    return {"vnc": vnc, "screenshot": screenshot, "log": log}


def harmless(said: bytes) -> str:
    """What a guest said, without what would steer the terminal of whoever reads it."""
    text = _SEQUENCES.sub("", said.decode(errors="replace"))
    return "".join(each for each in text if each.isprintable() or each in "\n\t")


@asynccontextmanager
async def _one_viewer() -> AsyncGenerator[tuple[int, "asyncio.Future[_Line]"]]:
    """A free port of this machine, and who connects to it first; nobody else gets an answer there."""
    came: asyncio.Future[_Line] = asyncio.get_running_loop().create_future()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.close()
        if came.done():
            writer.close()
        else:
            came.set_result((reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], came
    finally:
        server.close()
        if came.done() and not came.cancelled():
            came.result()[1].close()


async def _both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, screen: "Console") -> None:
    """Carry bytes until either side ends."""

    async def used() -> None:
        while data := await reader.read(_READ_AT_MOST):
            await screen.write(data)

    async def shown() -> None:
        while data := await screen.read():
            writer.write(data)
            await writer.drain()

    try:
        await first_of(used(), shown())
    except ConnectionError as left:
        raise Unavailable(f"the viewer was lost: {left}") from left
