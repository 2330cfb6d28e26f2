import os
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pileus.agent.hypervisor.libvirt.asfound import marks_of
from pileus.agent.hypervisor.libvirt.disks import disks_of
from pileus.agent.hypervisor.libvirt.domain import (
    METADATA_NAMESPACE,
    Ground,
    console_log,
    console_socket,
    domain_name,
    domain_xml,
)
from pileus.agent.hypervisor.libvirt.screen import way_in_xml
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Invalid
from pileus.kernel.ids import InstanceId, NetworkId, PortId, ProjectId, VolumeId
from pileus.link.guests import DISK_SLOTS, FirstBoot, GuestDisk, GuestSpec, NicSpec, Power, Watchdog
from pileus.link.templates import FRAMES, TO_BE_GIVEN, GuestTemplate

GOLDEN = Path(__file__).parents[2] / "golden" / "domain"

ROOT, DATA = VolumeId("01890a5d-ac96-774b-bcce-b302099a8001"), VolumeId("01890a5d-ac96-774b-bcce-b302099a8002")
PORT, FAST = PortId("01890a5d-ac96-774b-bcce-b302099a8003"), PortId("01890a5d-ac96-774b-bcce-b302099a8004")
NETWORK = NetworkId("01890a5d-ac96-774b-bcce-b302099a8005")

GUEST = GuestSpec(
    id=InstanceId("01890a5d-ac96-774b-bcce-b302099a8057"),
    generation=7,
    name='web "1" <&>',
    project=ProjectId("01890a5d-ac96-774b-bcce-b302099a8006"),
    vcpus=2,
    memory_mib=1024,
    power=Power.RUNNING,
    disks=(GuestDisk(volume=ROOT, serial="root"), GuestDisk(volume=DATA, slot=1)),
    nics=(
        NicSpec(port=PORT, network=NETWORK, mac="52:54:00:12:34:56", addresses=("10.0.0.5",), mtu=1442),
        NicSpec(port=FAST, network=NETWORK, mac="52:54:00:12:34:57", addresses=("10.0.0.6",), mtu=8942),
    ),
    first_boot=FirstBoot(hostname="web-1"),
)
DISKS = {
    ROOT: DiskSource(kind="file", path="/data/volumes/root.raw", format="raw"),
    DATA: DiskSource(kind="block", path="/dev/disk/by-id/data", format="raw"),
}
PLUGS = {PORT: Plug(device="tap0", offload=False), FAST: Plug(device="tap1", offload=True)}
GROUND = Ground(accelerator="tcg", sockets=Path("/run/pileus/instances"), logs=Path("/data/log/instances"))


def xml(guest: GuestSpec = GUEST, ground: Ground = GROUND, direct: frozenset[VolumeId] = frozenset()) -> str:
    return domain_xml(guest, DISKS, PLUGS, ground, direct=direct)


def with_config_drive(guest: GuestSpec) -> str:
    source = DiskSource(kind="file", path="/data/volumes/config-drives/web/config-drive.raw", format="raw")
    return domain_xml(guest, DISKS, PLUGS, GROUND, direct=frozenset({DATA}), config_drive=source)


def tree(text: str) -> ET.Element:
    return ET.fromstring(text)


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
@pytest.mark.parametrize("template", TO_BE_GIVEN)
def test_a_guest_of_each_template_is_defined_as_accepted(template: GuestTemplate, accelerator: str) -> None:
    golden = GOLDEN / f"{template}-{accelerator}.xml"
    made = xml(replace(GUEST, template=template), replace(GROUND, accelerator=accelerator), frozenset({DATA}))
    if os.environ.get("PILEUS_GOLDEN") == "accept":
        golden.write_text(f"{made}\n", encoding="utf-8")
    assert made == golden.read_text(encoding="utf-8").removesuffix("\n")


@pytest.mark.parametrize("template", TO_BE_GIVEN)
def test_a_guest_with_a_config_drive_is_defined_as_accepted(template: GuestTemplate) -> None:
    golden = GOLDEN / f"{template}-config-drive.xml"
    made = with_config_drive(replace(GUEST, template=template))
    if os.environ.get("PILEUS_GOLDEN") == "accept":
        golden.write_text(f"{made}\n", encoding="utf-8")
    assert made == golden.read_text(encoding="utf-8").removesuffix("\n")


