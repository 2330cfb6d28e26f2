"""The port through which an agent reaches what is in front of its guests: keyboards, screens, serial lines."""

from typing import Protocol

from pileus.kernel.ids import InstanceId


class ByteStream(Protocol):
    """The two directions of a console."""

    async def read(self) -> bytes:
        """What came, at least one byte; b"" at the end."""
        ...

    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...


class Consoles(Protocol):
    """The consoles of the guests of a hypervisor.

    Raises Unavailable if the hypervisor does not answer, NotFound for a guest that it does not have, and, but for
    `said`, Conflict if the guest does not run.
    """

    async def serial(self, id: InstanceId) -> ByteStream:
        """The serial console; a second one takes over from the first."""
        ...

    async def screen(self, id: InstanceId) -> ByteStream:
        """Screen, keyboard and mouse, by RFB (RFC 6143); it asks for the password that was set last.

        Nobody else gets at them but through here. Until a password is set, and when it is over, none is right.
        """
        ...

    async def set_screen_password(self, id: InstanceId, password: str, *, good_for_s: int) -> None:
        """Let this password of at most 8 characters in, instead of the one before; who is in stays."""
        ...

    async def screenshot(self, id: InstanceId) -> bytes:
        """What the screen shows now, as PNG."""
        ...

    async def said(self, id: InstanceId, *, last_bytes: int) -> bytes:
        """The end of what the guest has said on its serial console, in all its runs, as far as it is kept."""
        ...
