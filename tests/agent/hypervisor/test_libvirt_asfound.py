"""Definitions of guests that others made: marked and added to, and else as they were."""

from pathlib import Path
from xml.etree import ElementTree as ET

from msgspec.structs import replace

from pileus.agent.hypervisor.libvirt.asfound import as_found_xml, is_marked, left_xml, marks_of, present, unwanted
from pileus.agent.hypervisor.libvirt.domain import METADATA_NAMESPACE, Ground, console_socket, domain_name, domain_xml
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import InstanceId, NetworkId, PortId, ProjectId, VolumeId, new_id
from pileus.link.guests import FirstBoot, GuestDisk, GuestLimits, GuestSpec, Leaving, NicSpec, Power

FOUND = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>ledger</name>
  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <metadata><other:note xmlns:other='urn:example:other'>kept</other:note></metadata>
  <memory unit='KiB'>1048576</memory>
  <vcpu placement='static'>2</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='1'/><quota>5000</quota></cputune>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/srv/a.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/srv/b.raw'/><target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/></interface>
    <sound model='ich9'/>
  </devices>
  <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>
</domain>
"""
ID = InstanceId("4dea22b3-1d52-d8f3-2516-782e98ab3fa0")
ROOT, DATA, MORE, PORT = VolumeId(new_id()), VolumeId(new_id()), VolumeId(new_id()), PortId(new_id())
GUEST = GuestSpec(
    id=ID,
    generation=4,
    name="ledger",
    project=ProjectId(new_id()),
    vcpus=2,
    memory_mib=1024,
    power=Power.RUNNING,
    disks=(GuestDisk(volume=ROOT, target="vda"), GuestDisk(volume=DATA, target="vdb", slot=1)),
    nics=(),
    first_boot=FirstBoot(hostname="ledger"),
    template="as-found",
    found_macs=("52:54:00:00:00:02",),
)
SOURCES = {
    ROOT: DiskSource(kind="file", path="/srv/a.qcow2", format="qcow2"),
    DATA: DiskSource(kind="file", path="/srv/b.raw", format="raw"),
    MORE: DiskSource(kind="file", path="/pool/more.raw", format="raw"),
}
PLUGS = {PORT: Plug(device="tapmore", offload=True)}
GROUND = Ground(accelerator="tcg", sockets=Path("/run/pileus"), logs=Path("/var/log/pileus"))
WITH_MORE = replace(
    GUEST,
    generation=5,
    disks=(*GUEST.disks, GuestDisk(volume=MORE, slot=2)),
    nics=(NicSpec(port=PORT, network=NetworkId(new_id()), mac="0a:00:00:00:00:01", addresses=(), mtu=1442, slot=1),),
)


def taken(definition: str = FOUND, guest: GuestSpec = GUEST) -> str:
    return as_found_xml(definition, guest, SOURCES, PLUGS, direct=frozenset(), autostart=False)


def unmarked(definition: str) -> str:
    domain = ET.fromstring(definition)
    metadata = domain.find("metadata")
    assert metadata is not None
    for mark in metadata.findall(f"{{{METADATA_NAMESPACE}}}instance"):
        metadata.remove(mark)
    return ET.canonicalize(ET.tostring(domain, encoding="unicode"), strip_text=True, rewrite_prefixes=True)


def test_nothing_but_a_mark_is_added_to_what_was_found() -> None:
    assert unmarked(taken()) == unmarked(FOUND)
    assert "qemu:commandline" in taken()
    assert taken(taken()) == taken()


def test_a_mark_is_of_one_guest_and_of_no_copy_of_it() -> None:
    mark = ET.fromstring(taken()).find(f"metadata/{{{METADATA_NAMESPACE}}}instance")
    assert mark is not None
    marks = marks_of(ET.tostring(mark, encoding="unicode"))
    assert (marks.generation, marks.adopted, marks.autostart) == (4, ID, False)
    assert is_marked(marks, ID, "ledger")
    assert not is_marked(marks, InstanceId(new_id()), "copy")


def test_what_comes_besides_goes_again_and_leaves_what_was_found() -> None:
    more = taken(taken(), WITH_MORE)
    devices = ET.fromstring(more).find("devices")
    assert devices is not None
    assert [each.get("dev") for each in devices.iterfind("disk/target")] == ["vda", "vdb", "sda", "vdx"]
    assert [each.get("address") for each in devices.iterfind("interface/mac")] == [
        "52:54:00:00:00:02",
        "0a:00:00:00:00:01",
    ]
    assert not devices.findall("interface/address") + devices.findall("disk/address"), "libvirt finds the places"
    assert present(more, WITH_MORE) == {ROOT: "vda", DATA: "vdb", MORE: "vdx"}
    elsewhere = {**SOURCES, MORE: DiskSource(kind="file", path="/pool/layer.qcow2", format="qcow2")}
    moved = as_found_xml(more, WITH_MORE, elsewhere, PLUGS, direct=frozenset(), autostart=False)
    assert ("/pool/layer.qcow2" in moved, "/pool/more.raw" in moved) == (True, False)
    assert unmarked(taken(more)) == unmarked(FOUND)
    without = replace(GUEST, disks=GUEST.disks[:1])
    assert "/srv/b.raw" not in taken(more, without)
    assert present(taken(), without) == {ROOT: "vda"}
    live = FOUND.replace("<target dev='vdb' bus='virtio'/>", "<target dev='vdb' bus='virtio'/><alias name='disk1'/>")
    assert unwanted(live, without) == {"disk1"}


def test_limits_replace_limits_and_leave_which_processors_it_runs_on() -> None:
    limited = taken(guest=replace(GUEST, limits=GuestLimits(cpu_percent=50, disk_iops=100)))
    domain = ET.fromstring(limited)
    assert [each.tag for each in domain.iterfind("cputune/*")] == ["vcpupin", "period", "quota"]
    assert domain.findtext("cputune/quota") == "50000"
    assert [each.text for each in domain.iterfind("devices/disk/iotune/total_iops_sec")] == ["100", "100"]
    free = ET.fromstring(taken(limited, replace(GUEST, limits=GuestLimits())))
    assert [each.tag for each in free.iterfind("cputune/*")] == ["vcpupin"]
    assert not free.findall("devices/disk/iotune")


def test_what_was_taken_over_is_left_as_it_was_found() -> None:
    left = left_xml(taken(), ID, "ledger", GROUND, Leaving())
    assert METADATA_NAMESPACE not in left
    assert unmarked(left) == unmarked(FOUND)
    assert left_xml(FOUND, ID, "ledger", GROUND, Leaving()) == FOUND
    more = ET.fromstring(left_xml(taken(taken(), WITH_MORE), ID, "ledger", GROUND, Leaving(bridge="br1")))
    assert [each.get("bridge") for each in more.iterfind("devices/interface/source")] == ["br0", "br1"]


def test_what_we_made_is_left_with_its_volumes_and_nothing_else_of_ours() -> None:
    made = replace(GUEST, id=InstanceId(new_id()), template="linux", disks=(GuestDisk(volume=ROOT),), found_macs=())
    made = replace(made, nics=WITH_MORE.nics)
    drive = DiskSource(kind="file", path="/pool/config", format="raw")
    media = {0: DiskSource(kind="file", path="/pool/media/x.iso", format="raw")}
    xml = domain_xml(made, SOURCES, PLUGS, GROUND, direct=frozenset(), media=media, config_drive=drive)
    left = left_xml(xml, made.id, domain_name(made.id), GROUND, Leaving())
    devices = ET.fromstring(left).find("devices")
    assert devices is not None
    assert [each.get("file") for each in devices.iterfind("disk/source")] == ["/srv/a.qcow2"]
    assert str(console_socket(GROUND, made.id)) not in left
    assert [each.get("type") for each in devices.iterfind("serial")] == ["pty"]
    [interface] = devices.findall("interface")
    assert interface.get("type") == "ethernet"
    assert interface.find("target") is None
    assert METADATA_NAMESPACE not in left
