"""What a guest looks like to libvirt: a pure function from a GuestSpec to a domain's XML.

The elements are those of https://libvirt.org/formatdomain.html. They are built as a tree, never as text: names come
from tenants. What kind of devices a guest gets is its template; to add one is to add a row to `TEMPLATES`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec

from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Invalid
from pileus.kernel.ids import InstanceId, PortId, VolumeId
from pileus.link.records import DISK_SLOTS, NIC_SLOTS, GuestDisk, GuestSpec, NicSpec, Watchdog

METADATA_NAMESPACE = "urn:pileus:instance:1"
"""Marks a domain as ours; its element carries what the definition was made from."""

_NONE = VolumeId("")
_TCG_CACHE_MIB = 64
# Of the root ports, which are buses of their own: number 0 is the bus that they are on.
_FIRST_DISK_BUS = 1
_FIRST_NIC_BUS = _FIRST_DISK_BUS + DISK_SLOTS
_CHANNEL_BUS = _FIRST_NIC_BUS + NIC_SLOTS
_BALLOON_BUS = _CHANNEL_BUS + 1
_RNG_BUS = _BALLOON_BUS + 1
# Below it q35 may put what it has always had; eight ports make one device of the bus.
_FIRST_PORTS_SLOT = 2
_PORTS_IN_SLOT = 8
# It is a device of conventional PCI, which goes beside the root ports: below them it would need a bridge.
_WATCHDOG_SLOT = 0x1E
# Tells cloud-init (19.2 and later) which layout to expect at 169.254.169.254:
# https://cloudinit.readthedocs.io/en/latest/reference/datasources/openstack.html
_METADATA_LAYOUT = "OpenStack Nova"
# The whole of virtio's offload: what one side does not offer, the other must not leave undone.
_HOST_OFFLOADS = ("csum", "gso", "tso4", "tso6", "ecn", "ufo")
_GUEST_OFFLOADS = ("csum", "tso4", "tso6", "ecn", "ufo")
# What XML 1.0 cannot say, not even escaped.
_UNSAYABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """The kind of devices that a guest's operating system has drivers for."""

    machine: str
    disk_bus: str
    disk_prefix: str
    nic_model: str
    clock_offset: str


TEMPLATES: Mapping[str, Template] = {
    "linux": Template(machine="q35", disk_bus="virtio", disk_prefix="vd", nic_model="virtio", clock_offset="utc")
}


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What a host gives to the guests that stand on it."""

    accelerator: str
    """`kvm` or `tcg`."""
    sockets: Path
    """Where consoles listen."""
    logs: Path
    """Where consoles are logged."""


def domain_name(id: InstanceId) -> str:
    """Its name in libvirt, short enough for the files that are called after it; the end of an id is its random part."""
    return f"pileus-{id[-12:]}"


def console_socket(ground: Ground, id: InstanceId) -> Path:
    """Where the serial console of a guest listens while it runs."""
    return ground.sockets / f"{domain_name(id)}.serial"


def console_log(ground: Ground, id: InstanceId) -> Path:
    """Where everything goes that a guest says on its serial console; older parts have a number appended."""
    return ground.logs / f"{domain_name(id)}.log"


def domain_xml(
    guest: GuestSpec,
    disks: Mapping[VolumeId, DiskSource],
    plugs: Mapping[PortId, Plug],
    ground: Ground,
    *,
    direct: frozenset[VolumeId],
) -> str:
    """The definition of a guest. `direct` are the volumes whose file system can go past the page cache.

    Raises:
        Invalid: the template, or the kind of a disk, is not one that we know.
    """
    template = TEMPLATES.get(guest.template)
    if template is None:
        raise Invalid(f"no template {guest.template!r}", fields={"template": f"one of {', '.join(TEMPLATES)}"})
    kvm = ground.accelerator == "kvm"
    domain = ET.Element("domain", type="kvm" if kvm else "qemu")
    _add(domain, "name", text=domain_name(guest.id))
    _add(domain, "uuid", text=guest.id)
    _add_metadata(domain, guest)
    _add(domain, "memory", text=str(guest.memory_mib), unit="MiB")
    _add(domain, "vcpu", text=str(guest.vcpus), placement="static")
    if kvm:
        _add(domain, "iothreads", text="1")
    system = _add(domain, "os")
    _add(system, "type", text="hvm", arch="x86_64", machine=template.machine)
    _add(system, "smbios", mode="sysinfo")
    _add_identity(domain)
    _add_processor(domain, kvm=kvm)
    _add_clock(domain, template, kvm=kvm)
    # A guest that ended stays ended: whether it is started again is the agent's to decide.
    _add(domain, "on_poweroff", text="destroy")
    _add(domain, "on_reboot", text="restart")
    _add(domain, "on_crash", text="destroy")
    devices = _add(domain, "devices")
    _add_root_ports(devices)
    for disk in guest.disks:
        devices.append(_disk(disk, disks[disk.volume], template, direct=disk.volume in direct, iothread=kvm))
    for place, nic in enumerate(guest.nics):
        slot = place if nic.slot is None else nic.slot
        _put_on(_add_nic(devices, nic, plugs[nic.port], template), _FIRST_NIC_BUS + slot)
    _add_console(devices, guest.id, ground)
    _add_fixtures(devices)
    _add_watchdog(devices, guest.watchdog)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def disk_xml(guest: GuestSpec, disk: GuestDisk, source: DiskSource, ground: Ground, *, direct: bool) -> str:
    """One disk of a guest's definition, to be plugged in while it runs."""
    element = _disk(disk, source, TEMPLATES[guest.template], direct=direct, iothread=ground.accelerator == "kvm")
    return ET.tostring(element, encoding="unicode")


