"""One host with simulated engines, whose agent can be ended and started again."""

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
from msgspec import structs

from pileus.agent.agent import Agent, Engines, Pace
from pileus.agent.faults import Faults
from pileus.agent.host import Machine, SimulatedHost
from pileus.agent.hypervisor.simulated import SimulatedHypervisor
from pileus.agent.network.simulated import SimulatedNetwork
from pileus.agent.packing import Read
from pileus.agent.records import AgentRecords
from pileus.agent.storage.port import Told
from pileus.agent.storage.simulated import SimulatedBackings, SimulatedStorage
from pileus.kernel.clock import FrozenClock
from pileus.kernel.ids import ImageId, InstanceId, NetworkId, PortId, ProjectId, VolumeId, new_id
from pileus.kernel.units import GIB
from pileus.link.guests import FirstBoot, GuestDisk, GuestObserved, GuestSpec, NicSpec, Power
from pileus.link.images import ImageSource
from pileus.link.messages import Progress
from pileus.link.volumes import VolumeSpec

IMAGE = b"a small image" * 1000


class HostBench:
    """What outlives an agent: the engines, the host, the files; and agents over them."""

    def __init__(self, data: Path | None) -> None:
        self.data = data
        self.clock = FrozenClock()
        self.faults = Faults()
        self.hypervisor = SimulatedHypervisor(self.faults)
        self.network = SimulatedNetwork(self.faults)
        self.storage = SimulatedStorage(self.faults)
        self.backings = SimulatedBackings(self.faults)
        self.host = SimulatedHost(Machine(name="host-1", vcpus=8, memory_mib=16_384, disk_mib=100_000))
        self.fetched = 0
        self.sent: dict[str, bytes] = {}
        self.told: list[Progress] = []
        self.observed: list[GuestObserved] = []

    def agent(self, *, records: AgentRecords | None = None, pace: Pace | None = None) -> Agent:
        """A new agent over the same host and files, as after a restart."""
        records = records or AgentRecords(self.data)
        records.load()
        engines = Engines(
            hypervisor=self.hypervisor,
            network=self.network,
            pools={"local": self.storage},
            host=self.host,
            fetch=self.fetch,
            send=self.send,
            config_drives=self.config_drives if self.data is not None else None,
            backings=self.backings,
        )
        agent = Agent(engines, records, self.clock, pace)
        agent.listen(self.observed.append)
        return agent

    @property
    def config_drives(self) -> Path:
        """Where config drives are, of a host that has files."""
        assert self.data is not None
        return self.data.with_name(f"{self.data.name}-config-drives")

    async def fetch(self, image: ImageSource) -> AsyncIterator[bytes]:
        self.fetched += 1
        yield IMAGE

    async def send(self, path: str, size_bytes: int, read: Read, told: Told) -> None:
        self.sent[path] = b"".join([piece async for piece in read(0)])
        assert len(self.sent[path]) == size_bytes
        told(1.0)

    def tell(self, progress: Progress) -> None:
        self.told.append(progress)


@pytest.fixture
def bench(tmp_path: Path) -> HostBench:
    return HostBench(tmp_path / "agent")


def an_image() -> ImageSource:
    return ImageSource(
        id=ImageId(new_id()),
        sha256=sha256(IMAGE).hexdigest(),
        size_bytes=len(IMAGE),
        virtual_size_bytes=len(IMAGE),
        format="raw",
        url="/images/1?ticket=secret",
    )


def a_volume(*, generation: int = 1, image: ImageSource | None = None) -> VolumeSpec:
    return VolumeSpec(id=VolumeId(new_id()), generation=generation, size_bytes=GIB, image=image)


def a_guest(*volumes: VolumeSpec, generation: int = 1, power: Power = Power.RUNNING, nics: int = 1) -> GuestSpec:
    return GuestSpec(
        id=InstanceId(new_id()),
        generation=generation,
        name="hello",
        project=ProjectId(new_id()),
        vcpus=1,
        memory_mib=256,
        power=power,
        disks=tuple(GuestDisk(volume=volume.id, slot=slot) for slot, volume in enumerate(volumes)),
        nics=tuple(a_nic(number) for number in range(nics)),
        first_boot=FirstBoot(hostname="hello", public_keys=(("mine", "ssh-ed25519 AAAA"),)),
    )


def a_nic(number: int = 0) -> NicSpec:
    return NicSpec(
        port=PortId(new_id()),
        network=NetworkId(new_id()),
        mac=f"02:00:00:00:00:{number:02x}",
        addresses=(f"10.0.0.{10 + number}",),
        mtu=1442,
    )


def later(guest: GuestSpec, **changes: object) -> GuestSpec:
    """The same guest in its next generation."""
    return structs.replace(guest, generation=guest.generation + 1, **changes)
