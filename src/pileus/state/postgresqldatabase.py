"""A database of PostgreSQL: connecting to it, its tables, and saying plainly what is wrong with it."""

from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Protocol, cast

import asyncpg  # type: ignore[import-untyped]

from pileus.kernel.errors import Unavailable
from pileus.state.schema import POSTGRESQL

_untyped: Any = asyncpg  # it declares no types; what we use of it is said by the protocols below

SCHEMA = "pileus"
BATCH = 1000
"""How many rows are read at a time."""
TABLES_LOCK = 0x50494C45
"""Serialises the making of the tables; any number that nobody else in this database takes."""
LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TooManyConnectionsError,
    # Of a query begun between the server's farewell and the end of the connection.
    asyncpg.InternalClientError,
)
"""What a lost connection or server looks like, as opposed to a statement that is wrong."""

# `on` whatever the server's default: what was acknowledged must be on disk.
_SESSION: dict[str, Any] = {
    "server_settings": {"search_path": SCHEMA, "synchronous_commit": "on", "application_name": "pileus"},
    "timeout": 10,
    "target_session_attrs": "read-write",
}


class Cursor(Protocol):
    async def fetch(self, n: int) -> list[tuple[Any, ...]]: ...


class Connection(Protocol):
    async def execute(self, query: str, *arguments: object) -> str: ...
    async def fetch(self, query: str, *arguments: object) -> list[tuple[Any, ...]]: ...
    async def fetchrow(self, query: str, *arguments: object) -> tuple[Any, ...] | None: ...
    async def fetchval(self, query: str, *arguments: object) -> Any: ...  # noqa: ANN401 - the query says which type
    async def cursor(self, query: str) -> Cursor: ...
    async def copy_records_to_table(
        self, table: str, *, records: Iterable[Sequence[Any]], columns: Sequence[str]
    ) -> str: ...
    def transaction(self, *, isolation: str = ..., readonly: bool = ...) -> AbstractAsyncContextManager[None]: ...
    def is_closed(self) -> bool: ...
    def terminate(self) -> None: ...
    async def close(self) -> None: ...


class Pool(Protocol):
    def acquire(self, *, timeout: float) -> AbstractAsyncContextManager[Connection]: ...
    async def close(self) -> None: ...
    def terminate(self) -> None: ...


async def connected(address: str) -> Connection:
    """A connection of its own."""
    return cast("Connection", await _untyped.connect(address, **_SESSION))


async def pool_of(address: str) -> Pool:
    """Connections to read by, side by side."""
    return cast("Pool", await _untyped.create_pool(address, min_size=1, max_size=4, **_SESSION))


async def version_of(on: Connection) -> int:
    """Which version the tables have; 0 if there are none."""
    if await on.fetchval("SELECT to_regclass('lead') IS NULL"):
        return 0
    return await on.fetchval("SELECT version FROM lead")


async def upgrade(on: Connection) -> None:
    """Bring the tables to the newest version, from whichever they have."""
    for step in POSTGRESQL[await version_of(on) :]:
        await on.execute(step)
    await on.execute("UPDATE lead SET version = $1", len(POSTGRESQL))


async def batches(
    on: Connection, table: str, columns: Sequence[str], order: str
) -> AsyncGenerator[list[tuple[Any, ...]]]:
    """A whole table, `BATCH` rows at a time, within a transaction."""
    cursor = await on.cursor(f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}")  # noqa: S608 - our own tables
    while rows := await cursor.fetch(BATCH):
        yield rows


@contextmanager
def plain_errors() -> Generator[None]:
    """Say Unavailable for a database that cannot be reached or has no room; other errors are bugs and pass."""
    try:
        yield
    except (*LOST, asyncpg.InterfaceError) as error:
        raise Unavailable("the database does not answer", internal=repr(error)) from error
    except asyncpg.InsufficientResourcesError as error:
        raise Unavailable("the database has no room left", internal=repr(error)) from error
