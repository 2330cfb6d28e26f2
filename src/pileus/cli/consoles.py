"""Into an instance: its consoles, in this terminal and by a viewer; what it shows and has said; and SSH."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pileus.cli import screens
from pileus.cli.commands import Command
from pileus.cli.session import COMMON, AsCommon, Session
from pileus.cli.terminal import Terminal
from pileus.client.records import Record
from pileus.kernel.errors import Conflict, PileusError
from pileus.kernel.race import first_of

if TYPE_CHECKING:
    from pileus.client.client import Client
    from pileus.client.console import Console

LEAVE = b"\x1d"
"""Ctrl-]"""


def commands(session: Session) -> Mapping[str, Command]:
    """The commands, by verb."""

    async def console(
        record: Annotated[str, Parameter(help="Name or id.")],
        /,
        *,
        common: AsCommon = COMMON,
    ) -> None:
        """Use an instance's serial console in this terminal; Ctrl-] leaves.

        Without a terminal the input is typed as it comes; at its end the console goes on being shown.
        """
        from pileus.cli.names import Names
        from pileus.client.console import asked, opened

        session.use(common)
        async with session.client() as client:
            instance = await Names(client, session.document).record("instance", record)
            async with opened(client, await asked(client, instance["id"], "serial")) as console:
                session.say(f"console of {instance['name']}; Ctrl-] leaves")
                with _raw(session.terminal):
                    await first_of(_typed(session.terminal, console), _shown(console, session.terminal))
        session.say("\nleft the console" if session.terminal.stdin.isatty() else "left the console")

    async def ssh(
        record: Annotated[str, Parameter(help="Name or id.")],
        /,
        *command: Annotated[str, Parameter(allow_leading_hyphen=True, help="What to run there.")],
        user: Annotated[str, Parameter(help="Who to sign in as; without it, who the image says.")] = "",
        common: AsCommon = COMMON,
    ) -> int:
        """Sign in to an instance by SSH, at its floating IP if it has one."""
        session.use(common)
        return await _run("ssh", *await _destination(session, record, user), *command)

    return {"console": console, "ssh": ssh, **screens.commands(session)}


async def _typed(terminal: Terminal, console: "Console") -> None:
    """Type what comes in, until somebody leaves."""
    typed = terminal.typed()
    while data := await typed.get():
        before, leave, _ = data.partition(LEAVE)
        if before:
            await console.write(before)
        if leave:
            return
    # At the end of a pipe there is no more to type, and all the more to see.
    await asyncio.get_running_loop().create_future()


async def _shown(console: "Console", terminal: Terminal) -> None:
    target = terminal.stdout.buffer
    while data := await console.read():
        target.write(data)
        target.flush()


@contextmanager
def _raw(terminal: Terminal) -> Generator[None]:
    """The terminal, if it is one, gives every key as it is pressed; and is as before afterwards."""
    if not terminal.stdin.isatty():
        yield
        return
    import termios
    import tty

    descriptor = terminal.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _destination(session: Session, record: str, user: str) -> list[str]:
    from pileus.cli.names import Names

    async with session.client() as client:
        names = Names(client, session.document)
        instance = await names.record("instance", record)
        addresses: list[str] = [*instance["floating_addresses"], *instance["addresses"]]
        if not addresses:
            raise Conflict(f"instance {instance['name']} has no address")
        user = user or await _default_user(client, instance)
    return [*(("-l", user) if user else ()), "--", addresses[0]]


async def _default_user(client: "Client", instance: Record) -> str:
    """Who to sign in as, as the image says, or what its disk keeps of that; empty if neither does."""
    with suppress(PileusError):  # the image may be gone
        image: Record = (await client.get(f"/v1/images/{instance['image_id']}")).body
        return str(image["default_user"])
    with suppress(PileusError):
        async for volume in client.records("/v1/volumes", instance_id=instance["id"]):
            if volume["slot"] == 0 and volume["needs"]:
                return str(volume["needs"]["default_user"])
    return ""


async def _run(*command: str) -> int:
    """Run a program in this terminal, and return its exit status."""
    async with _deaf_to_interrupts():
        process = await asyncio.create_subprocess_exec(*command)
        return await process.wait()


@asynccontextmanager
async def _deaf_to_interrupts() -> AsyncGenerator[None]:
    """Ctrl-C is meant for the program that runs in the terminal now."""
    if os.name != "posix":
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
