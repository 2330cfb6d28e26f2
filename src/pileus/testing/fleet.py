"""Any number of simulated hosts in one process: real agents with engines in memory, over real TLS or in memory.

    fleet = SimulatedFleet(1000, clock=SystemClock())
    await fleet.run(in_memory(handlers, connected))

An idle host takes some 50 KiB with both ends of its connection in memory, and 20 µs of CPU every second.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Final, cast

from websockets.asyncio.connection import Connection
from websockets.exceptions import ConnectionClosedOK
from websockets.protocol import State

from pileus.agent.agent import Agent, Engines, Pace
from pileus.agent.faults import Faults
from pileus.agent.host import Machine, SimulatedHost
from pileus.agent.hypervisor.simulated import SimulatedHypervisor
from pileus.agent.network.simulated import SimulatedNetwork
from pileus.agent.packing import Send
from pileus.agent.records import AgentRecords, VolumeRecord
from pileus.agent.service import AgentService
from pileus.agent.storage.found import SimulatedFoundDisks
from pileus.agent.storage.simulated import SimulatedBackings, SimulatedStorage
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Unavailable
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import HostId, new_id
from pileus.link.addresses import Address
from pileus.link.certificates import AgentIdentity
from pileus.link.channel import Channel
from pileus.link.dialler import Dialler
from pileus.link.handlers import Handlers
from pileus.link.hosts import HostFacts
from pileus.link.images import ImageSource
from pileus.link.renewal import keep_renewed
from pileus.link.volumes import VolumeObserved
from pileus.testing.diskimages import SimulatedDiskTools
from pileus.testing.web import SimulatedWeb

MACHINE: Final = Machine(name="", vcpus=32, memory_mib=131_072, disk_mib=1_048_576)
"""What a simulated host is like, if nothing else is said."""


class SimulatedAgent:
    """A simulated host. Its engines outlive its agent, which may die and be started again."""

    def __init__(
        self, name: str, *, clock: Clock, machine: Machine = MACHINE, data: Path | None = None, pace: Pace | None = None
    ) -> None:
        """A host of this name.

        With a folder `data` it is the same one, with the same guests, in the next process too; else in memory only.
        """
        self.id = HostId(new_id()) if data is None else _kept_id(data)
        """Under which it is linked in memory; one that has joined a cloud has the id of its certificate."""
        self.name = name
        self.faults = Faults()
        self.hypervisor = SimulatedHypervisor(self.faults)
        self.network = SimulatedNetwork(self.faults)
        self.found_disks = SimulatedFoundDisks()
        self.storage = SimulatedStorage(self.faults, total_bytes=machine.disk_mib * 1024 * 1024, fetches=False)
        self.send: Send = _nowhere
        """How what it sends gets to its controller."""
        self.backings = SimulatedBackings(self.faults, total_bytes=machine.disk_mib * 1024 * 1024)
        self._machine = SimulatedHost(
            Machine(name=name, vcpus=machine.vcpus, memory_mib=machine.memory_mib, disk_mib=machine.disk_mib),
            guests=self.hypervisor.running,
        )
        self._clock = clock
        self._pace = pace
        self.records = AgentRecords(data)
        self._data = data
        self._life: asyncio.Task[None] | None = None
        if data is not None:
            self._have_volumes_again()

    async def facts(self) -> HostFacts:
        """What this host would say of itself: needed to join."""
        return await self._new_agent().facts()

    async def run(self, link: "Link") -> None:
        """Live, linked like this, until cancelled; an agent that was killed is followed by the next at once."""
        async with asyncio.TaskGroup() as lives:
            while True:
                self._life = lives.create_task(self._live(link))
                await asyncio.wait({self._life})

    def kill_agent(self) -> None:
        """The agent's process dies, and is started again. Its guests run on."""
        if self._life is not None:
            self._life.cancel()

    async def _live(self, link: "Link") -> None:
        service = AgentService(self._new_agent())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run())
            tasks.create_task(link(self, service))

    def _have_volumes_again(self) -> None:
        """A real disk would have them still. The guests are for the agent to start, as after a power cut."""
        self.records.load()
        for id, record in self.records.volumes.items():
            if isinstance(record, VolumeRecord) and record.made:
                self.storage.volumes[id] = VolumeObserved(
                    id=id, generation=record.spec.generation, size_bytes=record.spec.size_bytes
                )

    def _new_agent(self) -> Agent:
        if self._data is not None:
            self.records = AgentRecords(self._data)
            self.records.load()
        engines = Engines(
            hypervisor=self.hypervisor,
            network=self.network,
            pools={"local": self.storage},
            host=self._machine,
            fetch=_no_images,
            send=self.send,
            backings=self.backings,
            found_disks=self.found_disks,
        )
        return Agent(engines, self.records, self._clock, self._pace)


