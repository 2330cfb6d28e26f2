"""What a guest looks like to libvirt: a pure function from a GuestSpec to a domain's XML.

The elements are those of https://libvirt.org/formatdomain.html. What kind of devices a guest gets is its template's.
"""

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec

from pileus.agent.hypervisor.libvirt.board import add_clock, add_fixtures, add_processor, add_watchdog
from pileus.agent.hypervisor.libvirt.buses import add_root_ports
from pileus.agent.hypervisor.libvirt.disks import (
    add_controllers,
    config_drive_element,
    disk_element,
    drive_element,
)
from pileus.agent.hypervisor.libvirt.elements import add
from pileus.agent.hypervisor.libvirt.limits import add_cpu_limit
from pileus.agent.hypervisor.libvirt.nics import nic_element
from pileus.agent.hypervisor.libvirt.templates import Hardware, hardware_of
from pileus.agent.hypervisor.port import NOTHING_IN
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import InstanceId, PortId, VolumeId
from pileus.link.guests import BootDevice, GuestSpec

METADATA_NAMESPACE = "urn:pileus:instance:1"
"""Marks a domain as ours; its element carries what the definition was made from."""

APPLIANCE_PREFIX = "pileus-appliance-"

# Tells cloud-init (19.2 and later) which layout to expect at 169.254.169.254:
# https://cloudinit.readthedocs.io/en/latest/reference/datasources/openstack.html
_METADATA_LAYOUT = "OpenStack Nova"


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What a host gives to the guests that stand on it."""

    accelerator: str
    """`kvm` or `tcg`."""
    sockets: Path
    """Where consoles listen."""
    logs: Path
    """Where consoles are logged."""
    appliance: Path | None = None
    """Where the appliance is; None if there is none. QEMU's user is let through to it."""


def domain_name(id: InstanceId) -> str:
    """Its name in libvirt, short enough for the files that are called after it; the end of an id is its random part."""
    return f"pileus-{id[-12:]}"


def appliance_name(id: InstanceId) -> str:
    """What looks into the disk of a guest is called in libvirt; never a guest is called so."""
    return f"{APPLIANCE_PREFIX}{id[-12:]}"


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
    media: Mapping[int, DiskSource] = NOTHING_IN,
    config_drive: DiskSource | None = None,
) -> str:
    """The definition of a guest with these media in its drives.

    `direct` are the volumes whose file system can go past the page cache.

    Raises:
        Invalid: the template, or the kind of a disk, is not one that we know, or a disk does not fit.
    """
    hardware = hardware_of(guest.template)
    kvm = ground.accelerator == "kvm"
    domain = ET.Element("domain", type="kvm" if kvm else "qemu")
    add(domain, "name", text=domain_name(guest.id))
    add(domain, "uuid", text=guest.id)
    _add_metadata(domain, guest)
    _add_size(domain, guest)
    if kvm:
        add(domain, "iothreads", text="1")
    add_cpu_limit(domain, guest.limits)
    _add_firmware(domain, hardware)
    _add_identity(domain)
    add_processor(domain, hardware, kvm=kvm)
    add_clock(domain, hardware, kvm=kvm)
    # A guest that ended stays ended: whether it is started again is the agent's to decide.
    add(domain, "on_poweroff", text="destroy")
    add(domain, "on_reboot", text="restart")
    add(domain, "on_crash", text="destroy")
    devices = add(domain, "devices")
    if hardware.is_q35:
        add_root_ports(devices)
    add_controllers(devices, hardware)
    order = _boot_order(guest, hardware)
    for disk in guest.disks:
        boot = order.get((BootDevice.DISK, disk.slot))
        source, is_direct = disks[disk.volume], disk.volume in direct
        devices.append(
            disk_element(disk, source, hardware, direct=is_direct, iothread=kvm, boot=boot, limits=guest.limits)
        )
    for drive in range(hardware.frame.drives):
        boot = order.get((BootDevice.CDROM, drive))
        devices.append(drive_element(hardware, drive, media.get(drive), boot=boot))
    if config_drive is not None:
        devices.append(config_drive_element(hardware, config_drive))
    for place, nic in enumerate(guest.nics):
        boot = order.get((BootDevice.NETWORK, place))
        devices.append(nic_element(nic, plugs[nic.port], hardware, place, boot=boot))
    _add_console(devices, guest.id, ground)
    add_fixtures(devices, hardware)
    add_watchdog(devices, guest.watchdog, hardware)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def _boot_order(guest: GuestSpec, hardware: Hardware) -> dict[tuple[BootDevice, int], int]:
    """By kind of device and number the place in the order in which the firmware tries them, from 1."""
    drives = hardware.frame.drives
    numbers = {BootDevice.DISK: range(1), BootDevice.CDROM: range(drives), BootDevice.NETWORK: range(1)}
    devices = [(device, number) for device in dict.fromkeys(guest.boot) for number in numbers[device]]
    return {device: place for place, device in enumerate(devices, start=1)}


def _add_size(domain: ET.Element, guest: GuestSpec) -> None:
    memory, vcpus = max(guest.memory_mib, guest.max_memory_mib), max(guest.vcpus, guest.max_vcpus)
    add(domain, "memory", text=str(memory), unit="MiB")
    if memory > guest.memory_mib:
        add(domain, "currentMemory", text=str(guest.memory_mib), unit="MiB")
    add(domain, "vcpu", text=str(vcpus), placement="static")
    if vcpus > guest.vcpus:
        domain[-1].set("current", str(guest.vcpus))
        each = add(domain, "vcpus")
        for id in range(vcpus):
            # Those that it starts with can be taken away again too, but for the first.
            there = {"enabled": "yes" if id < guest.vcpus else "no", "hotpluggable": "yes" if id else "no"}
            add(each, "vcpu", id=str(id), **there)


def _add_metadata(domain: ET.Element, guest: GuestSpec) -> None:
    marks = {"generation": str(guest.generation), "project": guest.project, "name": guest.name}
    add(add(domain, "metadata"), "pileus:instance", **{"xmlns:pileus": METADATA_NAMESPACE}, **marks)


def _add_firmware(domain: ET.Element, hardware: Hardware) -> None:
    system = add(domain, "os", **({"firmware": "efi"} if hardware.uefi else {}))
    add(system, "type", text="hvm", arch="x86_64", machine=hardware.machine)
    if hardware.uefi:
        # Which files these are libvirt knows by the descriptions that come with the firmware.
        wanted = "yes" if hardware.secure_boot else "no"
        features = add(system, "firmware")
        add(features, "feature", enabled=wanted, name="enrolled-keys")
        add(features, "feature", enabled=wanted, name="secure-boot")
    add(system, "smbios", mode="sysinfo")


def _add_identity(domain: ET.Element) -> None:
    identity = add(domain, "sysinfo", type="smbios")
    machine = add(identity, "system")
    add(machine, "entry", text="Pileus", name="manufacturer")
    add(machine, "entry", text="Pileus", name="product")
    add(add(identity, "chassis"), "entry", text=_METADATA_LAYOUT, name="asset")


def _add_console(devices: ET.Element, id: InstanceId, ground: Ground) -> None:
    """A serial port behind a socket: it needs libvirt neither to be opened nor to go on."""
    serial = add(devices, "serial", type="unix")
    add(serial, "source", mode="bind", path=str(console_socket(ground, id)))
    add(serial, "log", file=str(console_log(ground, id)), append="on")
    add(serial, "target", type="isa-serial", port="0")
