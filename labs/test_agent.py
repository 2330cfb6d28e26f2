"""A real agent over a real libvirtd, QEMU and a directory of volumes, while everything is killed in turn."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from libvirt_host import LibvirtHost, missing
from msgspec import structs
from patience import WITHIN_S, read

from pileus.agent.agent import Agent, Engines, Pace
from pileus.agent.host import LinuxHost
from pileus.agent.hypervisor.libvirt import binding
from pileus.agent.hypervisor.libvirt.domain import domain_name
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.network.port import Plug
from pileus.agent.network.simulated import SimulatedNetwork
from pileus.agent.records import AgentRecords
from pileus.agent.storage.directory import DirectoryPool
from pileus.kernel.clock import SystemClock
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import InstanceId, NetworkId, PortId, ProjectId, VolumeId, new_id
from pileus.kernel.units import MIB
from pileus.link.guests import FirstBoot, GuestDisk, GuestObserved, GuestRemoval, GuestSpec, NicSpec, Power
from pileus.link.images import ImageSource
from pileus.link.messages import Progress
from pileus.link.volumes import VolumeRemoval, VolumeSpec

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"agent lab: {missing()}")]


class TapNetwork(SimulatedNetwork):
    """Real tap devices with nothing at their other end."""

    def __init__(self, host: LibvirtHost) -> None:
        super().__init__()
        self._host = host

    async def plug(self, instance: InstanceId, nic: NicSpec) -> Plug:
        is_new = nic.port not in self.ports
        plug = await super().plug(instance, nic)
        if is_new:
            self._host.make_tap(plug.device)
        return plug

    async def unplug(self, port: PortId) -> None:
        if port in self.ports:
            self._host.run("ip", "link", "delete", self.ports[port].plug.device)
        await super().unplug(port)


class Bench:
    """A host whose agent comes and goes; everything else is real and stays."""

    def __init__(self, host: LibvirtHost, data: Path) -> None:
        self.host = host
        self.pool = host.disks / data.name
        self._vault = host.disks / f"{data.name}-vault"
        self.network = TapNetwork(host)
        self.observed: list[GuestObserved] = []
        self._data = data

    @asynccontextmanager
    async def agent(self) -> AsyncGenerator[Agent, None]:
        """One life of the agent."""
        hypervisor = LibvirtHypervisor(
            binding.load(), uri=self.host.uri, ground=self.host.ground, accelerator_reason="for the lab"
        )
        records = AgentRecords(self._data)
        records.load()
        engines = Engines(
            hypervisor=hypervisor,
            network=self.network,
            pools={"local": DirectoryPool.open(self.pool), "vault": DirectoryPool.open(self._vault)},
            host=LinuxHost(self._data.parent),
            fetch=_no_images,
            send=_nowhere,
            config_drives=self.host.disks / f"{self._data.name}-config-drives",
        )
        agent = Agent(engines, records, SystemClock(), Pace(shut_down_s=2.0, look_again_s=0.2))
        agent.listen(self.observed.append)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(agent.run())
            yield agent
            running.cancel()
        await hypervisor.close()

    @property
    def vault(self) -> Path:
        """Where backups are."""
        return self._vault / "backups"

    def process(self, guest: GuestSpec) -> str:
        """The id of the guest's QEMU process, or nothing."""
        return read(self.host.qemu(domain_name(guest.id)))

    def kill_qemu(self, guest: GuestSpec) -> None:
        self.host.kill(self.host.qemu(domain_name(guest.id)))


@pytest.fixture
def bench(host: LibvirtHost, tmp_path: Path) -> Bench:
    return Bench(host, tmp_path / new_id())


@pytest.fixture
def volume() -> VolumeSpec:
    return VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=16 * MIB)


@pytest.fixture
def guest(volume: VolumeSpec) -> GuestSpec:
    """A guest with an empty disk: its firmware runs, and finds nothing to boot."""
    port = PortId(new_id())
    nic = NicSpec(
        port=port,
        network=NetworkId(new_id()),
        mac=f"52:54:00:{port[-6:-4]}:{port[-4:-2]}:{port[-2:]}",
        addresses=("192.0.2.5",),
        mtu=1442,
    )
    return GuestSpec(
        id=InstanceId(new_id()),
        generation=1,
        name="guest",
        project=ProjectId(new_id()),
        vcpus=1,
        memory_mib=64,
        power=Power.RUNNING,
        disks=(GuestDisk(volume=volume.id),),
        nics=(nic,),
        first_boot=FirstBoot(hostname="guest"),
    )


async def test_a_guest_is_made_stopped_started_and_removed_without_a_trace(
    bench: Bench, volume: VolumeSpec, guest: GuestSpec
) -> None:
    async with bench.agent() as agent:
        await agent.ensure_volume(volume, _nobody)
        assert (await agent.ensure_guest(guest, _nobody)).power is Power.RUNNING
        assert bench.process(guest)
        stopped = structs.replace(guest, generation=2, power=Power.STOPPED)
        assert (await agent.ensure_guest(stopped, _nobody)).power is Power.STOPPED
        assert not bench.process(guest)
        started = structs.replace(guest, generation=3)
        assert (await agent.ensure_guest(started, _nobody)).power is Power.RUNNING
        await agent.remove_guest(GuestRemoval(id=guest.id, generation=4))
        await agent.remove_volume(VolumeRemoval(id=volume.id, generation=2))
        inventory = await agent.inventory()
    assert (inventory.guests, inventory.volumes) == ((), ())
    assert bench.observed == []
    assert bench.host.virsh("list", "--all", "--name").strip() == ""
    assert list((bench.pool / "volumes").iterdir()) == []
    assert bench.network.ports == {}


