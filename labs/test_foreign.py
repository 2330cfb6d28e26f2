"""Guests that somebody made by hand in our libvirt are seen as they are, and left as they are."""

import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from libvirt_guest import Guest
from libvirt_host import LibvirtHost, missing
from msgspec.structs import replace

from pileus.agent.hypervisor.libvirt.domain import domain_name
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.hypervisor.port import GuestState
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import InstanceId, NetworkId, PortId, ProjectId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import MIB
from pileus.link.foreign import ForeignDisk, ForeignGuest
from pileus.link.guests import FirstBoot, GuestDisk, GuestLimits, GuestSpec, Leaving, NicSpec, Power

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

LEDGER = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>ledger</name>
  <metadata><other:note xmlns:other='urn:example:other'>of somebody else's</other:note></metadata>
  <memory unit='MiB'>96</memory>
  <vcpu>1</vcpu>
  <cputune><shares>512</shares></cputune>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <on_crash>restart</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='ethernet'>
      <mac address='52:54:00:00:00:02'/>
      <target dev='byhand1' managed='no'/>
      <model type='e1000'/>
    </interface>
    <graphics type='vnc' passwd='sesame'><listen type='none'/></graphics>
  </devices>
  <qemu:commandline><qemu:arg value='-name'/><qemu:arg value='guest=pileus-by-hand'/></qemu:commandline>
