"""The reference page of the command line, `docs/reference/cli.md`: `python -m pileus.cli.reference` writes it."""

import asyncio
import io
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from pileus.cli.main import invoke
from pileus.cli.terminal import Terminal
from pileus.client.document import load

PATH = Path("docs/reference/cli.md")
_COMMAND = re.compile(r"^  ([a-z-]+): ", re.MULTILINE)

_HEAD = """\
# The command line

`pileus NOUN VERB`: one command for each operation of the [API](api.md), and a few more. Records are called by name or
id; where several have one name, the caller's own project comes first, and if that does not decide it, ids do.
Changes wait for their task and show its steps, unless `--no-wait` is given; `--dry-run` shows what would be done,
where and why. A plural lists: `pileus instances`. With several instances after a verb each is done or refused by
itself, and the exit status is the highest of theirs.

Every command takes `--output` (`-o`): `table`, for people, is the default; `json` and `yaml` are what the API says;
`name` is names. `--quiet` (`-q`) prints ids, and no progress; `--columns a,b` chooses those of tables; `--project`
lets administrators of the cloud act in another project. Errors and progress go to the standard error output.

Who you are and where your cloud is, is in `$PILEUS_CONFIG`, else `~/.config/pileus/config.json`, else
`/var/lib/pileus/cli.json`; `pileus login` writes the second.

This page is written by `python -m pileus.cli.reference`.
"""


async def written() -> str:
    """The page."""
    parts = [_HEAD]
    async for path, text in helps():
        depth = "##" if len(path) < 2 else "###"
        own, _, _ = text.partition("\n\nOutput:\n")
        parts.append(f"{depth} {' '.join(('pileus', *path))}\n\n```text\n{own}\n```\n")
    return "\n".join(parts)


async def helps() -> AsyncIterator[tuple[Sequence[str], str]]:
    """The help of every command, with the words that lead to it."""
    yield (), await help_of()
    document = load()
    for noun in document.nouns.values():
        overview = await help_of(noun.name)
        yield (noun.name,), overview
        for verb in _commands_in(overview):
            yield (noun.name, verb), await help_of(noun.name, verb)
    for command in ("login", "logout", "whoami", "completion"):
        yield (command,), await help_of(command)


async def help_of(*path: str) -> str:
    """What `--help` prints there."""
    out = io.StringIO()
    terminal = Terminal(stdin=io.StringIO(), stdout=out, stderr=out, environ={})
    await invoke([*path, "--help"], terminal)
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def _commands_in(overview: str) -> list[str]:
    """The verbs that a noun's help lists; what is said of one may take several lines."""
    return _COMMAND.findall(overview.partition("Commands:\n")[2])


if __name__ == "__main__":
    PATH.write_text(asyncio.run(written()))
