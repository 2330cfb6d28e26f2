"""What is in front of the guests of a host, for whoever the controller has let through."""

from pileus.agent.comparing import is_up
from pileus.agent.hypervisor.consoles import ByteStream, Consoles
from pileus.agent.making import Making
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.link.consoles import ConsoleKind, ConsoleLogRequest, ConsoleRequest, ScreenPassword


class GuestConsoles:
    """The consoles of guests that this host has a record of.

    Raises NotFound for any other, Conflict if a guest does not run, Unavailable if the hypervisor does not answer.
    """

    def __init__(self, consoles: Consoles, making: Making) -> None:
        self._consoles = consoles
        self._making = making

    async def open(self, wish: ConsoleRequest) -> ByteStream:
        """A console, both ways."""
        await self._must_run(wish.id)
        match wish.kind:
            case ConsoleKind.SERIAL:
                return await self._consoles.serial(wish.id)
            case ConsoleKind.VNC:
                return await self._consoles.screen(wish.id)

    async def set_screen_password(self, wish: ScreenPassword) -> None:
        """Let this password in at the screen, for a while."""
        await self._must_run(wish.id)
        await self._consoles.set_screen_password(wish.id, wish.password, good_for_s=wish.good_for_s)

    async def screenshot(self, id: InstanceId) -> bytes:
        """What a guest's screen shows, as PNG."""
        await self._must_run(id)
        return await self._consoles.screenshot(id)

    async def said(self, wish: ConsoleLogRequest) -> bytes:
        """The end of what a guest has said on its serial console, whether it runs or not."""
        self._making.known(wish.id)
        return await self._consoles.said(wish.id, last_bytes=wish.last_bytes)

    async def _must_run(self, id: InstanceId) -> None:
        record = self._making.known(id)
        if not is_up(await self._making.find(id)):
            raise Conflict(f"guest {record.spec.name!r} does not run")
