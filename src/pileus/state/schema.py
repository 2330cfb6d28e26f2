"""The tables, as the steps that lead from each version of them to the next. A step that was released never changes."""

import sqlite3
from collections.abc import Sequence

from pileus.kernel.errors import Conflict
from pileus.state.rows import Damaged

APPLICATION_ID = 0x50494C45
"""`PILE`: the mark of our files in the header of SQLite's format."""

# Measured with records of 1 KB: a table with its own row number and an index on (kind, id) takes a quarter less time
# and space than one WITHOUT ROWID, whose rows do not fit into the pages of an index. The indexes on events cost a
# third of an append; without them a page of a long log, say a tenant's, reads everything. Actors have none: who did
# what is asked seldom, and a hundred actors at work cost as much as two of the others.
SQLITE: Sequence[str] = (
    """
    CREATE TABLE lead (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        epoch INTEGER NOT NULL,
        last_sequence INTEGER NOT NULL
    );
    INSERT INTO lead VALUES (1, 0, 0);
    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        actor TEXT NOT NULL,
        operation TEXT NOT NULL,
        request TEXT NOT NULL,
        source TEXT NOT NULL,
        task TEXT NOT NULL,
        project TEXT NOT NULL,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        revision INTEGER NOT NULL,
        before BLOB NOT NULL,
        after BLOB NOT NULL
    );
    CREATE INDEX events_by_id ON events (id);
    CREATE INDEX events_by_task ON events (task) WHERE task <> '';
    CREATE INDEX events_by_project ON events (project);
    CREATE INDEX events_by_kind ON events (kind);
    CREATE INDEX events_by_time ON events (at);
    CREATE TABLE records (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        revision INTEGER NOT NULL,
        version INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (kind, id)
    );
    """,
    "ALTER TABLE events ADD COLUMN version INTEGER NOT NULL DEFAULT 0;",
)

# The bodies are bytes: jsonb would write numbers and spaces another way, and refuses the escaped NUL.
POSTGRESQL: Sequence[str] = (
    """
    CREATE TABLE lead (
        one integer PRIMARY KEY CHECK (one = 1),
        version integer NOT NULL,
        epoch bigint NOT NULL,
        last_sequence bigint NOT NULL,
        holder text NOT NULL,
        backend integer NOT NULL,
        lease_until timestamptz NOT NULL
    ) WITH (fillfactor = 10);
    INSERT INTO lead VALUES (1, 0, 0, 0, '', 0, '-infinity');
    CREATE TABLE events (
        sequence bigint PRIMARY KEY,
        at bigint NOT NULL,
        actor text NOT NULL,
        operation text NOT NULL,
        request text NOT NULL,
        source text NOT NULL,
        task text NOT NULL,
        project text NOT NULL,
        kind text NOT NULL,
        id text NOT NULL,
        revision bigint NOT NULL,
        before bytea NOT NULL,
        after bytea NOT NULL
    );
    CREATE INDEX events_by_id ON events (id, sequence);
    CREATE INDEX events_by_task ON events (task, sequence) WHERE task <> '';
    CREATE INDEX events_by_project ON events (project, sequence);
    CREATE INDEX events_by_kind ON events (kind, sequence);
    CREATE INDEX events_by_time ON events (at, sequence);
    CREATE TABLE records (
        kind text NOT NULL,
        id text NOT NULL,
        revision bigint NOT NULL,
        version integer NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (kind, id)
    );
    """,
    "ALTER TABLE events ADD COLUMN version integer NOT NULL DEFAULT 0;",
)


def upgrade_sqlite(connection: sqlite3.Connection, steps: Sequence[str] = SQLITE) -> None:
    """Bring the tables to the newest version, each step in its own transaction.

    Raises:
        Damaged: the file is a database of somebody else's.
        Conflict: it was written by a newer Pileus.
    """
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if mark != APPLICATION_ID and tables:
        raise Damaged("the file is a database, but not one of Pileus")
    check_version(version, len(steps))
    for number, step in enumerate(steps[version:], version + 1):
        marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number}"
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {step}; {marks}; COMMIT")
        finally:
            if connection.in_transaction:
                connection.rollback()


def read_as_newest(connection: sqlite3.Connection) -> None:
    """Let a file that must stay as it is be read as if it had been upgraded."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < 2:
        connection.execute("CREATE TEMP VIEW events AS SELECT *, 0 AS version FROM main.events")


def check_version(found: int, known: int) -> None:
    if found > known:
        raise Conflict(f"the state has version {found}, this Pileus knows {known}: it was written by a newer one")
