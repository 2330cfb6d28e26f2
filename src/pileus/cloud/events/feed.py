"""Following the event log: first what is kept, then what comes, without a gap and without holding the writer up."""

import asyncio
from collections.abc import Sequence

import msgspec

from pileus.state.state import State
from pileus.state.store import Event, EventFilter, matches

_BATCH = 500


class Feed:
    """Everybody who follows the log."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._followers: set[Follower] = set()
        self._newest = state.sequence
        """The newest event that is on disk: a feed is made when all there is has been loaded or committed."""
        self._secret = frozenset(kind.name for kind in state.kinds if kind.secret)
        state.listen(self._came)

    def follow(self, after: int, where: EventFilter) -> "Follower":
        """Follow from behind this sequence number; close what is returned."""
        follower = Follower(self, self._state, after, where, self._newest)
        self._followers.add(follower)
        return follower

    def left(self, follower: "Follower") -> None:
        self._followers.discard(follower)

    def shown(self, event: Event) -> Event:
        """The event without what a secret record holds."""
        if event.kind not in self._secret:
            return event
        return msgspec.structs.replace(event, before=msgspec.Raw(b""), after=msgspec.Raw(b""))

    def _came(self, events: Sequence[Event]) -> None:
        self._newest = events[-1].sequence
        for follower in self._followers:
            follower.came(events)


class Follower:
    """One who follows. It reads from the store whatever it was too slow to be handed."""

    def __init__(self, feed: Feed, state: State, after: int, where: EventFilter, newest: int) -> None:
        self._feed = feed
        self._state = state
        self._after = after
        self._where = where
        self._newest = newest
        """What the store has: everything up to here is to be read from it."""
        self._wake = asyncio.Event()

    def came(self, events: Sequence[Event]) -> None:
        self._newest = events[-1].sequence
        if any(matches(event, self._where) for event in events):
            self._wake.set()
        elif not self._wake.is_set() and self._after == events[0].sequence - 1:
            self._after = self._newest

    async def next(self) -> list[Event]:
        """The next events, at least one."""
        while True:
            self._wake.clear()
            newest = self._newest
            if self._after < newest:
                found = await self._state.store.events(self._after, _BATCH, self._where)
                if found:
                    self._after = found[-1].sequence
                    return found
                self._after = max(self._after, newest)
            await self._wake.wait()

    def close(self) -> None:
        self._feed.left(self)
