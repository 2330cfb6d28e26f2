"""The command line: `pileus <noun> <verb>`, its nouns and verbs as in the OpenAPI document."""

import asyncio
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError

from pileus import __version__
from pileus.cli import problems
from pileus.cli.commands import Command, command_of, is_command
from pileus.cli.help import PlainHelp
from pileus.cli.local import ABOUT, LOCAL
from pileus.cli.session import Session
from pileus.cli.terminal import Terminal, of_process
from pileus.client.document import Document, load
from pileus.kernel.errors import Invalid, PileusError

if TYPE_CHECKING:
    from rich.console import Console

_HERE = Group("This machine", sort_key=1)
_WHO = Group("You", sort_key=2)
_NOUNS = Group("The cloud", sort_key=3)

_ABOUT = (
    "A private cloud: `pileus NOUN VERB`, such as `pileus instance list`; a plural alone lists: `pileus instances`."
)
_AT = "The cloud as it was: `pileus at TIME` before a command that lists or shows, such as `pileus at -2h instances`."
_UNDO = "Undo what a request did: `pileus undo WHAT`, a task, a request or an event; as `pileus event undo`."
_INTERRUPTED = 130
"""As shells say of a program that ended by SIGINT."""


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:], of_process()))


def run(arguments: Sequence[str], terminal: Terminal) -> int:
    """Do what the arguments say, and return the exit status."""
    if arguments and arguments[0] in LOCAL:
        module, _, function = LOCAL[arguments[0]].partition(":")
        return getattr(import_module(module), function)(arguments[1:])
    try:
        return asyncio.run(invoke(arguments, terminal))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read has had enough; what Python would still flush at its end must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


async def invoke(arguments: Sequence[str], terminal: Terminal) -> int:
    """Do what the arguments say in a running loop, and return the exit status."""
    document = load()
    session = Session(terminal, document)
    try:
        arguments = _looking(arguments, session)
        command, given = _parsed(application(session, arguments[0] if arguments else ""), arguments, terminal)
        result = command(*given.args, **given.kwargs)
        status = await result if asyncio.iscoroutine(result) else result
    except PileusError as error:
        as_json = session.common.output == "json" or _wants_json(arguments)
        problems.show(error, terminal, as_json=as_json)
        return problems.exit_code(error)
    return status if isinstance(status, int) else 0


def application(session: Session, noun: str | None) -> App:
    """The commands: of this noun with its verbs, of all others only that they are there; None for all of all."""
    terminal = session.terminal
    app = App(
        name="pileus",
        help=_ABOUT,
        help_epilogue=_epilogue(),
        version=__version__,
        help_formatter="default" if terminal.stdout.isatty() else PlainHelp(),
        help_format="plaintext",
        default_parameter=Parameter(show_default=False),
    )
    for name in LOCAL:
        app.command(App(name=name, help=ABOUT[name], group=_HERE))
    if noun is None or noun not in session.document.nouns:
        _signing(app, session)
    app.command(App(name="at", help=_AT, group=_NOUNS, sort_key=-1))
    app.command(App(name="undo", help=_UNDO, group=_NOUNS, sort_key=-1))
    for place, each in enumerate(session.document.nouns.values()):
        sub = App(name=each.name, help=each.about, group=_NOUNS, help_epilogue="", sort_key=place)
        if noun is None or noun == each.name:
            for verb, command in _verbs(each.name, session).items():
                sub.command(command, name=verb)
        app.command(sub)
    return app


def _signing(app: App, session: Session) -> None:
    from pileus.cli import signing

    for name, command in signing.commands(session).items():
        app.command(command, name=name, group=_WHO)

    def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="Of which shell.")], /) -> None:
        """Print what teaches a shell to complete these commands."""
        session.terminal.out(application(session, None).generate_completion(shell=shell))

    app.command(completion, group=_HERE)


def _verbs(noun: str, session: Session) -> Mapping[str, Command]:
    operations = session.document.nouns[noun].operations
    found = {verb: command_of(each, session) for verb, each in operations.items() if is_command(each)}
    return {**found, **own_commands(noun, session)}


def own_commands(noun: str, session: Session) -> Mapping[str, Command]:
    """The commands of a noun that are more than their operation."""
    match noun:
        case "image":
            from pileus.cli.images import commands
        case "image-export":
            from pileus.cli.imageexports import commands
        case "instance":
            from pileus.cli.instances import commands
        case "keypair":
            from pileus.cli.keypairs import commands
        case "network":
            from pileus.cli.networks import commands
        case "event":
            from pileus.cli.events import commands
        case "task":
            from pileus.cli.tasks import commands
        case _:
            return {}
    return commands(session)


def _parsed(
    app: App, arguments: Sequence[str], terminal: Terminal
) -> tuple[Callable[..., Any], inspect.BoundArguments]:
    """The command and what it is given. Raises Invalid if the arguments are wrong."""
    try:
        command, given, _ = app.parse_args(
            arguments, console=_console(terminal), exit_on_error=False, print_error=False
        )
    except CycloptsError as wrong:
        raise Invalid(_one_line(str(wrong))) from wrong
    return command, given


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _console(terminal: Terminal) -> "Console":
    from rich.console import Console

    return Console(file=terminal.stdout, width=terminal.columns, highlight=False)


def _in_singular(arguments: Sequence[str], document: Document) -> Sequence[str]:
    """`instances` is `instance`, and alone or with options `instance list`; `undo` is `event undo`."""
    if list(arguments[:1]) == ["undo"]:
        return ["event", *arguments]
    singular = document.noun_of_plural(arguments[0]) if arguments else None
    if singular is None:
        return list(arguments)
    rest = list(arguments[1:])
    if rest[:1] in (["--help"], ["-h"]) or (rest and not rest[0].startswith("-")):
        return [singular, *rest]
    return [singular, "list", *rest]


def _looking(arguments: Sequence[str], session: Session) -> Sequence[str]:
    """The command, in the singular, with the session looking at the moment of `at TIME`. Raises Invalid."""
    if list(arguments[:1]) != ["at"] or arguments[1:] in (["--help"], ["-h"]):
        return _in_singular(arguments, session.document)
    from pileus.cli.past import check_reads, turn_back

    rest = _in_singular(turn_back(session, arguments[1:]), session.document)
    check_reads(session, rest)
    return rest


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether errors should be JSON, as far as arguments tell that are wrong themselves."""
    joined = " ".join(arguments)
    return any(each in joined for each in ("-o json", "--output json", "--output=json", "-ojson"))


def _epilogue() -> str:
    codes = "\n".join(f"  {code}  {meaning}" for code, meaning in problems.EXIT_CODES.items())
    return f"Exit status:\n{codes}"
