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
import sqlite3
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast

import asyncpg  # type: ignore[import-untyped]
import structlog

from pileus.kernel.errors import Conflict, NotFound, Unavailable
from pileus.state.backup import opened, written
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
from pileus.state.schema import POSTGRESQL, check_version, upgrade_sqlite
from pileus.state.store import Deposed, Event, EventFilter, StoredRecord

_untyped: Any = asyncpg  # it declares no types; what we use of it is said by the protocols below
_log = structlog.stdlib.get_logger()

_BATCH = 1000
_TRIM_AT_ONCE = 2000
_SCHEMA = "pileus"
# Serialises the making of the tables; any number that nobody else in this database takes.
_TABLES_LOCK = 0x50494C45

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

# What a lost connection or server looks like, as opposed to a statement that is wrong.
_LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TooManyConnectionsError,
    # Of a query begun between the server's farewell and the end of the connection.
    asyncpg.InternalClientError,
)


class _Cursor(Protocol):
    async def fetch(self, n: int) -> list[tuple[Any, ...]]: ...


class _Connection(Protocol):
    async def execute(self, query: str, *arguments: object) -> str: ...
    async def fetch(self, query: str, *arguments: object) -> list[tuple[Any, ...]]: ...
    async def fetchrow(self, query: str, *arguments: object) -> tuple[Any, ...] | None: ...
    async def fetchval(self, query: str, *arguments: object) -> Any: ...  # noqa: ANN401 - the query says which type
    async def cursor(self, query: str) -> _Cursor: ...
    async def copy_records_to_table(
        self, table: str, *, records: Iterable[Sequence[Any]], columns: Sequence[str]
    ) -> str: ...
    def transaction(self, *, isolation: str = ..., readonly: bool = ...) -> AbstractAsyncContextManager[None]: ...
    def is_closed(self) -> bool: ...
    def terminate(self) -> None: ...
    async def close(self) -> None: ...


class _Pool(Protocol):
    def acquire(self, *, timeout: float) -> AbstractAsyncContextManager[_Connection]: ...
    async def close(self) -> None: ...
    def terminate(self) -> None: ...


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
        self._writer: _Connection | None = None
        self._readers: _Pool | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Be ready, and take the lead once nobody else has it.

        Raises:
            Conflict: somebody else still leads after `wait_s`; or a newer Pileus wrote the tables.
            Unavailable: the database does not answer.
        """
        with _plain_errors():
            connection = await _connected(self._address)
            try:
                await self._take_lead(connection)
                readers = await _untyped.create_pool(self._address, min_size=1, max_size=4, **_SESSION)
            except BaseException:
                connection.terminate()
                raise
        self._writer, self._readers = connection, cast("_Pool", readers)
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
            async for rows in _batches(on, "records", RECORD_COLUMNS, "kind, id"):
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
            with _plain_errors():
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
            await _copy(on, to)

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
                except (*_LOST, asyncpg.InterfaceError):
                    self._writer.terminate()
        if self._readers is not None:
            self._readers.terminate()
        self._renewal = self._writer = self._readers = None

    async def _take_lead(self, connection: _Connection) -> None:
        async def attempt() -> str:
            """Who is in the way; empty if nobody was."""
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _TABLES_LOCK)
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
                if not await _version(connection):
                    await _upgrade(connection)
                check_version(await _version(connection), len(POSTGRESQL))
                if won := await connection.fetchrow(_LEAD, f"{socket.gethostname()}:{os.getpid()}", self._lease_s):
                    # Only now: an older leader must not find the tables changed under it.
                    await _upgrade(connection)
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
            except _LOST as lost:
                self._disconnect(lost)
                await asyncio.sleep(0.1)

    def _disconnect(self, why: BaseException) -> None:
        _log.warning("connection to the database lost", error=repr(why))
        if self._writer is not None:
            self._writer.terminate()

    async def _writing(self, *, may_have_arrived: int) -> _Connection:
        """The leader's connection; a new one if the last was lost, after learning how far the old one got."""
        if self._writer is not None and not self._writer.is_closed():
            return self._writer
        connection = await _connected(self._address)
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
                except _LOST as lost:
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
    async def _reader(self) -> AsyncGenerator[_Connection]:
        if self._readers is None:
            raise Unavailable("the store is closed")
        with _plain_errors():
            async with self._readers.acquire(timeout=10) as connection:
                yield connection


async def back_up(address: str, to: Path) -> None:
    """Write a consistent copy of a database to this file, which must not exist yet, whoever leads there meanwhile.

    Raises:
        Conflict: there is a file already.
        NotFound: there is no state of ours in this database.
        Unavailable: the database does not answer.
    """
    with _plain_errors():
        on = await _connected(address)
        try:
            if not await _version(on):
                raise NotFound("there is no state of Pileus in this database")
            await _copy(on, to)
        finally:
            on.terminate()


