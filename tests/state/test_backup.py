import sqlite3
from pathlib import Path

import pytest

from pileus.kernel.errors import Conflict
from pileus.state.rows import Damaged
from pileus.state.sqlite import SqliteStore, restore
from pileus.testing.contracts.entries import bodies, entry


@pytest.fixture
async def backup(tmp_path: Path) -> Path:
    store = SqliteStore(tmp_path / "source")
    await store.open()
    await store.append([entry(n, id=str(n)) for n in range(1, 11)])
    await store.backup(tmp_path / "backup")
    await store.close()
    return tmp_path / "backup"


async def test_a_live_database_is_not_overwritten(backup: Path, tmp_path: Path) -> None:
    live = SqliteStore(tmp_path / "live")
    await live.open()
    with pytest.raises(Conflict):
        await restore(backup, tmp_path / "live")
    await live.append([entry(1)])
    await live.close()


async def test_what_was_there_before_is_kept_beside(backup: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    old = SqliteStore(data)
    await old.open()
    await old.append([entry(1, id="old")])
    epoch = old.epoch
    await old.close()
    await restore(backup, data)
    store = SqliteStore(data)
    await store.open()
    assert "old" not in await bodies(store)
    assert store.epoch >= epoch
    await store.close()
    (kept,) = data.glob("state-replaced-*.db")
    on = sqlite3.connect(kept)
    assert on.execute("SELECT id FROM records").fetchall() == [("old",)]
    on.close()


@pytest.mark.parametrize("moved", [(), ("-shm",), ("-shm", "-wal"), ("-shm", "-wal", "")])
async def test_a_restore_that_was_cut_short_is_finished_at_the_next_opening(
    backup: Path, tmp_path: Path, moved: tuple[str, ...]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for ending in ("-shm", "-wal", ""):
        if ending not in moved:
            (data / f"state.db{ending}").write_bytes(b"left over from before")
    backup.rename(data / "state.db.restored")
    store = SqliteStore(data)
    await store.open()
    assert await store.last_sequence() == 10
    assert not (data / "state.db.restored").exists()
    await store.close()


async def test_a_restore_cut_short_before_it_was_decided_changes_nothing(backup: Path, tmp_path: Path) -> None:
    data = tmp_path / "source"
    (data / "state.db.restored.part").write_bytes(backup.read_bytes()[:5000])
    store = SqliteStore(data)
    await store.open()
    assert await store.last_sequence() == 10
    await store.close()
    await restore(backup, data)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM events WHERE sequence = 5",
        "DELETE FROM events WHERE sequence = 10",
        "UPDATE records SET body = substr(body, 2) WHERE id = '3'",
        "PRAGMA application_id = 7",
    ],
)
async def test_a_backup_that_lacks_something_is_refused(backup: Path, tmp_path: Path, damage: str) -> None:
    on = sqlite3.connect(backup, isolation_level=None)
    on.execute(damage)
    on.close()
    with pytest.raises(Damaged):
        await restore(backup, tmp_path / "data")
    assert not (tmp_path / "data" / "state.db").exists()


async def test_a_backup_of_a_newer_pileus_is_refused(backup: Path, tmp_path: Path) -> None:
    on = sqlite3.connect(backup, isolation_level=None)
    on.execute("PRAGMA user_version = 99")
    on.close()
    with pytest.raises(Conflict, match="newer"):
        await restore(backup, tmp_path / "data")