@pytest.mark.parametrize("template", TO_BE_GIVEN)
def test_a_config_drive_is_one_disk_more_and_changes_nothing_else(template: GuestTemplate) -> None:
    frame = FRAMES[template]
    full = replace(
        GUEST, template=template, disks=tuple(GuestDisk(volume=DATA, slot=slot) for slot in range(frame.disks))
    )
    definition = tree(with_config_drive(full))
    devices = definition.find("devices")
    assert devices is not None
    targets = [each.get("dev") for each in devices.iterfind("disk/target")]
    assert len(set(targets)) == len(targets) == frame.disks + frame.drives + 1
    (drive,) = (each for each in devices.iterfind("disk[@device='disk']") if each.find("readonly") is not None)
    assert drive.find("boot") is None
    if drive.find("target[@bus='usb']") is not None:
        assert devices.find("controller[@type='usb'][@model='none']") is None
    devices.remove(drive)
    without = tree(xml(full, direct=frozenset({DATA})))
    both = [ET.canonicalize(ET.tostring(each), strip_text=True) for each in (definition, without)]
    assert both[0] == both[1]


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_whatever_its_name_a_guest_differs_only_in_its_mark(name: str) -> None:
    plain, named = tree(xml(replace(GUEST, name="plain"))), tree(xml(replace(GUEST, name=name)))
    for definition in (plain, named):
        mark = definition.find(f"metadata/{{{METADATA_NAMESPACE}}}instance")
        assert mark is not None
        del mark.attrib["name"]
    assert ET.tostring(plain) == ET.tostring(named)


def test_a_name_that_xml_can_say_is_kept() -> None:
    mark = tree(xml()).find(f"metadata/{{{METADATA_NAMESPACE}}}instance")
    assert mark is not None
    assert mark.attrib == {"generation": "7", "project": GUEST.project, "name": GUEST.name}


def test_the_generation_is_read_back_from_the_mark() -> None:
    mark = tree(xml()).find(f"metadata/{{{METADATA_NAMESPACE}}}instance")
    assert mark is not None
    assert marks_of(ET.tostring(mark, encoding="unicode")).generation == 7


def test_cloud_init_is_told_where_its_metadata_comes_from() -> None:
    definition = tree(xml())
    assert definition.find("os/smbios[@mode='sysinfo']") is not None
    assert definition.findtext("sysinfo/chassis/entry[@name='asset']") == "OpenStack Nova"


def test_a_guest_has_no_open_port() -> None:
    definition = tree(xml())
    (display,) = definition.iterfind("devices/graphics")
    assert [each.attrib for each in display] == [{"type": "none"}]
    assert (display.get("passwd"), display.get("passwdValidTo")) == ("", "2000-01-01T00:00:00"), "nobody is let in yet"
    assert [each.get("type") for each in definition.iterfind("devices/serial")] == ["unix"]


