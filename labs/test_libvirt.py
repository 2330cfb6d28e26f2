"""Guests on a real QEMU, by a real libvirtd that belongs to the test."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import cache
import pytest
from libvirt_guest import PROMPT, Terminal
from libvirt_host import LibvirtHost, missing
from msgspec.structs import replace
from patience import WITHIN_S

from pileus.agent.hypervisor.libvirt import binding
from pileus.agent.hypervisor.libvirt.connection import EngineFailed
from pileus.agent.hypervisor.libvirt.domain import METADATA_NAMESPACE, console_log, domain_name
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.hypervisor.port import GuestFound, GuestState, Hypervisor
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.guestimage.fat import fat16
from pileus.kernel.errors import Conflict, PileusError, Unavailable
from pileus.kernel.ids import InstanceId, NetworkId, PortId, ProjectId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import GIB, MIB
from pileus.link.guests import FirstBoot, GuestDisk, GuestLimits, GuestSpec, NicSpec, Power
from pileus.testing.contracts.devices import Connected, Inserted, Limited, Plugged, Reads
from pileus.testing.contracts.guest import Crash
from pileus.testing.contracts.hypervisor import HypervisorContract

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]


@pytest.fixture
async def another(host: LibvirtHost) -> AsyncIterator[Callable[[], Awaitable[LibvirtHypervisor]]]:
    """Makes drivers of the one hypervisor, as agents do that come one after the other."""
    made: list[LibvirtHypervisor] = []

    async def another() -> LibvirtHypervisor:
        made.append(
            LibvirtHypervisor(binding.load(), uri=host.uri, ground=host.ground, accelerator_reason="for the lab")
        )
        return made[-1]

    yield another
    for each in made:
        await each.close()


@pytest.fixture
async def hypervisor(
    host: LibvirtHost, another: Callable[[], Awaitable[LibvirtHypervisor]]
) -> AsyncIterator[LibvirtHypervisor]:
    hypervisor = await another()
    yield hypervisor
    for id in await hypervisor.list():
        await hypervisor.undefine(id)
    assert [*host.ground.sockets.glob("*"), *host.ground.logs.glob("*")] == []


@pytest.fixture
def guest() -> GuestSpec:
    """A guest with an empty disk: its firmware runs, and finds nothing to boot."""
    port = PortId(new_id())
    return GuestSpec(
        id=InstanceId(new_id()),
        generation=1,
        name="a & <b> 'c' \"d\" \x00é",
        project=ProjectId(new_id()),
        vcpus=1,
        memory_mib=64,
        power=Power.RUNNING,
        disks=(GuestDisk(volume=VolumeId(new_id())),),
        nics=(
            NicSpec(
                port=port,
                network=NetworkId(new_id()),
                mac=f"52:54:00:{port[-6:-4]}:{port[-4:-2]}:{port[-2:]}",
                addresses=("192.0.2.5",),
                mtu=1442,
            ),
        ),
        first_boot=FirstBoot(hostname="guest"),
    )


@pytest.fixture
def disks(host: LibvirtHost, guest: GuestSpec) -> Mapping[VolumeId, DiskSource]:
    disk = host.disks / guest.disks[0].volume
    with disk.open("wb") as file:
        file.truncate(MIB)
    return {guest.disks[0].volume: DiskSource(kind="file", path=str(disk), format="raw")}


@pytest.fixture
def plugs(host: LibvirtHost, guest: GuestSpec) -> Mapping[PortId, Plug]:
    port = guest.nics[0].port
    tap = f"tap{port[-10:]}"
    host.make_tap(tap)
    return {port: Plug(device=tap, offload=False)}


@pytest.fixture
def crash(host: LibvirtHost) -> Crash:
    async def kill(id: InstanceId) -> None:
        host.kill(host.qemu(domain_name(id)))

    return kill


@pytest.fixture
def another_disk(host: LibvirtHost) -> tuple[VolumeId, DiskSource]:
    return an_empty_disk(host)


@pytest.fixture
def plugged(host: LibvirtHost) -> Plugged:
    async def plugged(id: InstanceId) -> set[VolumeId]:
        devices = host.virsh("qemu-monitor-command", "--hmp", domain_name(id), "info qtree")
        return {VolumeId(name) for name in re.findall(r'dev: virtio-blk-pci, id "ua-([0-9a-f-]+)"', devices)}

    return plugged


@pytest.fixture
def inserted(host: LibvirtHost) -> Inserted:
    async def inserted(id: InstanceId) -> dict[int, str]:
        listed = host.virsh("domblklist", "--details", domain_name(id))
        drives = re.findall(r"cdrom +sd([ab]) +(\S+)", listed)
        return {ord(letter) - ord("a"): path for letter, path in drives if path != "-"}

    return inserted


@pytest.fixture
def reads(host: LibvirtHost) -> Reads:
    async def reads(id: InstanceId) -> list[str]:
        definition = ET.fromstring(host.virsh("dumpxml", domain_name(id)))
        disks = definition.iterfind("devices/disk[@device='disk'][readonly]/source")
        return [source.attrib["file"] for source in disks]

    return reads


@pytest.fixture
def limited(host: LibvirtHost) -> Limited:
    async def limited(id: InstanceId) -> GuestLimits:
        cpu = dict(re.findall(r"(\w+) *: (-?\d+)", host.virsh("schedinfo", domain_name(id))))
        disk = dict(re.findall(r"(\w+) *: (\d+)", host.virsh("blkdeviotune", domain_name(id), "vda")))
        return GuestLimits(
            cpu_percent=max(int(cpu["vcpu_quota"]) * 100 // int(cpu["vcpu_period"]), 0),
            disk_iops=int(disk["total_iops_sec"]),
            disk_bytes_per_s=int(disk["total_bytes_sec"]),
            disk_burst_iops=int(disk["total_iops_sec_max"]),
            disk_burst_bytes_per_s=int(disk["total_bytes_sec_max"]),
            disk_burst_s=int(disk["total_iops_sec_max_length"]) if int(disk["total_iops_sec_max"]) else 0,
        )

    return limited


@pytest.fixture
def another_nic(host: LibvirtHost, guest: GuestSpec) -> tuple[NicSpec, Plug]:
    port = PortId(new_id())
    tap = f"tap{port[-10:]}"
    host.make_tap(tap)
    nic = replace(guest.nics[0], port=port, mac=f"52:54:01:{port[-6:-4]}:{port[-4:-2]}:{port[-2:]}", slot=1)
    return nic, Plug(device=tap, offload=False)


@pytest.fixture
def connected(host: LibvirtHost) -> Connected:
    async def connected(id: InstanceId) -> set[str]:
        devices = host.virsh("qemu-monitor-command", "--hmp", domain_name(id), "info qtree")
        return set(re.findall(r"mac = \"([0-9a-f:]+)\"", devices))

    return connected


class TestLibvirtHypervisor(HypervisorContract):
    pass


def an_empty_disk(host: LibvirtHost, size_bytes: int = MIB) -> tuple[VolumeId, DiskSource]:
    volume = VolumeId(new_id())
    disk = host.disks / volume
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    return volume, DiskSource(kind="file", path=str(disk), format="raw")


@pytest.fixture
async def running(
    hypervisor: LibvirtHypervisor,
    guest: GuestSpec,
    disks: Mapping[VolumeId, DiskSource],
    plugs: Mapping[PortId, Plug],
) -> InstanceId:
    await hypervisor.define(guest, disks, plugs)
    await hypervisor.start(guest.id)
    return guest.id


async def becomes(hypervisor: Hypervisor, id: InstanceId, state: GuestState) -> GuestFound:
    """Wait for a state by listening for changes, as the agent does."""
    async with asyncio.timeout(WITHIN_S):
        changes = hypervisor.changes()
        while (found := (await hypervisor.list())[id]).state is not state:
            await anext(changes)
    return found


async def is_found(hypervisor: Hypervisor, id: InstanceId, state: GuestState) -> GuestFound:
    """Wait for a state by looking again and again, as the agent does besides.

    When libvirtd comes back it looks for its guests while it answers already, and tells nobody of those it finds dead.
    """
    async with asyncio.timeout(WITHIN_S):
        while (found := (await hypervisor.list())[id]).state is not state:
            await asyncio.sleep(0.05)
    return found


async def answers(hypervisor: Hypervisor) -> None:
    """Wait until libvirtd is back."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                await hypervisor.list()
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_guest_goes_on_while_libvirtd_is_down_and_is_found_again(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, running: InstanceId
) -> None:
    process = host.qemu(domain_name(running)).read_text()
    changes = hypervisor.changes()
    console = await hypervisor.consoles.serial(running)
    host.kill_libvirtd()
    async with asyncio.timeout(WITHIN_S):
        async for _ in changes:
            pass  # what it has told of before its end
    with pytest.raises(Unavailable):
        await hypervisor.list()
    with pytest.raises(Unavailable):
        await anext(hypervisor.changes())
    await console.write(b"the console needs no libvirtd")
    host.restart_libvirtd()
    await answers(hypervisor)
    assert (await hypervisor.list())[running].state is GuestState.RUNNING
    assert host.qemu(domain_name(running)).read_text() == process


