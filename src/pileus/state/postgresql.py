"""The store in PostgreSQL, for a cloud whose controllers stand in for each other.

Who leads is one row, `lead`: the epoch, until when by the database's own clock, and the server process (backend) of
the leader's connection. Every batch is one statement, thus one transaction and one round trip, and begins by updating
that row on three conditions: epoch and backend are still the leader's, and the log ends where the batch begins. So

* a deposed leader cannot write: whoever takes over changes the epoch, and the row's lock puts the two in order;
* when a connection breaks, the new one first makes its own backend the only one that may write. What was in flight on
  the old one has arrived by then or never will, and the row says which.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import asyncpg  # type: ignore[import-untyped]
import structlog

from pileus.kernel.errors import Conflict, Unavailable
from pileus.state.postgresqlbackup import copy
from pileus.state.postgresqldatabase import (
    LOST,
    SCHEMA,
    TABLES_LOCK,
    Connection,
    Pool,
    batches,
    connected,
    plain_errors,
    pool_of,
    upgrade,
    version_of,
)
from pileus.state.rows import (
    EVENT_COLUMNS,
    LAST_BY,
    RECORD_COLUMNS,
    EventRow,
    check_order,
    event_from,
    final_events,
    microseconds,
    one_of_each,
    row_of,
    span,
    wanted,
)
from pileus.state.schema import POSTGRESQL, check_version
from pileus.state.store import Deposed, Event, EventFilter, StoredRecord

_log = structlog.stdlib.get_logger()

_TRIM_AT_ONCE = 2000

_EVENT_TYPES = ("bigint", "bigint", *["text"] * 8, "bigint", "integer", "bytea", "bytea")
_RECORD_TYPES = ("text", "text", "bigint", "integer", "bytea")


def _arrays(first: int, types: Sequence[str]) -> str:
    return ", ".join(f"${number}::{type}[]" for number, type in enumerate(types, first))


_APPEND = f"""
WITH mine AS (
    UPDATE lead SET last_sequence = $3, lease_until = clock_timestamp() + $4 * interval '1 second'
    WHERE epoch = $1 AND backend = pg_backend_pid() AND last_sequence = $2 - 1
    RETURNING 1
), logged AS (
    INSERT INTO events ({", ".join(EVENT_COLUMNS)})
    SELECT new.* FROM mine, unnest({_arrays(5, _EVENT_TYPES)}) AS new
), kept AS (
    INSERT INTO records ({", ".join(RECORD_COLUMNS)})
    SELECT new.* FROM mine, unnest({_arrays(19, _RECORD_TYPES)}) AS new
    ON CONFLICT (kind, id) DO UPDATE
    SET revision = excluded.revision, version = excluded.version, body = excluded.body
), gone AS (
    DELETE FROM records USING mine, unnest({_arrays(24, ["text", "text"])}) AS old (kind, id)
    WHERE records.kind = old.kind AND records.id = old.id
)
SELECT count(*) FROM mine
"""  # noqa: S608 - our own columns

_LEAD = """
UPDATE lead SET epoch = greatest(epoch + 1, (1000 * extract(epoch FROM clock_timestamp()))::bigint), holder = $1,
    backend = pg_backend_pid(), lease_until = clock_timestamp() + $2 * interval '1 second'