</domain>
"""


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
    assert guest.obstacles == ()
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
    host.virsh("destroy", "billing")


async def test_a_running_guest_is_taken_over_managed_and_left_and_does_not_notice(
    host: LibvirtHost, hypervisor: LibvirtHypervisor
) -> None:
    disk, more = host.disks / "ledger.qcow2", host.disks / "more.raw"
    for file, format in ((disk, "qcow2"), (more, "raw")):
        await run("qemu-img", "create", "-q", "-f", format, str(file), "8M")
        file.chmod(0o666)
    host.make_tap("byhand1")
    host.make_tap("tapofours")
    definition = host.disks / "ledger.xml"
    definition.write_text(LEDGER.format(disk=disk))
    host.virsh("define", str(definition))
    host.virsh("autostart", "ledger")
    host.virsh("start", "ledger")
    before = host.virsh("dumpxml", "ledger", "--inactive", "--security-info")
    process = host.qemu("ledger").read_text()
    [guest] = await foreign(hypervisor, "ledger")
    assert guest.obstacles == ()
    assert guest.untouched == ("arguments for QEMU itself", "setting cputune")

    # Taken over: the same process, the same definition but for our mark.
    id, root, data, port = InstanceId(guest.id), VolumeId(new_id()), VolumeId(new_id()), PortId(new_id())
    spec = GuestSpec(
        id=id,
        generation=1,
        name="ledger",
        project=ProjectId(new_id()),
        vcpus=1,
        memory_mib=96,
        power=Power.RUNNING,
        disks=(GuestDisk(volume=root, target="vda"),),
        nics=(),
        first_boot=FirstBoot(hostname="ledger"),
        template="as-found",
        found_macs=("52:54:00:00:00:02",),
    )
    sources = {
        root: DiskSource(kind="file", path=str(disk), format="qcow2"),
        data: DiskSource(kind="file", path=str(more), format="raw"),
    }
    await hypervisor.define(spec, sources, {})
    assert (await hypervisor.list())[id].state is GuestState.RUNNING
    assert await foreign(hypervisor, "ledger") == []
    assert host.qemu("ledger").read_text() == process
    assert "ledger" not in host.virsh("list", "--autostart", "--name")
    assert unmarked(host.virsh("dumpxml", "ledger", "--inactive", "--security-info")) == unmarked(before)
    await hypervisor.define(spec, sources, {})
    await hypervisor.change_disks(spec, sources)
    await hypervisor.change_nics(spec, {})
    assert host.qemu("ledger").read_text() == process

    # A copy that somebody makes of it is not ours, though it has the mark.
    copy = re.sub("<uuid>.*</uuid>", "", host.virsh("dumpxml", "ledger", "--inactive")).replace(
        "<name>ledger<", "<name>copy<"
    )
    definition.write_text(copy)
    host.virsh("define", str(definition))
    assert set(await hypervisor.list()) == {id}
    host.virsh("undefine", "copy")

    # Managed: limited, given a disk and a network card while it runs, stopped and started.
    plugs = {port: Plug(device="tapofours", offload=False)}
    nic = NicSpec(port=port, network=NetworkId(new_id()), mac="52:54:00:00:00:03", addresses=(), mtu=1442, slot=1)
    limits = GuestLimits(cpu_percent=50, disk_iops=500)
    spec = replace(spec, generation=2, disks=(*spec.disks, GuestDisk(volume=data, slot=1)), nics=(nic,), limits=limits)
    await hypervisor.define(spec, sources, plugs)
    await hypervisor.change_disks(spec, sources)
    await hypervisor.change_nics(spec, plugs)
    await hypervisor.change_limits(spec)
    live = host.virsh("dumpxml", "ledger")
    assert str(more) in live
    assert "tapofours" in live
    assert "<total_iops_sec>500</total_iops_sec>" in live
    assert host.qemu("ledger").read_text() == process
    await hypervisor.pause(id)
    await hypervisor.resume(id)
    await hypervisor.reboot(id, hard=True)
    await hypervisor.stop(id)
    await hypervisor.start(id)
    live = host.virsh("dumpxml", "ledger")
    assert all(each in live for each in (str(disk), str(more), "tapofours", "byhand1", "pileus-by-hand"))
    assert host.qemu("ledger").read_text() != process

    # Left: it runs on, and virsh stops and starts it.
    process = host.qemu("ledger").read_text()
    await hypervisor.leave(id, Leaving())
    await hypervisor.leave(id, Leaving())
    assert await hypervisor.list() == {}
    assert host.qemu("ledger").read_text() == process
    assert "ledger" in host.virsh("list", "--autostart", "--name")
    for definition_now in host.virsh("dumpxml", "ledger"), host.virsh("dumpxml", "ledger", "--inactive"):
        assert "<pileus:instance" not in definition_now
        assert "of somebody else's" in definition_now
    await hypervisor.undefine(id)
    host.virsh("destroy", "ledger")
    host.virsh("start", "ledger")
    [left] = await foreign(hypervisor, "ledger")
    assert (left.running, [each.mac for each in left.nics]) == (True, ["52:54:00:00:00:02", "52:54:00:00:00:03"])
    host.virsh("destroy", "ledger")


async def test_a_guest_that_we_made_is_left_to_virsh_with_its_disk_and_its_card(
    host: LibvirtHost, hypervisor: LibvirtHypervisor
) -> None:
    guest = Guest(host, hypervisor)
    guest.spec = replace(guest.spec, config_drive=False)
    await run("qemu-img", "create", "-q", "-f", "raw", str(guest.disk), "8M")
    await guest.given(sources={})
    await guest.start()
    name = domain_name(guest.spec.id)
    process = host.qemu(name).read_text()
    host.run("ip", "link", "add", "bridge0", "type", "bridge")
    await hypervisor.leave(guest.spec.id, Leaving(bridge="bridge0"))
    assert await hypervisor.list() == {}
    assert host.qemu(name).read_text() == process
    host.run("ip", "link", "del", f"tap{guest.spec.nics[0].port[-10:]}")
    host.virsh("destroy", name)
    host.virsh("start", name)
    [left] = await foreign(hypervisor, name)
    assert [(each.kind, each.source) for each in left.nics] == [("bridge", "bridge0")]
    assert [each.path for each in left.disks if each.device == "disk"] == [str(guest.disk)]
    host.virsh("destroy", name)
    host.virsh("undefine", name)
    assert guest.disk.exists()


async def foreign(hypervisor: LibvirtHypervisor, name: str) -> list[ForeignGuest]:
    """The guest of others of this name, if there is one."""
    return [each for each in await hypervisor.foreign() if each.name == name]


def unmarked(definition: str) -> str:
    """A definition without our mark, in the one form that all ways of writing the same have."""
    domain = ET.fromstring(definition)
    for metadata in domain.findall("metadata"):
        domain.remove(metadata)
    return ET.canonicalize(ET.tostring(domain, encoding="unicode"), strip_text=True)
