"""Guests that somebody made by hand in our libvirt are seen as they are, and left as they are."""

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from libvirt_host import LibvirtHost, missing

from pileus.agent.hypervisor.libvirt import binding
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.kernel.units import MIB
from pileus.link.foreign import ForeignDisk

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"foreign guests lab: {missing()}")]

BY_HAND = """
<domain type='qemu'>
  <name>billing</name>
  <memory unit='MiB'>96</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{disk}'/>
      <target dev='hda' bus='ide'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='hdb' bus='ide'/><readonly/></disk>
    <interface type='ethernet'>
      <mac address='52:54:00:00:00:01'/>
      <target dev='byhand0' managed='no'/>
      <model type='e1000'/>
    </interface>
  </devices>
</domain>
"""


@pytest_asyncio.fixture
async def hypervisor(host: LibvirtHost) -> AsyncIterator[LibvirtHypervisor]:
    driver = LibvirtHypervisor(binding.load(), uri=host.uri, ground=host.ground, accelerator_reason="a lab")
    yield driver
    await driver.close()


def by_hand(host: LibvirtHost) -> Path:
    """A running guest, defined and started with virsh."""
    disk = host.disks / "billing.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "8M"], check=True)
    disk.chmod(0o666)
    host.make_tap("byhand0")
    definition = host.disks / "billing.xml"
    definition.write_text(BY_HAND.format(disk=disk))
    host.virsh("define", str(definition))
    host.virsh("start", "billing")
    return disk


async def test_a_guest_made_by_hand_is_seen_as_it_is_and_left_as_it_is(
    host: LibvirtHost, hypervisor: LibvirtHypervisor
) -> None:
    disk = by_hand(host)
    process, definition = host.qemu("billing").read_text(), host.virsh("dumpxml", "billing")
    [guest] = await hypervisor.foreign()
    assert (guest.name, guest.running, guest.vcpus, guest.memory_mib) == ("billing", True, 2, 96)
    assert guest.id == host.virsh("domuuid", "billing").strip()
    assert guest.machine.startswith("pc-i440fx")
    assert guest.disks == (
        ForeignDisk(target="hda", bus="ide", path=str(disk), format="qcow2", size_bytes=8 * MIB),
        ForeignDisk(target="hdb", device="cdrom", bus="ide"),
    )
    assert [(each.mac, each.kind, each.model) for each in guest.nics] == [("52:54:00:00:00:01", "ethernet", "e1000")]
    assert guest.obstacles == ("interface 52:54:00:00:00:01 is on no bridge, but of type ethernet",)
    assert await hypervisor.list() == {}
    host.virsh("destroy", "billing")
    [stopped] = await hypervisor.foreign()
    assert (stopped.running, stopped.disks, stopped.nics) == (False, guest.disks, guest.nics)
    host.virsh("start", "billing")
    assert host.qemu("billing").read_text() != process
    again = host.virsh("dumpxml", "billing", "--inactive")
    await hypervisor.foreign()
    assert host.virsh("dumpxml", "billing", "--inactive") == again
    assert "pileus" not in definition + again
