"""A store in memory, with fuses: what is `kept` outlives a power cut, and nothing else does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from pileus.state.store import Deposed, Event, EventFilter, StoredRecord, matches


class Disk:
    """What survives. Several MemoryStores, one after the other, may stand on the same disk."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.records: dict[tuple[str, str], StoredRecord] = {}
        self.epoch = 0


Fuse = Callable[[int], None]
"""Called before and again after each append with a count of such calls; may raise."""


class MemoryStore:
    """Keeps events and records on a `Disk` in memory; `fuse` is asked before and after each append."""

    def __init__(self, disk: Disk | None = None, fuse: Fuse | None = None) -> None:
        self.disk = disk or Disk()
        self.fuse = fuse
        self.appends = 0
        """How often something was appended."""
        self._blown = 0
        self._epoch = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    async def open(self) -> None:
        self.disk.epoch += 1
        self._epoch = self.disk.epoch

    async def last_sequence(self) -> int:
        return self.disk.events[-1].sequence if self.disk.events else 0

    async def first_sequence(self) -> int:
        return self.disk.events[0].sequence if self.disk.events else 0

    async def load(self) -> AsyncIterator[Sequence[StoredRecord]]:
        yield list(self.disk.records.values())

    def _burn(self) -> None:
        if self.fuse is not None:
            self._blown += 1
            self.fuse(self._blown)

    async def append(self, events: Sequence[Event]) -> None:
        if self._epoch != self.disk.epoch:
            raise Deposed("another controller leads")
        self.appends += 1
        self._burn()
        for event in events:
            self.disk.events.append(event)
            if event.after:
                self.disk.records[event.kind, event.id] = StoredRecord(
                    kind=event.kind,
                    id=event.id,
                    revision=event.revision,
                    version=event.version,
                    body=bytes(event.after),
                )
            else:
                self.disk.records.pop((event.kind, event.id), None)
        self._burn()

    async def events(self, after: int, limit: int, where: EventFilter) -> list[Event]:
        found = [event for event in self.disk.events if event.sequence > after and matches(event, where)]
        return found[:limit]

    async def latest(self, before: int, limit: int, where: EventFilter) -> list[Event]:
        found = [event for event in self.disk.events if event.sequence < before and matches(event, where)]
        return found[::-1][:limit]

    async def history(self, kind: str, id: str) -> list[Event]:
        return [event for event in self.disk.events if (event.kind, event.id) == (kind, id)]

    async def sequence_at(self, moment: datetime) -> int:
        return max(
            ((event.at, event.sequence) for event in self.disk.events if event.at <= moment), default=(moment, 0)
        )[1]

    async def first_changes(self, after: int, upto: int, where: EventFilter) -> list[Event]:
        behind = [each for each in self.disk.events if after < each.sequence <= upto and matches(each, where)]
        first = {(event.kind, event.id): event for event in reversed(behind)}
        return sorted(first.values(), key=lambda event: event.sequence)

    async def last_change(self, kind: str, id: str, upto: int) -> Event | None:
        return next((each for each in reversed(await self.history(kind, id)) if each.sequence <= upto), None)

    async def trim(self, before: datetime) -> int:
        kept = [event for event in self.disk.events if event.at >= before]
        gone = len(self.disk.events) - len(kept)
        self.disk.events = kept
        return gone

    async def backup(self, to: Path) -> None:
        await asyncio.to_thread(to.write_bytes, msgspec.json.encode(list(self.disk.records.values())))

    async def close(self) -> None:
        pass
