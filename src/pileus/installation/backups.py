"""Backup and restore of a cloud's records."""

import asyncio
from pathlib import Path

from pileus.controller.daemon import read_settings
from pileus.state import postgresql, sqlite
from pileus.state.backup import copy


async def back_up(data: Path, to: Path) -> None:
    """Write a consistent copy of the records and the log to a file, also while the controller runs."""
    settings = read_settings(data)
    if settings.database:
        await postgresql.back_up(settings.database, to)
    else:
        await asyncio.to_thread(copy, data / "state.db", to)


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
