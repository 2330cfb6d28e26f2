"""Guests on a real QEMU, by a real libvirtd that belongs to the test."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from libvirt_host import LibvirtHost, libvirt_host, missing
from msgspec.structs import replace

from pileus.agent.hypervisor.libvirt import binding
from pileus.agent.hypervisor.libvirt.domain import Ground, domain_name
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.hypervisor.port import GuestFound, GuestState
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import InstanceId, NetworkId, PortId, ProjectId, VolumeId, new_id
from pileus.link.records import FirstBoot, GuestDisk, GuestSpec, NicSpec, Power

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]

_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    with libvirt_host() as host:
        yield host


@pytest.fixture
def ground(host: LibvirtHost) -> Ground:
    return Ground(accelerator="tcg", sockets=host.consoles, logs=host.logs)


@pytest.fixture
async def hypervisor(host: LibvirtHost, ground: Ground) -> AsyncIterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor(binding.load(), uri=host.uri, ground=ground, accelerator_reason="for the test")
    yield hypervisor
    for id in await hypervisor.list():
        await hypervisor.undefine(id)
    assert [*host.consoles.glob("*"), *host.logs.glob("*")] == []
    await hypervisor.close()


class Guest:
    """A guest with an empty disk and a tap of its own: its firmware runs, and finds nothing to boot."""

    def __init__(self, host: LibvirtHost) -> None:
        self.volume, self.port = VolumeId(new_id()), PortId(new_id())
        self.disk = host.disks / self.volume
        with self.disk.open("wb") as file:
            file.truncate(2**20)
        tap = f"tap{self.port[-10:]}"
        host.make_tap(tap)
        self.spec = GuestSpec(
            id=InstanceId(new_id()),
            generation=1,
            name="a & <b> 'c' \"d\" \x00é",
            project=ProjectId(new_id()),
            vcpus=1,
            memory_mib=64,
            power=Power.RUNNING,
            disks=(GuestDisk(volume=self.volume),),
            nics=(
                NicSpec(
                    port=self.port,
                    network=NetworkId(new_id()),
                    mac=f"52:54:00:{self.port[-6:-4]}:{self.port[-4:-2]}:{self.port[-2:]}",
                    addresses=(),
                    mtu=1442,
                ),
            ),
            first_boot=FirstBoot(hostname="guest"),
        )
        self.disks = {self.volume: DiskSource(kind="file", path=str(self.disk), format="raw")}
        self.plugs = {self.port: Plug(device=tap, offload=False)}

    @property
    def id(self) -> InstanceId:
        return self.spec.id

    async def define(self, hypervisor: LibvirtHypervisor, *, generation: int = 1) -> None:
        await hypervisor.define(replace(self.spec, generation=generation), self.disks, self.plugs)


@pytest.fixture
def guest(host: LibvirtHost) -> Guest:
    return Guest(host)


async def comes_to_be(hypervisor: LibvirtHypervisor, id: InstanceId, state: GuestState) -> GuestFound:
    """Wait for a state, listening for changes as the agent does."""
    async with asyncio.timeout(_WITHIN_S):
        changes = hypervisor.changes()
        while (found := (await hypervisor.list())[id]).state is not state:
            await anext(changes)
    return found


async def answers(hypervisor: LibvirtHypervisor) -> None:
    """Wait until libvirtd has come back."""
    async with asyncio.timeout(_WITHIN_S):
        while True:
            try:
                await hypervisor.list()
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_host_tells_what_it_is(hypervisor: LibvirtHypervisor) -> None:
    facts = await hypervisor.facts()
    assert (facts.name, facts.accelerator, facts.architecture) == ("libvirt", "tcg", "x86_64")
    assert facts.version.startswith("libvirt ")
    assert "QEMU " in facts.version


async def test_a_killed_qemu_is_a_crash_and_is_told_of(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, guest: Guest
) -> None:
    await guest.define(hypervisor)
    await hypervisor.start(guest.id)
    changes = hypervisor.changes()
    assert (await hypervisor.list())[guest.id].state is GuestState.RUNNING
    host.kill(host.qemu(domain_name(guest.id)))
    async with asyncio.timeout(_WITHIN_S):
        assert await anext(changes) == guest.id
    found = await comes_to_be(hypervisor, guest.id, GuestState.CRASHED)
    assert found.cause
    await hypervisor.start(guest.id)
    assert (await hypervisor.list())[guest.id] == GuestFound(state=GuestState.RUNNING, generation=1)


async def test_a_guest_goes_on_while_libvirtd_is_down_and_is_found_again(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, guest: Guest
) -> None:
    await guest.define(hypervisor)
    await hypervisor.start(guest.id)
    qemu = host.qemu(domain_name(guest.id)).read_text(encoding="ascii")
    changes = hypervisor.changes()
    await hypervisor.list()
    host.kill_libvirtd()
    async with asyncio.timeout(_WITHIN_S):
        with pytest.raises(StopAsyncIteration):
            await anext(changes)
    with pytest.raises(Unavailable):
        await hypervisor.list()
    host.restart_libvirtd()
    await answers(hypervisor)
    assert (await hypervisor.list())[guest.id].state is GuestState.RUNNING
    assert host.qemu(domain_name(guest.id)).read_text(encoding="ascii") == qemu