async def test_a_guest_that_died_while_libvirtd_was_down_has_crashed(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, running: InstanceId, crash: Crash
) -> None:
    host.kill_libvirtd()
    await crash(running)
    host.restart_libvirtd()
    await answers(hypervisor)
    assert (await is_found(hypervisor, running, GuestState.CRASHED)).cause


async def test_why_a_guest_ended_is_known_after_libvirtd_has_forgotten_it(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, running: InstanceId, crash: Crash
) -> None:
    await crash(running)
    found = await becomes(hypervisor, running, GuestState.CRASHED)
    host.kill_libvirtd()
    host.restart_libvirtd()
    await answers(hypervisor)
    assert (await hypervisor.list())[running] == found


async def test_a_call_after_a_restart_of_libvirtd_needs_no_second_try(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, running: InstanceId
) -> None:
    host.kill_libvirtd()
    host.restart_libvirtd()
    assert (await hypervisor.list())[running].state is GuestState.RUNNING


async def test_agents_that_meet_do_not_disturb_each_other(
    hypervisor: LibvirtHypervisor,
    another: Callable[[], Awaitable[LibvirtHypervisor]],
    guest: GuestSpec,
    disks: Mapping[VolumeId, DiskSource],
    plugs: Mapping[PortId, Plug],
) -> None:
    drivers = [hypervisor, await another(), await another()]
    await asyncio.gather(*(each.define(guest, disks, plugs) for each in drivers for _ in range(3)))
    await asyncio.gather(*(each.start(guest.id) for each in drivers for _ in range(3)))
    assert (await hypervisor.list())[guest.id].state is GuestState.RUNNING
    await asyncio.gather(*(each.stop(guest.id) for each in drivers for _ in range(3)))
    assert (await hypervisor.list())[guest.id].state is GuestState.SHUT_DOWN
    await asyncio.gather(*(each.undefine(guest.id) for each in drivers for _ in range(3)))
    assert await hypervisor.list() == {}


