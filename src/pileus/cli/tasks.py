"""Tasks: waiting for one while its steps are shown, and the whole story of one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pileus.cli.output import local, seconds
from pileus.cli.session import COMMON, AsCommon, Session
from pileus.cli.terminal import Terminal
from pileus.client.errors import succeeded
from pileus.client.records import Running, Step, Task
from pileus.kernel.errors import PileusError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pileus.client.client import Client


_WATCHED = 16
"""Tasks that are watched at once, each over a connection of its own."""

_View = Callable[[Task], None]


def commands(session: Session) -> Mapping[str, Callable[..., Awaitable[None]]]:
    """The commands that are more than their operation, by verb."""

    async def story(
        task: Annotated[str, Parameter(name="ID", help="Of the task.")],
        /,
        *,
        wait: Annotated[bool, Parameter(negative=(), help="Wait until it has ended.")] = False,
        common: AsCommon = COMMON,
    ) -> None:
        """Show a task: its steps and times, its cause if it failed, what is undone."""
        from pileus.cli.names import Names

        session.use(common)
        async with session.client() as client:
            if wait:
                await finish(session, client, task)
            shown = await client.task(task)
            called = await Names(client, session.document).of("task", [{"actor": shown.actor}], ["actor"])
            show(shown, session, called.get(shown.actor, shown.actor))

    return {"show": story}


async def finish(session: Session, client: "Client", id: str) -> Task:
    """Wait for a task while its steps are shown.

    Raises:
        TaskFailed: it was undone.
        TaskStuck: something of it is left.
        asyncio.CancelledError: the caller has had enough; the task goes on.
    """
    try:
        with _view(session) as view:
            last = await _last(client.watch(id), view)
    except asyncio.CancelledError:
        session.terminal.say(f"the task goes on; watch it: pileus task show {id}; cancel it: pileus task cancel {id}")
        raise
    return succeeded(last)


async def finish_all(session: Session, client: "Client", ids: Sequence[str]) -> list[Task | PileusError]:
    """Wait for several tasks while it is shown how far each is.

    Returns:
        Of each, in this order, how it has ended, or why that is not known.

    Raises:
        asyncio.CancelledError: the caller has had enough; the tasks go on.
    """
    turns = asyncio.Semaphore(_WATCHED)

    async def watched(id: str, view: _View) -> Task | PileusError:
        async with turns:
            try:
                return await _last(client.watch(id), view)
            except PileusError as lost:
                return lost

    try:
        with _view(session, of=len(ids)) as view:
            return await asyncio.gather(*(watched(id, view) for id in ids))
    except asyncio.CancelledError:
        session.terminal.say("the tasks go on; see them: pileus tasks")
        raise


async def _last(news: AsyncIterator[Task], view: _View) -> Task:
    task: Task | None = None
    async for task in news:
        view(task)
    assert task is not None, "a watch ends with a task"
    return task


@contextmanager
def _view(session: Session, *, of: int = 1) -> Generator[_View]:
    if session.common.quiet:
        yield lambda _: None
    elif session.terminal.stderr.isatty():
        with _live(session.terminal, _picture if of == 1 else _short_picture) as view:
            yield view
    elif of == 1:
        yield _Lines(session.terminal.say)
    else:
        yield lambda task: session.terminal.say(_ending(task)) if _is_over(task) else None


class _Lines:
    """One line for each thing that is new."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = set[tuple[str, str]]()

    def __call__(self, task: Task) -> None:
        for step in task.steps:
            self._new(("done", step.name), f"  {step.name}: {seconds(_took(step))}")
            if step.undone_at is not None:
                self._new(("undone", step.name), f"  {step.name}: undone")
        if task.running is not None and (now := news_of(task.running)) and not task.ended:
            self._new(("now", f"{task.running.step} {now}"), f"  {task.running.step}: {now}")
        if _is_over(task):
            self._say(_ending(task))

    def _new(self, what: tuple[str, str], line: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._say(line)


def news_of(running: Running) -> str:
    """What the running step is doing, without how far it is."""
    return f"waits: {running.waits_because}" if running.waits_because else running.doing


@contextmanager
def _live(terminal: Terminal, picture: Callable[[Task], "RenderableType"]) -> Generator[_View]:
    """The pictures of tasks, one below the other, each in its place."""
    from rich.console import Console, Group
    from rich.live import Live

    pictures: dict[str, RenderableType] = {}
    console = Console(file=terminal.stderr, highlight=False, markup=False, emoji=False)
    with Live(console=console, refresh_per_second=10) as live:

        def view(task: Task) -> None:
            pictures[task.id] = picture(task)
            live.update(Group(*pictures.values()))

        yield view


def _picture(task: Task) -> "RenderableType":
    """Steps with ticks, the running one with a spinner and a bar."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    rows: list[RenderableType] = []
    for step in task.steps:
        mark = Text("↺ ", "yellow") if step.undone_at else Text("✓ ", "green")
        rows.append(mark + Text(f"{step.name}  ", "default") + Text(seconds(_took(step)), "dim"))
    running = task.running
    if running is not None and not task.ended:
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [Spinner("dots"), Text(running.step)]
        if running.fraction is not None:
            cells += [ProgressBar(total=1.0, completed=running.fraction, width=30), Text(f"{running.fraction:.0%}")]
        if now := news_of(running):
            cells.append(Text(now, "yellow" if running.waits_because else "dim"))
        line.add_row(*cells)
        rows.append(line)
    rows.append(_short_picture(task))
    return Group(*rows)


def _short_picture(task: Task) -> "RenderableType":
    from rich.text import Text

    colour = {"done": "green", "undone": "red", "stuck": "red", "undoing": "yellow"}.get(task.state, "default")
    lasted = f" after {seconds(_lasted(task))}" if _is_over(task) else ""
    return Text(f"{task.title}: ") + Text(task.state, colour) + Text(lasted)


def show(task: Task, session: Session, actor: str) -> None:
    """Print the whole story of a task, begun by whom this names."""
    if session.printer.document(task):
        return
    if not session.printer.for_people:
        session.printer.handle({"id": task.id})
        return
    out = session.terminal.out
    lasted = f" after {seconds(_lasted(task))}" if task.ended else f" for {seconds(_lasted(task))}"
    out(f"{task.title}: {task.state}{lasted}")
    session.printer.fields(
        {
            "id": task.id,
            task.subject_kind: f"{task.subject_name} {task.subject_id}".strip(),
            "by": actor,
            "began": local(task.created_at),
            "ended": local(task.ended_at) if task.ended_at else None,
            "request": task.request,
            "cancelled": True if task.cancelled else None,
        }
    )
    if task.steps or task.running:
        out("\nsteps")
    width = max((len(step.name) for step in task.steps), default=0)
    for step in task.steps:
        undone = f"  undone {local(step.undone_at)}" if step.undone_at else ""
        out(f"  {step.name:<{width}}  {local(step.started_at)}  {seconds(_took(step))}{undone}")
    if task.running and not task.ended:
        far = f" {task.running.fraction:.0%}" if task.running.fraction is not None else ""
        now = news_of(task.running)
        out(f"  {task.running.step}: running{far}{f', {now}' if now else ''}")
    if task.cause is not None:
        out(f"\ncause  {task.cause.detail}{f' (in {task.cause.step})' if task.cause.step else ''}")
        for about, why in task.cause.because.items():
            out(f"  {about}: {why}")
    if task.stuck_because:
        out(f"stuck  {task.stuck_because}")
    if task.state == "undone":
        out("undo   all that was done is undone")


def _is_over(task: Task) -> bool:
    """Whether there is nothing more to wait for."""
    return task.ended or task.state == "stuck"


def _ending(task: Task) -> str:
    return f"{task.title}: {task.state} after {seconds(_lasted(task))}"


def _took(step: Step) -> float:
    return (step.ended_at - step.started_at).total_seconds()


def _lasted(task: Task) -> float:
    return ((task.ended_at or datetime.now(UTC)) - task.created_at).total_seconds()
