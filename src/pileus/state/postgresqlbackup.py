"""Backup and restore of a database of PostgreSQL, by the file that every store's backup is (see `backup`)."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pileus.kernel.errors import Conflict, NotFound
from pileus.state.backup import opened, written
from pileus.state.postgresqldatabase import (
    BATCH,
    SCHEMA,
    TABLES_LOCK,
    Connection,
    batches,
    connected,
    plain_errors,
    upgrade,
    version_of,
)
from pileus.state.rows import EVENT_COLUMNS, RECORD_COLUMNS
from pileus.state.schema import upgrade_sqlite


async def back_up(address: str, to: Path) -> None:
    """Write a consistent copy of a database to this file, which must not exist yet, whoever leads there meanwhile.

    Raises:
        Conflict: there is a file already.
        NotFound: there is no state of ours in this database.
        Unavailable: the database does not answer.
    """
    with plain_errors():
        on = await connected(address)
        try:
            if not await version_of(on):
                raise NotFound("there is no state of Pileus in this database")
            await copy(on, to)
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
    with plain_errors():
        on = await connected(address)
        try:
            async with _in_thread(opened(backup)) as file, on.transaction():
                await on.execute("SELECT pg_advisory_xact_lock($1)", TABLES_LOCK)
                if await version_of(on):
                    # Locks the row: a leader cannot come up meanwhile.
                    query = "SELECT holder FROM lead WHERE lease_until > clock_timestamp() FOR UPDATE"
                    if holder := await on.fetchval(query):
                        raise Conflict(f"{holder} leads this cloud")
                    kept_as = f"{SCHEMA}_replaced_{datetime.now(UTC):%Y%m%d%H%M%S}"
                    await on.execute(f"ALTER SCHEMA {SCHEMA} RENAME TO {kept_as}")
                await on.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                await upgrade(on)
                lead = file.execute("SELECT epoch, last_sequence FROM lead").fetchone()
                await on.execute("UPDATE lead SET epoch = $1, last_sequence = $2", *lead)
                for table, columns in (("events", EVENT_COLUMNS), ("records", RECORD_COLUMNS)):
                    cursor = file.execute(f"SELECT {', '.join(columns)} FROM {table}")  # noqa: S608 - our own columns
                    while rows := await asyncio.to_thread(cursor.fetchmany, BATCH):
                        await on.copy_records_to_table(table, records=rows, columns=columns)
        finally:
            on.terminate()


async def copy(on: Connection, to: Path) -> None:
    """Write what a consistent view of the database shows to this file, which must not exist yet."""
    async with on.transaction(isolation="repeatable_read", readonly=True), _in_thread(written(to)) as file:
        await asyncio.to_thread(upgrade_sqlite, file)
        lead = await on.fetchrow("SELECT epoch, last_sequence FROM lead")
        await asyncio.to_thread(file.execute, "UPDATE lead SET epoch = ?, last_sequence = ?", tuple(lead or ()))
        for table, columns, order in (("events", EVENT_COLUMNS, "sequence"), ("records", RECORD_COLUMNS, "kind, id")):
            async for rows in batches(on, table, columns, order):
                await asyncio.to_thread(_insert, file, table, columns, rows)


def _insert(file: sqlite3.Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    file.execute("BEGIN")
    places = ", ".join("?" * len(columns))
    file.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", map(tuple, rows))  # noqa: S608
    file.execute("COMMIT")


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
