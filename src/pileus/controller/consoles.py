"""Consoles of guests, from a caller's WebSocket through the link to the host and back; and passwords of guests."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from pileus.cloud.identity.tokens import still_good
from pileus.cloud.instances.consoles import CONSOLES, WITH_CONSOLE, Claim, OpenConsole
from pileus.cloud.instances.model import INSTANCES, Instance
from pileus.cloud.world import Nothing
from pileus.controller.hosts import HostLinks
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, Forbidden, TimedOut, TooMany, Unavailable
from pileus.kernel.ids import InstanceId, new_id
from pileus.kernel.race import first_of
from pileus.kernel.units import MIB
from pileus.link.consoles import ConsoleLogRequest, ConsoleRequest, ScreenPassword, ScreenshotRequest
from pileus.link.guests import GuestPassword
from pileus.link.messages import Message, Method
from pileus.link.streams import Stream
from pileus.operations.caller import Caller
from pileus.operations.declare import Socket
from pileus.operations.permissions import Permissions
from pileus.state.state import Origin, State, put, remove

OPEN_AT_MOST: Final = 32
"""Consoles that a user may have open at once."""
_OPEN_S = 10.0
_PASSWORD_S = 30.0
_LARGEST_PICTURE = 16 * MIB
_FETCHED_AT_ONCE = 8
"""Pictures and logs, each held in memory."""
_LOOK_AGAIN_S = 0.5
"""How often it is looked at whether a user still may: what takes a right away is many things, and this is cheap."""


class LinkedConsoles:
    """Consoles over the hosts' links."""

    def __init__(self, state: State, permissions: Permissions, hosts: HostLinks, clock: Clock) -> None:
        self._state = state
        self._permissions = permissions
        self._hosts = hosts
        self._clock = clock
        self._fetching = asyncio.Semaphore(_FETCHED_AT_ONCE)

    async def forget_former(self) -> None:
        """What a controller had open that is no more is closed."""
        former = [remove(console) for console in self._state[CONSOLES]]
        if former:
            await self._state.commit(former, Origin(actor="system", operation="controller started"))

    async def join(self, socket: Socket, claim: Claim) -> None:
        """See `pileus.cloud.instances.operations.console.Consoles`."""
        instance = self._usable(claim)
        if len(self._state[CONSOLES].by("user", claim.caller.user_id)) >= OPEN_AT_MOST:
            raise TooMany(f"you have {OPEN_AT_MOST} consoles open; close one first")
        async with self._recorded(claim):
            channel = self._hosts.channel(instance.host_id)
            request = ConsoleRequest(id=InstanceId(instance.id), kind=claim.kind)
            stream = await channel.open_stream(Method.CONSOLE, request, timeout_s=_OPEN_S)
            try:
                await first_of(_typed(socket, stream), _shown(stream, socket), self._barred(claim))
            finally:
                await stream.close()

    async def set_screen_password(self, instance: Instance, password: str, *, good_for: timedelta) -> None:
        """See `pileus.cloud.instances.operations.console.Consoles`."""
        wish = ScreenPassword(id=InstanceId(instance.id), password=password, good_for_s=int(good_for.total_seconds()))
        await self._hosts.ask(instance.host_id, Method.SCREEN_ACCESS, wish, Nothing, timeout_s=_OPEN_S)

    async def set_password(self, instance: Instance, user: str, password: str) -> None:
        """See `pileus.cloud.instances.operations.password.GuestPasswords`."""
        wish = GuestPassword(id=InstanceId(instance.id), user=user, password=password)
        await self._hosts.ask(instance.host_id, Method.GUEST_PASSWORD, wish, Nothing, timeout_s=_PASSWORD_S)

    async def screenshot(self, instance: Instance) -> bytes:
        """See `pileus.cloud.instances.operations.console.Consoles`."""
        wish = ScreenshotRequest(id=InstanceId(instance.id))
        return await self._whole(instance, Method.SCREENSHOT, wish, at_most=_LARGEST_PICTURE)

    async def said(self, instance: Instance, *, last_bytes: int) -> bytes:
        """See `pileus.cloud.instances.operations.console.Consoles`."""
        wish = ConsoleLogRequest(id=InstanceId(instance.id), last_bytes=last_bytes)
        return await self._whole(instance, Method.CONSOLE_LOG, wish, at_most=last_bytes)

    async def _whole(self, instance: Instance, method: Method, wish: Message, *, at_most: int) -> bytes:
        """All that a host sends on a stream. Raises Unavailable if that is too much, or takes too long."""
        channel = self._hosts.channel(instance.host_id)
        async with self._fetching:
            stream = await channel.open_stream(method, wish, timeout_s=_OPEN_S)
            whole = bytearray()
            try:
                async with asyncio.timeout(_OPEN_S):
                    while data := await stream.read():
                        whole += data
                        if len(whole) > at_most:
                            raise Unavailable("the host sends more than it was asked for", internal=f"{method}")
            except TimeoutError as late:
                raise TimedOut("the host did not answer in time", internal=f"{method}") from late
            finally:
                await stream.close()
        return bytes(whole)

    def _usable(self, claim: Claim) -> Instance:
        """The instance, if whoever has claimed its console may still use it."""
        caller = claim.caller
        good = still_good(self._state, self._permissions, caller, self._clock.now())
        if not good or not caller.may("instance.open_console"):
            raise Forbidden("the right to this console was taken away")
        instance = self._state[INSTANCES].find(claim.instance_id)
        if instance is None or instance.state not in WITH_CONSOLE:
            raise Conflict("the instance has no console now")
        return instance

    async def _barred(self, claim: Claim) -> None:
        """Raises as soon as the claim is no longer good, or its instance elsewhere; else does not end."""
        host = self._usable(claim).host_id
        while self._usable(claim).host_id == host:  # noqa: ASYNC110 - time passing is one of the reasons
            await asyncio.sleep(_LOOK_AGAIN_S)
        raise Conflict("the instance is on another host now: open its console again")

    @asynccontextmanager
    async def _recorded(self, claim: Claim) -> AsyncGenerator[None]:
        """Have it in the log who is at the console, from before they see anything until they have left."""
        opened = OpenConsole(
            id=new_id(),
            created_at=self._clock.now(),
            project_id=claim.project_id,
            instance_id=claim.instance_id,
            user_id=claim.caller.user_id,
            kind=claim.kind,
        )
        self._state.apply([put(opened)], _origin(claim.caller, "instance.console"))
        try:
            await self._state.durable()
            yield
        finally:
            kept = self._state[CONSOLES].find(opened.id)
            if kept is not None and self._state.broken is None:
                self._state.apply([remove(kept)], _origin(claim.caller, "instance.console_closed"))


def _origin(caller: Caller, operation: str) -> Origin:
    return Origin(actor=caller.actor, operation=operation, request=caller.request, source=caller.source)


async def _typed(socket: Socket, stream: Stream) -> None:
    while (data := await socket.receive()) is not None:
        await stream.write(data)


async def _shown(stream: Stream, socket: Socket) -> None:
    while data := await stream.read():
        await socket.send(data)
