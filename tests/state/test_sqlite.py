import resource
import sqlite3
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from pileus.kernel.errors import Conflict, Unavailable
from pileus.state.rows import Damaged, wanted
from pileus.state.schema import SQLITE, upgrade_sqlite
from pileus.state.sqlite import SqliteStore, restore
from pileus.state.store import EventFilter, Store
from pileus.testing.contracts.entries import EVERYTHING, NOON, bodies, entry, numbers
from pileus.testing.contracts.store import StoreContract


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def make(self, data: Path) -> Callable[[], Store]:
        return lambda: SqliteStore(data)

    @pytest.fixture
    def depose(self, data: Path) -> Callable[[], Awaitable[None]]:
        async def remove_the_lock() -> None:
            (data / "state.lock").unlink()

        return remove_the_lock

    @pytest.fixture
    def restored(self, tmp_path: Path) -> Callable[[Path], Awaitable[Store]]:
        async def restored(backup: Path) -> Store:
            await restore(backup, tmp_path / "restored")
            return SqliteStore(tmp_path / "restored")

        return restored

    @pytest.fixture
    def appender(self, data: Path) -> str:
        return f"""
import asyncio, pathlib
from pileus.state.sqlite import SqliteStore
from pileus.testing.contracts.entries import append_for_ever
asyncio.run(append_for_ever(SqliteStore(pathlib.Path({str(data)!r}))))
"""

    async def test_the_files_are_for_their_owner_alone(self, store: Store, data: Path) -> None:
        await store.append([entry(1)])
        assert {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()} == {
            "state.db": 0o600,
            "state.db-wal": 0o600,
            "state.db-shm": 0o600,
            "state.lock": 0o600,
        }
        assert data.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("last", [1000, 2500])
    async def test_a_full_disk_keeps_nothing_of_the_batch_and_later_work_goes_on(self, store: Store, last: int) -> None:
        await store.append([entry(1)])
        with file_size_limit(200_000), pytest.raises(Unavailable):
            await store.append([entry(n, id=str(n), after=f'"{"x" * 1000}"') for n in range(2, last)])
        assert await store.last_sequence() == 1
        assert await bodies(store) == {"a": b'{"n":1}'}
        await store.append([entry(2)])
        assert numbers(await store.events(0, 10, EVERYTHING)) == [1, 2]

    async def test_damage_in_the_records_is_found_when_the_store_is_opened(self, store: Store, data: Path) -> None:
        await store.append([entry(n, id=f"{n:04}") for n in range(1, 1001)])
        await store.close()
        with sqlite3.connect(data / "state.db") as on:
            (page,) = on.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'records'").fetchone()
        on.close()
        with (data / "state.db").open("r+b") as file:
            file.seek((page - 1) * 4096)
            file.write(b"\xa5" * 512)
        with pytest.raises(Damaged):
            await SqliteStore(data).open()

    async def test_a_broken_trigger_is_not_taken_for_a_rival(self, store: Store) -> None:
        nothing = msgspec.structs.replace(entry(1), version=None)
        with pytest.raises(sqlite3.IntegrityError):
            await store.append([nothing])


async def test_a_file_that_is_no_database_is_called_damaged(data: Path) -> None:
    data.mkdir()
    (data / "state.db").write_bytes(b"no database" * 999)
    with pytest.raises(Damaged):
        await SqliteStore(data).open()


async def test_a_database_of_another_program_is_left_alone(data: Path) -> None:
    data.mkdir()
    on = sqlite3.connect(data / "state.db")
    on.execute("CREATE TABLE theirs (x)")
    on.close()
    with pytest.raises(Damaged):
        await SqliteStore(data).open()


async def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable):
        await SqliteStore(tmp_path / "file" / "data").open()


async def test_state_written_by_a_newer_pileus_is_left_alone(data: Path) -> None:
    store = SqliteStore(data)
    await store.open()
    await store.close()
    on = sqlite3.connect(data / "state.db")
    on.execute("PRAGMA user_version = 99")
    on.close()
    with pytest.raises(Conflict, match="newer"):
        await SqliteStore(data).open()


def test_tables_are_upgraded_step_by_step_and_only_once() -> None:
    on = sqlite3.connect(":memory:", isolation_level=None)
    upgrade_sqlite(on)
    steps = (
        *SQLITE,
        "ALTER TABLE records ADD COLUMN colour TEXT",
        "INSERT INTO records VALUES ('k', 'i', 1, 1, '', 'red')",
    )
    upgrade_sqlite(on, steps)
    upgrade_sqlite(on, steps)
    assert on.execute("SELECT colour FROM records").fetchall() == [("red",)]
    assert on.execute("PRAGMA user_version").fetchone() == (len(steps),)
    on.close()


def test_a_step_that_fails_changes_nothing() -> None:
    on = sqlite3.connect(":memory:", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        upgrade_sqlite(on, (*SQLITE, "DROP TABLE events; DROP TABLE no_such_table"))
    assert on.execute("PRAGMA user_version").fetchone() == (len(SQLITE),)
    assert on.execute("SELECT count(*) FROM events").fetchone() == (0,)
    on.close()


@pytest.mark.parametrize(
    ("where", "index"),
    [
        (EventFilter(id="i", kind="k", task="t", projects=frozenset({"p"})), "events_by_id"),
        (EventFilter(task="t", kind="k", projects=frozenset({"p"})), "events_by_task"),
        (EventFilter(projects=frozenset({"p", "q"}), kind="k", since=NOON), "events_by_project"),
        (EventFilter(kind="k", until=NOON), "events_by_kind"),
        (EventFilter(since=NOON, until=NOON), "INTEGER PRIMARY KEY"),
    ],
)
def test_the_narrowest_condition_leads_to_the_index(where: EventFilter, index: str) -> None:
    on = sqlite3.connect(":memory:", isolation_level=None)
    upgrade_sqlite(on)
    arguments: list[int | str] = []

    def argument(value: int | str) -> str:
        arguments.append(value)
        return "?"

    condition = wanted((0, 100), where, argument)
    ((*_, plan),) = on.execute(
        f"EXPLAIN QUERY PLAN SELECT * FROM events WHERE {condition} ORDER BY +sequence", arguments
    ).fetchall()[:1]
    assert f"{index} (" in plan
    on.close()


async def test_a_store_that_could_not_be_opened_holds_nothing(data: Path) -> None:
    data.mkdir()
    (data / "state.db").write_bytes(b"no database" * 999)
    with pytest.raises(Damaged):
        await SqliteStore(data).open()
    (data / "state.db").unlink()
    store = SqliteStore(data)
    await store.open()
    await store.close()


@contextmanager
def file_size_limit(size: int) -> Generator[None]:
    """No file of this process may grow beyond `size` bytes: what a full disk looks like to a program."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
