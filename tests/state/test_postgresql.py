import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg  # type: ignore[import-untyped]
import pytest

from pileus.kernel.errors import Conflict, NotFound, Unavailable
from pileus.state import sqlite
from pileus.state.postgresql import PostgresqlStore
from pileus.state.postgresqlbackup import back_up, restore
from pileus.state.sqlite import SqliteStore
from pileus.state.store import Deposed, Store
from pileus.testing.contracts.entries import EVERYTHING, NOON, bodies, contents, entry, numbers
from pileus.testing.contracts.store import StoreContract
from pileus.testing.postgresql import Cluster, Missing, cluster


@pytest.fixture(scope="session")
def server() -> Generator[Cluster]:
    try:
        with cluster(fsync=False) as running:
            yield running
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def address(server: Cluster) -> Generator[str]:
    with server.database() as address:
        yield address


untyped: Any = asyncpg


async def ask(address: str, query: str, *arguments: object) -> object:
    """From beside the store."""
    connection = await untyped.connect(address)
    try:
        return await connection.fetchval(query, *arguments)
    finally:
        await connection.close()


class TestPostgresqlStore(StoreContract):
    @pytest.fixture
    def make(self, address: str) -> Callable[[], Store]:
        return lambda: PostgresqlStore(address, wait_s=0)

    @pytest.fixture
    def depose(self, address: str) -> Callable[[], Awaitable[None]]:
        async def end_the_lease() -> None:
            await ask(address, "UPDATE pileus.lead SET lease_until = '-infinity'")

        return end_the_lease

    @pytest.fixture
    def restored(self, server: Cluster) -> Generator[Callable[[Path], Awaitable[Store]]]:
        with server.database() as elsewhere:

            async def restored(backup: Path) -> Store:
                await restore(backup, elsewhere)
                return PostgresqlStore(elsewhere, wait_s=0)

            yield restored

    @pytest.fixture
    def appender(self, address: str) -> str:
        return f"""
import asyncio
from pileus.state.postgresql import PostgresqlStore
from pileus.testing.contracts.entries import append_for_ever
asyncio.run(append_for_ever(PostgresqlStore({address!r})))
"""

    async def test_a_connection_that_breaks_is_made_anew(self, store: Store, address: str) -> None:
        await store.append([entry(1)])
        await ask(address, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pileus'")
        await store.append([entry(2)])
        assert numbers(await store.events(0, 10, EVERYTHING)) == [1, 2]

    async def test_the_lead_is_given_back_when_it_is_closed(self, store: Store, address: str) -> None:
        standby = PostgresqlStore(address, wait_s=math.inf)
        waiting = asyncio.create_task(standby.open())
        await store.append([entry(1)])
        await store.close()
        async with asyncio.timeout(60):
            await waiting
        assert await standby.last_sequence() == 1
        await standby.close()

    async def test_a_rival_that_closes_does_not_take_the_lead_from_its_successor(
        self, store: Store, make: Callable[[], Store], depose: Callable[[], Awaitable[None]]
    ) -> None:
        await depose()
        rival = make()
        await rival.open()
        await store.close()
        with pytest.raises(Conflict):
            await make().open()
        await rival.close()

    async def test_a_live_database_is_not_restored_over(self, store: Store, address: str, tmp_path: Path) -> None:
        await store.append([entry(1)])
        await store.backup(tmp_path / "backup")
        with pytest.raises(Conflict):
            await restore(tmp_path / "backup", address)

    async def test_what_was_there_before_a_restore_is_kept_beside(
        self, store: Store, address: str, tmp_path: Path
    ) -> None:
        await store.append([entry(1)])
        await store.backup(tmp_path / "backup")
        await store.append([entry(2, id="b")])
        await store.close()
        await restore(tmp_path / "backup", address)
        await store.open()
        assert await bodies(store) == {"a": b'{"n":1}'}
        kept = await ask(address, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pileus_replaced_%'")
        assert await ask(address, f"SELECT count(*) FROM {kept}.records") == 2

    async def test_a_cloud_moves_from_sqlite_and_back_by_backups(
        self, restored: Callable[[Path], Awaitable[Store]], tmp_path: Path
    ) -> None:
        small = SqliteStore(tmp_path / "small")
        await small.open()
        await small.append([entry(n, id=str(n), task="t", project="p") for n in range(1, 2001)])
        await small.trim(NOON + timedelta(seconds=1500))
        await small.backup(tmp_path / "small.backup")
        large = await restored(tmp_path / "small.backup")
        await large.open()
        await large.append([entry(2001)])
        await large.backup(tmp_path / "large.backup")
        await sqlite.restore(tmp_path / "large.backup", tmp_path / "again")
        again = SqliteStore(tmp_path / "again")
        await again.open()
        await again.append([entry(2002)])
        await small.append([entry(2001), entry(2002)])
        assert await again.events(0, 9999, EVERYTHING) == await small.events(0, 9999, EVERYTHING)
        assert await contents(again) == await contents(small)
        assert small.epoch <= large.epoch <= again.epoch
        for store in (small, large, again):
            await store.close()

    async def test_a_backup_is_written_from_beside_the_leader(
        self, store: Store, address: str, restored: Callable[[Path], Awaitable[Store]], tmp_path: Path
    ) -> None:
        await store.append([entry(1)])
        await back_up(address, tmp_path / "backup")
        await store.append([entry(2)])
        again = await restored(tmp_path / "backup")
        await again.open()
        assert numbers(await again.events(0, 9, EVERYTHING)) == [1]
        await again.close()

    async def test_a_database_without_our_tables_has_nothing_to_back_up(self, address: str, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            await back_up(address, tmp_path / "backup")
        assert not (tmp_path / "backup").exists()

    async def test_the_tables_of_a_newer_pileus_are_left_alone(
        self, store: Store, make: Callable[[], Store], address: str
    ) -> None:
        await store.close()
        await ask(address, "UPDATE pileus.lead SET version = 99")
        with pytest.raises(Conflict, match="newer"):
            await make().open()


class Line:
    """The way from the store to the database, which a test can spoil."""

    def __init__(self, address: str, folder: Path) -> None:
        self._server = urlsplit(address).query.removeprefix("host=") + "/.s.PGSQL.5432"
        self._socket = str(folder / ".s.PGSQL.5432")
        self.address = urlunsplit(urlsplit(address)._replace(query=f"host={folder}"))
        self.broken = self.asks = self.answers = False
        self._open: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def laid(self) -> AsyncGenerator["Line"]:
        self.asks = self.answers = True
        async with asyncio.TaskGroup() as group:
            self._group = group
            listening = await asyncio.start_unix_server(self._serve, self._socket)
            yield self
            listening.close()
            self.cut()

    def cut(self) -> None:
        while self._open:
            self._open.pop().close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.broken:
            writer.close()
            return
        from_server, to_server = await asyncio.open_unix_connection(self._server)
        self._open += writer, to_server
        self._group.create_task(self._carry(reader, to_server, lambda: self.asks))
        self._group.create_task(self._carry(from_server, writer, lambda: self.answers))

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, carries: Callable[[], bool]
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if carries():
                    target.write(data)
                    await target.drain()
        target.close()


class TestABadLine:
    @pytest.fixture
    async def line(self, address: str, tmp_path: Path) -> AsyncGenerator[Line]:
        async with Line(address, tmp_path).laid() as line:
            yield line

    @pytest.fixture
    async def store(self, line: Line) -> AsyncGenerator[PostgresqlStore]:
        store = PostgresqlStore(line.address)
        await store.open()
        await store.append([entry(1)])
        yield store
        await store.close()

    async def test_an_append_whose_answer_was_lost_is_not_repeated(
        self, store: PostgresqlStore, line: Line, address: str
    ) -> None:
        line.answers = False
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(store.append([entry(2), entry(3)]))
            while await ask(address, "SELECT last_sequence FROM pileus.lead") != 3:
                await asyncio.sleep(0.01)
            line.answers = True
            line.cut()
        await store.append([entry(4)])
        assert numbers(await store.events(0, 10, EVERYTHING)) == [1, 2, 3, 4]

    async def test_an_append_that_did_not_arrive_is_sent_again(self, store: PostgresqlStore, line: Line) -> None:
        line.asks = False
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(store.append([entry(2), entry(3)]))
            await asyncio.sleep(0)
            line.cut()
            line.asks = True
        await store.append([entry(4)])
        assert numbers(await store.events(0, 10, EVERYTHING)) == [1, 2, 3, 4]

    async def test_an_append_that_arrives_after_its_connection_was_given_up_changes_nothing(
        self, store: PostgresqlStore, line: Line, address: str
    ) -> None:
        """The old leader's server process waits for the row while the leader comes back by another connection."""
        blocker = await untyped.connect(address)
        await blocker.execute("BEGIN; SELECT FROM pileus.lead FOR UPDATE")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pileus' AND wait_event_type = 'Lock'"
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(store.append([entry(2), entry(3)]))
            while await ask(address, waiting) != 1:
                await asyncio.sleep(0.01)
            line.cut()
            while await ask(address, waiting) != 2:
                await asyncio.sleep(0.01)
            await blocker.execute("COMMIT")
        await blocker.close()
        await store.append([entry(4)])
        assert numbers(await store.events(0, 10, EVERYTHING)) == [1, 2, 3, 4]

    async def test_a_database_that_stays_away_makes_the_store_unavailable(self, line: Line) -> None:
        store = PostgresqlStore(line.address, patience_s=0.2)
        await store.open()
        line.broken = True
        line.cut()
        with pytest.raises(Unavailable):
            await store.append([entry(1)])
        with pytest.raises(Unavailable):
            await store.events(0, 1, EVERYTHING)
        line.broken = False
        with pytest.raises(Deposed):
            await store.append([entry(1)])
        await store.close()

    async def test_a_database_that_cannot_be_reached_is_unavailable(self, line: Line) -> None:
        line.broken = True
        with pytest.raises(Unavailable):
            await PostgresqlStore(line.address).open()

    async def test_the_lease_is_renewed_while_nothing_is_written(self, address: str) -> None:
        store = PostgresqlStore(address, lease_s=0.3)
        await store.open()
        until = "SELECT lease_until FROM pileus.lead"
        first = await ask(address, until)
        async with asyncio.timeout(60):
            while await ask(address, until) == first:
                await asyncio.sleep(0.01)
        await store.close()

    async def test_a_database_that_went_back_is_not_written_to(
        self, store: PostgresqlStore, line: Line, address: str
    ) -> None:
        await store.append([entry(2)])
        await ask(address, "UPDATE pileus.lead SET last_sequence = 1")
        line.cut()
        with pytest.raises(Deposed, match="lost events"):
            await store.append([entry(3)])
