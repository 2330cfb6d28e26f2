"""Changes for a store to keep, and what it has kept: for its contracts and for its own tests."""

import itertools
import random
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from pileus.state.store import Event, EventFilter, Store, StoredRecord

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
EVERYTHING = EventFilter()


def entry(
    sequence: int,
    *,
    id: str = "a",
    after: str | None = None,
    kind: str = "volume",
    revision: int = 1,
    at: datetime | None = None,
    task: str = "",
    project: str = "",
    actor: str = "system",
    operation: str = "",
    source: str = "192.0.2.1",
) -> Event:
    """A change that leaves the record as `{"n":<sequence>}`, or as `after`; empty if it deletes it."""
    return Event(
        sequence=sequence,
        at=at or NOON + timedelta(seconds=sequence),
        actor=actor,
        operation=operation or f"{kind}.change",
        request=f"request {sequence}",
        source=source,
        task=task,
        project=project,
        kind=kind,
        id=id,
        revision=revision,
        version=3,
        before=msgspec.Raw(b'{"name":"before \xc3\xa4 \\" \\\\ \\u0000"}'),
        after=msgspec.Raw((f'{{"n":{sequence}}}' if after is None else after).encode()),
    )


def numbers(events: Sequence[Event]) -> list[int]:
    return [event.sequence for event in events]


async def contents(store: Store) -> dict[tuple[str, str], StoredRecord]:
    return {(record.kind, record.id): record async for batch in store.load() for record in batch}


async def bodies(store: Store) -> dict[str, bytes]:
    return {record.id: record.body for record in (await contents(store)).values()}


async def append_for_ever(store: Store) -> None:
    """Append batches of three to seven changes and print after each how far it got: to be killed at any moment.

    Every record of a batch has the batch's number and size, so that half a batch would be seen.
    """
    await store.open()
    sequence = await store.last_sequence()
    chance = random.Random(sequence)  # noqa: S311 - sizes, no secrets
    for batch in itertools.count(sequence):
        size = chance.randint(3, 7)
        body = f'{{"batch":{batch},"size":{size}}}'
        await store.append([entry(sequence + place, id=f"{batch}-{place}", after=body) for place in range(1, size + 1)])
        sequence += size
        sys.stdout.write(f"{sequence}\n")
        sys.stdout.flush()
