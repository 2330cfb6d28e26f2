"""What the state promises, on a store in memory."""

import asyncio
import gc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from pileus.kernel.clock import FrozenClock
from pileus.kernel.errors import Conflict, NotFound, Stale, Unavailable
from pileus.state.kinds import Kind, Unreadable
from pileus.state.records import Record
from pileus.state.state import Origin, State, opened, put, remove
from pileus.state.store import Event, EventFilter, StoredRecord
from pileus.testing.memorystore import Disk, MemoryStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOMEBODY = Origin(actor="user:1", operation="test")


class Cap(Record, frozen=True, kw_only=True):
    colour: str
    project_id: str = ""
    name: str | None = None
    tags: tuple[str, ...] = ()


CAPS = Kind(
    "cap",
    Cap,
    indexes={"colour": lambda cap: cap.colour},
    many={"tag": lambda cap: cap.tags},
    unique={"name": lambda cap: cap.name},
)


def cap(id: str, colour: str = "red", **more: Any) -> Cap:
    return Cap(id=id, created_at=NOW, colour=colour, **more)


def state_on(store: MemoryStore) -> Any:
    return opened([CAPS], store, FrozenClock())


async def test_what_is_committed_is_there_after_a_restart() -> None:
    disk = Disk()
    async with state_on(MemoryStore(disk)) as state:
        await state.commit([put(cap("a")), put(cap("b", "blue"))], SOMEBODY)
        await state.commit([remove(state[CAPS].get("a"))], SOMEBODY)
    async with state_on(MemoryStore(disk)) as state:
        assert [each.id for each in state[CAPS]] == ["b"]
        assert state[CAPS].get("b").revision == 1
        assert state.sequence == 3


async def test_a_transaction_without_changes_is_none() -> None:
    store = MemoryStore()
    told: list[Sequence[Event]] = []
    async with state_on(store) as state:
        state.listen(told.append)
        await state.commit([], SOMEBODY)
        await state.commit([put(cap("a"))], SOMEBODY)
    assert [len(events) for events in told] == [1]
    assert store.appends == 1


async def test_records_that_were_loaded_share_what_they_have_in_common() -> None:
    store = MemoryStore()
    async with state_on(store) as state:
        await state.commit([put(cap(id, project_id="p" * 36)) for id in ("a", "b")], SOMEBODY)
    async with state_on(MemoryStore(store.disk)) as again:
        one, two = again[CAPS]
        assert one.project_id == "p" * 36
        assert one.project_id is two.project_id


def test_records_are_out_of_the_garbage_collectors_sight() -> None:
    assert not gc.is_tracked(cap("a"))


async def test_a_change_made_from_an_old_revision_is_stale_and_changes_nothing() -> None:
    async with state_on(MemoryStore()) as state:
        await state.commit([put(cap("a"))], SOMEBODY)
        old = state[CAPS].get("a")
        await state.commit([put(old)], SOMEBODY)
        with pytest.raises(Stale):
            state.apply([put(cap("b")), put(old)], SOMEBODY)
        assert "b" not in state[CAPS]
        assert state[CAPS].get("a").revision == 2


async def test_two_records_cannot_share_a_unique_key_and_a_removed_one_frees_it() -> None:
    async with state_on(MemoryStore()) as state:
        await state.commit([put(cap("a", name="beret"))], SOMEBODY)
        with pytest.raises(Conflict):
            state.apply([put(cap("b", name="beret"))], SOMEBODY)
        with pytest.raises(Conflict):
            state.apply([put(cap("c", name="fez")), put(cap("d", name="fez"))], SOMEBODY)
        await state.commit([remove(state[CAPS].get("a")), put(cap("b", name="beret"))], SOMEBODY)
        assert state[CAPS].one("name", "beret") == state[CAPS].get("b")


async def test_indexes_follow_every_change() -> None:
    async with state_on(MemoryStore()) as state:
        await state.commit([put(cap("a", tags=("x", "y"))), put(cap("b"))], SOMEBODY)
        caps = state[CAPS]
        assert caps.ids_by("colour", "red") == ["a", "b"]
        assert caps.ids_by("tag", "y") == ["a"]
        await state.commit([put(Cap(id="a", created_at=NOW, revision=1, colour="blue", tags=("x",)))], SOMEBODY)
        assert caps.ids_by("colour", "red") == ["b"]
        assert caps.count_by("tag", "y") == 0
        with pytest.raises(NotFound):
            caps.get("z")