async def test_guests_of_others_are_not_seen(hypervisor: LibvirtHypervisor, host: LibvirtHost, tmp_path: Path) -> None:
    definition = tmp_path / "other.xml"
    definition.write_text(
        "<domain type='qemu'><name>pileus-other</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    )
    host.virsh("define", str(definition))
    assert await hypervisor.list() == {}
    host.virsh("undefine", "pileus-other")


async def test_a_guest_whose_definition_was_taken_away_is_still_found(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, running: InstanceId
) -> None:
    host.virsh("undefine", domain_name(running))
    assert (await hypervisor.list())[running] == GuestFound(state=GuestState.RUNNING, generation=1, vcpus=1)


async def test_a_guest_stopped_behind_our_back_says_so(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, running: InstanceId
) -> None:
    host.virsh("destroy", domain_name(running))
    assert (await becomes(hypervisor, running, GuestState.SHUT_DOWN)).cause


async def test_a_guest_whose_process_hangs_can_be_stopped_and_holds_up_no_other_call(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, running: InstanceId
) -> None:
    host.kill(host.qemu(domain_name(running)), "STOP")
    hangs = asyncio.create_task(hypervisor.reboot(running, hard=True))
    assert (await hypervisor.list())[running].state is GuestState.RUNNING
    await hypervisor.stop(running)
    with pytest.raises(PileusError):
        await hangs
    assert (await hypervisor.list())[running].state is GuestState.SHUT_DOWN


async def test_a_guest_that_does_not_run_has_no_console_and_is_not_rebooted(
    hypervisor: LibvirtHypervisor, running: InstanceId
) -> None:
    await hypervisor.stop(running)
    for hard in (True, False):
        with pytest.raises(Conflict):
            await hypervisor.reboot(running, hard=hard)
    with pytest.raises(Conflict):
        await hypervisor.consoles.serial(running)


async def test_a_console_ends_with_its_guest(hypervisor: LibvirtHypervisor, running: InstanceId) -> None:
    console = await hypervisor.consoles.serial(running)
    await hypervisor.stop(running)
    async with asyncio.timeout(WITHIN_S):
        while await console.read():
            pass
    await console.close()


async def test_a_guest_that_cannot_be_started_says_why_to_the_log_only(
    hypervisor: LibvirtHypervisor,
    host: LibvirtHost,
    guest: GuestSpec,
    disks: Mapping[VolumeId, DiskSource],
    plugs: Mapping[PortId, Plug],
) -> None:
    await hypervisor.define(guest, disks, plugs)
    for disk in disks.values():
        Path(disk.path).unlink()
    with pytest.raises(EngineFailed) as failed:
        await hypervisor.start(guest.id)
    assert str(host.disks) in failed.value.internal
    assert str(host.disks) not in failed.value.detail
    assert (await hypervisor.list())[guest.id].state is not GuestState.RUNNING


async def test_nobody_but_root_gets_at_a_console(host: LibvirtHost, running: InstanceId) -> None:
    assert [each.stat().st_mode & 0o777 for each in (host.ground.sockets, host.ground.logs)] == [0o700, 0o700]


async def test_the_accepted_definition_is_valid_to_libvirt(host: LibvirtHost) -> None:
    golden = Path(__file__).parents[1] / "tests/golden/domain/linux-tcg.xml"
    host.virsh("define", "--validate", str(golden))
    assert METADATA_NAMESPACE in host.virsh("dumpxml", "pileus-b302099a8057")
    host.virsh("undefine", "pileus-b302099a8057")


async def test_a_real_guest_boots_talks_reboots_and_ends_as_it_is_told(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, guest: GuestSpec, tmp_path: Path, plugs: Mapping[PortId, Plug]
) -> None:
    image = await asyncio.to_thread(cache.mini)
    root, seed = guest.disks[0].volume, VolumeId(new_id())
    await run("qemu-img", "convert", "-O", "raw", str(image.path), str(host.disks / root), timeout_s=WITHIN_S)
    files = {"meta-data": b"instance-id: i-1\nlocal-hostname: guest\n", "user-data": b""}
    (host.disks / seed).write_bytes(fat16(files, label="cidata", size_bytes=4 * MIB))
    spec = replace(guest, memory_mib=128, disks=(GuestDisk(volume=root), GuestDisk(volume=seed, slot=1)))
    disks = {each: DiskSource(kind="file", path=str(host.disks / each), format="raw") for each in (root, seed)}
    await hypervisor.define(spec, disks, plugs)
    await hypervisor.start(spec.id)

    console = Terminal(await hypervisor.consoles.serial(spec.id))
    await console.says(PROMPT)
    assert "OpenStack Nova" in await console.answers("cat /sys/class/dmi/id/chassis_asset_tag")
    await hypervisor.pause(spec.id)
    await console.types("echo a$((20+3))b")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await console.says(b"a23b")
    await hypervisor.resume(spec.id)
    await console.says(b"a23b")
    await console.says(PROMPT)
    await hypervisor.reboot(spec.id, hard=False)
    await console.says(b"pileus-guest: stopping")
    await console.says(PROMPT)
    await hypervisor.shut_down(spec.id)
    assert await becomes(hypervisor, spec.id, GuestState.SHUT_DOWN) == GuestFound(
        state=GuestState.SHUT_DOWN, generation=1
    )

    with (host.disks / root).open("r+b") as file:
        file.truncate(GIB)
    await hypervisor.define(replace(spec, vcpus=2, memory_mib=192), disks, plugs)
    await hypervisor.start(spec.id)
    console = Terminal(await hypervisor.consoles.serial(spec.id))
    await console.says(PROMPT)
    said = await console.answers(
        "grep -c ^processor /proc/cpuinfo; cat /sys/class/block/vda/size; grep MemTotal /proc/meminfo"
    )
    assert "\n2\n2097152\n" in said
    assert 128 * 1024 < int(re.findall(r"MemTotal: +(\d+) kB", said)[0]) < 192 * 1024
    await console.types("poweroff")
    assert (await becomes(hypervisor, spec.id, GuestState.SHUT_DOWN)).cause == "the guest shut itself down"
    assert b"pileus-guest: stopping" in console_log(host.ground, spec.id).read_bytes()
