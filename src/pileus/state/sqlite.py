"""The store in one SQLite file, for a cloud with one controller.

The library gives up the interpreter's lock at each row, and must wait to get it back from a busy event loop. So a batch
is one statement: an INSERT into a view, whose trigger checks the epoch and writes everything. Measured in batches of
100 beside a thread that never pauses: 110 events/s by `executemany`, 8,500 this way.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from pileus.kernel.errors import Unavailable
from pileus.kernel.files import sync_folder
from pileus.state.backup import copy, finish_restore, restore_sqlite
from pileus.state.rows import (
    EVENT_COLUMNS,
    LAST_BY,
    RECORD_COLUMNS,
    check_order,
    event_from,
    microseconds,
    one_of_each,
    row_of,
    span,
    wanted,
)
from pileus.state.schema import upgrade_sqlite
from pileus.state.sqlitefile import check_structure, connect, plain_errors, sole_use
from pileus.state.store import Deposed, Event, EventFilter, StoredRecord

_T = TypeVar("_T")
_Statement = tuple[str, Sequence[int | str | bytes | None]]

_BATCH = 1000
_TRIM_AT_ONCE = 2000
_END = 2**63 - 1

_APPEND = f"""
CREATE TEMP VIEW batch AS SELECT NULL AS epoch, {", ".join(f"NULL AS {column}" for column in EVENT_COLUMNS)};
CREATE TEMP TRIGGER append INSTEAD OF INSERT ON batch WHEN NEW.epoch IS NOT NULL BEGIN
    SELECT raise(ABORT, 'deposed')
        WHERE NOT EXISTS (SELECT 1 FROM main.lead WHERE epoch = NEW.epoch AND last_sequence = NEW.sequence - 1);
    UPDATE lead SET last_sequence = NEW.sequence;
    INSERT INTO events ({", ".join(EVENT_COLUMNS)}) VALUES ({", ".join(f"NEW.{column}" for column in EVENT_COLUMNS)});
    INSERT INTO records ({", ".join(RECORD_COLUMNS)})
        SELECT NEW.kind, NEW.id, NEW.revision, NEW.version, NEW.after WHERE NEW.after <> x''
        ON CONFLICT (kind, id) DO UPDATE
        SET revision = excluded.revision, version = excluded.version, body = excluded.body;
    DELETE FROM records WHERE NEW.after = x'' AND kind = NEW.kind AND id = NEW.id;
END;
"""  # noqa: S608 - our own columns
_ROW = f"({', '.join('?' * (len(EVENT_COLUMNS) + 1))})"
_NO_ROW = (None,) * (len(EVENT_COLUMNS) + 1)
_ROWS_AT_ONCE = 1024
"""Of one statement; SQLite takes 32,766 arguments."""

# The same reason as above: one row, however many events. Numbers first, rows then: only numbers are sorted.
_READ = f"""
SELECT CAST(json_group_array(json_array(
    {", ".join(EVENT_COLUMNS[:-2])}, CAST(before AS TEXT), CAST(after AS TEXT))) AS BLOB)
