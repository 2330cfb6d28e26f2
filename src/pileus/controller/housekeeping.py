"""What keeps a controller small and true: reconcilers without input, run by a timer and by what happens."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec
import structlog

from pileus.cloud.events.refusals import Refusals
from pileus.cloud.hosts.model import INVITATIONS
from pileus.cloud.identity.model import TOKEN_SECRETS, TOKENS
from pileus.cloud.identity.tokens import TokenUses
from pileus.cloud.imageexports.reconcilers import ExpireExports
from pileus.cloud.images.files import ImageFiles
from pileus.cloud.images.model import IMAGES, Image, ImageState
from pileus.cloud.images.operations.arrival import UPLOADS_KEPT
from pileus.cloud.instances.reconcilers import PurgeDeleted
from pileus.cloud.schedules.reconcilers import RunSchedules
from pileus.cloud.tasks.watch import TaskWatch
from pileus.kernel.clock import Clock
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import ImageId, TaskId
from pileus.operations.idempotency import KEPT_ANSWERS
from pileus.state.state import Change, Origin, State, put, remove
from pileus.workflow.task import TASKS, TaskState

log = structlog.stdlib.get_logger()

ORIGIN = Origin(actor="system", operation="housekeeping")

ANSWERS_KEPT = timedelta(hours=24)
TASKS_KEPT = timedelta(days=7)
TASKS_KEPT_AT_MOST = 20_000
_AT_ONCE = 1000
"""Records removed in one transaction: others are waiting."""


class Housekeeping:
    """Begins what is due, and forgets what is over.

    Over are tasks, answers, tokens, instances deleted long ago, image exports, old events, files without an image.
    """

    every = timedelta(seconds=60)

    def __init__(
        self,
        state: State,
        files: ImageFiles,
        watch: TaskWatch,
        uses: TokenUses,
        refusals: Refusals,
        clock: Clock,
        events_kept: timedelta,
        deleted: PurgeDeleted,
        schedules: RunSchedules,
        exports: ExpireExports,
    ) -> None:
        self._state = state
        self._files = files
        self._watch = watch
        self._uses = uses
        self._refusals = refusals
        self._clock = clock
        self._events_kept = events_kept
        self._deleted = deleted
        self._schedules = schedules
        self._exports = exports
        self._wake = asyncio.Event()

    def look(self) -> None:
        """Look soon, not only when it is time: something is over."""
        self._wake.set()

    async def run(self) -> None:
        """Keep house until cancelled."""
        while True:
            self._wake.clear()
            await self.once()
            try:
                async with asyncio.timeout(self.every.total_seconds()):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def once(self) -> None:
        """Everything there is to do now; doing it twice is doing it once."""
        deeds: tuple[Callable[[], Awaitable[None]], ...] = (
            self._told,
            self._due,
            self._records,
            self._instances,
            self._images,
            self._exports.once,
            self._events,
        )
        for deed in deeds:
            try:
                await deed()
            except PileusError as refused:
                if self._state.broken is not None:
                    raise
                log.warning("housekeeping put off", reason=refused.detail, internal=refused.internal)

    async def _told(self) -> None:
        self._refusals.tell_of_the_repeated()
        if used := self._uses.taken(self._state):
            await self._state.commit(used, ORIGIN)

    async def _records(self) -> None:
        while over := self._over():
            await self._state.commit(over, ORIGIN)
            for change in over:
                self._watch.forget(TaskId(change.record.id))

    def _over(self) -> list[Change]:
        now = self._clock.now()
        tasks = self._state[TASKS]
        ended = [id for state in (TaskState.DONE, TaskState.UNDONE) for id in tasks.ids_by("state", state)]
        too_many = len(ended) - TASKS_KEPT_AT_MOST
        over: list[Change] = []
        for place, id in enumerate(sorted(ended)):
            task = tasks.get(id)
            if place < too_many or (task.ended_at is not None and now - task.ended_at > TASKS_KEPT):
                over.append(remove(task))
            if len(over) >= _AT_ONCE:
                break
        over += [remove(each) for each in self._state[KEPT_ANSWERS] if now - each.created_at > ANSWERS_KEPT]
        for token in self._state[TOKENS]:
            if token.expires_at is not None and token.expires_at <= now:
                over.append(remove(token))
                if (secret := self._state[TOKEN_SECRETS].find(token.id)) is not None:
                    over.append(remove(secret))
        over += [remove(each) for each in self._state[INVITATIONS] if each.invitation.expires_at <= now]
        return over[: 2 * _AT_ONCE]

    async def _due(self) -> None:
        self._schedules.once()
        await self._state.durable()

    async def _instances(self) -> None:
        self._deleted.once()
        await self._state.durable()

    async def _images(self) -> None:
        images = self._state[IMAGES]
        for image in images.by("state", ImageState.QUEUED):
            touched = self._files.touched_at(ImageId(image.id))
            if self._clock.now() - (touched or image.created_at) > UPLOADS_KEPT:
                await self._abandon(image)

        def in_state(*states: ImageState) -> set[str]:
            return {id for state in states for id in images.ids_by("state", state)}

        await self._files.keep_only(
            lambda: in_state(ImageState.ACTIVE, ImageState.IMPORTING),
            lambda: in_state(ImageState.QUEUED, ImageState.IMPORTING),
        )

    async def _abandon(self, image: Image) -> None:
        """Nothing came for long: what has arrived, and the quota that was taken for the rest, are for others."""
        await self._files.discard(ImageId(image.id))
        if image.expected_bytes:
            await self._state.commit([put(msgspec.structs.replace(image, expected_bytes=0))], ORIGIN)
            log.info("upload abandoned", image=image.id)

    async def _events(self) -> None:
        gone = await self._state.store.trim(self._clock.now() - self._events_kept)
        if gone:
            log.info("old events forgotten", events=gone)