async def restore(backup: Path, address: str) -> None:
    """Put a backup of any store into a database; what was there is kept as the schema `pileus_replaced_<time>`.

    Raises:
        NotFound: there is no such backup.
        Damaged: the backup is not whole; nothing was changed.
        Conflict: a controller leads there.
        Unavailable: the database does not answer.
    """
    with _plain_errors():
        on = await _connected(address)
        try:
            async with _in_thread(opened(backup)) as file, on.transaction():
                await on.execute("SELECT pg_advisory_xact_lock($1)", _TABLES_LOCK)
                if await _version(on):
                    # Locks the row: a leader cannot come up meanwhile.
                    query = "SELECT holder FROM lead WHERE lease_until > clock_timestamp() FOR UPDATE"
                    if holder := await on.fetchval(query):
                        raise Conflict(f"{holder} leads this cloud")
                    kept_as = f"{_SCHEMA}_replaced_{datetime.now(UTC):%Y%m%d%H%M%S}"
                    await on.execute(f"ALTER SCHEMA {_SCHEMA} RENAME TO {kept_as}")
                await on.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
                await _upgrade(on)
                lead = file.execute("SELECT epoch, last_sequence FROM lead").fetchone()
                await on.execute("UPDATE lead SET epoch = $1, last_sequence = $2", *lead)
                for table, columns in (("events", EVENT_COLUMNS), ("records", RECORD_COLUMNS)):
                    cursor = file.execute(f"SELECT {', '.join(columns)} FROM {table}")  # noqa: S608 - our own columns
                    while rows := await asyncio.to_thread(cursor.fetchmany, _BATCH):
                        await on.copy_records_to_table(table, records=rows, columns=columns)
        finally:
            on.terminate()


# `on` whatever the server's default: what was acknowledged must be on disk.
_SESSION: dict[str, Any] = {
    "server_settings": {"search_path": _SCHEMA, "synchronous_commit": "on", "application_name": "pileus"},
    "timeout": 10,
    "target_session_attrs": "read-write",
}


async def _connected(address: str) -> _Connection:
    return cast("_Connection", await _untyped.connect(address, **_SESSION))


async def _version(on: _Connection) -> int:
    """Which version the tables have; 0 if there are none."""
    if await on.fetchval("SELECT to_regclass('lead') IS NULL"):
        return 0
    return await on.fetchval("SELECT version FROM lead")


async def _upgrade(on: _Connection, steps: Sequence[str] = POSTGRESQL) -> None:
    for step in steps[await _version(on) :]:
        await on.execute(step)
    await on.execute("UPDATE lead SET version = $1", len(steps))


async def _copy(on: _Connection, to: Path) -> None:
    async with on.transaction(isolation="repeatable_read", readonly=True), _in_thread(written(to)) as file:
        await asyncio.to_thread(upgrade_sqlite, file)
        lead = await on.fetchrow("SELECT epoch, last_sequence FROM lead")
        await asyncio.to_thread(file.execute, "UPDATE lead SET epoch = ?, last_sequence = ?", tuple(lead or ()))
        for table, columns, order in (("events", EVENT_COLUMNS, "sequence"), ("records", RECORD_COLUMNS, "kind, id")):
            async for rows in _batches(on, table, columns, order):
                await asyncio.to_thread(_insert, file, table, columns, rows)


async def _batches(
    on: _Connection, table: str, columns: Sequence[str], order: str
) -> AsyncGenerator[list[tuple[Any, ...]]]:
    cursor = await on.cursor(f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}")  # noqa: S608 - our own tables
    while rows := await cursor.fetch(_BATCH):
        yield rows


def _insert(file: sqlite3.Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    file.execute("BEGIN")
    places = ", ".join("?" * len(columns))
    file.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", map(tuple, rows))  # noqa: S608
    file.execute("COMMIT")


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


@asynccontextmanager
async def _in_thread(blocking: AbstractContextManager[sqlite3.Connection]) -> AsyncGenerator[sqlite3.Connection]:
    """Enter and leave a context in a thread: checking a large file takes its time."""
    stack = ExitStack()
    held = await asyncio.to_thread(stack.enter_context, blocking)
    try:
        yield held
    except BaseException as error:
        await asyncio.to_thread(stack.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(stack.close)


@contextmanager
def _plain_errors() -> Generator[None]:
    """Say Unavailable for a database that cannot be reached or has no room; other errors are bugs and pass."""
    try:
        yield
    except (*_LOST, asyncpg.InterfaceError) as error:
        raise Unavailable("the database does not answer", internal=repr(error)) from error
    except asyncpg.InsufficientResourcesError as error:
        raise Unavailable("the database has no room left", internal=repr(error)) from error