async def test_a_guest_whose_qemu_is_killed_is_started_again_and_told(
    bench: Bench, volume: VolumeSpec, guest: GuestSpec
) -> None:
    async with bench.agent() as agent, made(agent, volume, guest):
        before = bench.process(guest)
        bench.kill_qemu(guest)
        await until(lambda: bench.process(guest) not in ("", before))
        await until(lambda: [each.power for each in bench.observed] == [Power.STOPPED, Power.RUNNING])
        assert bench.observed[0].cause


async def test_a_guest_does_not_notice_that_its_agent_is_killed(
    bench: Bench, volume: VolumeSpec, guest: GuestSpec
) -> None:
    async with bench.agent() as agent:
        await agent.ensure_volume(volume, _nobody)
        await agent.ensure_guest(guest, _nobody)
        process = bench.process(guest)
    async with bench.agent() as agent, made(agent, volume, guest):
        await agent.reconcile()
        assert bench.process(guest) == process
    assert bench.observed == []


async def test_a_guest_does_not_notice_that_libvirtd_is_killed_and_is_in_hand_again_afterwards(
    bench: Bench, volume: VolumeSpec, guest: GuestSpec
) -> None:
    async with bench.agent() as agent, made(agent, volume, guest):
        process = bench.process(guest)
        await agent.hello()
        bench.host.kill_libvirtd()
        with pytest.raises(Unavailable):
            await agent.inventory()
        assert [each.id for each in (await agent.hello()).inventory.guests] == [guest.id]
        bench.host.restart_libvirtd()
        await until_able(agent)
        assert bench.process(guest) == process
        bench.kill_qemu(guest)
        await until(lambda: bench.process(guest) not in ("", process))


async def test_a_guest_whose_qemu_libvirtd_and_agent_are_killed_together_comes_back(
    bench: Bench, volume: VolumeSpec, guest: GuestSpec
) -> None:
    async with bench.agent() as agent:
        await agent.ensure_volume(volume, _nobody)
        await agent.ensure_guest(guest, _nobody)
    before = bench.process(guest)
    bench.host.kill_libvirtd()
    bench.kill_qemu(guest)
    bench.host.restart_libvirtd()
    async with bench.agent() as agent, made(agent, volume, guest):
        await until(lambda: bench.process(guest) not in ("", before))


async def test_a_guest_that_cannot_be_started_leaves_nothing(
    bench: Bench, volume: VolumeSpec, guest: GuestSpec
) -> None:
    huge = structs.replace(guest, memory_mib=1 << 30)
    async with bench.agent() as agent:
        await agent.ensure_volume(volume, _nobody)
        with pytest.raises(Exception, match="start the guest"):
            await agent.ensure_guest(huge, _nobody)
        assert (await agent.inventory()).guests == ()
        assert bench.network.ports == {}
        await agent.remove_volume(VolumeRemoval(id=volume.id, generation=1))


async def test_a_guest_that_is_killed_with_its_agent_in_the_middle_of_anything_ends_as_it_was_wanted(
    bench: Bench, volume: VolumeSpec, guest: GuestSpec
) -> None:
    async with bench.agent() as agent:
        await agent.ensure_volume(volume, _nobody)
    for moment in range(8):
        wanted = structs.replace(guest, generation=moment + 1, power=Power.STOPPED if moment % 2 else Power.RUNNING)
        async with bench.agent() as agent, asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(agent.ensure_guest(wanted, _nobody))
            await asyncio.wait({asking}, timeout=0.05 * moment)
            asking.cancel()
        async with bench.agent() as agent:
            await agent.ensure_guest(wanted, _nobody)
            (found,) = (await agent.inventory()).guests
            assert (found.power, found.generation) == (wanted.power, wanted.generation)
    async with bench.agent() as agent, made(agent, volume, structs.replace(guest, generation=9)):
        pass


@asynccontextmanager
async def made(agent: Agent, volume: VolumeSpec, guest: GuestSpec) -> AsyncGenerator[None, None]:
    """The guest is there while the block lasts."""
    await agent.ensure_volume(volume, _nobody)
    await agent.ensure_guest(guest, _nobody)
    yield
    await agent.remove_guest(GuestRemoval(id=guest.id, generation=100))
    await agent.remove_volume(VolumeRemoval(id=volume.id, generation=100))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.02)


async def until_able(agent: Agent) -> None:
    """Wait until the hypervisor answers again."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                await agent.inventory()
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


def _no_images(image: ImageSource) -> AsyncIterator[bytes]:
    raise Unavailable(f"nobody has image {image.id}")


def _nobody(_: Progress) -> None:
    """Nobody wants to know how far it is."""


async def _nowhere(*_: object) -> None:
    raise Unavailable("nothing is sent in this lab")
