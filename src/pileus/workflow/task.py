"""The record of a task: one run of a workflow, with its journal."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

import msgspec

from pileus.kernel.ids import ProjectId
from pileus.state.kinds import Kind
from pileus.state.records import Record


def _null() -> msgspec.Raw:
    return msgspec.Raw(b"null")


class TaskState(StrEnum):
    RUNNING = "running"
    UNDOING = "undoing"
    """Something failed, and what was done is being undone."""
    STUCK = "stuck"
    """It can go neither forwards nor back for now; retried, and an operator is to look."""
    DONE = "done"
    UNDONE = "undone"
    """It failed, and nothing of it is left."""


UNFINISHED = frozenset({TaskState.RUNNING, TaskState.UNDOING, TaskState.STUCK})


class JournalledStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A step that was done, and perhaps undone again."""

    name: str
    started_at: datetime
    ended_at: datetime
    output: msgspec.Raw = msgspec.field(default_factory=_null)
    undone_at: datetime | None = None


class Cause(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a task failed."""

    code: str
    """Of the error, as in a problem's type: `no-capacity`."""
    detail: str
    step: str = ""
    because: Mapping[str, str] = {}


class Task(Record, frozen=True, kw_only=True):
    """One run of a workflow: what was asked for, how far it is, why it failed if it did."""

    project_id: ProjectId
    workflow: str
    subject_kind: str
    subject_id: str
    subject_name: str = ""
    actor: str
    request: str = ""
    arguments: msgspec.Raw = msgspec.field(default_factory=_null)
    state: TaskState = TaskState.RUNNING
    steps: tuple[JournalledStep, ...] = ()
    cause: Cause | None = None
    """Set with the first failure; from then on the task only goes back."""
    stuck_because: str = ""
    cancelled: bool = False
    ended_at: datetime | None = None


TASKS = Kind(
    "task",
    Task,
    indexes={
        "project": lambda task: task.project_id,
        "subject": lambda task: task.subject_id,
        "state": lambda task: task.state,
    },
    keeps_before=False,
)
