"""Disks and drives of a guest, as libvirt is told of them, and as it tells of them."""

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from pileus.agent.hypervisor.libvirt.buses import FIRST_DISK_BUS, SCSI_BUS, put_on
from pileus.agent.hypervisor.libvirt.elements import add
from pileus.agent.hypervisor.libvirt.limits import add_disk_limit
from pileus.agent.hypervisor.libvirt.templates import Hardware, hardware_of
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Invalid
from pileus.kernel.ids import VolumeId
from pileus.link.guests import GuestDisk, GuestLimits, GuestSpec

_NONE = VolumeId("")
_LAST_LETTER = 25


def disk_xml(guest: GuestSpec, disk: GuestDisk, source: DiskSource, *, direct: bool, iothread: bool) -> str:
    """One disk of a guest's definition, to be plugged in while it runs."""
    hardware, limits = hardware_of(guest.template), guest.limits
    element = disk_element(disk, source, hardware, direct=direct, iothread=iothread, limits=limits)
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


def add_controllers(devices: ET.Element, hardware: Hardware) -> None:
    """What disks and drives are plugged into, where the machine does not bring that."""
    if hardware.drive_bus == "scsi":
        put_on(add(devices, "controller", type="scsi", index="0", model="virtio-scsi"), SCSI_BUS)


def disk_element(
    disk: GuestDisk,
    source: DiskSource,
    hardware: Hardware,
    *,
    direct: bool,
    iothread: bool,
    boot: int | None = None,
    limits: GuestLimits | None = None,
) -> ET.Element:
    """A disk; `boot` is its place in the order in which the firmware tries devices, from 1.

    Raises:
        Invalid: there is no such slot, or no such kind of disk.
    """
    slots = hardware.frame.disks
    if not 0 <= disk.slot < slots:
        raise Invalid(f"a guest has no slot {disk.slot} for disks", fields={"slot": f"0 to {slots - 1}"})
    is_virtio = hardware.disk_bus == "virtio"
    element = _drive(source, direct=direct, iothread=iothread and is_virtio)
    letter = _LAST_LETTER - disk.slot if hardware.last_letters else disk.slot
    add(element, "target", dev=_letter(hardware.disk_prefix, letter), bus=hardware.disk_bus)
    # virtio and IDE have room for 20 characters; /dev/disk/by-id/virtio-<serial> in the guest.
    add(element, "serial", text=disk.serial or disk.volume[:20])
    if boot is not None:
        add(element, "boot", order=str(boot))
    add_disk_limit(element, disk, limits)
    add(element, "alias", name=disk_alias(disk.volume))
    if is_virtio and hardware.is_q35:
        put_on(element, FIRST_DISK_BUS + disk.slot)
    return element


def drive_element(hardware: Hardware, drive: int, medium: DiskSource | None, *, boot: int | None = None) -> ET.Element:
    """A drive for CDs and DVDs with what is in it; `boot` is its place in the order that the firmware goes by."""
    element = ET.Element("disk", type="file", device="cdrom")
    add(element, "driver", name="qemu", type="raw")
    if medium is not None:
        # It is everybody's: nobody's QEMU becomes its owner.
        add(add(element, "source", file=medium.path), "seclabel", model="dac", relabel="no")
    add(element, "target", dev=drive_target(hardware, drive), bus=hardware.drive_bus)
    add(element, "readonly")
    if boot is not None:
        add(element, "boot", order=str(boot))
    return element


def config_drive_element(hardware: Hardware, source: DiskSource) -> ET.Element:
    """A disk that can only be read, behind all others, where no place is taken from any."""
    element = ET.Element("disk", type="file", device="disk")
    add(element, "driver", name="qemu", type=source.format)
    add(element, "source", file=source.path)
    on_scsi = hardware.drive_bus == "scsi"
    frame = hardware.frame
    others = {hardware.drive_prefix: frame.drives}
    others[hardware.disk_prefix] = others.get(hardware.disk_prefix, 0) + frame.disks
    add(element, "target", dev=_letter("sd", others.get("sd", 0)), bus="scsi" if on_scsi else "usb")
    add(element, "readonly")
    if not on_scsi:
        # IDE and SATA are full, and have no disks that can only be read. The tablet keeps the first port.
        add(element, "address", type="usb", bus="0", port="2")
    return element


def drive_xml(guest: GuestSpec, drive: int, medium: DiskSource | None) -> str:
    """One drive of a guest's definition, to be changed while it runs."""
    return ET.tostring(drive_element(hardware_of(guest.template), drive, medium), encoding="unicode")


def drive_target(hardware: Hardware, drive: int) -> str:
    """The name of a drive's target: behind those of the disks, if they are on the same bus."""
    behind = hardware.frame.disks if hardware.drive_prefix == hardware.disk_prefix else 0
    return _letter(hardware.drive_prefix, behind + drive)


def media_of(definition: str, guest: GuestSpec) -> Mapping[int, str]:
    """The drives that a guest's domain has, by its XML, each with the path of what is in it, empty for nothing."""
    hardware = hardware_of(guest.template)
    found: dict[str, str] = {}
    for disk in ET.fromstring(definition).iterfind("devices/disk[@device='cdrom']"):  # noqa: S314 - libvirt's own
        target, source = disk.find("target"), disk.find("source")
        if target is not None:
            found[target.get("dev", "")] = "" if source is None else source.get("file", "")
    names = {drive: drive_target(hardware, drive) for drive in range(hardware.frame.drives)}
    return {drive: found[name] for drive, name in names.items() if name in found}


def _letter(prefix: str, number: int) -> str:
    return f"{prefix}{chr(ord('a') + number)}"


def _drive(source: DiskSource, *, direct: bool, iothread: bool) -> ET.Element:
    types = {"file": ("file", "file"), "block": ("block", "dev")}
    if source.kind not in types:
        raise Invalid(f"no guest can be given a disk of kind {source.kind!r}")
    type, attribute = types[source.kind]
    disk = ET.Element("disk", type=type, device="disk")
    driver = add(disk, "driver", name="qemu", type=source.format, discard="unmap")
    driver.set("cache", "none" if direct else "writeback")
    if direct and source.kind == "block":
        # Not for files: allocating a block of a sparse one would stop the whole queue.
        driver.set("io", "native")
    if iothread:
        driver.set("iothread", "1")
    add(disk, "source", **{attribute: source.path})
    return disk