def disk_alias(volume: VolumeId) -> str:
    """What libvirt and QEMU call a volume's device; of a user's names they leave those alone that begin so."""
    return f"ua-{volume}"


def disks_of(definition: str) -> Mapping[VolumeId, str]:
    """The volumes that a domain has, by its XML, each with the name of its target; disks of others are left out."""
    found: dict[VolumeId, str] = {}
    for disk in ET.fromstring(definition).iterfind("devices/disk"):  # noqa: S314 - libvirt's own
        alias, target = disk.find("alias"), disk.find("target")
        if alias is not None and target is not None and (name := alias.get("name", "")).startswith(disk_alias(_NONE)):
            found[VolumeId(name.removeprefix(disk_alias(_NONE)))] = target.get("dev", "")
    return found


def generation_of(metadata: str) -> int:
    """The generation in a domain's element of our namespace."""
    return int(ET.fromstring(metadata).attrib["generation"])  # noqa: S314 - libvirt gives back what we wrote


def _add(parent: ET.Element, tag: str, *, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, {name: _sayable(value) for name, value in attributes.items()})
    if text is not None:
        element.text = _sayable(text)
    return element


def _sayable(text: str) -> str:
    return _UNSAYABLE.sub("\ufffd", text)


def _add_metadata(domain: ET.Element, guest: GuestSpec) -> None:
    marks = {"generation": str(guest.generation), "project": guest.project, "name": guest.name}
    _add(_add(domain, "metadata"), "pileus:instance", **{"xmlns:pileus": METADATA_NAMESPACE}, **marks)


def _add_identity(domain: ET.Element) -> None:
    identity = _add(domain, "sysinfo", type="smbios")
    machine = _add(identity, "system")
    _add(machine, "entry", text="Pileus", name="manufacturer")
    _add(machine, "entry", text="Pileus", name="product")
    _add(_add(identity, "chassis"), "entry", text=_METADATA_LAYOUT, name="asset")


def _add_processor(domain: ET.Element, *, kvm: bool) -> None:
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    _add(features, "vmport", state="off")
    if kvm:
        # Not host-passthrough: a guest on it moves only between processors of one model.
        _add(domain, "cpu", mode="host-model", check="partial")
        return
    _add(_add(features, "tcg"), "tb-cache", text=str(_TCG_CACHE_MIB), unit="MiB")
    # Every feature more is one that has to be emulated: `max` is slower.
    _add(_add(domain, "cpu", mode="custom", match="exact", check="none"), "model", text="qemu64", fallback="allow")


def _add_clock(domain: ET.Element, template: Template, *, kvm: bool) -> None:
    clock = _add(domain, "clock", offset=template.clock_offset)
    _add(clock, "timer", name="rtc", tickpolicy="catchup")
    _add(clock, "timer", name="hpet", present="no")
    if kvm:
        _add(clock, "timer", name="pit", tickpolicy="delay")


