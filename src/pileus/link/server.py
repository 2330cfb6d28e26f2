"""The controller's end: accepts agents, knows each by its certificate, keeps one channel per host."""

import asyncio
import http
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from pileus.kernel.errors import Forbidden
from pileus.kernel.ids import HostId
from pileus.link.certificates import Peer, peer_of
from pileus.link.channel import LARGEST_FRAME, PING_EVERY_S, Channel
from pileus.link.dialler import LONGEST_PATIENCE_S
from pileus.link.handlers import Handlers

log = structlog.stdlib.get_logger()


class _Connected:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.ended = asyncio.Event()


class LinkServer:
    """Listens for agents. Use as `async with`; leaving closes every channel and waits for what ran beside them.

    Args:
        host: Address to listen on; the empty string is all.
        port: TCP port; 0 takes a free one, see `port`.
        context: From `ServerIdentity.link_context`.
        handlers: What agents may ask; `Call.peer` is the host's id from its certificate.
        on_connect: Runs beside each channel and is cancelled when it ends. A host's next one starts after its last
            one has ended.
        admit: Why a host with this certificate serial is not let in, or None; asked at each connection.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        handlers: Handlers,
        on_connect: Callable[[Channel, HostId], Awaitable[None]],
        *,
        admit: Callable[[HostId, int], str | None],
    ) -> None:
        self._host = host
        self._wanted_port = port
        self._context = context
        self._handlers = handlers
        self._on_connect = on_connect
        self._admit = admit
        self._hosts: dict[HostId, _Connected] = {}
        self._server: Server | None = None

    @property
    def port(self) -> int:
        """The TCP port it listens on, once entered."""
        assert self._server is not None
        return int(next(iter(self._server.sockets)).getsockname()[1])

    def channel(self, host: HostId) -> Channel | None:
        """The channel to a host, if it is connected."""
        connected = self._hosts.get(host)
        return connected.channel if connected else None

    def disconnect(self, host: HostId) -> None:
        """Drop a host's connection, if there is one; `admit` decides whether it may come back."""
        if (connected := self._hosts.get(host)) is not None:
            connected.channel.abort()

    async def __aenter__(self) -> "LinkServer":
        self._server = await serve(
            self._serve,
            self._host or None,
            self._wanted_port,
            ssl=self._context,
            process_request=self._refuse,
            compression=None,
            max_size=LARGEST_FRAME,
            ping_interval=PING_EVERY_S,
            ping_timeout=PING_EVERY_S,
            # A stranger gets no further than TLS, and may not stay there either; agents may take that long.
            ssl_handshake_timeout=LONGEST_PATIENCE_S,
            open_timeout=LONGEST_PATIENCE_S,
            close_timeout=2,
            server_header=None,
            # All agents may come back at once.
            backlog=1024,
        )
        log.info("link listens", address=self._host, port=self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def _refuse(self, connection: ServerConnection, request: Request) -> Response | None:  # noqa: ARG002 - its signature
        try:
            peer = _peer(connection)
            why = self._admit(peer.host, peer.serial)
        except Forbidden as stranger:
            why = stranger.detail
        if why is None:
            return None
        log.warning("agent refused", why=why, address=str(connection.remote_address))
        return connection.respond(http.HTTPStatus.FORBIDDEN, f"{why}\n")

    async def _serve(self, connection: ServerConnection) -> None:
        host = _peer(connection).host
        connected = _Connected(Channel(connection, self._handlers, peer=host))
        before = self._hosts.get(host)
        self._hosts[host] = connected
        try:
            if before is not None:
                log.info("connection replaced", host=host)
                before.channel.abort()
                await before.ended.wait()
            log.info("agent connected", host=host, address=str(connection.remote_address))
            await connected.channel.run(lambda channel: self._on_connect(channel, host))
        finally:
            connected.ended.set()
            if self._hosts.get(host) is connected:
                del self._hosts[host]


def _peer(connection: ServerConnection) -> Peer:
    return peer_of(connection.transport.get_extra_info("ssl_object"))
