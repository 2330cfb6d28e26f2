"""What records were at a moment of the past, by the event log.

Nothing is replayed. Records of a kind are today's, with those that changed since put back to what their first change
since then says that they were before. One record takes one look by the log's index of ids. Kinds that do not keep what
was before (tasks) take the last change up to the moment instead.
"""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from pileus.kernel.clock import Clock
from pileus.kernel.errors import Invalid
from pileus.state.kinds import Kind, Unreadable
from pileus.state.records import Record
from pileus.state.state import State
from pileus.state.store import Event, EventFilter, StoredRecord
from pileus.state.tables import Table

R = TypeVar("R", bound=Record)

_FOLDS = 2
"""Lists of the past that are made at a time; more would hold up everybody who reads the log."""
_AT_ONCE = 2000
"""Events looked at in one go, so that others get their turn between."""
_MOST = 200_000
"""Records changed since the moment, at most: what a list holds in memory besides today's."""


class History:
    """The way into the past of a state. One for a controller."""

    def __init__(self, state: State, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._folds = asyncio.Semaphore(_FOLDS)

    async def at(self, moment: datetime) -> "Past":
        """The past as of this moment.

        Raises:
            Invalid: it lies ahead, or before the oldest event that is kept.
        """
        if moment > self._clock.now():
            raise _wrong("lies in the future")
        await self._state.durable()
        oldest = await self._state.store.events(0, 1, EventFilter())
        if not oldest:
            raise _wrong("the event log is empty: it keeps no past to look at")
        if moment < oldest[0].at:
            raise _wrong(f"the event log goes back to {_said(oldest[0].at)}, and no further")
        return Past(self._state, await self._state.store.sequence_at(moment), moment, self._folds)


class Past:
    """The records as of one moment; all that is asked of it is of that moment."""

    def __init__(self, state: State, sequence: int, moment: datetime, folds: asyncio.Semaphore) -> None:
        self._state = state
        self._sequence = sequence
        """The last event that had happened."""
        self._moment = moment
        self._folds = folds

    async def find(self, kind: Kind[R], id: str) -> R | None:
        """The record as it was; None if there was none."""
        now = self._state[kind].find(id)
        newest = self._state.sequence
        # What changes from here on is not in the log yet, and not in `now` either.
        await self._state.durable()
        store = self._state.store
        changed = await store.first_changes(self._sequence, newest, EventFilter(kind=kind.name, id=id))
        return await self._before(kind, changed[0]) if changed else now

    async def table(self, kind: Kind[R], project: str | None = None, index: str = "") -> Table[R]:
        """The records of a kind as they were.

        Args:
            kind: of the records.
            project: only those of this project; None is all.
            index: the one of the kind by which a project's records are found.

        Raises:
            Invalid: more changed since then than is put back for a list.
        """
        async with self._folds:
            return await self._table(kind, project, index)

    async def _table(self, kind: Kind[R], project: str | None, index: str) -> Table[R]:
        today = self._state[kind]
        records = {each.id: each for each in (today if project is None else today.by(index, project))}
        newest = self._state.sequence
        await self._state.durable()
        where = EventFilter(kind=kind.name, projects=None if project is None else frozenset({project}))
        put_back: set[str] = set()
        for after in range(self._sequence, newest, _AT_ONCE):
            for event in await self._state.store.first_changes(after, min(after + _AT_ONCE, newest), where):
                if event.id in put_back:
                    continue
                put_back.add(event.id)
                if (was := await self._before(kind, event)) is None:
                    records.pop(event.id, None)
                else:
                    records[event.id] = was
            if len(put_back) > _MOST:
                raise _wrong(
                    f"more than {_MOST} of these have changed since {_said(self._moment)}: "
                    "show a single one, or ask for a later moment"
                )
        return await _table_of(kind, records.values())

    async def _before(self, kind: Kind[R], event: Event) -> R | None:
        """What a record was before its first change since the moment."""
        if event.revision == 1:
            return None
        if kind.keeps_before:
            return read_before(kind, event)
        # The one that made it so may have been forgotten by now, and the record with it.
        last = await self._state.store.last_change(kind.name, event.id, self._sequence)
        return read_after(kind, last) if last is not None and bytes(last.after) else None


async def _table_of(kind: Kind[R], records: Iterable[R]) -> Table[R]:
    table = Table(kind)
    for place, record in enumerate(sorted(records, key=lambda each: each.id), 1):
        table.write(record.id, record)
        if place % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return table


def read_before(kind: Kind[R], event: Event) -> R:
    """The record before a change that tells of it, as today's type. Raises Unreadable."""
    return _read(kind, event, event.before)


def read_after(kind: Kind[R], event: Event) -> R:
    """The record that a change made, as today's type. Raises Unreadable."""
    return _read(kind, event, event.after)


def _read(kind: Kind[R], event: Event, body: msgspec.Raw) -> R:
    """A record out of an event, as today's type. Raises Unreadable."""
    newest = kind.version
    failed: Unreadable | None = None
    # Events of before the version was noted: the newest version that fits is the one that it was written as.
    for version in (event.version,) if event.version else range(newest, 0, -1):
        stored = StoredRecord(kind=kind.name, id=event.id, revision=event.revision, version=version, body=bytes(body))
        try:
            return kind.read(stored)
        except Unreadable as unreadable:
            failed = unreadable
    raise failed or Unreadable(f"{kind.name} {event.id} cannot be read")


def moment_of(text: str) -> datetime | None:
    """A moment as callers write it, with its offset from UTC (RFC 3339); None for anything else."""
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _said(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _wrong(why: str) -> Invalid:
    return Invalid(f"this moment cannot be shown: {why}", fields={"at": why})
