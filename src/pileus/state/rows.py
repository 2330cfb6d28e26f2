"""How events and records become rows: the same columns in every store."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from pileus.kernel.errors import PileusError
from pileus.state.store import REFUSAL, Event, EventFilter, Result

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
    "version",
    "before",
    "after",
)
RECORD_COLUMNS = ("kind", "id", "revision", "version", "body")

EventRow = tuple[int, int, str, str, str, str, str, str, str, str, int, int, bytes, bytes]

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
    sequence, at, actor, operation, request, source, task, project, kind, id, revision, version, before, after = row
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
        version=version,
        before=msgspec.Raw(before),
        after=msgspec.Raw(after),
    )


def row_of(event: Event) -> EventRow:
    """The row of an event."""
    return (
        event.sequence,
        microseconds(event.at),
        event.actor,
        event.operation,
        event.request,
        event.source,
        event.task,
        event.project,
        event.kind,
        event.id,
        event.revision,
        event.version,
        bytes(event.before),
        bytes(event.after),
    )


def check_order(events: Sequence[Event]) -> None:
    """Refuse a batch whose sequence numbers have a gap: that is a bug of the caller, not a state of the cloud."""
    for expected, event in enumerate(events, events[0].sequence):
        if event.sequence != expected:
            raise ValueError(f"event {event.sequence} stands where {expected} belongs")


def final_events(events: Sequence[Event]) -> list[Event]:
    """The last event of each record: what the records' table has to know of a batch."""
    return list({(event.kind, event.id): event for event in events}.values())


_EARLIEST = "SELECT min(+sequence) FROM events WHERE at >= {}"
_LATEST = "SELECT max(+sequence) FROM events WHERE at < {}"
_END = 2**63 - 1

LAST_BY = "SELECT sequence FROM events WHERE at <= {} ORDER BY at DESC, sequence DESC LIMIT 1"
"""The last event that was not later than a moment; by the index of times, however long the log is."""


async def span(after: int, where: EventFilter, ask: Callable[[str, int], Awaitable[int | None]]) -> tuple[int, int]:
    """Between which sequence numbers (above the first, up to the second) the times of a filter lie.

    Found from the narrow index of times alone, to which the `+` leads the planner: a page from the end of a long log
    must not read the whole log. `ask` puts its own placeholder into a query and returns the number found.
    """
    last = _END
    if where.since:
        after = max(after, (await ask(_EARLIEST, microseconds(where.since)) or _END) - 1)
    if where.until:
        last = await ask(_LATEST, microseconds(where.until)) or 0
    return after, last


def wanted(span: tuple[int, int], where: EventFilter, argument: Callable[[int | str], str]) -> str:
    """The condition of a query for events; `argument` takes a value and returns the placeholder for it.

    Only the narrowest condition may lead to an index: SQLite keeps no statistics, and would as soon read all events of
    a kind as the ten of an id. The `coalesce` and the `+` hide the others from it.
    """
    after, last = span
    conditions = [f"sequence > {argument(after)}", f"sequence <= {argument(last)}"]
    narrow: list[tuple[str, str]] = [
        (column, f"= {argument(value)}") for column, value in (("id", where.id), ("task", where.task)) if value
    ]
    if where.projects:
        narrow.append(("project", f"IN ({', '.join(argument(each) for each in sorted(where.projects))})"))
    elif where.projects is not None:
        conditions.append("false")
    if where.kind:
        narrow.append(("kind", f"= {argument(where.kind)}"))
    if where.result is Result.REFUSED:
        narrow.append(("kind", f"= {argument(REFUSAL)}"))
    conditions += [f"{column} {test}" for column, test in narrow[:1]]
    conditions += [f"coalesce({column}, '') {test}" for column, test in narrow[1:]]
    if where.task:
        conditions.append("task <> ''")  # the condition of the index, which a planner does not see in an argument
    conditions += _without_index(where, argument)
    return " AND ".join(conditions)


def _without_index(where: EventFilter, argument: Callable[[int | str], str]) -> Iterator[str]:
    """The conditions that no index helps with: they are looked at event by event."""
    if where.without_kind:
        yield f"coalesce(kind, '') <> {argument(where.without_kind)}"
    if where.request:
        yield f"request = {argument(where.request)}"
    if where.actor:
        yield f"actor = {argument(where.actor)}"
    if where.operation:
        itself, steps = where.operation, f"{where.operation}:"
        # Arguments stand in the order in which they are taken.
        begins = f"operation = {argument(itself)} OR substr(operation, 1, {argument(len(steps))}) = {argument(steps)}"
        yield f"({begins})"
    if where.noun:
        yield f"substr(operation, 1, {argument(len(where.noun) + 1)}) = {argument(f'{where.noun}.')}"
    if where.source:
        yield f"source = {argument(where.source)}"
    if where.result is Result.DONE:
        yield f"coalesce(kind, '') <> {argument(REFUSAL)}"
    if where.since:
        yield f"+at >= {argument(microseconds(where.since))}"
    if where.until:
        yield f"+at < {argument(microseconds(where.until))}"


def one_of_each(pick: str, condition: str) -> str:
    """The condition for one event of each record among those wanted: the first (`min`) or the last (`max`)."""
    return f"sequence IN (SELECT {pick}(sequence) FROM events WHERE {condition} GROUP BY kind, id)"  # noqa: S608 - our own
