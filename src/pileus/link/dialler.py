"""The agent's end: keeps one connection to the controller for ever."""

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from websockets.asyncio.client import ClientConnection, connect

from pileus.kernel.clock import Clock
from pileus.link.addresses import Address
from pileus.link.certificates import CONTROLLER_NAME
from pileus.link.channel import LARGEST_FRAME, PING_EVERY_S, Channel
from pileus.link.handlers import Handlers

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 10.0
FIRST_PATIENCE_S: Final = 10.0
LONGEST_PATIENCE_S: Final = 60.0
LASTED_S: Final = 30.0
"""A connection that lasted this long was a good one: after it, waiting starts anew."""

log = structlog.stdlib.get_logger()


def wait_s(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row; `chance` in 0..1 spreads agents over the whole of it.

    A TLS handshake costs the controller 2 ms: a thousand agents that come back together are spread over seconds.
    """
    return chance * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failures, 10))


def patience_s(failures: int) -> float:
    """Seconds that a connection may take to come about, after so many failures in a row.

    Handshakes that begin together end together. A controller that has not the CPU for all of them in the time that an
    agent first gives it would serve none for ever, if all gave up and began anew: so each waits longer than before.
    """
    return min(LONGEST_PATIENCE_S, FIRST_PATIENCE_S * 2 ** min(failures, 10))


class Dialler:
    """Dials until it is connected, and again whenever the connection is lost.

    Args:
        addresses: Where the controller may be, asked anew at each attempt; names are resolved anew as well.
        context: The TLS context, made anew at each attempt, so that a renewed certificate is used.
        handlers: What the controller may ask.
        on_connect: Runs beside each channel and is cancelled when it ends.
    """

    def __init__(
        self,
        addresses: Callable[[], Sequence[Address]],
        context: Callable[[], ssl.SSLContext],
        handlers: Handlers,
        on_connect: Callable[[Channel], Awaitable[None]],
        *,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._addresses = addresses
        self._context = context
        self._handlers = handlers
        self._on_connect = on_connect
        self._clock = clock
        self._chance = chance
        self._channel: Channel | None = None

    @property
    def channel(self) -> Channel | None:
        """The present channel."""
        return self._channel

    @property
    def connected(self) -> bool:
        return self._channel is not None

    async def run(self) -> None:
        """Dial for ever; ends only by being cancelled."""
        failures = 0
        while True:
            started = self._clock.monotonic()
            if (connection := await self.dial(patience_s(failures))) is not None:
                await self._use(connection)
            lasted = connection is not None and self._clock.monotonic() - started >= LASTED_S
            await asyncio.sleep(wait_s(0 if lasted else failures, self._chance()))
            failures = 0 if lasted else failures + 1

    async def dial(self, within_s: float = FIRST_PATIENCE_S) -> ClientConnection | None:
        """Try every address once, each for so long."""
        for address in self._addresses():
            try:
                connection = await self._open(address, within_s)
            except Exception as why:  # noqa: BLE001 - an agent that gives up, for whatever reason, is lost
                log.info("controller not reached", address=str(address), why=str(why) or type(why).__name__)
            else:
                log.info("connected to controller", address=str(address))
                return connection
        return None

    async def _use(self, connection: ClientConnection) -> None:
        self._channel = Channel(connection, self._handlers, peer="controller")
        try:
            await self._channel.run(self._on_connect)
        except Exception:
            # An agent that gives up, for whatever reason, is lost.
            log.exception("connection failed")
        finally:
            self._channel = None

    async def _open(self, address: Address, within_s: float) -> ClientConnection:
        return await connect(
            f"wss://{CONTROLLER_NAME}/",
            host=address.host,
            port=address.port,
            ssl=self._context(),
            server_hostname=CONTROLLER_NAME,
            proxy=None,
            compression=None,
            max_size=LARGEST_FRAME,
            ping_interval=PING_EVERY_S,
            ping_timeout=PING_EVERY_S,
            open_timeout=within_s,
            close_timeout=2,
            user_agent_header=None,
        )
