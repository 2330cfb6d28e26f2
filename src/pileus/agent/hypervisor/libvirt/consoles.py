"""Consoles of guests on QEMU.

The serial console listens on a socket in a folder of root's. The screen listens nowhere: libvirt hands QEMU one end of
a pair of sockets, so that whoever has not come through libvirt is not even refused. QEMU asks for the password itself.
"""

import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from pileus.agent.hypervisor.consoles import ByteStream
from pileus.agent.hypervisor.libvirt.binding import Library, VirConnect, VirDomain, VirStream
from pileus.agent.hypervisor.libvirt.connection import Connection, EngineFailed
from pileus.agent.hypervisor.libvirt.console import SocketConsole
from pileus.agent.hypervisor.libvirt.domain import Ground, console_log, console_socket
from pileus.agent.hypervisor.libvirt.screen import way_in_xml
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId

T = TypeVar("T")

_OPEN_S: Final = 10.0
_AT_ONCE: Final = 2
"""Screenshots: QEMU takes a while to compress one, and shows its guest nothing else meanwhile."""
_LARGEST_PICTURE: Final = 16 * 1024 * 1024
"""Bytes: a guest's video memory, which is as much as a picture of noise takes."""


class LibvirtConsoles:
    """The consoles of libvirt's guests (a `Consoles`)."""

    def __init__(self, library: Library, connection: Connection, ground: Ground) -> None:
        self._library = library
        self._connection = connection
        self._ground = ground
        self._serials: dict[InstanceId, SocketConsole] = {}
        self._taking_over = asyncio.Lock()
        self._drawing = asyncio.Semaphore(_AT_ONCE)

    async def serial(self, id: InstanceId) -> ByteStream:
        await self._at("open the console", id, lambda _, __: None)
        async with self._taking_over:
            if (earlier := self._serials.pop(id, None)) is not None:
                await earlier.close()
            opened = await SocketConsole.open(console_socket(self._ground, id))
            self._serials[id] = opened
        return opened

    async def screen(self, id: InstanceId) -> ByteStream:
        descriptor = await self._at("open the screen", id, lambda _, domain: domain.openGraphicsFD(0, 0))
        return await SocketConsole.over(socket.socket(fileno=descriptor))

    async def set_screen_password(self, id: InstanceId, password: str, *, good_for_s: int) -> None:
        xml = way_in_xml(password, until=datetime.now(UTC) + timedelta(seconds=good_for_s))
        live = self._library.VIR_DOMAIN_AFFECT_LIVE
        await self._at("set the screen's password", id, lambda _, domain: domain.updateDeviceFlags(xml, live))

    async def screenshot(self, id: InstanceId) -> bytes:
        async with self._drawing:
            return await self._at("look at the screen", id, _screenshot)

    async def said(self, id: InstanceId, *, last_bytes: int) -> bytes:
        await self._connection.call("find the guest", lambda libvirt: libvirt.lookupByUUIDString(id), timeout_s=_OPEN_S)
        return await asyncio.to_thread(_tail, self._ground, id, last_bytes)

    async def forget(self, id: InstanceId) -> None:
        """Leave nothing of the consoles of a guest that is no more."""
        if (serial := self._serials.pop(id, None)) is not None:
            await serial.close()
        await asyncio.to_thread(_remove_files, self._ground, id)

    async def close(self) -> None:
        """Let go of the serial consoles; guests go on."""
        for serial in self._serials.values():
            await serial.close()
        self._serials.clear()

    async def _at(self, what: str, id: InstanceId, deed: Callable[[VirConnect, VirDomain], T]) -> T:
        """Do something to a guest that runs. Raises Conflict if it does not."""

        def do(libvirt: VirConnect) -> T:
            domain = libvirt.lookupByUUIDString(id)
            if not domain.isActive():
                raise Conflict("the guest does not run: it has no console now")
            return deed(libvirt, domain)

        return await self._connection.call(what, do, timeout_s=_OPEN_S)


def _screenshot(libvirt: VirConnect, domain: VirDomain) -> bytes:
    stream = libvirt.newStream(0)
    picture = bytearray()

    def take(_stream: VirStream, data: bytes, _: None) -> int:
        picture.extend(data)
        if len(picture) > _LARGEST_PICTURE:
            raise EngineFailed("the screen is too large to be shown")
        return 0

    if (format := domain.screenshot(stream, 0, 0)) != "image/png":
        raise EngineFailed("this hypervisor's pictures cannot be read", internal=f"{format}; PNG takes QEMU 7.1")
    stream.recvAll(take, None)
    stream.finish()
    return bytes(picture)


def _tail(ground: Ground, id: InstanceId, last_bytes: int) -> bytes:
    """From the newest part of the log backwards; virtlogd begins a new one when it is full, and keeps some."""
    log = console_log(ground, id)
    older = sorted(log.parent.glob(f"{log.name}.*"), key=lambda part: int(part.suffix[1:]))
    found: list[bytes] = []
    for part in (log, *older):
        try:
            with part.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - last_bytes))
                found.append(file.read(last_bytes))
        except FileNotFoundError:
            continue  # it has never run, or it was moved on just now
        last_bytes -= len(found[-1])
        if last_bytes <= 0:
            break
    return b"".join(reversed(found))


def _remove_files(ground: Ground, id: InstanceId) -> None:
    console_socket(ground, id).unlink(missing_ok=True)
    log = console_log(ground, id)
    for part in (log, *log.parent.glob(f"{log.name}.*")):
        part.unlink(missing_ok=True)
