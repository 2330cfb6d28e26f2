"""The few documents of the API that a client itself has to understand. All others pass through it as they are."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

Record = dict[str, Any]
"""A record as the API gives it."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a task that was done, and perhaps undone again."""

    name: str
    started_at: datetime
    ended_at: datetime
    undone_at: datetime | None = None


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The step that a task is at."""

    step: str
    doing: str = ""
    fraction: float | None = None
    """From 0 to 1, where it is known."""
    waits_because: str = ""


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task failed."""

    code: str
    detail: str
    step: str = ""
    because: Mapping[str, str] = {}


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task, and how far it is."""

    id: str
    created_at: datetime
    workflow: str
    subject_kind: str
    subject_id: str
    subject_name: str
    actor: str
    request: str
    state: str
    """`running`, `undoing`, `stuck`, `done` or `undone`."""
    steps: tuple[Step, ...]
    running: Running | None
    cause: Cause | None
    stuck_because: str
    cancelled: bool
    ended_at: datetime | None

    @property
    def ended(self) -> bool:
        return self.state in ("done", "undone")

    @property
    def title(self) -> str:
        """`instance.create hello`."""
        return f"{self.workflow} {self.subject_name or self.subject_id}"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One record that a plan would create, change or remove."""

    action: str
    kind: str
    id: str
    name: str = ""
    fields: Mapping[str, Any] = {}


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """What speaks for or against one of the choices."""

    about: str
    says: str
    chosen: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation would do."""

    summary: str
    changes: tuple[Change, ...]
    because: tuple[Reason, ...]
    workflow: str | None
    undo: str
    price: str | None = None


class SignedIn(msgspec.Struct, frozen=True, kw_only=True):
    """A token that was made."""

    id: str
    token: str
    user_id: str
    project_id: str
    role: str | None
    expires_at: datetime | None


class BegunSignIn(msgspec.Struct, frozen=True, kw_only=True):
    """Signing in in a browser that has begun."""

    attempt: str
    url: str
    state: str


class OfferedProvider(msgspec.Struct, frozen=True, kw_only=True):
    """An identity provider by which one can sign in."""

    name: str
    kind: str


class OfferedProviders(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    items: list[OfferedProvider]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a collection; `next` is where the rest goes on."""

    items: list[Record]
    next: str | int | None


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong (RFC 9457), as the API says it."""

    type: str = ""
    title: str = ""
    status: int = 0
    detail: str = ""
    fields: Mapping[str, str] = {}
    because: Mapping[str, str] = {}
    request: str = ""

    @property
    def code(self) -> str:
        return self.type.rpartition("/")[2]


class BatchItem(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a request about many instances for one of them: a task, or a plan, or a problem."""

    id: str
    """Empty for one that was not created."""
    name: str
    task_id: str | None = None
    plan: Plan | None = None
    problem: Problem | None = None


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it for each, in the order of the request."""

    items: tuple[BatchItem, ...]
