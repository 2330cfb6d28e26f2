"""Consoles of guests in memory."""

import asyncio
from base64 import b64decode
from typing import Protocol

from pileus.agent.hypervisor.consoles import ByteStream
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import InstanceId

_VERSION = b"RFB 003.008\n"
# A PNG of 1 x 1 pixels.
_DARK = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


class _Find(Protocol):
    async def __call__(self, id: InstanceId, *, up: bool) -> str:
        """The host name of a guest, which must be `up` if so asked. Raises what a hypervisor would."""
        ...


class SimulatedConsoles:
    """Serial consoles that greet and say again what they are told, and screens that only greet (a `Consoles`)."""

    def __init__(self, find: _Find) -> None:
        self._find = find
        self._serials: dict[InstanceId, SimulatedConsole] = {}
        self._screens: list[tuple[InstanceId, SimulatedConsole]] = []
        self._said: dict[InstanceId, bytearray] = {}
        self.passwords: dict[InstanceId, tuple[str, int]] = {}
        """Of screens: the last one that was set, and for how many seconds."""

    async def serial(self, id: InstanceId) -> ByteStream:
        greeting = f"\r\n{await self._find(id, up=True)} ttyS0\r\n\r\nlogin: ".encode()
        if (earlier := self._serials.pop(id, None)) is not None:
            earlier.end()
        console = self._serials[id] = SimulatedConsole(greeting, self._said.setdefault(id, bytearray()))
        return console

    async def screen(self, id: InstanceId) -> ByteStream:
        await self._find(id, up=True)
        console = SimulatedConsole(_VERSION, bytearray())
        self._screens.append((id, console))
        return console

    async def set_screen_password(self, id: InstanceId, password: str, *, good_for_s: int) -> None:
        await self._find(id, up=True)
        self.passwords[id] = password, good_for_s

    async def screenshot(self, id: InstanceId) -> bytes:
        await self._find(id, up=True)
        return _DARK

    async def said(self, id: InstanceId, *, last_bytes: int) -> bytes:
        await self._find(id, up=False)
        return bytes(self._said.get(id, b"")[-last_bytes:])

    def end(self, id: InstanceId) -> None:
        """The guest does not run any more."""
        self.passwords.pop(id, None)
        if (serial := self._serials.pop(id, None)) is not None:
            serial.end()
        for whose, screen in self._screens:
            if whose == id:
                screen.end()
        self._screens = [each for each in self._screens if each[0] != id]

    def forget(self, id: InstanceId) -> None:
        """The guest is no more."""
        self.end(id)
        self._said.pop(id, None)


class SimulatedConsole:
    """A console that greets, and says again what it is told."""

    def __init__(self, greeting: bytes, log: bytearray) -> None:
        self._coming = asyncio.Queue[bytes]()
        self._ended = False
        self._log = log
        self._say(greeting)

    async def read(self) -> bytes:
        if self._ended and self._coming.empty():
            return b""
        return await self._coming.get()

    async def write(self, data: bytes) -> None:
        if self._ended:
            raise Unavailable("the console is closed")
        if data:
            self._say(data.replace(b"\r", b"\r\n"))

    async def close(self) -> None:
        self.end()

    def end(self) -> None:
        """Whoever reads comes to the end."""
        if not self._ended:
            self._ended = True
            self._coming.put_nowait(b"")

    def _say(self, data: bytes) -> None:
        self._log += data
        self._coming.put_nowait(data)
