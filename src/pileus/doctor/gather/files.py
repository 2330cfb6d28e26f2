"""Files: certificates, secrets, how full the disks are, the database."""

import asyncio
import os
import sqlite3
import stat
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pileus.agent.daemon import IDENTITY
from pileus.agent.storage.directory import DirectoryPool
from pileus.doctor.facts import Certificate, Database, FileSystem, SecretFile, Secrets
from pileus.doctor.gather.pools import pools
from pileus.doctor.gather.site import AGENT_CERTIFICATE, Site
from pileus.installation.backups import last_backup
from pileus.kernel.errors import Unavailable
from pileus.link.certificates import read_certificate
from pileus.state.rows import moment

_CHECKED_WITHIN_S = 60.0
_INSTRUCTIONS_BETWEEN_LOOKS = 100_000


async def certificates(site: Site) -> tuple[Certificate, ...]:
    """The authority's, the API's and this host's."""
    files = {
        "authority": site.places.controller / "authority" / "authority.pem",
        "server": site.places.controller / "authority" / "server.pem",
        "agent": site.places.agent / IDENTITY / AGENT_CERTIFICATE,
    }
    return tuple(_certificate(name, path) for name, path in files.items() if path.exists())


def _certificate(of: str, path: Path) -> Certificate:
    read = read_certificate(path.read_bytes())
    return Certificate(of=of, path=path, begins_at=read.not_valid_before_utc, ends_at=read.not_valid_after_utc)


async def file_systems(site: Site) -> tuple[FileSystem, ...]:
    """Those of the data folder and of each storage pool in a folder."""
    known = await asyncio.to_thread(pools, site.places.agent, site.agent)
    there = {f"pool {each.name}": each.folder for each in known if not each.away and each.folder.is_dir()}
    grows = {name: await _grows_bytes(folder) for name, folder in there.items()}
    return (
        _file_system("the data folder", site.places.data, 0),
        *(_file_system(name, folder, grows[name]) for name, folder in there.items()),
    )


def _file_system(of: str, path: Path, grows_bytes: int) -> FileSystem:
    found = os.statvfs(path)
    return FileSystem(
        of=of,
        path=path,
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        used_inodes=found.f_files - found.f_ffree,
        free_inodes=found.f_favail,
        grows_bytes=grows_bytes,
    )


async def _grows_bytes(folder: Path) -> int:
    # Not `open`: that clears away what an agent may be making.
    volumes = await DirectoryPool(folder).list()
    return sum(max(0, each.size_bytes - each.allocated_bytes) for each in volumes.values())


async def database(site: Site) -> Database | None:
    """The database of records and events, read while the controller writes. None if it is on a server."""
    if site.settings.database:
        return None
    path = site.places.controller / "state.db"
    begun = site.places.begun
    backup = last_backup(site.places.controller)
    seen = await asyncio.to_thread(_database, path)
    return Database(
        path=path,
        damage=seen.damage,
        size_bytes=seen.size_bytes,
        events=seen.events,
        last_event_at=seen.last_event_at,
        begun_at=datetime.fromtimestamp(begun.stat().st_mtime, UTC) if begun.exists() else None,
        backup_at=backup.at if backup is not None else None,
        backup=backup.file if backup is not None else None,
    )


def _database(path: Path) -> Database:
    size = path.stat().st_size
    try:
        with read_only(path) as on:
            found = [str(row[0]) for row in on.execute("PRAGMA quick_check(3)")]
            first, last, at = on.execute("SELECT min(sequence), max(sequence), max(at) FROM events").fetchone()
    except sqlite3.DatabaseError as wrong:
        if getattr(wrong, "sqlite_errorcode", 0) & 0xFF not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise Unavailable(f"{path} could not be checked within {_CHECKED_WITHIN_S:g} s: {wrong}") from wrong
        return Database(path=path, damage=str(wrong), size_bytes=size)
    return Database(
        path=path,
        damage="" if found == ["ok"] else "; ".join(found),
        size_bytes=size,
        events=0 if last is None else last - first + 1,
        last_event_at=None if at is None else moment(at),
    )


@contextmanager
def read_only(path: Path) -> Generator[sqlite3.Connection]:
    """A connection that cannot write, and gives up after a minute."""
    deadline = time.monotonic() + _CHECKED_WITHIN_S
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as on:
        on.set_progress_handler(lambda: int(time.monotonic() > deadline), _INSTRUCTIONS_BETWEEN_LOOKS)
        yield on


async def secrets(site: Site) -> Secrets:
    """What must be for its owner alone."""
    places = site.places
    wanted = (
        places.client,
        places.first,
        places.key,
        places.controller,
        *(places.controller / name for name in ("authority", "controller.json", "state.db", "ticket.key")),
        *(places.controller / "authority" / name for name in ("authority.pem", "server.pem")),
        places.agent / "agent.json",
        places.agent / IDENTITY,
        places.agent / IDENTITY / AGENT_CERTIFICATE,
        places.layout.machine / "daemons.json",
    )
    return Secrets(
        files=tuple(_secret(each) for each in wanted if each.exists()),
        owner=places.data.stat().st_uid,
        first=places.first if places.first.exists() and places.begun.exists() else None,
    )


def _secret(path: Path) -> SecretFile:
    found = path.stat()
    return SecretFile(
        path=path, mode=stat.S_IMODE(found.st_mode), owner=found.st_uid, is_folder=stat.S_ISDIR(found.st_mode)
    )
