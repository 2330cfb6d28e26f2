"""What the controller asks of a guest's consoles and its screen."""

from enum import StrEnum

from pileus.kernel.ids import InstanceId
from pileus.link.messages import Message


class ConsoleKind(StrEnum):
    """The consoles that a guest has."""

    SERIAL = "serial"
    """A serial port: text."""
    VNC = "vnc"
    """Screen, keyboard and mouse, by RFB (RFC 6143)."""


class ConsoleRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Open a console of a guest."""

    id: InstanceId
    kind: ConsoleKind = ConsoleKind.SERIAL


class ScreenPassword(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Let whoever is brought to a guest's screen in by this password, and by none before."""

    id: InstanceId
    password: str
    """At most 8 characters: RFB takes no more."""
    good_for_s: int


class ScreenshotRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a guest's screen shows, as PNG."""

    id: InstanceId


class ConsoleLogRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a guest has said on its serial console."""

    id: InstanceId
    last_bytes: int
