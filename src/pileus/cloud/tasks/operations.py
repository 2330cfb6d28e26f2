"""What one may do with tasks."""

import asyncio
from datetime import datetime
from typing import Any

import msgspec

from pileus.cloud.tasks.watch import TaskWatch
from pileus.kernel.errors import Invalid
from pileus.kernel.ids import TaskId
from pileus.operations.caller import Role
from pileus.operations.declare import AT, Answer, Exchange, Noun, Parameter
from pileus.state.state import Origin
from pileus.workflow.engine import Engine
from pileus.workflow.task import TASKS, UNFINISHED, Cause, Task, TaskState
from pileus.workflow.workflow import Live

_LONGEST_WAIT_S = 60.0


class ShownStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step of a task: when it was done, and undone."""

    name: str
    started_at: datetime
    ended_at: datetime
    undone_at: datetime | None = None


class ShownTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task, with how far its running step is."""

    id: str
    created_at: datetime
    revision: int
    project_id: str
    workflow: str
    subject_kind: str
    subject_id: str
    subject_name: str
    actor: str
    request: str
    state: TaskState
    steps: list[ShownStep]
    running: Live | None
    cause: Cause | None
    stuck_because: str
    cancelled: bool
    ended_at: datetime | None


tasks = Noun(
    TASKS,
    plural="tasks",
    columns=("workflow", "subject_name", "state", "created_at", "ended_at"),
    about="Tasks: what is being done, and what was. Every task completes, or is undone.",
)
tasks.list(filters=("state", "workflow", "subject_id", "subject_kind"), sorts=("state", "workflow"), newest_first=True)


@tasks.special(
    "GET",
    "/{id}",
    least=Role.READER,
    answers=ShownTask,
    parameters=(
        Parameter(
            name="wait_s",
            about="Answer only when there is news beyond `seen`, or the task has ended, or after so many seconds",
            schema={"type": "number", "minimum": 0, "maximum": _LONGEST_WAIT_S},
        ),
        Parameter(name="seen", about="The `Pileus-Seen` of the last answer: wait for news beyond it"),
        AT,
    ),
)
async def show(exchange: Exchange, task: Task) -> Answer:
    """Show a task: its steps and times, its cause if it failed, what is undone."""
    watch: TaskWatch = exchange.services[TaskWatch]
    engine: Engine[Any] = exchange.services[Engine]
    state = exchange.ask.state
    if exchange.query(AT.name):
        return Answer(status=200, body=msgspec.json.encode(shown_task(task, None)))
    wait_s = _seconds(exchange.query("wait_s", "0"))
    seen = exchange.query("seen")
    if wait_s:
        try:
            async with asyncio.timeout(wait_s):
                while (now := state[TASKS].find(task.id)) is not None and now.state in UNFINISHED:
                    if _seen(now, watch) != seen:
                        break
                    await watch.wait(TaskId(task.id))
        except TimeoutError:
            pass
    task = state[TASKS].get(task.id)
    shown = shown_task(task, engine.live(TaskId(task.id)))
    return Answer(status=200, body=msgspec.json.encode(shown), headers={"pileus-seen": _seen(task, watch)})


@tasks.special("POST", "/{id}/cancel", least=Role.MEMBER, status=204)
async def cancel(exchange: Exchange, task: Task) -> Answer:
    """Cancel a task: what it has done is undone."""
    engine: Engine[Any] = exchange.services[Engine]
    caller = exchange.caller
    origin = Origin(actor=caller.actor, operation="task.cancel", request=caller.request, source=caller.source)
    await engine.cancel(TaskId(task.id), origin)
    return Answer(status=204)


def shown_task(task: Task, live: Live | None) -> ShownTask:
    """A task as people are shown it: without its arguments and outputs, which are its own business."""
    return ShownTask(
        id=task.id,
        created_at=task.created_at,
        revision=task.revision,
        project_id=task.project_id,
        workflow=task.workflow,
        subject_kind=task.subject_kind,
        subject_id=task.subject_id,
        subject_name=task.subject_name,
        actor=task.actor,
        request=task.request,
        state=task.state,
        steps=[
            ShownStep(name=step.name, started_at=step.started_at, ended_at=step.ended_at, undone_at=step.undone_at)
            for step in task.steps
        ],
        running=live,
        cause=task.cause,
        stuck_because=task.stuck_because,
        cancelled=task.cancelled,
        ended_at=task.ended_at,
    )


def _seen(task: Task, watch: TaskWatch) -> str:
    """What a caller knows by now: the record, and how far its running step is."""
    return f"{task.revision}.{watch.news(TaskId(task.id))}"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_WAIT_S:
        raise Invalid("some parameters are wrong", fields={"wait_s": f"a number from 0 to {_LONGEST_WAIT_S:g}"})
    return seconds
