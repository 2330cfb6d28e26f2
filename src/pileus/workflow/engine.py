"""The engine: runs tasks, journals their steps, undoes what failed, goes on after a crash."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import msgspec
import structlog

from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, PileusError, Unavailable
from pileus.kernel.ids import ProjectId, TaskId, new_id
from pileus.state.records import Record
from pileus.state.state import Change, Origin, State, put
from pileus.workflow.task import TASKS, UNFINISHED, Cause, JournalledStep, Task, TaskState
from pileus.workflow.workflow import Begin, Live, Step, Workflow, tell_progress

log = structlog.stdlib.get_logger()

W = TypeVar("W")
A = TypeVar("A", bound=msgspec.Struct)
T = TypeVar("T")
P = ParamSpec("P")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 15.0
_UNDO_PATIENCE = 3
"""After so many failed attempts at one undo the task is said to be stuck."""

_NULL = msgspec.Raw(b"null")

Pause = Callable[[float], Awaitable[None]]


class WorkflowChanged(PileusError):
    """The code no longer tells what the journal has begun: an operator must look."""

    code, title = "workflow-changed", "The workflow is not the one that began"


class Cancelled(PileusError):
    """Somebody cancelled the task."""

    status, code, title = 409, "cancelled", "Cancelled"


class _Unwinding(Exception):
    pass


class _Run(Generic[W]):
    """One run of a workflow over the journal in its task's record."""

    __slots__ = ("_ended", "_interruptible", "_passed", "_tasks", "engine", "id", "live")

    def __init__(self, engine: "Engine[W]", id: TaskId) -> None:
        self.engine = engine
        self.id = id
        self._tasks = engine.state[TASKS]
        self._passed: list[tuple[Step[W, ..., Any], tuple[Any, ...], dict[str, Any]]] = []
        """The steps that were reached, each with its arguments: what an undo takes."""
        self._ended: tuple[JournalledStep, ...] = ()
        """The last steps, until they are journalled: with whatever is committed next, and before the next deed."""
        self._interruptible: asyncio.Task[Any] | None = None
        self.live: Live | None = None

    @property
    def task(self) -> Task:
        """Its record, with the steps that have just ended."""
        task = self._tasks.get(self.id)
        if not self._ended:
            return task
        steps = (*task.steps, *self._ended)
        return msgspec.structs.replace(task, steps=steps, state=TaskState.RUNNING, stuck_because="")

    async def __call__(self, step: Step[W, P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._ended and not step.only_waits:
            await self.commit(self._ended[-1].name, self.task)
        position = len(self._passed)
        self._passed.append((step, args, kwargs))
        task = self.task
        if position < len(task.steps):
            done = task.steps[position]
            if done.name != step.name:
                raise WorkflowChanged(f"step {position + 1} was {done.name!r} and is now {step.name!r}")
            return step.replay(done.output)
        if task.cause is not None:
            raise _Unwinding
        if task.cancelled and not step.forward_only:
            raise Cancelled("the task was cancelled")
        started = self.engine.clock.now()
        result = await self._attempt(step, *args, **kwargs)
        entry = JournalledStep(
            name=step.name,
            started_at=started,
            ended_at=self.engine.clock.now(),
            output=_NULL if result is None else msgspec.Raw(msgspec.json.encode(result)),
        )
        self._ended = (*self._ended, entry)
        return result

    async def _attempt(self, step: Step[W, P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a step, again and again while a part of the cloud does not answer and there is patience left."""
        engine = self.engine
        gives_up = engine.clock.monotonic() + step.patience_s
        pause = _FIRST_PAUSE_S
        self._show(Live(step=step.name))
        if not step.forward_only:
            self._interruptible = asyncio.current_task()
        try:
            while True:
                try:
                    return await step.do(engine.world, *args, **kwargs)
                except Exception as error:
                    if engine.state.broken is not None:
                        raise
                    lasting = engine.clock.monotonic() + pause > gives_up or not isinstance(error, Unavailable)
                    if lasting and not step.forward_only:
                        raise
                    if lasting:
                        await self.say_stuck(step.name, error)
                    self._show(Live(step=step.name, waits_because=_for_people(error)))
                await engine.pause(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
        except asyncio.CancelledError:
            if not self.task.cancelled or self._interruptible is None:
                raise
            self._interruptible.uncancel()
            raise Cancelled("the task was cancelled") from None
        finally:
            self._interruptible = None
            self.live = None

    def interrupt(self) -> None:
        """Break off the running step, if it has a way back."""
        if self._interruptible is not None:
            self._interruptible.cancel()

    async def unwind(self, error: Exception) -> None:
        """Undo what was done, last first; each undo is retried until it succeeds."""
        task = self.task
        if task.cause is None:
            at = self._passed[-1][0].name if self._passed else ""
            await self.commit(at, msgspec.structs.replace(task, state=TaskState.UNDOING, cause=_cause(error, at)))
        for position in range(len(self._passed) - 1, -1, -1):
            step, args, kwargs = self._passed[position]
            journalled = position < len(self.task.steps)
            if journalled and self.task.steps[position].undone_at is not None:
                continue
            if step.back is not None:
                await self.insist(f"undo of {step.name}", partial(step.back, self.engine.world, *args, **kwargs))
            if journalled:
                task = self.task
                steps = list(task.steps)
                steps[position] = msgspec.structs.replace(steps[position], undone_at=self.engine.clock.now())
                await self.commit(
                    f"undo of {step.name}",
                    msgspec.structs.replace(task, steps=tuple(steps), state=TaskState.UNDOING, stuck_because=""),
                )

    async def insist(self, name: str, deed: Callable[[], Awaitable[None]]) -> None:
        pause = _FIRST_PAUSE_S
        attempts = 0
        while True:
            try:
                self._show(Live(step=name))
                await deed()
                return
            except Exception as error:
                if self.engine.state.broken is not None:
                    raise
                attempts += 1
                if attempts >= _UNDO_PATIENCE:
                    await self.say_stuck(name, error)
                self._show(Live(step=name, waits_because=_for_people(error)))
            await self.engine.pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def say_stuck(self, step: str, error: Exception) -> None:
        reason = f"{step}: {_for_people(error)}"
        log.warning("task stuck", task=self.id, step=step, reason=reason, exc_info=_bug(error))
        task = self.task
        if task.state is not TaskState.STUCK or task.stuck_because != reason:
            await self.commit(step, msgspec.structs.replace(task, state=TaskState.STUCK, stuck_because=reason))

    async def commit(self, step: str, task: Task, changes: Iterable[Change] = ()) -> None:
        """Commit what `task` has become, with these changes."""
        origin = Origin(actor=task.actor, operation=f"{task.workflow}: {step}", request=task.request, task=task.id)
        self.engine.state.apply([*changes, put(task)], origin)
        self._ended = ()
        await self.engine.state.durable()

    def tell(self, doing: str, fraction: float | None) -> None:
        """How far the running step is; news that come behind its end are none."""
        if self.live is not None:
            self._show(Live(step=self.live.step, doing=doing, fraction=fraction))

    def _show(self, live: Live) -> None:
        self.live = live
        self.engine.on_progress(self.id)


class Engine(Generic[W]):
    """Runs every unfinished task for as long as `serve` runs; what was broken off the next one takes up again."""

    def __init__(
        self,
        state: State,
        world: W,
        clock: Clock,
        workflows: Iterable[Workflow[W, Any]],
        *,
        pause: Pause = asyncio.sleep,
        on_progress: Callable[[TaskId], None] = lambda _: None,
    ) -> None:
        """Make an engine.

        Args:
            state: where tasks and all else are.
            world: what steps reach into.
            clock: times of the journal, and patience.
            workflows: everything that a task may be a run of.
            pause: waits so many seconds before a retry.
            on_progress: is told of a task whose running step has got further.
        """
        self.state = state
        self.world = world
        self.clock = clock
        self.pause = pause
        self.on_progress = on_progress
        self._workflows: dict[str, Workflow[W, Any]] = {}
        for each in workflows:
            if each.name in self._workflows:
                raise ValueError(f"two workflows are called {each.name}")
            self._workflows[each.name] = each
        self._runs: dict[TaskId, _Run[W]] = {}
        self._group: asyncio.TaskGroup | None = None

    async def serve(self) -> None:
        """Go on with every unfinished task, and run those that are launched, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for state in UNFINISHED:
                    for id in self.state[TASKS].ids_by("state", state):
                        self.launch(TaskId(id))
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    @property
    def running(self) -> int:
        """How many tasks run."""
        return len(self._runs)

    def task_for(self, start: Begin, *, project: ProjectId, subject: Record, origin: Origin, now: datetime) -> Task:
        """The record of a new task, to be committed with what the planner decided; then `launch` it."""
        return Task(
            id=new_id(),
            created_at=now,
            project_id=project,
            workflow=start.workflow.name,
            subject_kind=self.state.kind_of(subject).name,
            subject_id=subject.id,
            subject_name=getattr(subject, "name", ""),
            actor=origin.actor,
            request=origin.request,
            arguments=msgspec.Raw(msgspec.json.encode(start.arguments)),
        )

    def submit(
        self, start: Begin, changes: Sequence[Change], *, project: ProjectId, subject: Record, origin: Origin
    ) -> Task:
        """Begin a task that no request asked for: it is committed with these changes, and runs when that is on disk."""
        task = self.task_for(start, project=project, subject=subject, origin=origin, now=self.clock.now())
        self.state.apply([*changes, put(task)], msgspec.structs.replace(origin, task=task.id))
        self.state.when_durable(partial(self.launch, TaskId(task.id)))
        return task

    def launch(self, id: TaskId) -> None:
        """Run a task whose record is on disk. Launching twice is launching once.

        While nothing is served this does nothing: the next `serve` goes on with every unfinished task.
        """
        if self._group is not None and id not in self._runs:
            run = self._runs[id] = _Run(self, id)
            self._group.create_task(self._run(run), name=id)

    def live(self, id: TaskId) -> Live | None:
        """How far the running step of a task is."""
        run = self._runs.get(id)
        return None if run is None else run.live

    async def cancel(self, id: TaskId, origin: Origin) -> None:
        """Have a task undone. Raises Conflict when it has ended, goes back already, or can only go forward."""
        task = self.state[TASKS].get(id)
        if task.state not in UNFINISHED or task.cause is not None:
            raise Conflict(f"the task is {task.state} and cannot be cancelled")
        await self.state.commit([put(msgspec.structs.replace(task, cancelled=True))], origin)
        if (run := self._runs.get(id)) is not None:
            run.interrupt()

    async def _run(self, run: _Run[W]) -> None:
        tell_progress.set(run.tell)
        try:
            task = run.task
            workflow = self._workflows.get(task.workflow)
            if workflow is None:
                raise WorkflowChanged(f"there is no workflow {task.workflow!r} any more")
            await self._forward_or_back(run, workflow)
        except (WorkflowChanged, msgspec.MsgspecError) as changed:
            await run.say_stuck("recovery", changed)
        finally:
            del self._runs[run.id]

    async def _forward_or_back(self, run: _Run[W], workflow: Workflow[W, Any]) -> None:
        wish = workflow.read(run.task.arguments)
        try:
            await workflow.body(run, wish)
            if run.task.cause is not None:
                raise _Unwinding
            changes = workflow.finisher(self.state, wish) if workflow.finisher else ()
            await run.commit(
                "finish", msgspec.structs.replace(run.task, state=TaskState.DONE, ended_at=self.clock.now()), changes
            )
        except (WorkflowChanged, msgspec.MsgspecError):
            raise
        except Exception as error:
            if self.state.broken is not None:
                raise
            if not isinstance(error, _Unwinding):
                log.info("task failed", task=run.id, workflow=workflow.name, reason=str(error), exc_info=_bug(error))
            await run.unwind(error)
            await run.insist("withdraw", partial(self._withdraw, run, workflow, wish))

    async def _withdraw(self, run: _Run[W], workflow: Workflow[W, A], wish: A) -> None:
        changes = workflow.withdrawer(self.state, wish) if workflow.withdrawer else ()
        await run.commit(
            "withdraw",
            msgspec.structs.replace(run.task, state=TaskState.UNDONE, ended_at=self.clock.now(), stuck_because=""),
            changes,
        )


def _cause(error: Exception, step: str) -> Cause:
    if isinstance(error, PileusError):
        return Cause(code=error.code, detail=error.detail, step=step, because=error.because)
    return Cause(code="internal", detail="an internal error; the log of the controller has it", step=step)


def _for_people(error: Exception) -> str:
    return error.detail if isinstance(error, PileusError) else "an internal error; the log of the controller has it"


def _bug(error: Exception) -> Exception | None:
    """The error, if nobody meant it, for the log to show its chain."""
    return None if isinstance(error, PileusError) else error
