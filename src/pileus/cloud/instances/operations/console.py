"""Using the consoles of instances: one asks for a token first, and opens a WebSocket with it."""

from datetime import datetime
from typing import Protocol

import msgspec

from pileus.cloud.instances.consoles import WITH_CONSOLE, Claim, ConsoleTokens
from pileus.cloud.instances.model import Instance
from pileus.cloud.instances.operations.noun import instances
from pileus.kernel.errors import Conflict
from pileus.link.records import ConsoleKind
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Socket
from pileus.operations.wire import Wire


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


class ConsoleOpen(Wire):
    kind: ConsoleKind = ConsoleKind.SERIAL


class ConsoleAccess(msgspec.Struct, frozen=True, kw_only=True):
    """The way to a console, for whoever asked, once."""

    kind: ConsoleKind
    url: str
    """Where to open a WebSocket at this API: the path, with a token in it."""
    expires_at: datetime
    """Until when it must have been opened."""


@instances.special("POST", "/{id}/consoles", verb="open_console", least=Role.MEMBER, status=201, answers=ConsoleAccess)
async def open_console(exchange: Exchange, instance: Instance, wish: ConsoleOpen) -> Answer:
    """Get the URL of an instance's console: good once, within 30 seconds, and for whoever asked."""
    if instance.state not in WITH_CONSOLE:
        raise Conflict(f"instance {instance.name} is {instance.state}: it has no console now")
    tokens: ConsoleTokens = exchange.services[ConsoleTokens]
    token, expires_at = tokens.give(exchange.caller, instance, wish.kind)
    access = ConsoleAccess(
        kind=wish.kind, url=f"/v1/instances/{instance.id}/console?token={token}", expires_at=expires_at
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
