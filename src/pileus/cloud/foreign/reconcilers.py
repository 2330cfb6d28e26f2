"""Keeps shadows true: asks hosts what has become of the guests that an eye is kept on."""

import asyncio
from datetime import timedelta

import structlog

from pileus.cloud.foreign.model import SHADOWS, drifted
from pileus.cloud.foreign.operations import LOOK_S
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.world import Hosts
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import HostId
from pileus.link.foreign import ForeignGuests
from pileus.link.messages import Message, Method
from pileus.state.state import Origin, State, put

log = structlog.stdlib.get_logger()

ORIGIN = Origin(actor="system", operation="foreign_guest.look")


class FollowShadows:
    """Looks again and again, and records only what is different."""

    every = timedelta(seconds=60)

    def __init__(self, state: State, hosts: Hosts) -> None:
        self._state = state
        self._hosts = hosts

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self.every.total_seconds())
            await self.once()

    async def once(self) -> None:
        """Look at every guest that has a shadow on a connected host."""
        for host in sorted({shadow.host_id for shadow in self._state[SHADOWS]}):
            known = self._state[HOSTS].find(host)
            if known is None or not known.connected:
                continue
            try:
                await self._look(host)
            except PileusError as refused:
                if self._state.broken is not None:
                    raise
                log.warning("shadows not looked at", host=host, reason=refused.detail)

    async def _look(self, host: HostId) -> None:
        found = await self._hosts.ask(host, Method.FOREIGN_GUESTS, Message(), ForeignGuests, timeout_s=LOOK_S)
        guests = {guest.id: guest for guest in found.guests}
        # One that is being taken over is on its way from here to there.
        shadows = [each for each in self._state[SHADOWS].by("host_id", host) if each.instance_id is None]
        changed = [now for shadow in shadows if (now := drifted(shadow, guests.get(shadow.uuid))) != shadow]
        for each in changed:
            if each.drift:
                log.warning("foreign guest has changed", host=host, guest=each.name, drift=each.drift)
        if changed:
            await self._state.commit([put(each) for each in changed], ORIGIN)