async def test_nobody_is_told_before_the_log_is_on_disk() -> None:
    heard: list[Event] = []
    order: list[str] = []
    store = MemoryStore(fuse=lambda _: order.append("disk"))
    async with state_on(store) as state:

        def hear(events: Sequence[Event]) -> None:
            heard.extend(events)
            order.append("told")

        state.listen(hear)
        state.apply([put(cap("a"))], SOMEBODY)
        assert state[CAPS].get("a").revision == 1
        assert heard == []
        await state.durable()
        assert order == ["disk", "disk", "told"]
        assert [(event.sequence, event.kind, event.actor) for event in heard] == [(1, "cap", "user:1")]


async def test_commits_that_wait_together_are_written_together() -> None:
    appends: list[int] = []
    store = MemoryStore(fuse=appends.append)
    async with state_on(store) as state:
        await asyncio.gather(*(state.commit([put(cap(f"{n:03}"))], SOMEBODY) for n in range(100)))
        assert len(state[CAPS]) == 100
        assert len(appends) == 2, "one append, asked before and after"


async def test_when_the_log_cannot_be_written_nobody_is_answered_and_nothing_more_is_taken() -> None:
    def full(_: int) -> None:
        raise OSError("no space left on device")

    store = MemoryStore(fuse=full)
    await store.open()
    state = State([CAPS], store, FrozenClock())
    writer = asyncio.create_task(state.keep_log())
    with pytest.raises(Unavailable):
        await state.commit([put(cap("a"))], SOMEBODY)
    with pytest.raises(OSError, match="no space"):
        await writer
    with pytest.raises(Unavailable):
        state.apply([put(cap("b"))], SOMEBODY)
    assert store.disk.records == {}


async def test_events_carry_what_was_and_what_is() -> None:
    store = MemoryStore()
    async with state_on(store) as state:
        await state.commit([put(cap("a", project_id="p"))], SOMEBODY)
        await state.commit([remove(state[CAPS].get("a"))], SOMEBODY)
        made, removed = await store.events(0, 10, EventFilter(projects=frozenset({"p"})))
        assert (bytes(made.before), bytes(removed.after)) == (b"", b"")
        assert bytes(made.after) == bytes(removed.before)


def renamed(body: dict[str, Any]) -> dict[str, Any]:
    body["colour"] = body.pop("color")
    return body


@pytest.mark.parametrize(
    ("version", "body"),
    [
        (1, b'{"id":"a","created_at":"2026-01-01T00:00:00Z","revision":4,"color":"red"}'),
        (2, b'{"id":"a","created_at":"2026-01-01T00:00:00Z","revision":4,"colour":"red"}'),
    ],
)
async def test_old_records_are_read_for_ever(version: int, body: bytes) -> None:
    kind = Kind("cap", Cap, upgrades=(renamed,))
    stored = StoredRecord(kind="cap", id="a", revision=4, version=version, body=body)
    assert kind.read(stored) == Cap(id="a", created_at=NOW, revision=4, colour="red")


@pytest.mark.parametrize("make", [lambda: (2, b"{}"), lambda: (1, b'{"id":"a"}'), lambda: (1, b"{")])
def test_a_record_that_cannot_be_read_is_refused_by_name(make: Callable[[], tuple[int, bytes]]) -> None:
    version, body = make()
    with pytest.raises(Unreadable, match="cap a"):
        CAPS.read(StoredRecord(kind="cap", id="a", revision=1, version=version, body=body))


class Colours:
    """A view: how many caps there are of each colour."""

    def __init__(self) -> None:
        self.counted: dict[str, int] = {}

    def changed(self, kind: str, before: Record | None, after: Record | None) -> None:
        assert kind == CAPS.name
        for record, more in ((before, -1), (after, 1)):
            if isinstance(record, Cap):
                self.counted[record.colour] = self.counted.get(record.colour, 0) + more


async def test_views_count_what_is_supposed_only_until_it_no_longer_is() -> None:
    view = Colours()
    async with opened([CAPS], MemoryStore(), FrozenClock(), [view]) as state:
        await state.commit([put(cap("a")), put(cap("b"))], SOMEBODY)
        with state.supposing() as suppose:
            suppose([put(cap("c")), put(cap("a", "blue"))])
            suppose([remove(state[CAPS].get("b"))])
            assert view.counted == {"red": 1, "blue": 1}
            assert len(state[CAPS]) == 2
        assert view.counted == {"red": 2, "blue": 0}
