"""Backup and restore of a controller: its records and log, its authority, its keys and its configuration."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from pileus.controller.daemon import read_settings
from pileus.installation import archives
from pileus.kernel.clock import SystemClock
from pileus.kernel.files import write_atomically
from pileus.state import postgresqlbackup, sqlite
from pileus.state.backup import copy
from pileus.state.rows import Damaged
from pileus.state.sqlitefile import sole_use

_NOTE = "backup.json"
_DATABASE = "state.db"
_SETTINGS = "controller.json"
_KEYS = ("secrets.key", "ticket.key")
_AUTHORITY = "authority"


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was made."""

    at: datetime
    file: Path


async def back_up(data: Path, to: Path, *, passphrase: str | None = None) -> None:
    """Write a consistent copy of all that a controller needs to come back, also while it runs.

    Image data are not in it. With a passphrase it is encrypted.

    Raises:
        Conflict: there is a file already.
    """
    settings = read_settings(data)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".pileus-backup-") as scratch:
        database = Path(scratch) / _DATABASE
        if settings.database:
            await postgresqlbackup.back_up(settings.database, database)
        else:
            await asyncio.to_thread(copy, data / _DATABASE, database)
        files = {_DATABASE: database, **{str(each.relative_to(data)): each for each in _kept_beside(data)}}
        await asyncio.to_thread(archives.write, files, to, passphrase=passphrase)
    await asyncio.to_thread(_note, data, to)


def _kept_beside(data: Path) -> Iterator[Path]:
    """What a controller needs besides its records."""
    for name in (_SETTINGS, *_KEYS):
        if (data / name).is_file():
            yield data / name
    if (data / _AUTHORITY).is_dir():
        yield from (each for each in sorted((data / _AUTHORITY).iterdir()) if each.is_file())


def _note(data: Path, to: Path) -> None:
    made = Backup(at=SystemClock().now(), file=to.absolute())
    write_atomically(data / _NOTE, msgspec.json.encode(made, enc_hook=str), mode=0o600)


def last_backup(data: Path) -> Backup | None:
    """The last backup that was made of this controller, whatever has become of its file; None if none is known."""
    try:
        return msgspec.json.decode((data / _NOTE).read_bytes(), type=Backup, dec_hook=lambda _, text: Path(text))
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


async def put_back(backup: Path, data: Path, *, passphrase: str | None = None) -> None:
    """Put a backup in the place of what a controller has; what was there is kept beside it.

    A configuration that is there stays. Backups from before there were archives have the records only.

    Raises:
        NotFound: there is no such backup.
        Conflict: the controller runs.
        Invalid: it is encrypted, and the passphrase is not given or wrong.
        Damaged: the backup is not whole.
    """
    if archives.is_database(backup):
        await _put_records_back(backup, data)
        return
    await asyncio.to_thread(data.mkdir, mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data, prefix=".restoring-") as scratch:
        found = Path(scratch)
        names = await asyncio.to_thread(archives.read, backup, found, passphrase=passphrase)
        if strange := [name for name in names if not _is_ours(name)]:
            raise Damaged(f"the backup has {strange[0]!r}, which is no file of a controller")
        if _DATABASE not in names:
            raise Damaged("the backup has no records")
        with sole_use(data):
            await asyncio.to_thread(_put_files_back, found, names, data)
        # Last: with the keys of before the records would be of no use.
        await _put_records_back(found / _DATABASE, data)


def _is_ours(name: str) -> bool:
    return name in (_DATABASE, _SETTINGS, *_KEYS) or (name.startswith(f"{_AUTHORITY}/") and name.count("/") == 1)


async def _put_records_back(database: Path, data: Path) -> None:
    settings = read_settings(data)
    if settings.database:
        await postgresqlbackup.restore(database, settings.database)
    else:
        await sqlite.restore(database, data)


def _put_files_back(found: Path, names: list[str], data: Path) -> None:
    suffix = f"replaced-{SystemClock().now():%Y%m%dT%H%M%SZ}"
    authority = [name for name in names if name.startswith(f"{_AUTHORITY}/")]
    if any(_differs(found / name, data / name) for name in authority) and (data / _AUTHORITY).is_dir():
        # Whole: certificates of two authorities in one folder are none.
        shutil.copytree(data / _AUTHORITY, data / f"{_AUTHORITY}-{suffix}")
    for name in names:
        if (
            name == _DATABASE
            or (name == _SETTINGS and (data / name).exists())
            or not _differs(found / name, data / name)
        ):
            continue
        place = data / name
        place.parent.mkdir(mode=0o700, exist_ok=True)
        if name in _KEYS and place.exists():
            shutil.copy2(place, place.with_name(f"{name}-{suffix}"))
        write_atomically(place, (found / name).read_bytes(), mode=0o600)


def _differs(one: Path, other: Path) -> bool:
    return not other.exists() or one.read_bytes() != other.read_bytes()
