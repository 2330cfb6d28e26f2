"""One invocation of the command line: its streams, what it was told to print how, the cloud that it talks to."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from cyclopts import Group, Parameter

from pileus.cli.output import Printer
from pileus.cli.terminal import Terminal
from pileus.client import config as configuration
from pileus.client.document import Document

if TYPE_CHECKING:
    from pileus.client.client import Client

_OUTPUT = Group("Output", sort_key=90)
_CHANGES = Group("How", sort_key=80)


@dataclass(frozen=True)  # cyclopts reads the fields of dataclasses
class Common:
    """What every command takes."""

    output: Annotated[
        Literal["table", "json", "yaml", "name"],
        Parameter(name=("--output", "-o"), help="How to print the result; a table by default.", group=_OUTPUT),
    ] = "table"
    columns: Annotated[str, Parameter(help="Columns of the table, separated by commas.", group=_OUTPUT)] = ""
    quiet: Annotated[
        bool, Parameter(name=("--quiet", "-q"), negative="", help="Print ids only, and no progress.", group=_OUTPUT)
    ] = False
    project: Annotated[
        str, Parameter(name="--project", help="Act in this project; for administrators of the cloud.", group=_OUTPUT)
    ] = ""


@dataclass(frozen=True)  # as above
class Changing:
    """What every command takes whose change can be planned."""

    dry_run: Annotated[
        bool, Parameter(name="--dry-run", negative="", help="Only show what would be done.", group=_CHANGES)
    ] = False


@dataclass(frozen=True)  # as above
class Waiting:
    """What every command takes that starts a task."""

    no_wait: Annotated[
        bool, Parameter(name="--no-wait", negative="", help="Do not wait for the task to end.", group=_CHANGES)
    ] = False


AsCommon = Annotated[Common, Parameter(name="*")]
AsChanging = Annotated[Changing, Parameter(name="*")]
COMMON = Common()
CHANGING = Changing()


class Session:
    """What a command has at hand."""

    def __init__(self, terminal: Terminal, document: Document) -> None:
        self.terminal = terminal
        self.document = document
        self.common = COMMON
        self.at = ""
        """The moment to see the cloud as of, as the API takes it; empty is now."""
        self.printer = Printer(terminal, document)

    def use(self, common: Common) -> None:
        """Print like this from now on."""
        self.common = common
        self.printer = Printer(
            self.terminal,
            self.document,
            format=common.output,
            columns=columns_of(common.columns),
            quiet=common.quiet,
        )

    def say(self, text: str) -> None:
        """A line about how it goes, unless nobody wants to know."""
        if not self.common.quiet:
            self.terminal.say(text)

    @asynccontextmanager
    async def client(self) -> AsyncGenerator["Client"]:
        """A client of the cloud that the configuration names. Raises PileusError."""
        from pileus.client.client import Client

        config = configuration.load(self.terminal.environ)
        if self.common.project:
            config = msgspec.structs.replace(config, project=self.common.project)
        patience_s = self.terminal.patience_s
        if self.at:
            from pileus.cli.past import PastClient

            async with PastClient(config, self.document, self.at, patience_s=patience_s) as client:
                yield client
            return
        async with Client(config, patience_s=patience_s) as client:
            yield client


def columns_of(text: str) -> Sequence[str]:
    return [each.strip().replace("-", "_") for each in text.split(",") if each.strip()]
