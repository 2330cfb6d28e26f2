"""One connection to libvirtd, opened when it is needed and again after it was lost."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Thread
from typing import TypeVar

import structlog

from pileus.agent.hypervisor.libvirt.binding import Library, VirConnect, VirDomain, error_code
from pileus.agent.hypervisor.libvirt.states import Lifecycle
from pileus.agent.hypervisor.libvirt.threads import in_thread
from pileus.kernel.errors import Conflict, NotFound, PileusError, TimedOut, Unavailable
from pileus.kernel.ids import InstanceId

log = structlog.get_logger()

T = TypeVar("T")

# libvirtd is asked for a sign of life every 5 s, and given up after three.
_KEEPALIVE_S = 5
_KEEPALIVE_COUNT = 3
_OPEN_S = 10.0


class EngineFailed(PileusError):
    """libvirt or QEMU refused for a reason of their own; `internal` has it in full."""

    code, title = "hypervisor-failed", "The hypervisor failed"


class Connection:
    """Calls libvirt, and tells of what happens there on the event loop that called first."""

    def __init__(
        self,
        library: Library,
        uri: str,
        *,
        heard: Callable[[InstanceId, str, Lifecycle, int], None],
        let_go: Callable[[InstanceId], None],
        lost: Callable[[], None],
    ) -> None:
        """Nothing is opened yet.

        `heard` is told a guest's id, its libvirt name, the event and its detail; `let_go` whose device is unplugged.
        """
        self._library = library
        self._uri = uri
        self._heard = heard
        self._let_go = let_go
        self._lost = lost
        self._opening = asyncio.Lock()
        self._open: VirConnect | None = None
        self._events: tuple[int, ...] = ()

    async def ready(self) -> VirConnect:
        """The open connection. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        while (opened := self._open) is None:
            try:
                await in_thread(lambda: self._dial(loop), timeout_s=_OPEN_S, turn=self._opening)
            except self._library.libvirtError as refused:
                raise Unavailable("libvirt does not answer", internal=f"{self._uri}: {refused}") from refused
            except TimeoutError as late:
                raise TimedOut("libvirt does not answer", internal=self._uri) from late
        return opened

    async def call(
        self, what: str, ask: Callable[[VirConnect], T], *, timeout_s: float, turn: asyncio.Lock | None = None
    ) -> T:
        """What libvirt answers; of the calls that share a turn only one runs at a time.

        Raises:
            NotFound: there is no such guest.
            Conflict: the guest's state forbids it.
            Unavailable: libvirtd does not answer (TimedOut: or the guest's QEMU).
            EngineFailed: anything else that libvirt says.
        """
        turn = turn or asyncio.Lock()
        connection = await self.ready()
        try:
            try:
                return await in_thread(lambda: ask(connection), timeout_s=timeout_s, turn=turn)
            except self._library.libvirtError as error:
                if self._alive(connection):
                    raise
                self._drop(connection, error_code(error))
            # libvirtd was restarted since the last call, and whatever is asked may be asked twice.
            connection = await self.ready()
            return await in_thread(lambda: ask(connection), timeout_s=timeout_s, turn=turn)
        except self._library.libvirtError as error:
            raise self._translated(what, error, connection) from error
        except TimeoutError as late:
            raise TimedOut(f"libvirt did not {what} within {timeout_s:g} s") from late

    async def close(self) -> None:
        """Hang up; the next call opens it again."""
        if (opened := self._open) is not None:
            self._open, events = None, self._events
            await in_thread(lambda: self._hang_up(opened, events), timeout_s=_OPEN_S, turn=asyncio.Lock())

    def _dial(self, loop: asyncio.AbstractEventLoop) -> None:
        """Runs in a thread, as do its callbacks: libvirt's own."""
        if self._open is not None:  # opened by whoever had the turn before
            return

        def heard(_: VirConnect, domain: VirDomain, event: int, detail: int, __: None) -> None:
            told = InstanceId(domain.UUIDString()), domain.name(), Lifecycle(event), detail
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._heard, *told)

        def removed(_: VirConnect, domain: VirDomain, __: str, ___: None) -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._let_go, InstanceId(domain.UUIDString()))

        def closed(connection: VirConnect, reason: int, _: None) -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._drop, connection, reason)

        opened = self._library.open(self._uri)
        opened.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_COUNT)
        opened.registerCloseCallback(closed, None)
        library = self._library
        self._events = (
            opened.domainEventRegisterAny(None, library.VIR_DOMAIN_EVENT_ID_LIFECYCLE, heard, None),
            opened.domainEventRegisterAny(None, library.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, removed, None),
        )
        self._open = opened

    def _drop(self, connection: VirConnect, reason: int) -> None:
        if self._open is connection:
            self._open = None
            log.warning("libvirt lost", uri=self._uri, reason=reason)
            Thread(target=self._hang_up, args=(connection, self._events), name="libvirt close", daemon=True).start()
            self._lost()

    def _alive(self, connection: VirConnect) -> bool:
        """Asks nobody: whether the connection has broken, as far as is known here."""
        try:
            return connection is self._open and bool(connection.isAlive())
        except self._library.libvirtError:
            return False

    def _hang_up(self, connection: VirConnect, events: Iterable[int]) -> None:
        # Callbacks hold a connection open until they are taken back, which a dead one refuses to do.
        for event in events:
            with suppress(self._library.libvirtError):
                connection.domainEventDeregisterAny(event)
        with suppress(self._library.libvirtError):
            connection.unregisterCloseCallback()
        with suppress(self._library.libvirtError):
            connection.close()

    def _translated(self, what: str, error: Exception, connection: VirConnect) -> PileusError:
        library = self._library
        code = error_code(error)
        if not self._alive(connection):
            self._drop(connection, code)
            return Unavailable("libvirt does not answer", internal=str(error))
        if code == library.VIR_ERR_NO_DOMAIN:
            return NotFound("the hypervisor has no such guest", internal=str(error))
        if code == library.VIR_ERR_OPERATION_INVALID:
            return Conflict(f"the guest's state does not allow to {what}", internal=str(error))
        if code == library.VIR_ERR_OPERATION_TIMEOUT:
            return TimedOut(f"the guest was too busy to {what}", internal=str(error))
        return EngineFailed(f"the hypervisor could not {what}", internal=str(error))