def test_a_password_for_the_screen_is_good_until_a_time() -> None:
    display = tree(way_in_xml('a"<&>b', until=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
    assert (display.get("passwd"), display.get("passwdValidTo")) == ('a"<&>b', "2026-01-02T03:04:05")


def test_only_what_goes_past_the_page_cache_does_without_it() -> None:
    disks = tree(xml(direct=frozenset({ROOT}))).iterfind("devices/disk[@device='disk']/driver")
    assert [each.get("cache") for each in disks] == ["none", "writeback"]


def test_the_first_disk_is_what_it_boots_from_then_its_drives() -> None:
    orders = {
        target.get("dev"): boot.get("order")
        for disk in tree(xml()).iterfind("devices/disk")
        if (boot := disk.find("boot")) is not None and (target := disk.find("target")) is not None
    }
    assert orders == {"vda": "1", "sda": "2", "sdb": "3"}


@pytest.mark.parametrize("template", TO_BE_GIVEN)
def test_a_guest_has_room_for_all_that_its_template_promises(template: GuestTemplate) -> None:
    frame = FRAMES[template]
    disks = tuple(GuestDisk(volume=DATA, slot=slot) for slot in range(frame.disks))
    definition = tree(xml(replace(GUEST, template=template, disks=disks)))
    targets = [each.get("dev") for each in definition.iterfind("devices/disk/target")]
    assert len(set(targets)) == len(targets) == frame.disks + frame.drives
    if frame.disks < DISK_SLOTS:
        with pytest.raises(Invalid):
            xml(replace(GUEST, template=template, disks=(GuestDisk(volume=ROOT, slot=frame.disks),)))


def test_a_legacy_guest_has_nothing_that_needs_virtio() -> None:
    assert "virtio" not in xml(replace(GUEST, template=GuestTemplate.LEGACY))


def test_no_device_moves_when_a_disk_goes() -> None:
    def addresses(guest: GuestSpec) -> set[tuple[str, ...]]:
        devices = tree(xml(guest)).findall("devices/*")
        return {
            (device.tag, *sorted(address.attrib.values()))
            for device in devices
            for address in device.iterfind("address")
        }

    last = GuestDisk(volume=DATA, slot=9)
    many, few = replace(GUEST, disks=(*GUEST.disks, last)), replace(GUEST, disks=(GUEST.disks[0], last))
    assert len(addresses(many) - addresses(few)) == 1
    assert addresses(few) < addresses(many)


def test_every_device_has_an_address_of_its_own() -> None:
    disks = tuple(GuestDisk(volume=DATA, slot=slot) for slot in range(DISK_SLOTS))
    places = [
        (address.get("bus"), address.get("slot"), address.get("function"))
        for address in tree(xml(replace(GUEST, disks=disks))).iterfind("devices/*/address")
    ]
    assert len(places) == len(set(places))


def test_a_disk_in_a_slot_that_there_is_not_is_refused() -> None:
    with pytest.raises(Invalid):
        xml(replace(GUEST, disks=(GuestDisk(volume=ROOT, slot=DISK_SLOTS),)))


def test_volumes_are_known_by_their_aliases_and_disks_of_others_left_out() -> None:
    definition = tree(xml())
    devices = definition.find("devices")
    assert devices is not None
    ET.SubElement(ET.SubElement(devices, "disk"), "alias", name="virtio-disk7")
    assert disks_of(ET.tostring(definition, encoding="unicode")) == {ROOT: "vda", DATA: "vdb"}


def test_a_serial_number_fits_into_what_virtio_has_for_it() -> None:
    serials = [each.text or "" for each in tree(xml()).iterfind("devices/disk/serial")]
    assert serials == ["root", DATA[:20]]


def test_no_offload_is_offered_on_a_plug_that_cannot_carry_it() -> None:
    bare, fast = tree(xml()).findall("devices/interface")
    assert {value for side in ("host", "guest") for value in bare.findall(f"driver/{side}")[0].attrib.values()} == {
        "off"
    }
    assert fast.find("driver") is None


def test_guests_have_names_and_files_of_their_own() -> None:
    other = InstanceId("01890a5d-ac96-774b-bcce-b302099a8058")
    assert domain_name(GUEST.id) != domain_name(other)
    assert console_socket(GROUND, GUEST.id) != console_socket(GROUND, other)
    assert console_log(GROUND, GUEST.id) != console_log(GROUND, other)


def test_a_watchdog_is_beside_the_other_devices_and_says_what_it_does() -> None:
    assert tree(xml()).find("devices/watchdog") is None
    device = tree(xml(replace(GUEST, watchdog=Watchdog.RESET))).find("devices/watchdog")
    assert device is not None
    address = device.find("address")
    assert (device.get("model"), device.get("action")) == ("i6300esb", "reset")
    assert address is not None
    assert (address.get("bus"), address.get("slot")) == ("0x00", "0x1e")


def test_an_unknown_template_is_refused_by_name() -> None:
    with pytest.raises(Invalid) as refused:
        xml(replace(GUEST, template="vms"))
    assert refused.value.fields == {"template": f"one of {', '.join(FRAMES)}"}


def test_a_disk_that_qemu_is_not_told_how_to_open_is_refused() -> None:
    with pytest.raises(Invalid):
        domain_xml(
            GUEST, {**DISKS, DATA: DiskSource(kind="tape", path="/x", format="raw")}, PLUGS, GROUND, direct=frozenset()
        )
