"""The link on loopback, with real certificates and real TLS, for tests of what speaks over it."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from pileus.kernel.clock import SystemClock
from pileus.kernel.ids import HostId, new_id
from pileus.link.addresses import Address
from pileus.link.certificates import AgentIdentity, AgentKey, Authority, ServerIdentity
from pileus.link.channel import Channel
from pileus.link.dialler import Dialler
from pileus.link.handlers import Handlers
from pileus.link.hosts import HostFacts
from pileus.link.server import LinkServer

FACTS = HostFacts(
    name="host-1",
    hypervisor="simulated",
    accelerator="simulated",
    accelerator_reason="",
    architecture="x86_64",
    vcpus=4,
    memory_mib=8192,
    disk_mib=100_000,
    version="1",
)
"""What a host tells that joins."""


async def until(holds: Callable[[], object], *, within_s: float = 60.0) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event to offer
            await asyncio.sleep(0.001)


async def for_ever(*_: object) -> None:
    """Wait to be cancelled."""
    await asyncio.Event().wait()


class LoopbackCloud:
    """A link server with its authority, and agents that dial it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SystemClock()
        self.authority = Authority.create(self.clock)
        self.identity = ServerIdentity(self.authority, folder, self.clock)
        self.identity.ensure([])
        self.server_handlers = Handlers()
        self.refusals: dict[HostId, str] = {}
        self.on_connect: Callable[[Channel, HostId], Awaitable[None]] = for_ever
        self.server = LinkServer(
            "127.0.0.1",
            0,
            self.identity.link_context(),
            self.server_handlers,
            self._connected,
            admit=lambda host, _serial: self.refusals.get(host),
        )

    async def _connected(self, channel: Channel, host: HostId) -> None:
        await self.on_connect(channel, host)

    @property
    def address(self) -> Address:
        """Where the server listens."""
        return Address("127.0.0.1", self.server.port)

    def join(self, host: HostId) -> AgentIdentity:
        """What joining leaves on a host."""
        identity = AgentIdentity(self.folder / host)
        key = AgentKey()
        identity.install(key, self.authority.certify_host(key.signing_request(), host), self.authority.pem)
        return identity

    def dialler(
        self,
        identity: AgentIdentity,
        handlers: Handlers | None = None,
        on_connect: Callable[[Channel], Awaitable[None]] = for_ever,
        *,
        context: Callable[[], ssl.SSLContext] | None = None,
    ) -> Dialler:
        """An agent's dialler that does not wait between attempts."""
        return Dialler(
            lambda: [self.address],
            context or identity.context,
            handlers or Handlers(),
            on_connect,
            clock=self.clock,
            chance=lambda: 0.0,
        )

    @asynccontextmanager
    async def agent(self, handlers: Handlers | None = None, host: HostId | None = None) -> AsyncGenerator["Pair"]:
        """A connected agent, and both ends of its channel."""
        host = host or HostId(new_id())
        identity = AgentIdentity(self.folder / host)
        dialler = self.dialler(identity if identity.exists else self.join(host), handlers)
        async with running(dialler):
            await until(lambda: dialler.connected and self.server.channel(host))
            agent, controller = dialler.channel, self.server.channel(host)
            assert agent is not None
            assert controller is not None
            yield Pair(host, controller, agent)


class Pair:
    """Both ends of one channel."""

    def __init__(self, host: HostId, controller: Channel, agent: Channel) -> None:
        self.host = host
        self.controller = controller
        self.agent = agent


@asynccontextmanager
async def running(dialler: Dialler) -> AsyncGenerator[Dialler]:
    """Dial while the block lasts."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(dialler.run())
        try:
            yield dialler
        finally:
            task.cancel()
