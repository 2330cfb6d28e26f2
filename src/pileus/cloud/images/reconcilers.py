"""What keeps hosts from what nobody needs of images: copies of deleted ones, and what was packed for none."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

import structlog

from pileus.cloud.hosts.each import on_each
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.images.model import IMAGES, ImageState
from pileus.cloud.world import Hosts, Nothing
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import HostId, ImageId
from pileus.link.images import ImageCopies, ImageForget, ImagesDrop
from pileus.link.messages import Message, Method
from pileus.state.state import State
from pileus.state.store import Event

log = structlog.stdlib.get_logger()

_ANSWER_S: Final = 60.0
_AT_ONCE: Final = 64
"""Hosts that are looked at at a time."""


class DropImages:
    """Looks at hosts when an image is deleted, when a host comes, and now and then: an errand may come late.

    Only copies go of whose image the event log knows that it was deleted. Of others nobody can say that their data is
    anywhere else, as after a database was lost; those go by age.
    """

    every = timedelta(hours=1)

    def __init__(self, state: State, hosts: Hosts) -> None:
        self._state = state
        self._hosts = hosts
        self._due: set[HostId] = set()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Look until cancelled."""
        forget = self._state.listen(self._came)
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.every.total_seconds()):
                        await self._wake.wait()
                self._wake.clear()
                due, self._due = self._due or self._all(), set()
                await self._look_at(due)
        finally:
            forget()

    def _came(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind == HOSTS.name:
                self._due.add(HostId(event.id))
            elif event.kind == IMAGES.name and not bytes(event.after):
                self._due |= self._all()
        if self._due:
            self._wake.set()

    def _all(self) -> set[HostId]:
        return {HostId(host.id) for host in self._state[HOSTS]}

    async def _look_at(self, hosts: set[HostId]) -> None:
        async def look(host: HostId) -> None:
            try:
                await self._look(host)
            except PileusError as why:
                if self._state.broken is not None:
                    raise
                log.info("images of host not looked at", host=host, reason=why.detail)

        await on_each(sorted(hosts), look, at_once=_AT_ONCE)

    async def _look(self, host: HostId) -> None:
        known = self._state[HOSTS].find(host)
        if known is None or not known.connected:
            return
        found = await self._hosts.ask(host, Method.IMAGES_CACHED, Message(), ImageCopies, timeout_s=_ANSWER_S)
        unknown = sorted({copy.image for copy in found.images if copy.image not in self._state[IMAGES]})
        gone = tuple([id for id in unknown if await self._was_deleted(id)])
        if gone:
            await self._hosts.ask(host, Method.IMAGES_DROP, ImagesDrop(images=gone), Nothing, timeout_s=_ANSWER_S)
            log.info("copies of deleted images dropped", host=host, images=gone)
        for packed in found.packed:
            image = self._state[IMAGES].find(packed.image)
            if image is None or image.state is not ImageState.IMPORTING:
                forget = ImageForget(image=packed.image, pool=packed.pool)
                await self._hosts.ask(host, Method.IMAGE_FORGET, forget, Nothing, timeout_s=_ANSWER_S)
                log.info("packed image forgotten", host=host, image=packed.image)

    async def _was_deleted(self, id: ImageId) -> bool:
        await self._state.durable()
        events = await self._state.store.history(IMAGES.name, id)
        return bool(events) and not bytes(events[-1].after)
