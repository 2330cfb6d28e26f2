"""What `--help` says, held to the texts that are checked in.

`PILEUS_GOLDEN=accept pytest tests/cli/test_help.py` writes them anew; read the difference before you keep it.
"""

import os
from pathlib import Path

from pileus.cli import reference as of_the_command_line
from pileus.client import reference as of_the_api

_ROOT = Path(__file__).parents[2]
_GOLDEN = _ROOT / "tests" / "golden" / "cli" / "help.txt"


def _held_to(path: Path, text: str) -> None:
    if os.environ.get("PILEUS_GOLDEN") == "accept":
        path.write_text(text)
    assert path.read_text() == text, f"{path} is not up to date"


async def test_the_help_of_every_command_is_as_it_was_agreed() -> None:
    helps = [f"$ {' '.join(('pileus', *path))} --help\n{text}\n" async for path, text in of_the_command_line.helps()]
    _held_to(_GOLDEN, "\n".join(helps))


async def test_the_reference_of_the_command_line_is_up_to_date() -> None:
    _held_to(_ROOT / of_the_command_line.PATH, await of_the_command_line.written())


def test_the_reference_of_the_api_is_up_to_date() -> None:
    _held_to(_ROOT / of_the_api.PATH, of_the_api.written())
