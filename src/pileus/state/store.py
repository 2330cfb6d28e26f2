"""The port to what keeps the event log and the records on disk, and the shapes that cross it."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from pileus.kernel.errors import PileusError


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One change of one record."""

    sequence: int
    """Counts from 1 without gaps in the order of commits."""
    at: datetime
    actor: str
    """Who: `user:<id>`, `host:<id>`, `system`."""
    operation: str
    """What they asked for: the operation's id, or the step or reconciler that made the change."""
    request: str = ""
    """The id of the request, the same through API, task and agent."""
    source: str = ""
    """From where: the caller's address."""
    task: str = ""
    project: str = ""
    """Who may see it; empty for what belongs to the platform."""
    kind: str
    id: str
    revision: int
    version: int = 0
    """Of the record's kind, as `before` and `after` are written; 0 in logs of before it was noted."""
    before: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    """The record as it was, JSON; empty if there was none."""
    after: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    """The record as it is now, JSON; empty if it is deleted."""


class StoredRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record as it was kept."""

    kind: str
    id: str
    revision: int
    version: int
    body: bytes


REFUSAL = "refusal"
"""The kind of events that tell of no change, but of an attempt that was refused; what it was is in `before`."""


class Result(StrEnum):
    """What came of what somebody did or tried."""

    DONE = "done"
    REFUSED = "refused"
    ANY = "any"


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are wanted; what is empty does not restrict."""

    projects: frozenset[str] | None = None
    kind: str = ""
    without_kind: str = ""
    id: str = ""
    task: str = ""
    request: str = ""
    actor: str = ""
    operation: str = ""
    """With its steps."""
    noun: str = ""
    """Of the operation."""
    source: str = ""
    result: Result = Result.DONE
    since: datetime | None = None
    until: datetime | None = None


def matches(event: Event, where: EventFilter) -> bool:
    """Whether this event is wanted."""
    return (
        (where.projects is None or event.project in where.projects)
        and where.kind in ("", event.kind)
        and (not where.without_kind or event.kind != where.without_kind)
        and where.id in ("", event.id)
        and where.task in ("", event.task)
        and where.request in ("", event.request)
        and where.actor in ("", event.actor)
        and where.operation in ("", event.operation, event.operation.partition(":")[0])
        and where.noun in ("", event.operation.partition(".")[0])
        and where.source in ("", event.source)
        and (where.result is Result.ANY or (event.kind == REFUSAL) == (where.result is Result.REFUSED))
        and (where.since is None or event.at >= where.since)
        and (where.until is None or event.at < where.until)
    )


class Deposed(PileusError):
    """Somebody else leads now: this process must not write any more, and stops."""

    code, title = "deposed", "This controller no longer leads"


class Store(Protocol):
    """Keeps events and records. One process writes at a time. Raises Unavailable if the database does not answer.

    What `append` has returned from survives the loss of power.
    """

    async def open(self) -> None:
        """Be ready: make or upgrade the tables, and take the lead (a new epoch, greater than every one before)."""
        ...

    @property
    def epoch(self) -> int: ...

    async def last_sequence(self) -> int: ...

    def load(self) -> AsyncIterator[Sequence[StoredRecord]]:
        """All records, in batches."""
        ...

    async def append(self, events: Sequence[Event]) -> None:
        """Keep these, all or none, in one database transaction: add the events, and put or delete each one's record.

        Raises:
            Deposed: another epoch has begun, checked in the same transaction.
        """
        ...

    async def events(self, after: int, limit: int, where: EventFilter) -> list[Event]:
        """The first `limit` events behind this sequence number, oldest first."""
        ...

    async def latest(self, before: int, limit: int, where: EventFilter) -> list[Event]:
        """The last `limit` events before this sequence number, newest first."""
        ...

    async def history(self, kind: str, id: str) -> list[Event]:
        """Every event of one record that is still kept, oldest first."""
        ...

    async def sequence_at(self, moment: datetime) -> int:
        """The last event that was not later than this; 0 if none is kept."""
        ...

    async def first_changes(self, after: int, upto: int, where: EventFilter) -> list[Event]:
        """Of each record the first event behind one sequence number and not behind the other, oldest first."""
        ...

    async def last_change(self, kind: str, id: str, upto: int) -> Event | None:
        """The newest event of a record that is kept, up to this sequence number."""
        ...

    async def trim(self, before: datetime) -> int:
        """Forget events older than this; says how many. Records stay."""
        ...

    async def first_sequence(self) -> int:
        """The oldest event that is still kept; 0 if there is none."""
        ...

    async def backup(self, to: Path) -> None:
        """Write a consistent copy to this file while the store is in use."""
        ...

    async def close(self) -> None:
        """Give back the lead and let go."""
        ...
