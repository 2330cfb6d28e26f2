"""How far a transfer is: a bar on a terminal, a line now and then elsewhere."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

from pileus.cli.output import size
from pileus.cli.session import Session

_LINES = 4
"""Without a terminal it is told so often, at equal distances."""


@contextmanager
def shown(session: Session, what: str) -> Generator[Callable[[int, int], None]]:
    """Something to tell how many bytes have passed, of how many."""
    if session.common.quiet:
        yield lambda _done, _of: None
    elif session.terminal.stderr.isatty():
        with _bar(session, what) as tell:
            yield tell
    else:
        yield _lines(session, what)


def later(session: Session, what: str, bar: ExitStack) -> Callable[[int, int], None]:
    """Shows how far a transfer is from when it begins: until then something else is shown."""
    tell: Callable[[int, int], None] | None = None

    def told(done: int, of: int) -> None:
        nonlocal tell
        tell = tell or bar.enter_context(shown(session, what))
        tell(done, of)

    return told


def _lines(session: Session, what: str) -> Callable[[int, int], None]:
    told = 0

    def tell(done: int, of: int) -> None:
        nonlocal told
        quarter = done * _LINES // of if of else _LINES
        if quarter > told:
            told = quarter
            session.say(f"{what}: {size(done)} of {size(of)}")

    return tell


@contextmanager
def _bar(session: Session, what: str) -> Generator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=session.terminal.stderr)) as progress:
        task = progress.add_task(what)
        yield lambda done, of: progress.update(task, completed=done, total=of)
