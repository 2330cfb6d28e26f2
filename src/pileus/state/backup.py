"""Backups: one SQLite file with the tables of `pileus.state.schema`, from whichever store, for whichever store.

So a cloud moves from SQLite to PostgreSQL, or back, by a backup of the one that is restored into the other.
"""

import os
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.files import sync_folder
from pileus.state.rows import Damaged
from pileus.state.schema import APPLICATION_ID, SQLITE, check_version, read_as_newest, upgrade_sqlite
from pileus.state.sqlitefile import check_structure, connect, plain_errors, sole_use

_RESTORED = "state.db.restored"


@contextmanager
def written(to: Path) -> Generator[sqlite3.Connection]:
    """A new database file that appears under its name only when it is complete, checked and on disk.

    Raises:
        Conflict: there is a file already.
    """
    if to.exists():
        raise Conflict(f"{to} exists already")
    part = to.with_name(f"{to.name}.part")
    with plain_errors(part):
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            with closing(connect(part)) as on:
                on.execute("PRAGMA synchronous = OFF")
                yield on
                # A backup is one file: without a log beside it.
                on.execute("PRAGMA journal_mode = DELETE")
                check(on)
            _sync_file(part)
            part.rename(to)
            sync_folder(to.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def copy(path: Path, to: Path) -> None:
    """Copy a database while it is in use: one step of SQLite's backup, which sees one moment and stops no writer."""
    with plain_errors(path), closing(connect(path)) as source, written(to) as target:
        source.backup(target, pages=-1)


@contextmanager
def opened(backup: Path) -> Generator[sqlite3.Connection]:
    """A backup to read from, once it is found whole.

    Raises:
        NotFound: there is no such file.
        Damaged: it is not whole, or not a backup of ours.
        Conflict: it was written by a newer Pileus.
    """
    if not backup.is_file():
        raise NotFound(f"there is no backup {backup}")
    with (
        plain_errors(backup),
        closing(sqlite3.connect(f"{backup.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)) as on,
    ):
        check(on)
        read_as_newest(on)
        yield on


def check(on: sqlite3.Connection) -> None:
    """Whether this is a whole database of ours: structure, sequence numbers, and every body is JSON."""
    (mark,) = on.execute("PRAGMA application_id").fetchone()
    if mark != APPLICATION_ID:
        raise Damaged("the file is not a backup of Pileus")
    (version,) = on.execute("PRAGMA user_version").fetchone()
    check_version(version, len(SQLITE))
    check_structure(on)
    count, first, last = on.execute("SELECT count(*), min(sequence), max(sequence) FROM events").fetchone()
    (expected,) = on.execute("SELECT last_sequence FROM lead").fetchone()
    if count and (last != expected or last - first + 1 != count):
        raise Damaged("the backup lacks events", internal=f"{count} from {first} to {last}, last should be {expected}")
    (wrong,) = on.execute("SELECT count(*) FROM records WHERE NOT json_valid(CAST(body AS TEXT))").fetchone()
    if wrong:
        raise Damaged(f"{wrong} records of the backup are damaged")


def restore_sqlite(backup: Path, data: Path) -> None:
    """Put a backup where `SqliteStore(data)` will find it; what was there becomes `state-replaced-<time>.db`.

    Raises:
        Conflict: a process uses the folder.
        Damaged: the backup is not whole.
    """
    with sole_use(data):
        finish_restore(data)
        with opened(backup) as source, written(data / _RESTORED) as target:
            source.backup(target, pages=-1)
            upgrade_sqlite(target)
        finish_restore(data)


def finish_restore(data: Path) -> None:
    """Exchange the database for the restored one that lies ready, if there is one.

    From the moment it lies ready the restore is decided, wherever the power fails: the next to open the store goes on
    here.
    """
    restored, path = data / _RESTORED, data / "state.db"
    if not restored.exists():
        return
    # The same after an interruption: the parts of the old database stay together.
    made_at = datetime.fromtimestamp(restored.stat().st_mtime, UTC)
    # The log goes with its database: beside another one SQLite would take it for that one's.
    for ending in ("-shm", "-wal", ""):
        if (old := path.with_name(path.name + ending)).exists():
            old.rename(data / f"state-replaced-{made_at:%Y%m%dT%H%M%SZ}.db{ending}")
    sync_folder(data)
    restored.rename(path)
    sync_folder(data)


def _sync_file(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
