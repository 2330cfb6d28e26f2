"""A database file of SQLite: opening it, holding its folder, and saying plainly what is wrong with it."""

import fcntl
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pileus.kernel.errors import Conflict, Unavailable
from pileus.state.rows import Damaged


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode that may go from thread to thread, one at a time."""
    return sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)


def check_structure(on: sqlite3.Connection, *tables: str) -> None:
    """Look for damage in these tables; in the whole database if none is named.

    Raises:
        Damaged: with the first thing that was found.
    """
    for pragma in [f"PRAGMA quick_check({table})" for table in tables] or ["PRAGMA integrity_check"]:
        (found,) = on.execute(pragma).fetchone()
        if found != "ok":
            raise Damaged("the database is damaged: restore the latest backup", internal=found)


@contextmanager
def plain_errors(path: Path) -> Generator[None]:
    """Say in our own words what SQLite finds wrong with the disk or the file; other errors are bugs and pass."""
    try:
        yield
    except sqlite3.Error as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise Damaged(f"{path} is damaged: restore the latest backup", internal=str(error)) from error
            case sqlite3.SQLITE_FULL:
                raise Unavailable(f"there is no room left for {path}", internal=str(error)) from error
            case (
                sqlite3.SQLITE_IOERR
                | sqlite3.SQLITE_CANTOPEN
                | sqlite3.SQLITE_READONLY
                | sqlite3.SQLITE_BUSY
                | sqlite3.SQLITE_PERM
            ):
                raise Unavailable(f"{path} cannot be used", internal=f"{error.sqlite_errorname}: {error}") from error
            case _:
                raise
    except OSError as error:
        raise Unavailable(f"{path} cannot be used", internal=str(error)) from error


@contextmanager
def sole_use(data: Path) -> Generator[None]:
    """Hold the folder for this process; the kernel lets go of it when the process ends, however it ends.

    Raises:
        Conflict: naming the process that holds it.
    """
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(data / "state.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            holder = os.pread(lock, 20, 0).decode().strip() or "unknown"
            raise Conflict(f"the state in {data} is in use by process {holder}") from held
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)
