"""A viewer of screens by RFB 3.8 (RFC 6143), as small as one can be: signs in, and sees the picture."""

import asyncio
import struct
import sys
from typing import Protocol

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from patience import WITHIN_S

_VNC_AUTHENTICATION = 2
_RAW = 0
_TRUE_COLOUR = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)


class Refused(Exception):
    """The password is not right."""


class Line(Protocol):
    """What carries the bytes."""

    async def read(self) -> bytes: ...
    async def write(self, data: bytes) -> None: ...


class Viewer:
    """Somebody in front of a screen."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._unread = bytearray()
        self.size = (0, 0)
        self.name = ""

    async def sign_in(self, password: str) -> None:
        """Raises Refused."""
        version = await self._take(12)
        assert version == b"RFB 003.008\n", version
        await self._line.write(version)
        ways = await self._take((await self._take(1))[0])
        assert list(ways) == [_VNC_AUTHENTICATION], f"there must be no way in without the password: {list(ways)}"
        await self._line.write(bytes([_VNC_AUTHENTICATION]))
        await self._line.write(answer(await self._take(16), password))
        (refused,) = struct.unpack(">I", await self._take(4))
        if refused:
            raise Refused
        await self._line.write(b"\1")
        width, height, _, length = struct.unpack(">HH16sI", await self._take(24))
        self.size = width, height
        self.name = (await self._take(length)).decode()
        await self._line.write(b"\0\0\0\0" + _TRUE_COLOUR)
        await self._line.write(struct.pack(">BxHi", 2, 1, _RAW))

    async def picture(self) -> bytes:
        """Blue, green, red and nothing for each pixel, row by row; what the screen does not show now is black."""
        width, height = self.size
        await self._line.write(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
        shown = bytearray(4 * width * height)
        (kind,) = await self._take(1)
        assert kind == 0, f"a message of kind {kind}"
        (rectangles,) = struct.unpack(">xH", await self._take(3))
        for _ in range(rectangles):
            x, y, across, down, encoding = struct.unpack(">HHHHi", await self._take(12))
            assert encoding == _RAW
            pixels = await self._take(4 * across * down)
            for row in range(down):
                at = 4 * ((y + row) * width + x)
                shown[at : at + 4 * across] = pixels[4 * across * row : 4 * across * (row + 1)]
        return bytes(shown)

    async def press(self, keysym: int) -> None:
        """A key, down and up."""
        for down in (1, 0):
            await self._line.write(struct.pack(">BBxxI", 4, down, keysym))

    async def end(self) -> None:
        """Wait until the screen is closed."""
        while await self._line.read():
            pass

    async def _take(self, count: int) -> bytes:
        while len(self._unread) < count:
            more = await self._line.read()
            assert more, f"the screen was closed; said so far: {bytes(self._unread)!r}"
            self._unread += more
        taken = bytes(self._unread[:count])
        del self._unread[:count]
        return taken


def answer(challenge: bytes, password: str) -> bytes:
    """The challenge under DES, with the password for its key, each byte turned around (RFC 6143, section 7.2.2)."""
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode()[:8].ljust(8, b"\0"))
    encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()
    return encryptor.update(challenge) + encryptor.finalize()


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(65_536)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


async def _look(host: str, port: str, password: str) -> str:
    """What is seen at this address as soon as it is not all the same: its size, and of how many colours it is."""
    reader, writer = await asyncio.open_connection(host, int(port))
    viewer = Viewer(_Connection(reader, writer))
    try:
        await viewer.sign_in(password)
        colours = set[bytes]()
        async with asyncio.timeout(WITHIN_S):
            while len(colours) < 2:  # it may be drawn anew at this moment
                picture = await viewer.picture()
                colours = {picture[at : at + 4] for at in range(0, len(picture), 4)}
    except Refused:
        return "refused"
    finally:
        writer.close()
    return f"{viewer.size[0]} {viewer.size[1]} {len(colours)}"


if __name__ == "__main__":
    print(asyncio.run(_look(*sys.argv[1:])))
