"""Calling programs: argument lists, a time limit, and an error that says what the program said. Never a shell."""

import asyncio
from collections.abc import Callable, Sequence

from pileus.kernel.errors import PileusError, TimedOut

_SAID_AT_MOST = 2000


class ProgramFailed(PileusError):
    """A program ended with another status than 0; `internal` has its command and the end of what it said."""

    code, title = "program-failed", "A program failed"

    def __init__(self, command: Sequence[str], exit_status: int, said: str) -> None:
        last = said.strip()[-_SAID_AT_MOST:]
        super().__init__(f"{command[0]} ended with status {exit_status}", internal=f"{list(command)}: {last}")
        self.exit_status = exit_status
        self.said = last


async def run(
    *command: str,
    timeout_s: float = 30.0,
    stdin: bytes | None = None,
    accept: Sequence[int] = (0,),
    heard: Callable[[str], None] | None = None,
) -> str:
    """Run a program to its end and return what it printed; `heard` is told of it piece by piece as it comes.

    Raises:
        ProgramFailed: it ended with a status that is not in `accept`, or is not installed (status 127).
        TimedOut: it was still running after `timeout_s` seconds, and was killed.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as missing:
        raise ProgramFailed(command, 127, f"{command[0]} is not installed") from missing
    try:
        async with asyncio.timeout(timeout_s):
            if heard is None:
                out, err = await process.communicate(stdin)
            else:
                out, err = await _listened(process, stdin, heard)
    except TimeoutError as late:
        raise TimedOut(f"{command[0]} did not end within {timeout_s:g} s", internal=f"{list(command)}") from late
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    status = process.returncode or 0
    if status not in accept:
        raise ProgramFailed(command, status, (err or out).decode(errors="replace"))
    return out.decode(errors="replace")


async def _listened(
    process: asyncio.subprocess.Process, stdin: bytes | None, heard: Callable[[str], None]
) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdin is not None:
        process.stdin.write(stdin or b"")
        process.stdin.close()
    errors = asyncio.ensure_future(process.stderr.read())
    try:
        said = bytearray()
        while piece := await process.stdout.read(4096):
            said += piece
            heard(piece.decode(errors="replace"))
        await process.wait()
        return bytes(said), await errors
    finally:
        errors.cancel()
