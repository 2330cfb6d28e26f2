"""Passwords in the disks of guests that do not run: an appliance on a real QEMU, over real file systems."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import cache
import pytest
from libvirt_host import LibvirtHost, missing
from patience import WITHIN_S

from pileus.agent.hypervisor.libvirt import binding
from pileus.agent.hypervisor.libvirt.domain import appliance_name
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.storage.port import DiskSource
from pileus.guestimage.disk import master_boot_record
from pileus.kernel.errors import Conflict, PileusError
from pileus.kernel.ids import InstanceId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import MIB

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]

SHADOW = "root:*:19000:0:99999:7:::\nann:!:19000:0:99999:7:::\nann.b:!:19000:0:99999:7:::\n"
HASH, OTHER_HASH = "$6$rounds=5000$salt$hash", "$6$rounds=5000$salt$other"


class Disk:
    """The disk of a guest that does not run: one partition, with an ext4 of a system in it."""

    def __init__(self, host: LibvirtHost) -> None:
        self.id = InstanceId(new_id())
        self.file = host.disks / self.id
        self.source = DiskSource(kind="file", path=str(self.file), format="raw")
        self._root = host.disks / f"{self.id}.root"
        self._part = host.disks / f"{self.id}.part"

    async def made(self) -> None:
        (self._root / "etc" / "selinux").mkdir(parents=True)
        shadow = self._root / "etc" / "shadow"
        shadow.write_text(SHADOW)
        shadow.chmod(0o640)
        (self._root / "etc" / "selinux" / "config").write_text("SELINUX=enforcing\n")
        await run("mke2fs", "-q", "-t", "ext4", "-d", str(self._root), str(self._part), "32M")
        self.holds(self._part.read_bytes())

    def holds(self, partition: bytes) -> None:
        """Have this in the disk's only partition."""
        table = master_boot_record(bytes(440), disk_id=b"disk", partitions={0x83: (MIB, len(partition))})
        self.file.write_bytes(table.ljust(MIB, b"\0") + partition)

    async def says(self, request: str) -> str:
        """What debugfs says of the file system, of which the journal has been played back."""
        self._part.write_bytes(self.file.read_bytes()[MIB:])
        await run("e2fsck", "-fp", str(self._part), accept=(0, 1))
        return await run("debugfs", "-R", request, str(self._part))


@pytest.fixture
async def disk(host: LibvirtHost) -> Disk:
    disk = Disk(host)
    await disk.made()
    return disk


@pytest.fixture
async def hypervisor(host: LibvirtHost) -> AsyncIterator[LibvirtHypervisor]:
    folder = host.ground.appliance
    assert folder is not None
    if not folder.exists():
        await asyncio.to_thread(shutil.copytree, await asyncio.to_thread(cache.appliance), folder)
    hypervisor = driver(host)
    yield hypervisor
    await hypervisor.appliance.sweep()
    await hypervisor.close()


def driver(host: LibvirtHost) -> LibvirtHypervisor:
    return LibvirtHypervisor(binding.load(), uri=host.uri, ground=host.ground, accelerator_reason="for the lab")


def left(host: LibvirtHost) -> list[str]:
    """What there is of appliances besides what they are made of."""
    assert host.ground.appliance is not None
    domains = host.virsh("list", "--all", "--name").split()
    return [*domains, *(each.name for each in Path(host.ground.appliance).glob("*pileus-appliance*"))]


async def begun(host: LibvirtHost, disk: Disk) -> None:
    """Wait until a domain looks into the disk: by its pid file, for it may be faster than a program is that looks."""
    async with asyncio.timeout(WITHIN_S):
        while not host.runs(appliance_name(disk.id)):
            await asyncio.sleep(0.01)


async def test_a_password_is_set_in_a_disk_and_nothing_else_of_it_changes(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, disk: Disk
) -> None:
    setting = asyncio.create_task(hypervisor.appliance.set_password(disk.id, disk.source, "ann", HASH))
    await begun(host, disk)
    assert await hypervisor.list() == {}
    assert list(await hypervisor.foreign()) == []
    await setting
    root, ann, other = (await disk.says("cat /etc/shadow")).splitlines()
    assert re.fullmatch(rf"ann:{re.escape(HASH)}:\d+:0:99999:7:::", ann)
    assert [root, other] == [SHADOW.splitlines()[0], SHADOW.splitlines()[2]]
    listed = await disk.says("ls -l /etc")
    assert re.search(r"100640 \(1\)\s+0\s+0\s+\d+ \S+ \S+ shadow", listed)
    assert ".shadow.pileus" not in listed
    assert ".autorelabel" in await disk.says("ls /")
    assert left(host) == []


async def test_what_is_found_instead_is_said_and_the_disk_left_as_it_was(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, disk: Disk
) -> None:
    with pytest.raises(Conflict, match="no such user"):
        await hypervisor.appliance.set_password(disk.id, disk.source, "bob", HASH)
    assert await disk.says("cat /etc/shadow") == SHADOW
    encrypted = b"LUKS\xba\xbe\x00\x01aes".ljust(MIB, b"\0")
    disk.holds(encrypted)
    before = disk.file.read_bytes()
    with pytest.raises(Conflict, match="LUKS"):
        await hypervisor.appliance.set_password(disk.id, disk.source, "ann", HASH)
    assert (disk.file.read_bytes(), left(host)) == (before, [])


async def test_an_appliance_does_not_outlive_who_waits_for_it_nor_leave_half_a_file(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, disk: Disk
) -> None:
    # Its agent goes away in the middle.
    former = driver(host)
    setting = asyncio.create_task(former.appliance.set_password(disk.id, disk.source, "ann", HASH))
    await begun(host, disk)
    setting.cancel()
    await asyncio.gather(setting, return_exceptions=True)
    await former.close()
    assert left(host) == []
    # Everybody goes away: libvirtd with it.
    setting = asyncio.create_task(hypervisor.appliance.set_password(disk.id, disk.source, "ann", HASH))
    await begun(host, disk)
    host.kill_libvirtd()
    setting.cancel()
    await asyncio.gather(setting, return_exceptions=True)
    host.restart_libvirtd()
    later = driver(host)
    await later.appliance.sweep()
    assert left(host) == []
    assert (await disk.says("cat /etc/shadow")).splitlines()[1].split(":")[1] in {"!", HASH}
    # Somebody ends its QEMU; asking again is right.
    setting = asyncio.create_task(later.appliance.set_password(disk.id, disk.source, "ann", OTHER_HASH))
    await begun(host, disk)
    host.kill(host.qemu(appliance_name(disk.id)))
    with pytest.raises(PileusError):
        await setting
    await later.appliance.set_password(disk.id, disk.source, "ann", OTHER_HASH)
    assert OTHER_HASH in await disk.says("cat /etc/shadow")
    await later.close()
