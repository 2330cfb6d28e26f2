"""Waiting for news of a task, without asking again and again."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from pileus.kernel.ids import TaskId
from pileus.state.store import Event


class TaskWatch:
    """Counts the news of each task that somebody asks for, and wakes those who wait."""

    def __init__(self) -> None:
        self._news: dict[TaskId, int] = {}
        self._waiting: dict[TaskId, list[asyncio.Future[None]]] = {}
        self._counted = 0

    def events(self, events: Sequence[Event]) -> None:
        """Take in what was committed; listens to the state."""
        for event in events:
            if event.kind == "task":
                self.progress(TaskId(event.id))

    def progress(self, id: TaskId) -> None:
        """A task has got further."""
        if (waiting := self._waiting.pop(id, None)) is None and id not in self._news:
            return
        self._counted += 1
        self._news[id] = self._counted
        for each in waiting or ():
            if not each.done():
                each.set_result(None)

    def news(self, id: TaskId) -> int:
        """A number that is another whenever there is news of the task, from the first time that somebody asks."""
        return self._news.setdefault(id, self._counted)

    async def wait(self, id: TaskId) -> None:
        """Come back at the next news."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(id, []).append(future)
        try:
            await future
        finally:
            waiting = self._waiting.get(id)
            if waiting is not None:
                with suppress(ValueError):
                    waiting.remove(future)
                if not waiting:
                    del self._waiting[id]

    def forget(self, id: TaskId) -> None:
        """Nobody will ask for this one any more."""
        self._news.pop(id, None)