FROM (
    SELECT * FROM events WHERE sequence IN (SELECT sequence FROM events WHERE %s ORDER BY sequence %s LIMIT ?)
    ORDER BY sequence
)
"""  # noqa: S608 - our own columns
_rows = msgspec.json.Decoder(list[tuple[int, int, str, str, str, str, str, str, str, str, int, int, str, str]])


class SqliteStore:
    """Keeps events and records in `state.db` of a folder that belongs to one process at a time."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._path = data / "state.db"
        self._epoch = 0
        self._held = ExitStack()
        self._writer = _Session("store-writer", self._path)
        self._reader = _Session("store-reader", self._path)

    async def open(self) -> None:
        """Be ready.

        Raises:
            Conflict: another process uses the folder, or a newer Pileus wrote it.
            Damaged: the file is not what was written.
            Unavailable: the folder cannot be used.
        """
        await self._writer.start(self._open_writer)
        try:
            await self._reader.start(self._open_reader)
        except BaseException:
            await self._writer.stop(self._let_go)
            raise

    @property
    def epoch(self) -> int:
        return self._epoch

    async def last_sequence(self) -> int:
        return await self._reader.run(lambda on: _number(on, "SELECT last_sequence FROM lead"))

    async def load(self) -> AsyncIterator[Sequence[StoredRecord]]:
        """All records, in batches."""
        query = f"SELECT {', '.join(RECORD_COLUMNS)} FROM records ORDER BY kind, id"  # noqa: S608 - our own columns
        cursor = await self._reader.run(lambda on: on.execute(query))
        try:
            while rows := await self._reader.run(lambda _: cursor.fetchmany(_BATCH)):
                yield [
                    StoredRecord(kind=kind, id=id, revision=revision, version=version, body=body)
                    for kind, id, revision, version, body in rows
                ]
        finally:
            await self._reader.run(lambda _: cursor.close())

    async def append(self, events: Sequence[Event]) -> None:
        """Keep these, all or none.

        Raises:
            Deposed: another epoch has begun, or the log does not end where these events begin.
            Unavailable: the disk is full or does not work; nothing was kept.
        """
        if not events:
            return
        check_order(events)
        parts = [
            _insertion(self._epoch, events[first : first + _ROWS_AT_ONCE])
            for first in range(0, len(events), _ROWS_AT_ONCE)
        ]
        try:
            await self._writer.run(lambda on: _execute(on, parts))
        except sqlite3.IntegrityError as refused:
            if refused.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_TRIGGER:
                raise
            epoch, last = await self._writer.run(
                lambda on: on.execute("SELECT epoch, last_sequence FROM lead").fetchone()
            )
            raise Deposed(
                "another process writes here now",
                internal=f"epoch {epoch} (mine {self._epoch}), last event {last}, mine begin with {events[0].sequence}",
            ) from refused

    async def events(self, after: int, limit: int, where: EventFilter) -> list[Event]:
        """The first `limit` events behind this sequence number, oldest first."""
        return await self._page(after, _END, limit, where)

    async def latest(self, before: int, limit: int, where: EventFilter) -> list[Event]:
        """The last `limit` events before this sequence number, newest first."""
        return (await self._page(0, before - 1, limit, where, order="DESC"))[::-1]

    async def _page(self, after: int, upto: int, limit: int, where: EventFilter, *, order: str = "ASC") -> list[Event]:
        arguments: list[int | str] = []

        def argument(value: int | str) -> str:
            arguments.append(value)
            return "?"

        async def ask(query: str, value: int) -> int:
            return await self._reader.run(lambda on: _number(on, query.format("?"), value))

        first, last = await span(after, where, ask)
        condition = wanted((first, min(last, upto)), where, argument)
        return await self._events(condition, (*arguments, limit), order)

    async def history(self, kind: str, id: str) -> list[Event]:
        """Every event of one record that is still kept, oldest first."""
        return await self.events(0, -1, EventFilter(kind=kind, id=id))

    async def sequence_at(self, moment: datetime) -> int:
        """The last event that was not later than this; 0 if none is kept."""
        query = f"SELECT ({LAST_BY.format('?')})"
        return await self._reader.run(lambda on: _number(on, query, microseconds(moment)))

    async def first_changes(self, after: int, upto: int, where: EventFilter) -> list[Event]:
        """Of each record the first event behind one sequence number and not behind the other, oldest first."""
        return await self._one_of_each("min", (after, upto), where)

    async def last_change(self, kind: str, id: str, upto: int) -> Event | None:
        """The newest event of a record that is kept, up to this sequence number."""
        found = await self._one_of_each("max", (0, upto), EventFilter(kind=kind, id=id))
        return found[0] if found else None

    async def trim(self, before: datetime) -> int:
        """Forget events older than this; says how many.

        In slices, so that commits need not wait for the end of it. What stays has no gap, even if the clock once went
        back: the first event that is young enough protects everything behind it.
        """
        edge = await self._reader.run(
            lambda on: _number(on, "SELECT min(sequence) FROM events WHERE at >= ?", microseconds(before))
        )
        edge = edge or await self.last_sequence() + 1
        count = 0
        while removed := await self._writer.run(
            lambda on: (
                on.execute(
                    "DELETE FROM events WHERE sequence IN (SELECT sequence FROM events WHERE sequence < ? LIMIT ?)",
                    (edge, _TRIM_AT_ONCE),
                ).rowcount
            )
        ):
            count += removed
        return count

    async def first_sequence(self) -> int:
        return await self._reader.run(lambda on: _number(on, "SELECT min(sequence) FROM events"))

    async def backup(self, to: Path) -> None:
        """Write a consistent copy to this file, which must not exist yet, while the store is in use."""
        await asyncio.to_thread(copy, self._path, to)

    async def close(self) -> None:
        """Let go of the folder. What was acknowledged is on disk already."""
        await self._reader.stop()
        await self._writer.stop(self._let_go)

    async def _one_of_each(self, pick: str, between: tuple[int, int], where: EventFilter) -> list[Event]:
        arguments: list[int | str] = []

        def argument(value: int | str) -> str:
            arguments.append(value)
            return "?"

        condition = one_of_each(pick, wanted(between, where, argument))
        return await self._events(condition, (*arguments, -1))

    async def _events(self, condition: str, arguments: Sequence[int | str], order: str = "ASC") -> list[Event]:
        (text,) = await self._reader.run(lambda on: on.execute(_READ % (condition, order), arguments).fetchone())
        return [event_from((*row[:-2], row[-2].encode(), row[-1].encode())) for row in _rows.decode(text)]

    def _open_writer(self) -> sqlite3.Connection:
        with ExitStack() as held:
            held.enter_context(sole_use(self._data))
            finish_restore(self._data)
            _make_file(self._path)
            on = connect(self._path)
            held.callback(on.close)
            # FULL: a commit is on disk before it is acknowledged. A checkpoint each 16 MB needs fewer syncs.
            on.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000")
            # The log beside the database grows while a backup reads, and would keep that size.
            on.execute(f"PRAGMA journal_size_limit = {64 << 20}")
            upgrade_sqlite(on)
            check_structure(on, "lead", "records")
            # The clock makes it greater than every epoch before even when an older backup was restored.
            (self._epoch,) = on.execute(
                "UPDATE lead SET epoch = max(epoch + 1, ?) RETURNING epoch", (time.time_ns() // 1_000_000,)
            ).fetchone()
            on.executescript(_APPEND)
            self._held = held.pop_all()
            return on

    def _open_reader(self) -> sqlite3.Connection:
        on = connect(self._path)
        on.execute("PRAGMA query_only = ON")
        return on

    def _let_go(self) -> None:
        self._held.close()


async def restore(backup: Path, data: Path) -> None:
    """Put a backup of any store where `SqliteStore(data)` will find it; what was there is kept beside it.

    Raises:
        NotFound: there is no such backup.
        Damaged: the backup is not whole; nothing was changed.
        Conflict: a process uses the folder.
    """
    await asyncio.to_thread(restore_sqlite, backup, data)


class _Session:
    """A connection on a thread of its own: what one does, the other need not wait for."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None

    async def start(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._thread = ThreadPoolExecutor(1, self._name)
        try:
            self._connection = await self._on_thread(connect)
        except BaseException:
            await self.stop()
            raise

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if (connection := self._connection) is None:
            raise Unavailable("the store is closed")
        return await self._on_thread(lambda: work(connection))

    async def stop(self, at_last: Callable[[], None] = lambda: None) -> None:
        thread, connection = self._thread, self._connection
        self._thread = self._connection = None
        if thread is None:
            return
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(thread, connection.close)
            await asyncio.get_running_loop().run_in_executor(thread, at_last)
        thread.shutdown(wait=False)

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        if self._thread is None:
            raise Unavailable("the store is closed")

        def translated() -> _T:
            with plain_errors(self._path):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, translated)


def _make_file(path: Path) -> None:
    """Make it readable for its owner alone before SQLite does; the files beside it inherit that."""
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        sync_folder(path.parent)


def _number(on: sqlite3.Connection, query: str, *arguments: int) -> int:
    (number,) = on.execute(query, arguments).fetchone()
    return number or 0


def _insertion(epoch: int, events: Sequence[Event]) -> _Statement:
    """The statement that keeps these. SQLite has seen most before: there are four for each doubling of the rows.

    An empty row costs up to half as much as an event: with powers of two alone an append takes a tenth more.
    """
    arguments: list[int | str | bytes | None] = []
    for event in events:
        arguments += (epoch, *row_of(event))
    step = 1 << max(0, len(events).bit_length() - 3)
    rows = -(-len(events) // step) * step
    arguments += _NO_ROW * (rows - len(events))
    return f"INSERT INTO batch VALUES {', '.join([_ROW] * rows)}", arguments  # noqa: S608 - question marks


def _execute(on: sqlite3.Connection, statements: Sequence[_Statement]) -> None:
    """Do all of these or none; one alone needs no transaction around it."""
    if len(statements) == 1:
        on.execute(*statements[0])
        return
    on.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            on.execute(*statement)
        on.execute("COMMIT")
    except BaseException:
        if on.in_transaction:
            on.execute("ROLLBACK")
        raise
