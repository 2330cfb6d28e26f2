"""Backup and restore of a cloud's records."""

import asyncio
from datetime import datetime
from pathlib import Path

import msgspec

from pileus.controller.daemon import read_settings
from pileus.kernel.clock import SystemClock
from pileus.kernel.files import write_atomically
from pileus.state import postgresql, sqlite
from pileus.state.backup import copy

_NOTE = "backup.json"


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was made."""

    at: datetime
    file: Path


async def back_up(data: Path, to: Path) -> None:
    """Write a consistent copy of the records and the log to a file, also while the controller runs."""
    settings = read_settings(data)
    if settings.database:
        await postgresql.back_up(settings.database, to)
    else:
        await asyncio.to_thread(copy, data / "state.db", to)
    await asyncio.to_thread(_note, data, to)


def _note(data: Path, to: Path) -> None:
    made = Backup(at=SystemClock().now(), file=to.absolute())
    write_atomically(data / _NOTE, msgspec.json.encode(made, enc_hook=str), mode=0o600)


def last_backup(data: Path) -> Backup | None:
    """The last backup that was made of this controller, whatever has become of its file; None if none is known."""
    try:
        return msgspec.json.decode((data / _NOTE).read_bytes(), type=Backup, dec_hook=lambda _, text: Path(text))
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


async def put_back(backup: Path, data: Path) -> None:
    """Put a backup in the place of the records. What was there is kept beside it.

    Raises:
        Conflict: the controller runs.
        Damaged: the backup is not whole.
    """
    settings = read_settings(data)
    if settings.database:
        await postgresql.restore(backup, settings.database)
    else:
        await sqlite.restore(backup, data)
