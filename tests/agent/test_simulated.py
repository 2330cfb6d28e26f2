"""The simulated drivers keep the promises of their ports."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import pytest
from msgspec import structs

from pileus.agent.hypervisor.port import Hypervisor
from pileus.agent.hypervisor.simulated import SimulatedHypervisor
from pileus.agent.network.port import HostNetwork, Plug
from pileus.agent.network.simulated import WIRES, SimulatedNetwork
from pileus.agent.storage.port import DiskSource, StoragePool
from pileus.agent.storage.simulated import SimulatedStorage
from pileus.kernel.ids import InstanceId, PortId, VolumeId, new_id
from pileus.link.guests import GuestLimits, GuestSpec, NicSpec
from pileus.testing.contracts.devices import Connected, Inserted, Limited, Plugged, Reads
from pileus.testing.contracts.guest import Crash
from pileus.testing.contracts.hypervisor import HypervisorContract
from pileus.testing.contracts.network import Ask, HostNetworkContract
from pileus.testing.contracts.storage import StoragePoolContract

from .conftest import a_guest, a_nic, a_volume


class TestSimulatedHypervisor(HypervisorContract):
    @pytest.fixture
    def hypervisor(self) -> SimulatedHypervisor:
        return SimulatedHypervisor()

    @pytest.fixture
    def another(self, hypervisor: SimulatedHypervisor) -> Callable[[], Awaitable[Hypervisor]]:
        async def same() -> Hypervisor:
            return hypervisor

        return same

    @pytest.fixture
    def guest(self) -> GuestSpec:
        return a_guest(a_volume())

    @pytest.fixture
    def disks(self, guest: GuestSpec) -> Mapping[VolumeId, DiskSource]:
        return {guest.disks[0].volume: DiskSource(kind="file", path="/simulated", format="raw")}

    @pytest.fixture
    def plugs(self, guest: GuestSpec) -> Mapping[PortId, Plug]:
        return {guest.nics[0].port: Plug(device="tap0", offload=True)}

    @pytest.fixture
    def crash(self, hypervisor: SimulatedHypervisor) -> Crash:
        async def kill(id: InstanceId) -> None:
            hypervisor.crash(id)

        return kill

    @pytest.fixture
    def another_disk(self) -> tuple[VolumeId, DiskSource]:
        return VolumeId(new_id()), DiskSource(kind="file", path="/simulated/another", format="raw")

    @pytest.fixture
    def plugged(self, hypervisor: SimulatedHypervisor) -> Plugged:
        async def plugged(id: InstanceId) -> set[VolumeId]:
            return set(hypervisor.guests[id].plugged)

        return plugged

    @pytest.fixture
    def limited(self, hypervisor: SimulatedHypervisor) -> Limited:
        async def limited(id: InstanceId) -> GuestLimits:
            return hypervisor.guests[id].limits or GuestLimits()

        return limited

    @pytest.fixture
    def inserted(self, hypervisor: SimulatedHypervisor) -> Inserted:
        async def inserted(id: InstanceId) -> dict[int, str]:
            return {drive: medium.path for drive, medium in hypervisor.guests[id].inserted.items()}

        return inserted

    @pytest.fixture
    def reads(self, hypervisor: SimulatedHypervisor) -> Reads:
        async def reads(id: InstanceId) -> list[str]:
            drive = hypervisor.guests[id].reads
            return [] if drive is None else [drive.path]

        return reads

    @pytest.fixture
    def another_nic(self) -> tuple[NicSpec, Plug]:
        nic = structs.replace(a_nic(), mac="0a:00:00:00:00:02", slot=1)
        return nic, Plug(device="tap1", offload=True)

    @pytest.fixture
    def connected(
        self, hypervisor: SimulatedHypervisor, guest: GuestSpec, another_nic: tuple[NicSpec, Plug]
    ) -> Connected:
        macs = {nic.port: nic.mac for nic in (*guest.nics, another_nic[0])}

        async def connected(id: InstanceId) -> set[str]:
            return {macs[port] for port in hypervisor.guests[id].connected}

        return connected


class TestSimulatedNetwork(HostNetworkContract):
    wires = WIRES

    @pytest.fixture
    async def network(self) -> AsyncGenerator[SimulatedNetwork, None]:
        network = SimulatedNetwork()
        yield network
        await network.close()

    @pytest.fixture
    def another(self, network: SimulatedNetwork) -> Callable[[], Awaitable[HostNetwork]]:
        async def same() -> HostNetwork:
            return network

        return same

    @pytest.fixture
    def nic(self) -> NicSpec:
        return a_nic()

    @pytest.fixture
    def nics(self) -> list[NicSpec]:
        return [a_nic(number) for number in range(3)]

    @pytest.fixture
    def ask(self, network: SimulatedNetwork) -> Ask:
        async def ask(nic: NicSpec, path: str) -> tuple[int, bytes]:
            status, _, body = await network.ask(nic.port, path)
            return status, body

        return ask


class TestSimulatedStorage(StoragePoolContract):
    @pytest.fixture
    def pool(self) -> SimulatedStorage:
        return SimulatedStorage()

    @pytest.fixture
    def another(self, pool: SimulatedStorage) -> Callable[[], Awaitable[StoragePool]]:
        async def same() -> StoragePool:
            return pool

        return same
