"""What a host keeps for the controller, and tells when it is asked for everything."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from pileus.agent.records import AgentRecords, GuestRecord, VolumeRecord
from pileus.link.copies import PAGE_BYTES, CopiesKept, CopiesUpdate, Copy, KeptGuest, Recall, Recalled
from pileus.link.volumes import VolumeSpec


class Copies:
    """The copies of a host."""

    def __init__(self, records: AgentRecords) -> None:
        self._records = records

    def kept(self) -> CopiesKept:
        """Which there are."""
        return CopiesKept(marks={id: copy.mark for id, copy in self._records.copies.items()})

    async def update(self, update: CopiesUpdate) -> None:
        """Keep these, and those no longer.

        Raises:
            Invalid: an id is none.
            Unavailable: a file cannot be written; what was kept before it stays.
        """
        for copy in update.keep:
            await self._records.copies.put(copy.id, copy)
        for id in update.forget:
            await self._records.copies.forget(id)

    def recall(self, wish: Recall) -> Recalled:
        """A page of everything that is kept here."""
        page: list[_Item] = []
        size = 0
        for item in sorted(self._items(), key=lambda each: each.key):
            if item.key <= wish.after:
                continue
            if size > PAGE_BYTES:
                return _page(page, more=True)
            page.append(item)
            size += len(msgspec.json.encode(item.what))
        return _page(page, more=False)

    def _items(self) -> "Iterator[_Item]":
        for id, copy in self._records.copies.items():
            yield _Item(f"copy {id}", copy)
        for id, guest in self._records.guests.items():
            if isinstance(guest, GuestRecord):
                yield _Item(f"guest {id}", KeptGuest(spec=guest.spec, power=guest.power))
        for id, volume in self._records.volumes.items():
            if isinstance(volume, VolumeRecord) and (volume.made or volume.used):
                yield _Item(f"volume {id}", volume.spec)


class _Item(NamedTuple):
    key: str
    what: Copy | KeptGuest | VolumeSpec


def _page(items: list[_Item], *, more: bool) -> Recalled:
    found = [item.what for item in items]
    return Recalled(
        copies=tuple(each for each in found if isinstance(each, Copy)),
        guests=tuple(each for each in found if isinstance(each, KeptGuest)),
        volumes=tuple(each for each in found if isinstance(each, VolumeSpec)),
        next=items[-1].key if more else "",
    )