def _add_root_ports(devices: ET.Element) -> None:
    """A bus for every device that there may be: one can come at any time, and none ever moves to another address."""
    for port in range(_RNG_BUS):
        controller = _add(devices, "controller", type="pci", index=str(port + 1), model="pcie-root-port")
        slot, function = divmod(port, _PORTS_IN_SLOT)
        address = {"bus": "0x00", "slot": f"{_FIRST_PORTS_SLOT + slot:#04x}", "function": f"{function:#x}"}
        if function == 0:
            address["multifunction"] = "on"
        _add(controller, "address", type="pci", domain="0x0000", **address)


def _put_on(device: ET.Element, bus: int) -> None:
    _add(device, "address", type="pci", domain="0x0000", bus=f"{bus:#04x}", slot="0x00", function="0x0")


def _disk(disk: GuestDisk, source: DiskSource, template: Template, *, direct: bool, iothread: bool) -> ET.Element:
    if not 0 <= disk.slot < DISK_SLOTS:
        raise Invalid(f"a guest has no slot {disk.slot} for disks", fields={"slot": f"0 to {DISK_SLOTS - 1}"})
    element = _drive(source, direct=direct, iothread=iothread)
    _add(element, "target", dev=f"{template.disk_prefix}{chr(ord('a') + disk.slot)}", bus=template.disk_bus)
    # virtio has room for 20 characters; /dev/disk/by-id/virtio-<serial> in the guest.
    _add(element, "serial", text=disk.serial or disk.volume[:20])
    if disk.slot == 0:
        _add(element, "boot", order="1")
    _add(element, "alias", name=disk_alias(disk.volume))
    _put_on(element, _FIRST_DISK_BUS + disk.slot)
    return element


def _drive(source: DiskSource, *, direct: bool, iothread: bool) -> ET.Element:
    types = {"file": ("file", "file"), "block": ("block", "dev")}
    if source.kind not in types:
        raise Invalid(f"no guest can be given a disk of kind {source.kind!r}")
    type, attribute = types[source.kind]
    disk = ET.Element("disk", type=type, device="disk")
    driver = _add(disk, "driver", name="qemu", type=source.format, discard="unmap")
    driver.set("cache", "none" if direct else "writeback")
    if direct and source.kind == "block":
        # Not for files: allocating a block of a sparse one would stop the whole queue.
        driver.set("io", "native")
    if iothread:
        driver.set("iothread", "1")
    _add(disk, "source", **{attribute: source.path})
    return disk


def _add_nic(devices: ET.Element, nic: NicSpec, plug: Plug, template: Template) -> ET.Element:
    interface = _add(devices, "interface", type="ethernet")
    _add(interface, "mac", address=nic.mac)
    # The tap is there already, and plugged into its network.
    _add(interface, "target", dev=plug.device, managed="no")
    _add(interface, "model", type=template.nic_model)
    if not plug.offload:
        driver = _add(interface, "driver")
        _add(driver, "host", **dict.fromkeys(_HOST_OFFLOADS, "off"))
        _add(driver, "guest", **dict.fromkeys(_GUEST_OFFLOADS, "off"))
    _add(interface, "mtu", size=str(nic.mtu))
    _add(interface, "rom", enabled="no")
    return interface


def _add_console(devices: ET.Element, id: InstanceId, ground: Ground) -> None:
    """A serial port behind a socket: it needs libvirt neither to be opened nor to go on."""
    serial = _add(devices, "serial", type="unix")
    _add(serial, "source", mode="bind", path=str(console_socket(ground, id)))
    _add(serial, "log", file=str(console_log(ground, id)), append="on")
    _add(serial, "target", type="isa-serial", port="0")


def _add_fixtures(devices: ET.Element) -> None:
    _put_on(_add(devices, "controller", type="virtio-serial", index="0"), _CHANNEL_BUS)
    _add(_add(devices, "channel", type="unix"), "target", type="virtio", name="org.qemu.guest_agent.0")
    _add(devices, "controller", type="usb", model="none")
    _add(_add(devices, "video"), "model", type="none")
    balloon = _add(devices, "memballoon", model="virtio")
    _add(balloon, "stats", period="2")
    _put_on(balloon, _BALLOON_BUS)
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", text="/dev/urandom", model="random")
    _put_on(rng, _RNG_BUS)


def _add_watchdog(devices: ET.Element, watchdog: Watchdog) -> None:
    if watchdog is not Watchdog.NONE:
        device = _add(devices, "watchdog", model="i6300esb", action=watchdog)
        _add(device, "address", type="pci", domain="0x0000", bus="0x00", slot=f"{_WATCHDOG_SLOT:#04x}", function="0x0")
