"""Volumes of a directory on a real QEMU: what a guest sees of them while it runs, and after it was stopped."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
from libvirt_host import LibvirtHost, libvirt_host, missing
from msgspec.structs import replace

from pileus.agent.hypervisor.libvirt import binding
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.hypervisor.port import ByteStream
from pileus.agent.network.port import Plug
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.port import DiskSource
from pileus.guestimage import build
from pileus.kernel.ids import InstanceId, NetworkId, PortId, ProjectId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import MIB
from pileus.link.records import FirstBoot, GuestDisk, GuestSpec, NicSpec, Power, VolumeSpec

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]

WITHIN_S = 180.0
PROMPT = b":~# "
# Sets d to the disk of this serial number, whatever the guest's kernel calls it.
FIND = (
    'd=; until [ "$d" ]; do for s in /sys/block/vd*/serial; do'
    ' [ "$(cat $s)" = {serial} ] && d=${{s%/serial}} && d=${{d##*/}}; done; done'
)


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    with libvirt_host() as host:
        yield host


@pytest.fixture
async def hypervisor(host: LibvirtHost) -> AsyncIterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor(binding.load(), uri=host.uri, ground=host.ground, accelerator_reason="for the lab")
    yield hypervisor
    for id in await hypervisor.list():
        await hypervisor.undefine(id)
    await hypervisor.close()


class Guest:
    """A guest that boots from an image of its own, and its console."""

    def __init__(self, host: LibvirtHost, hypervisor: LibvirtHypervisor) -> None:
        port, self.root = PortId(new_id()), VolumeId(new_id())
        tap = f"tap{port[-10:]}"
        host.make_tap(tap)
        mac = f"52:54:00:{port[-6:-4]}:{port[-4:-2]}:{port[-2:]}"
        self.disk = host.disks / self.root
        self.spec = GuestSpec(
            id=InstanceId(new_id()),
            generation=1,
            name="guest",
            project=ProjectId(new_id()),
            vcpus=1,
            memory_mib=128,
            power=Power.RUNNING,
            disks=(GuestDisk(volume=self.root),),
            nics=(NicSpec(port=port, network=NetworkId(new_id()), mac=mac, addresses=("192.0.2.5",), mtu=1442),),
            first_boot=FirstBoot(hostname="guest"),
        )
        self._plugs = {port: Plug(device=tap, offload=False)}
        self._hypervisor = hypervisor
        self._console: ByteStream | None = None

    async def given(self, *disks: GuestDisk, sources: Mapping[VolumeId, DiskSource]) -> None:
        """Have these disks besides the one that it boots from, as an agent gives them."""
        root = {self.root: DiskSource(kind="file", path=str(self.disk), format="raw")}
        self.spec = replace(self.spec, generation=self.spec.generation + 1, disks=(self.spec.disks[0], *disks))
        await self._hypervisor.define(self.spec, {**root, **sources}, self._plugs)
        await self._hypervisor.change_disks(self.spec, {**root, **sources})

    async def start(self) -> None:
        await self._hypervisor.start(self.spec.id)
        self._console = await self._hypervisor.console(self.spec.id)

    async def booted(self) -> None:
        await self._says(PROMPT)

    async def answers(self, command: str) -> str:
        """What a command says in the guest."""
        assert self._console is not None
        # What is typed is shown as well, but not with the sum in it.
        await self._console.write(f"{command}; echo $((6*7))end\r".encode())
        return (await self._says(b"42end")).replace("\r", "")

    async def _says(self, words: bytes) -> str:
        assert self._console is not None
        said = b""
        async with asyncio.timeout(WITHIN_S):
            while words not in said:
                more = await self._console.read()
                assert more, f"the console ended; it said: {said.decode(errors='replace')}"
                said += more
        return said.decode(errors="replace")


async def test_a_volume_goes_from_guest_to_guest_with_its_data_grows_and_leaves_nothing(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, tmp_path: Path
) -> None:
    image = await build(tmp_path / "guest.qcow2", cache=tmp_path / "cache")
    pool = DirectoryPool.open(host.disks / "pool")
    volume, other = (VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=16 * MIB) for _ in range(2))
    for each in (volume, other):
        await pool.ensure(each, lambda _: None)
    sources = {each.id: await pool.source(each.id) for each in (volume, other)}
    find = FIND.format(serial=volume.id[:20])
    one, two = Guest(host, hypervisor), Guest(host, hypervisor)
    for guest in (one, two):
        await run("qemu-img", "convert", "-O", "raw", str(image.path), str(guest.disk))
        await guest.given(sources={})
        await guest.start()
    for guest in (one, two):
        await guest.booted()

    # Attached while the guest runs.
    disk = GuestDisk(volume=volume.id, slot=3, size_bytes=volume.size_bytes)
    await one.given(disk, sources=sources)
    assert f"size {16 * MIB // 512}\n" in await one.answers(f"{find}; echo size $(cat /sys/block/$d/size)")
    assert "written\n" in await one.answers("echo precious > /dev/$d && sync && echo written")

    # Grown while the guest runs.
    volume = replace(volume, generation=2, size_bytes=32 * MIB)
    await pool.ensure(volume, lambda _: None)
    disk = replace(disk, size_bytes=volume.size_bytes)
    await one.given(disk, sources=sources)
    grown = f"until [ $(cat /sys/block/$d/size) = {32 * MIB // 512} ]; do :; done; echo seen"
    assert "seen\n" in await one.answers(grown)

    # Detached, and attached to another guest in another slot.
    await one.given(sources=sources)
    assert "gone\n" in await one.answers("until ! [ -e /sys/block/$d ]; do :; done; echo gone")
    await two.given(disk, sources=sources)
    where = "echo it is at $(readlink -f /sys/block/$d/device/..) with $(head -c 8 /dev/$d)"
    before = (await two.answers(f"{find}; {where}")).partition("it is at /")[2].split()[:3]
    assert before[1:] == ["with", "precious"]

    # Stopped and started with one disk more ahead of it.
    await hypervisor.stop(two.spec.id)
    await two.given(GuestDisk(volume=other.id, slot=1), disk, sources=sources)
    await two.start()
    await two.booted()
    after = (await two.answers(f"{find}; {where}")).partition("it is at /")[2].split()[:3]
    assert after == before

    # Removed with its data.
    await two.given(sources=sources)
    for each in (volume, other):
        await pool.remove(each.id)
    assert [each for each in (host.disks / "pool").rglob("*") if each.is_file()] == []