WHERE lease_until < clock_timestamp() RETURNING epoch, last_sequence
"""

_RENEW = "UPDATE lead SET lease_until = clock_timestamp() + $2 * interval '1 second' WHERE epoch = $1"
_GIVE_BACK = "UPDATE lead SET lease_until = '-infinity' WHERE epoch = $1 AND backend = pg_backend_pid()"
_CONTINUE = "UPDATE lead SET backend = pg_backend_pid() WHERE epoch = $1 RETURNING last_sequence"


class PostgresqlStore:
    """Keeps events and records in the schema `pileus` of a database; one controller leads at a time.

    Args:
        address: as libpq writes it, `postgresql://user@host/database`; of several hosts, the one that takes writes.
        lease_s: how long the lead outlives the last sign of the leader, in seconds.
        wait_s: how long `open` waits for another leader to give up or fall silent; a standby waits for ever.
        patience_s: how long an append waits for a database that does not answer before it gives up.
    """

    def __init__(self, address: str, *, lease_s: float = 10.0, wait_s: float = 30.0, patience_s: float = 30.0) -> None:
        self._address = address
        self._lease_s = lease_s
        self._wait_s = wait_s
        self._patience_s = patience_s
        self._epoch = 0
        self._last = 0
        self._in_doubt = False
        self._turn = asyncio.Lock()
        self._writer: Connection | None = None
        self._readers: Pool | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Be ready, and take the lead once nobody else has it.

        Raises:
            Conflict: somebody else still leads after `wait_s`; or a newer Pileus wrote the tables.
            Unavailable: the database does not answer.
        """
        with plain_errors():
            connection = await connected(self._address)
            try:
                await self._take_lead(connection)
                readers = await pool_of(self._address)
            except BaseException:
                connection.terminate()
                raise
        self._writer, self._readers = connection, readers
        self._renewal = asyncio.create_task(self._renew(), name="store lease")

    @property
    def epoch(self) -> int:
        return self._epoch

    async def last_sequence(self) -> int:
        async with self._reader() as on:
            return await on.fetchval("SELECT last_sequence FROM lead")

    async def load(self) -> AsyncIterator[Sequence[StoredRecord]]:
        """All records, in batches."""
        async with self._reader() as on, on.transaction(isolation="repeatable_read", readonly=True):
            async for rows in batches(on, "records", RECORD_COLUMNS, "kind, id"):
                yield [
                    StoredRecord(kind=kind, id=id, revision=revision, version=version, body=body)
                    for kind, id, revision, version, body in rows
                ]

    async def append(self, events: Sequence[Event]) -> None:
        """Keep these, all or none; through a change of connection if need be.

        Raises:
            Deposed: another epoch has begun, or the log does not end where these events begin, or nobody knows where
                it ends, because an append before this one failed.
            Unavailable: the database did not answer for `patience_s`, or has no room left.
        """
        if not events:
            return
        check_order(events)
        first, last = events[0].sequence, events[-1].sequence
        arguments = (first, last, self._lease_s, *_columns(events))
        async with self._turn:
            if self._readers is None:
                raise Unavailable("the store is closed")
            if self._in_doubt or first != self._last + 1:
                raise Deposed("the log went on without this process", internal=f"after {self._last} comes {first}")
            self._in_doubt = True
            with plain_errors():
                async with asyncio.timeout(self._patience_s):
                    await self._append(first, last, arguments)
            self._in_doubt = False

    async def events(self, after: int, limit: int, where: EventFilter) -> list[Event]:
        """The first `limit` events behind this sequence number, oldest first."""
        return await self._page(after, sys.maxsize, limit, where)

    async def latest(self, before: int, limit: int, where: EventFilter) -> list[Event]:
        """The last `limit` events before this sequence number, newest first."""
        return await self._page(0, before - 1, limit, where, order="DESC")

    async def _page(self, after: int, upto: int, limit: int, where: EventFilter, *, order: str = "ASC") -> list[Event]:
        arguments: list[int | str] = []

        def argument(value: int | str) -> str:
            arguments.append(value)
            return f"${len(arguments)}"

        async def ask(query: str, value: int) -> int | None:
            async with self._reader() as on:
                return await on.fetchval(query.format("$1"), value)

        first, last = await span(after, where, ask)
        condition = wanted((first, min(last, upto)), where, argument)
        return await self._events(f"{condition} ORDER BY sequence {order} LIMIT {limit:d}", arguments)

    async def history(self, kind: str, id: str) -> list[Event]:
        """Every event of one record that is still kept, oldest first."""
        return await self.events(0, sys.maxsize, EventFilter(kind=kind, id=id))

    async def sequence_at(self, moment: datetime) -> int:
        """The last event that was not later than this; 0 if none is kept."""
        async with self._reader() as on:
            return await on.fetchval(LAST_BY.format("$1"), microseconds(moment)) or 0

    async def first_changes(self, after: int, upto: int, where: EventFilter) -> list[Event]:
        """Of each record the first event behind one sequence number and not behind the other, oldest first."""
        return await self._one_of_each("min", (after, upto), where)

    async def last_change(self, kind: str, id: str, upto: int) -> Event | None:
        """The newest event of a record that is kept, up to this sequence number."""
        found = await self._one_of_each("max", (0, upto), EventFilter(kind=kind, id=id))
        return found[0] if found else None

    async def trim(self, before: datetime) -> int:
        """Forget events older than this; says how many. In slices, and so that what stays has no gap."""
        count = 0
        async with self._reader() as on:
            edge = await on.fetchval("SELECT min(sequence) FROM events WHERE at >= $1", microseconds(before))
            edge = edge or await on.fetchval("SELECT last_sequence + 1 FROM lead")
            while True:
                first = await on.fetchval("SELECT min(sequence) FROM events")
                if first is None or first >= edge:
                    return count
                removed = await on.execute(
                    "DELETE FROM events WHERE sequence < $1 AND EXISTS (SELECT FROM lead WHERE epoch = $2)",
                    min(edge, first + _TRIM_AT_ONCE),
                    self._epoch,
                )
                if removed == "DELETE 0":
                    raise Deposed("another controller leads now")
                count += int(removed.removeprefix("DELETE "))

    async def first_sequence(self) -> int:
        async with self._reader() as on:
            return await on.fetchval("SELECT coalesce(min(sequence), 0) FROM events")

    async def backup(self, to: Path) -> None:
        """Write a consistent copy to this file, which must not exist yet; any store can be restored from it."""
        async with self._reader() as on:
            await copy(on, to)

    async def close(self) -> None:
        """Give back the lead and let go."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        async with self._turn:
            if self._writer is not None:
                try:
                    async with asyncio.timeout(5):
                        await self._writer.execute(_GIVE_BACK, self._epoch)
                        await self._writer.close()
                except (*LOST, asyncpg.InterfaceError):
                    self._writer.terminate()
        if self._readers is not None:
            self._readers.terminate()
        self._renewal = self._writer = self._readers = None

    async def _take_lead(self, connection: Connection) -> None:
        async def attempt() -> str:
            """Who is in the way; empty if nobody was."""
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", TABLES_LOCK)
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                if not await version_of(connection):
                    await upgrade(connection)
                check_version(await version_of(connection), len(POSTGRESQL))
                if won := await connection.fetchrow(_LEAD, f"{socket.gethostname()}:{os.getpid()}", self._lease_s):
                    # Only now: an older leader must not find the tables changed under it.
                    await upgrade(connection)
                    self._epoch, self._last = won
                    return ""
                return await connection.fetchval("SELECT holder FROM lead")

        deadline = asyncio.get_running_loop().time() + self._wait_s
        while holder := await attempt():
            if asyncio.get_running_loop().time() >= deadline:
                raise Conflict(f"{holder} leads this cloud")
            await asyncio.sleep(min(0.5, self._lease_s / 4))

    async def _append(self, first: int, last: int, arguments: Sequence[object]) -> None:
        while self._last != last:
            try:
                on = await self._writing(may_have_arrived=last)
                if self._last != last:
                    if not await on.fetchval(_APPEND, self._epoch, *arguments):
                        raise Deposed("another controller leads now", internal=f"epoch {self._epoch}, from {first}")
                    self._last = last
            except LOST as lost:
                self._disconnect(lost)
                await asyncio.sleep(0.1)

    def _disconnect(self, why: BaseException) -> None:
        _log.warning("connection to the database lost", error=repr(why))
        if self._writer is not None:
            self._writer.terminate()

    async def _writing(self, *, may_have_arrived: int) -> Connection:
        """The leader's connection; a new one if the last was lost, after learning how far the old one got."""
        if self._writer is not None and not self._writer.is_closed():
            return self._writer
        connection = await connected(self._address)
        try:
            # Waits for the row's lock, thus for whatever the old connection still had in flight.
            found = await connection.fetchval(_CONTINUE, self._epoch)
            if found is None:
                raise Deposed("another controller leads now", internal=f"epoch {self._epoch} is over")
            if found not in (self._last, may_have_arrived):
                raise Deposed("the database lost events", internal=f"it ends at {found}, {self._last} was acknowledged")
        except BaseException:
            connection.terminate()
            raise
        self._writer, self._last = connection, found
        return connection

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            async with self._turn:
                try:
                    async with asyncio.timeout(self._lease_s):
                        on = await self._writing(may_have_arrived=self._last)
                        await on.execute(_RENEW, self._epoch, self._lease_s)
                except LOST as lost:
                    self._disconnect(lost)
                except Deposed as over:
                    _log.warning("lead lost", reason=over.internal)
                    return

    async def _one_of_each(self, pick: str, between: tuple[int, int], where: EventFilter) -> list[Event]:
        arguments: list[int | str] = []

        def argument(value: int | str) -> str:
            arguments.append(value)
            return f"${len(arguments)}"

        condition = one_of_each(pick, wanted(between, where, argument))
        return await self._events(f"{condition} ORDER BY sequence", arguments)

    async def _events(self, condition: str, arguments: Sequence[int | str]) -> list[Event]:
        query = f"SELECT {', '.join(EVENT_COLUMNS)} FROM events WHERE {condition}"  # noqa: S608 - our own columns
        async with self._reader() as on:
            return [event_from(cast("EventRow", tuple(row))) for row in await on.fetch(query, *arguments)]

    @asynccontextmanager
    async def _reader(self) -> AsyncGenerator[Connection]:
        if self._readers is None:
            raise Unavailable("the store is closed")
        with plain_errors():
            async with self._readers.acquire(timeout=10) as connection:
                yield connection


def _columns(events: Sequence[Event]) -> list[list[Any]]:
    """A batch for the statement: a list for each column of the events, of the records put, of those deleted."""
    rows = list(map(row_of, events))
    kept: list[tuple[Any, ...]] = []
    gone: list[tuple[str, str]] = []
    for event in final_events(events):
        if body := bytes(event.after):
            kept.append((event.kind, event.id, event.revision, event.version, body))
        else:
            gone.append((event.kind, event.id))
    return [*_turned(rows, 14), *_turned(kept, 5), *_turned(gone, 2)]


def _turned(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]
