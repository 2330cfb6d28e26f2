"""What every store promises."""

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

import pileus
from pileus.kernel.errors import Conflict, NotFound, Unavailable
from pileus.state.rows import Damaged
from pileus.state.store import Deposed, Event, Store, StoredRecord
from pileus.testing.contracts.entries import EVERYTHING, NOON, bodies, contents, entry, numbers
from pileus.testing.contracts.eventlog import EventLogContract


def _names(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


class StoreContract(EventLogContract):
    """To be subclassed with the four fixtures that raise here."""

    @pytest.fixture
    def make(self) -> Callable[[], Store]:
        """Makes stores over the same data, not opened yet."""
        raise NotImplementedError

    @pytest.fixture
    def depose(self) -> Callable[[], Awaitable[None]]:
        """Lets another take over although the leader has not given up."""
        raise NotImplementedError

    @pytest.fixture
    def restored(self) -> Callable[[Path], Awaitable[Store]]:
        """Restores a backup to a place where there was nothing, and makes a store over it, not opened yet."""
        raise NotImplementedError

    @pytest.fixture
    def appender(self) -> str:
        """A Python program that runs `append_for_ever` over the data of `make`."""
        raise NotImplementedError

    @pytest.fixture
    async def store(self, make: Callable[[], Store]) -> AsyncIterator[Store]:
        store = make()
        await store.open()
        yield store
        await store.close()

    async def test_a_fresh_store_is_empty(self, store: Store) -> None:
        assert await store.last_sequence() == 0
        assert await store.first_sequence() == 0
        assert await store.events(0, 10, EVERYTHING) == []
        assert await contents(store) == {}

    async def test_what_was_appended_is_read_as_it_was(self, store: Store) -> None:
        whole = entry(
            1, task="t", project="p", actor="user:ü'\"\\\n\t", after='{"ü":"\\u0000 \\ud83d\\ude00", "n":1e3}'
        )
        bare = Event(
            sequence=2,
            at=NOON + timedelta(microseconds=1),
            actor="",
            operation="",
            kind="",
            id="",
            revision=0,
            version=1,
        )
        await store.append([whole])
        await store.append([bare])
        assert await store.events(0, 10, EVERYTHING) == [whole, bare]

    async def test_records_follow_the_events(self, store: Store) -> None:
        await store.append([entry(1, id="a"), entry(2, id="b", revision=4), entry(3, id="c")])
        await store.append([entry(4, id="a", revision=2), entry(5, id="c", after="")])
        assert list((await contents(store)).values()) == [
            StoredRecord(kind="volume", id="a", revision=2, version=3, body=b'{"n":4}'),
            StoredRecord(kind="volume", id="b", revision=4, version=3, body=b'{"n":2}'),
        ]

    async def test_a_batch_may_change_a_record_more_than_once(self, store: Store) -> None:
        await store.append(
            [
                entry(1, id="put and deleted"),
                entry(2, id="deleted and put", after=""),
                entry(3, id="put twice"),
                entry(4, id="put and deleted", after=""),
                entry(5, id="deleted and put"),
                entry(6, id="put twice"),
            ]
        )
        assert await bodies(store) == {"deleted and put": b'{"n":5}', "put twice": b'{"n":6}'}

    async def test_the_same_id_in_two_kinds_is_two_records(self, store: Store) -> None:
        await store.append([entry(1, kind="volume"), entry(2, kind="port"), entry(3, kind="volume", after="")])
        assert list(await contents(store)) == [("port", "a")]

    async def test_what_was_appended_outlives_the_store(self, store: Store, make: Callable[[], Store]) -> None:
        await store.append([entry(1), entry(2, id="b")])
        await store.close()
        again = make()
        await again.open()
        assert await again.last_sequence() == 2
        assert await bodies(again) == {"a": b'{"n":1}', "b": b'{"n":2}'}
        await again.append([entry(3)])
        assert numbers(await again.events(0, 10, EVERYTHING)) == [1, 2, 3]
        await again.close()

    async def test_many_records_are_loaded_in_batches(self, store: Store) -> None:
        await store.append([entry(n, id=f"{n:04}") for n in range(1, 2502)])
        batches = [len(batch) async for batch in store.load()]
        assert len(batches) > 1
        assert sum(batches) == 2501

    async def test_loading_may_be_given_up(self, store: Store) -> None:
        await store.append([entry(n, id=f"{n:04}") for n in range(1, 2502)])
        load = store.load()
        assert await anext(load)
        await load.aclose()  # type: ignore[attr-defined]
        assert len(await contents(store)) == 2501

    async def test_a_batch_of_any_size_is_kept_whole(self, store: Store) -> None:
        last = 0
        for size in (*range(1, 35), 257, 1025):
            await store.append([entry(last + place, id=f"{size}-{place}") for place in range(1, size + 1)])
            last += size
            assert await store.last_sequence() == last
        assert numbers(await store.events(0, last + 1, EVERYTHING)) == list(range(1, last + 1))
        assert len(await contents(store)) == last

    async def test_an_empty_batch_is_nothing(self, store: Store) -> None:
        await store.append([])
        assert await store.last_sequence() == 0

    async def test_a_batch_with_a_gap_is_refused(self, store: Store) -> None:
        with pytest.raises(ValueError, match="where 2 belongs"):
            await store.append([entry(1), entry(3)])
        assert await store.last_sequence() == 0

    @pytest.mark.parametrize("first", [1, 2, 4])
    async def test_a_batch_that_does_not_continue_the_log_ends_the_lead(self, store: Store, first: int) -> None:
        await store.append([entry(1), entry(2)])
        with pytest.raises(Deposed):
            await store.append([entry(first, id="b")])
        assert await store.last_sequence() == 2
        assert await bodies(store) == {"a": b'{"n":2}'}

    async def test_each_opening_begins_a_greater_epoch(self, store: Store, make: Callable[[], Store]) -> None:
        first = store.epoch
        assert first > 0
        await store.close()
        again = make()
        await again.open()
        assert again.epoch > first
        await again.close()

    async def test_a_second_controller_is_told_who_leads(self, store: Store, make: Callable[[], Store]) -> None:
        with pytest.raises(Conflict, match=str(os.getpid())):
            await make().open()
        await store.append([entry(1)])

    async def test_the_deposed_cannot_write(
        self, store: Store, make: Callable[[], Store], depose: Callable[[], Awaitable[None]]
    ) -> None:
        await store.append([entry(1)])
        await depose()
        rival = make()
        await rival.open()
        assert rival.epoch > store.epoch
        with pytest.raises(Deposed):
            await store.append([entry(2, id="written by the deposed")])
        await rival.append([entry(2)])
        with pytest.raises(Deposed):
            await store.append([entry(3, id="written by the deposed")])
        assert await bodies(rival) == {"a": b'{"n":2}'}
        await rival.close()

    async def test_a_closed_store_is_unavailable(self, store: Store) -> None:
        await store.close()
        await store.close()
        with pytest.raises(Unavailable):
            await store.append([entry(1)])
        with pytest.raises(Unavailable):
            await store.events(0, 1, EVERYTHING)

    async def test_reads_and_appends_go_on_beside_each_other(self, store: Store) -> None:
        async def append() -> None:
            for n in range(1, 101):
                await store.append([entry(n, id=str(n))])

        async def read() -> list[int]:
            seen: list[int] = []
            while len(seen) < 100:
                seen += numbers(await store.events(len(seen), 7, EVERYTHING))
            return seen

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(append())
            readers = [group.create_task(read()) for _ in range(3)]
        assert [reader.result() for reader in readers] == [list(range(1, 101))] * 3

    async def test_a_backup_holds_one_moment_and_can_be_restored(
        self, store: Store, restored: Callable[[Path], Awaitable[Store]], tmp_path: Path
    ) -> None:
        await store.append([entry(n, id=str(n), after='{"ü":0}') for n in range(1, 1501)])
        done = asyncio.Event()

        async def append() -> None:
            for n in itertools.count(1501):
                await store.append([entry(n, id=str(n))])
                if done.is_set():
                    return

        backup = tmp_path / "backup"
        async with asyncio.TaskGroup() as group:
            group.create_task(append())
            await store.backup(backup)
            done.set()
        assert backup.stat().st_mode & 0o777 == 0o600
        copy = await restored(backup)
        await copy.open()
        last = await copy.last_sequence()
        assert 1500 <= last <= await store.last_sequence()
        assert copy.epoch >= store.epoch
        assert await copy.events(0, 1_000_000, EVERYTHING) == await store.events(0, last, EVERYTHING)
        assert (await bodies(copy)).keys() == {str(n) for n in range(1, last + 1)}
        await copy.append([entry(last + 1)])
        await copy.close()

    async def test_a_backup_overwrites_nothing(self, store: Store, tmp_path: Path) -> None:
        backup = tmp_path / "backup"
        backup.write_text("precious")
        with pytest.raises(Conflict):
            await store.backup(backup)
        assert backup.read_text() == "precious"
        assert _names(tmp_path, "backup*") == ["backup"]

    async def test_a_damaged_backup_is_not_restored(
        self, store: Store, restored: Callable[[Path], Awaitable[Store]], tmp_path: Path
    ) -> None:
        await store.append([entry(n, id=str(n)) for n in range(1, 1001)])
        backup = tmp_path / "backup"
        await store.backup(backup)
        whole = backup.read_bytes()
        with pytest.raises(NotFound):
            await restored(tmp_path / "no such file")
        for damaged in (
            whole[: len(whole) // 2],
            whole[:4096] + b"\xa5" * 8192 + whole[12288:],
            b"no database" * 999,
            b"",
        ):
            backup.write_bytes(damaged)
            with pytest.raises(Damaged):
                await restored(backup)

    async def test_a_power_cut_loses_nothing_that_was_acknowledged_and_keeps_nothing_by_halves(
        self, make: Callable[[], Store], depose: Callable[[], Awaitable[None]], appender: str
    ) -> None:
        path = str(Path(pileus.__file__).parents[1])
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", appender, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
        )
        assert child.stdout is not None
        acknowledged = 0
        try:
            async with asyncio.timeout(60):
                while acknowledged < 300 and (line := await child.stdout.readline()):
                    acknowledged = int(line)
        finally:
            child.send_signal(signal.SIGKILL)
            rest = await child.stdout.read()
            await child.wait()
        # The last line may be cut short, but a line is written only behind its commit.
        acknowledged = max([acknowledged, *(int(line) for line in rest.split(b"\n")[:-1])])
        assert acknowledged >= 300
        await depose()
        store = make()
        await store.open()
        last = await store.last_sequence()
        assert last >= acknowledged
        events = await store.events(0, last + 1, EVERYTHING)
        assert numbers(events) == list(range(1, last + 1))
        assert await bodies(store) == {event.id: bytes(event.after) for event in events}
        sizes: dict[int, int] = {}
        for event in events:
            told = msgspec.json.decode(event.after, type=dict[str, int])
            sizes[told["batch"]] = sizes.get(told["batch"], told["size"]) - 1
        assert set(sizes.values()) == {0}
        await store.close()