Link = Callable[[SimulatedAgent, AgentService], Coroutine[None, None, None]]
"""Keeps a host connected to its controller until it is cancelled."""


class SimulatedFleet:
    """So many simulated hosts."""

    def __init__(
        self,
        size: int,
        *,
        clock: Clock,
        machine: Machine = MACHINE,
        folder: Path | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Hosts named `host-1` and so on, kept below `folder`, or without one in memory only."""
        self.disk_tools = SimulatedDiskTools()
        """Of the controller, which they outlive as hosts do."""
        self.web = SimulatedWeb()
        """What the controller imports images from."""
        names = [f"host-{number + 1}" for number in range(size)]
        self.hosts: Sequence[SimulatedAgent] = [
            SimulatedAgent(name, clock=clock, machine=machine, data=folder and folder / name, pace=pace)
            for name in names
        ]

    @property
    def faults(self) -> Sequence[Faults]:
        """What can go wrong in simulated drivers: of each host, and of the controller."""
        return [*(host.faults for host in self.hosts), self.disk_tools.faults, self.web.faults]

    async def run(self, link: Link) -> None:
        """All hosts live, linked like this, until this is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for host in self.hosts:
                tasks.create_task(host.run(link))


def over_tls(
    addresses: Callable[[], Sequence[Address]], identity: Callable[[SimulatedAgent], AgentIdentity], clock: Clock
) -> Link:
    """To a real controller, with the certificates that the hosts were given when they joined."""

    async def link(host: SimulatedAgent, service: AgentService) -> None:
        mine = identity(host)

        async def connected(channel: Channel) -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(service.accompany(channel))
                tasks.create_task(keep_renewed(mine, channel, clock))

        await Dialler(addresses, mine.context, service.handlers, connected, clock=clock).run()

    return link


def in_memory(handlers: Handlers, connected: Callable[[Channel, HostId], Awaitable[None]]) -> Link:
    """To a controller in this process: `handlers` and `connected` are what a LinkServer would be given."""

    async def link(host: SimulatedAgent, service: AgentService) -> None:
        while True:
            ours, theirs = _wires()
            agent = Channel(ours, service.handlers, peer="controller")
            controller = Channel(theirs, handlers, peer=host.id)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(agent.run(service.accompany))
                tasks.create_task(controller.run(lambda channel: connected(channel, host.id)))
            await asyncio.sleep(0)

    return link


class _Wire:
    """One end of a connection in memory: as much of a WebSocket as a channel uses."""

    def __init__(self, inbox: "asyncio.Queue[bytes | None]", outbox: "asyncio.Queue[bytes | None]") -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._closed = False
        # Never room to be written to at once: a channel then takes the one way that there is here, `send`.
        self.transport = SimpleNamespace(abort=self._end, get_write_buffer_size=lambda: sys.maxsize)

    @property
    def state(self) -> State:
        return State.CLOSED if self._closed else State.OPEN

    async def send(self, frame: bytes, *, text: bool) -> None:  # noqa: ARG002 - both ways are the same here
        if self._closed:
            raise ConnectionClosedOK(None, None)
        self._outbox.put_nowait(frame)

    async def recv(self, *, decode: bool) -> bytes:  # noqa: ARG002 - a channel takes bytes
        frame = None if self._closed else await self._inbox.get()
        if frame is None:
            self._end()
            raise ConnectionClosedOK(None, None)
        return frame

    async def close(self) -> None:
        self._end()

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            self._outbox.put_nowait(None)
            self._inbox.put_nowait(None)


def _wires() -> tuple[Connection, Connection]:
    one, two = asyncio.Queue[bytes | None](), asyncio.Queue[bytes | None]()
    # The rest of a Connection is never asked for.
    return cast("Connection", _Wire(one, two)), cast("Connection", _Wire(two, one))


def _kept_id(data: Path) -> HostId:
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = data / "id"
    if not file.exists():
        write_atomically(file, new_id().encode())
    return HostId(file.read_text(encoding="ascii"))


def _no_images(image: ImageSource) -> AsyncIterator[bytes]:
    raise Unavailable(f"a simulated host asked for the bytes of image {image.id}")


async def _nowhere(*_: object) -> None:
    raise Unavailable("this simulated host has nowhere to send to")
