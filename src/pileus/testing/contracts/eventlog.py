"""What every store promises of its log: reading it by pages, filters and moments, and forgetting what is old."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from pileus.state.store import REFUSAL, EventFilter, Result, Store
from pileus.testing.contracts.entries import EVERYTHING, NOON, contents, entry, numbers


class EventLogContract:
    """The promise. A subclass brings the fixtures `make` and `store` of `StoreContract`."""

    async def test_events_come_in_pages(self, store: Store) -> None:
        await store.append([entry(n) for n in range(1, 8)])
        assert numbers(await store.events(0, 3, EVERYTHING)) == [1, 2, 3]
        assert numbers(await store.events(3, 3, EVERYTHING)) == [4, 5, 6]
        assert numbers(await store.events(6, 3, EVERYTHING)) == [7]
        assert numbers(await store.events(7, 3, EVERYTHING)) == []

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            (EventFilter(projects=frozenset({"p"})), [2, 3]),
            (EventFilter(projects=frozenset({"p", ""})), [1, 2, 3]),
            (EventFilter(projects=frozenset()), []),
            (EventFilter(kind="port"), [3, 4]),
            (EventFilter(without_kind="port"), [1, 2]),
            (EventFilter(id="b"), [2, 4]),
            (EventFilter(kind="port", id="b"), [4]),
            (EventFilter(task="t"), [4]),
            (EventFilter(actor="user:1"), [2]),
            (EventFilter(operation="port.create"), [3, 4]),
            (EventFilter(operation="port"), []),
            (EventFilter(noun="port"), [3, 4]),
            (EventFilter(noun="por"), []),
            (EventFilter(source="192.0.2.9"), [2]),
            (EventFilter(result=Result.REFUSED), [5]),
            (EventFilter(result=Result.ANY, kind="refusal"), [5]),
            (EventFilter(result=Result.ANY, noun="port"), [3, 4, 5]),
            (EventFilter(since=NOON + timedelta(seconds=3)), [3, 4]),
            (EventFilter(until=NOON + timedelta(seconds=3)), [1, 2]),
            (EventFilter(since=NOON + timedelta(seconds=2), until=NOON + timedelta(seconds=4)), [2, 3]),
            (EventFilter(since=NOON + timedelta(days=1)), []),
            (EventFilter(until=NOON - timedelta(days=1)), []),
        ],
    )
    async def test_events_are_filtered(self, store: Store, where: EventFilter, expected: list[int]) -> None:
        await store.append(
            [
                entry(1),
                entry(2, project="p", id="b", actor="user:1", source="192.0.2.9"),
                entry(3, project="p", kind="port", operation="port.create"),
                entry(4, project="q", kind="port", id="b", task="t", operation="port.create: plug"),
                entry(5, project="z", kind=REFUSAL, id="z", operation="port.delete", after=""),
            ]
        )
        assert numbers(await store.events(0, 10, where)) == expected
        assert numbers(await store.latest(9, 10, where)) == expected[::-1]
        assert numbers(await store.latest(4, 1, where)) == [n for n in expected if n < 4][-1:]
        assert numbers(await store.events(3, 10, where)) == [n for n in expected if n > 3]

    async def test_a_clock_that_went_back_hides_no_event(self, store: Store) -> None:
        late, early = NOON + timedelta(hours=1), NOON
        await store.append([entry(1, at=early), entry(2, at=late), entry(3, at=early), entry(4, at=late)])
        assert numbers(await store.events(0, 9, EventFilter(since=late))) == [2, 4]
        assert numbers(await store.events(0, 9, EventFilter(until=late))) == [1, 3]

    async def test_the_history_of_a_record_is_complete(self, store: Store) -> None:
        await store.append([entry(1), entry(2, id="b"), entry(3), entry(4, kind="port"), entry(5, after="")])
        assert numbers(await store.history("volume", "a")) == [1, 3, 5]
        assert await store.history("volume", "c") == []

    async def test_the_last_event_until_a_moment_is_found(self, store: Store) -> None:
        assert await store.sequence_at(NOON) == 0
        await store.append([entry(n) for n in range(1, 5)])
        seconds = {0.5: 0, 1: 1, 1.5: 1, 4: 4, 60: 4}
        assert {at: await store.sequence_at(NOON + timedelta(seconds=at)) for at in seconds} == seconds

    async def test_the_first_change_of_each_record_between_two_numbers_is_found(self, store: Store) -> None:
        await store.append(
            [
                entry(1, id="a", project="p"),
                entry(2, id="b", project="q"),
                entry(3, id="a", project="p"),
                entry(4, id="a", kind="port", project="p"),
                entry(5, id="b", project="q", after=""),
                entry(6, id="a", project="p"),
            ]
        )

        async def first(after: int, upto: int, id: str = "", project: str = "") -> list[int]:
            projects = frozenset({project}) if project else None
            where = EventFilter(kind="volume", id=id, projects=projects)
            return numbers(await store.first_changes(after, upto, where))

        assert await first(0, 6) == [1, 2]
        assert await first(1, 6) == [2, 3]
        assert await first(3, 5) == [5]
        assert await first(1, 6, id="a") == [3]
        assert await first(1, 6, project="q") == [2]
        assert await first(6, 6) == []

    async def test_the_last_change_of_a_record_until_a_number_is_found(self, store: Store) -> None:
        await store.append([entry(1), entry(2, id="b"), entry(3), entry(4, kind="port"), entry(5, after="")])

        async def last(upto: int) -> int:
            found = await store.last_change("volume", "a", upto)
            return found.sequence if found is not None else 0

        assert [await last(upto) for upto in range(6)] == [0, 1, 1, 3, 3, 5]

    async def test_trimming_forgets_events_and_keeps_records(self, store: Store) -> None:
        await store.append([entry(n, id=str(n)) for n in range(1, 11)])
        assert await store.trim(NOON + timedelta(seconds=5)) == 4
        assert await store.first_sequence() == 5
        assert numbers(await store.events(0, 3, EVERYTHING)) == [5, 6, 7]
        assert len(await contents(store)) == 10
        assert await store.trim(NOON + timedelta(seconds=5)) == 0

    async def test_the_numbers_go_on_after_everything_was_trimmed(
        self, store: Store, make: Callable[[], Store]
    ) -> None:
        await store.append([entry(n) for n in range(1, 4)])
        assert await store.trim(NOON + timedelta(days=1)) == 3
        assert await store.first_sequence() == 0
        assert await store.last_sequence() == 3
        await store.close()
        again = make()
        await again.open()
        assert await again.last_sequence() == 3
        await again.append([entry(4)])
        assert numbers(await again.events(0, 10, EVERYTHING)) == [4]
        await again.close()

    async def test_trimming_leaves_no_gap_when_the_clock_went_back(self, store: Store) -> None:
        late = NOON + timedelta(hours=1)
        await store.append([entry(1, at=NOON), entry(2, at=late), entry(3, at=NOON), entry(4, at=late)])
        assert await store.trim(NOON + timedelta(minutes=1)) == 1
        assert numbers(await store.events(0, 10, EVERYTHING)) == [2, 3, 4]
