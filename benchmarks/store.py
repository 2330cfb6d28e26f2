"""How many events per second the stores put on disk, one by one and in groups, and what an event costs.

    PYTHONPATH=src python benchmarks/store.py [--events 20000] [--folder /var/tmp]

CPU is what this process needs per event; a PostgreSQL server's own is not in it. `busy` is the same work while another
thread of this process never pauses, which is worse than any event loop. Half of the records are new, half are changed;
each has 1 KB. The files lie in the folder given, and PostgreSQL runs with fsync.
"""

import argparse
import asyncio
import random
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pileus.kernel.ids import new_id
from pileus.state.postgresql import PostgresqlStore
from pileus.state.sqlite import SqliteStore
from pileus.state.store import Event, EventFilter, Store
from pileus.testing.postgresql import Missing, cluster

_GROUPS = (1, 10, 100, 1000)
# One by one is slower: fewer say as much.
_ONE_BY_ONE = 2000
_BODY = msgspec.Raw(msgspec.json.encode({"body": "x" * 1000}))


class Cloud:
    """What changes: some projects, tasks and records."""

    def __init__(self) -> None:
        self._chance = random.Random(1)
        self._projects = [new_id() for _ in range(100)]
        self._ids = [new_id()]
        self._task = new_id()

    def changes(self, after: int, count: int) -> list[Event]:
        return [self._change(sequence) for sequence in range(after + 1, after + count + 1)]

    def _change(self, sequence: int) -> Event:
        if self._chance.random() < 0.1:
            self._task = new_id()
        new = self._chance.random() < 0.5
        if new:
            self._ids.append(new_id())
        return Event(
            sequence=sequence,
            at=datetime.now(UTC),
            actor=f"user:{self._ids[0]}",
            operation="instance.create",
            request=self._task,
            source="192.0.2.1",
            task=self._task,
            project=self._chance.choice(self._projects),
            kind="instance",
            id=self._ids[-1] if new else self._chance.choice(self._ids),
            revision=1,
            version=1,
            before=msgspec.Raw(b"") if new else _BODY,
            after=_BODY,
        )


@contextmanager
def busy(wanted: bool) -> Generator[list[float]]:
    """Another thread that never pauses, and how much CPU time it took."""
    done, used = threading.Event(), [0.0]

    def spin() -> None:
        while not done.is_set():
            sum(range(100))
        used[0] = time.thread_time()

    thread = threading.Thread(target=spin)
    if wanted:
        thread.start()
    try:
        yield used
    finally:
        done.set()
        if wanted:
            thread.join()


async def measure(store: Store, cloud: Cloud, total: int, size: int, *, beside: bool) -> tuple[float, float]:
    """Events per second, and microseconds of this process's CPU per event."""
    after = await store.last_sequence()
    groups = [cloud.changes(start, size) for start in range(after, after + total, size)]
    begun, cpu = time.perf_counter(), time.process_time()
    with busy(beside) as other:
        for group in groups:
            await store.append(group)
        elapsed = time.perf_counter() - begun
    count = len(groups) * size
    return count / elapsed, 1e6 * (time.process_time() - cpu - other[0]) / count


async def compare(name: str, store: Store, events: int) -> None:
    await store.open()
    cloud = Cloud()
    await measure(store, cloud, 200, 10, beside=False)
    first = 0.0
    for size in _GROUPS:
        rate, cpu = await measure(store, cloud, events if size > 1 else min(events, _ONE_BY_ONE), size, beside=False)
        loaded, _ = await measure(store, cloud, events // 10 if size > 1 else 200, size, beside=True)
        first = first or rate
        print(
            f"{name:10}  groups of {size:4}  {rate:8,.0f} events/s  {rate / first:5.1f} times one by one"
            f"  {cpu:6.1f} us CPU/event  busy: {loaded:7,.0f} events/s",
            flush=True,
        )
    begun = time.perf_counter()
    count = sum([len(batch) async for batch in store.load()])
    print(f"{name:10}  load         {count / (time.perf_counter() - begun):8,.0f} records/s")
    begun, pages = time.perf_counter(), 20
    for page in range(pages):
        await store.events(page * 1000, 1000, EventFilter())
    print(f"{name:10}  read         {pages * 1000 / (time.perf_counter() - begun):8,.0f} events/s in pages of 1,000")
    await store.close()


async def main(events: int, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as data:
        await compare("SQLite", SqliteStore(Path(data)), events)
    try:
        with cluster(fsync=True, folder=folder) as server, server.database() as address:
            await compare("PostgreSQL", PostgresqlStore(address), events)
    except Missing as missing:
        print(missing)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    asyncio.run(main(given.events, given.folder))
