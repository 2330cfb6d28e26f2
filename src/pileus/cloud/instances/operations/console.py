"""Using the consoles of instances: one asks for a token first, and opens a WebSocket with it."""

import secrets
import string
from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from pileus.cloud.instances.consoles import WITH_CONSOLE, Claim, ConsoleTokens
from pileus.cloud.instances.model import Instance
from pileus.cloud.instances.operations.noun import instances
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.units import MIB
from pileus.link.consoles import ConsoleKind
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Parameter, Socket
from pileus.operations.listing import number
from pileus.operations.wire import Wire

PASSWORD_GOOD_FOR: Final = timedelta(minutes=2)
"""Of a screen: time to type it. Who has no token is not even asked for it."""
_PASSWORD_CHARACTERS: Final = 8
"""RFB takes no more (RFC 6143, section 7.2.2): 47 random bits."""
_LEGIBLE: Final = "".join(sorted(set(string.ascii_letters + string.digits) - set("0O1lI")))

LONGEST_LOG: Final = MIB
_MOST_LINES: Final = 100_000


class Consoles(Protocol):
    """Brings callers to the consoles of guests."""

    async def join(self, socket: Socket, claim: Claim) -> None:
        """Carry bytes both ways until either side closes, or the claim is no longer good.

        Raises:
            Unauthenticated: the claim is no longer good.
            Conflict: the instance has no console now.
            TooMany: the user has too many open.
            Unavailable: its host does not answer.
        """
        ...

    async def set_screen_password(self, instance: Instance, password: str, *, good_for: timedelta) -> None:
        """Have a guest's screen ask for this password. Raises Conflict if it does not run, Unavailable."""
        ...

    async def screenshot(self, instance: Instance) -> bytes:
        """What a guest's screen shows, as PNG. Raises Conflict if it does not run, Unavailable."""
        ...

    async def said(self, instance: Instance, *, last_bytes: int) -> bytes:
        """The end of what a guest has said on its serial console. Raises Unavailable."""
        ...


class ConsoleOpen(Wire):
    kind: ConsoleKind = ConsoleKind.SERIAL


class ConsoleAccess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The way to a console, for whoever asked, once."""

    kind: ConsoleKind
    url: str
    """Where to open a WebSocket at this API: the path, with a token in it."""
    expires_at: datetime
    """Until when it must have been opened."""
    password: str = ""
    """What a screen asks for, as RFB has it. The next one who asks gets another, and this one is wrong then."""
    password_expires_at: datetime | None = None


@instances.special("POST", "/{id}/consoles", verb="open_console", least=Role.MEMBER, status=201, answers=ConsoleAccess)
async def open_console(exchange: Exchange, instance: Instance, wish: ConsoleOpen) -> Answer:
    """Get the URL of an instance's console: good once, within 30 seconds, and for whoever asked."""
    _must_have_consoles(instance)
    password = _new_password() if wish.kind is ConsoleKind.VNC else ""
    if password:
        consoles: Consoles = exchange.services[Consoles]
        await consoles.set_screen_password(instance, password, good_for=PASSWORD_GOOD_FOR)
    tokens: ConsoleTokens = exchange.services[ConsoleTokens]
    token, expires_at = tokens.give(exchange.caller, instance, wish.kind)
    access = ConsoleAccess(
        kind=wish.kind,
        url=f"/v1/instances/{instance.id}/console?token={token}",
        expires_at=expires_at,
        password=password,
        password_expires_at=exchange.ask.now + PASSWORD_GOOD_FOR if password else None,
    )
    return Answer(status=201, body=msgspec.json.encode(access))


@instances.socket("/{id}/console", least=None)
async def console(socket: Socket) -> None:
    """Use an instance's console, at the URL that `open_console` gave: what is sent is typed, what comes is shown.

    It ends with the guest, and when whoever opened it may no longer: with their API token, or their role.
    """
    tokens: ConsoleTokens = socket.services[ConsoleTokens]
    consoles: Consoles = socket.services[Consoles]
    await consoles.join(socket, tokens.redeem(socket.query("token"), socket.target))


@instances.special("GET", "/{id}/screenshot", least=Role.MEMBER)
async def screenshot(exchange: Exchange, instance: Instance) -> Answer:
    """Get a picture of what an instance's screen shows, as PNG."""
    _must_have_consoles(instance)
    consoles: Consoles = exchange.services[Consoles]
    return Answer(status=200, body=await consoles.screenshot(instance), media_type="image/png")


@instances.special(
    "GET",
    "/{id}/console-log",
    verb="log",
    least=Role.MEMBER,
    parameters=(
        Parameter(
            name="tail",
            about="Only this many lines from the end",
            schema={"type": "integer", "minimum": 1, "maximum": _MOST_LINES},
        ),
    ),
)
async def log(exchange: Exchange, instance: Instance) -> Answer:
    """Get the end of what an instance has said on its serial console: at most 1 MiB, also of earlier runs.

    It is there while the instance is stopped, and gone with the instance. Its bytes are as the guest wrote them, with
    what is meant for a terminal.
    """
    text = exchange.query("tail")
    lines = number(text) if text else _MOST_LINES
    if lines is None or not 1 <= lines <= _MOST_LINES:
        raise Invalid("some parameters are wrong", fields={"tail": f"a number from 1 to {_MOST_LINES}"})
    consoles: Consoles = exchange.services[Consoles]
    said = await consoles.said(instance, last_bytes=LONGEST_LOG)
    return Answer(status=200, body=_last_lines(said, lines), media_type="application/octet-stream")


def _must_have_consoles(instance: Instance) -> None:
    if instance.state not in WITH_CONSOLE:
        raise Conflict(f"instance {instance.name} is {instance.state}: it has no console now")


def _new_password() -> str:
    return "".join(secrets.choice(_LEGIBLE) for _ in range(_PASSWORD_CHARACTERS))


def _last_lines(said: bytes, count: int) -> bytes:
    """The last lines; a last one that is not ended counts as one."""
    return b"".join(said.splitlines(keepends=True)[-count:])
