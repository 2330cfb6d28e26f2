"""How events and records become rows: the same columns in every store."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from pileus.kernel.errors import PileusError
from pileus.state.store import Entry, Event, EventFilter

EVENT_COLUMNS = (
    "sequence",
    "at",
    "actor",
    "operation",
    "request",
    "source",
    "task",
    "project",
    "kind",
    "id",
    "revision",
    "before",
    "after",
)
RECORD_COLUMNS = ("kind", "id", "revision", "version", "body")

EventRow = tuple[int, int, str, str, str, str, str, str, str, str, int, bytes, bytes]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Damaged(PileusError):
    """What was kept cannot be read as it was written; only a backup helps."""

    code, title = "damaged", "The stored state is damaged"


def microseconds(at: datetime) -> int:
    """A moment as microseconds since 1970: an integer sorts and compares the same in every database."""
    return (at - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def event_from(row: EventRow) -> Event:
    sequence, at, actor, operation, request, source, task, project, kind, id, revision, before, after = row
    return Event(
        sequence=sequence,
        at=moment(at),
        actor=actor,
        operation=operation,
        request=request,
        source=source,
        task=task,
        project=project,
        kind=kind,
        id=id,
        revision=revision,
        before=msgspec.Raw(before),
        after=msgspec.Raw(after),
    )


def check_order(entries: Sequence[Entry]) -> None:
    """Refuse a batch whose sequence numbers have a gap: that is a bug of the caller, not a state of the cloud."""
    first = entries[0].event.sequence
    for expected, entry in enumerate(entries, first):
        if entry.event.sequence != expected:
            raise ValueError(f"event {entry.event.sequence} stands where {expected} belongs")


def final_entries(entries: Sequence[Entry]) -> list[Entry]:
    """The last entry of each record: what the records' table has to know of a batch."""
    return list({(entry.event.kind, entry.event.id): entry for entry in entries}.values())


def wanted(after: int, where: EventFilter, argument: Callable[[int | str], str]) -> str:
    """The condition of a query for events; `argument` takes a value and returns the placeholder for it.

    A time restricts the sequence numbers too, found from the narrow index of times alone: without that, a page from the
    end of a long log would read the whole log. The `+` keeps the planner from taking that index and sorting instead.
    """
    conditions = [f"sequence > {argument(after)}"]
    if where.projects is not None:
        projects = ", ".join(argument(each) for each in sorted(where.projects))
        conditions.append(f"project IN ({projects})" if projects else "false")
    exact = {"kind": where.kind, "id": where.id, "task": where.task, "actor": where.actor}
    conditions += [f"{column} = {argument(value)}" for column, value in exact.items() if value]
    if where.since:
        since = microseconds(where.since)
        first = f"(SELECT min(sequence) FROM events WHERE at >= {argument(since)})"  # noqa: S608 - a placeholder
        conditions += [f"sequence >= {first}", f"+at >= {argument(since)}"]
    if where.until:
        until = microseconds(where.until)
        last = f"(SELECT max(sequence) FROM events WHERE at < {argument(until)})"  # noqa: S608 - a placeholder
        conditions += [f"sequence <= {last}", f"+at < {argument(until)}"]
    return " AND ".join(conditions)
