"""Reading the definitions of domains that are not ours. Pure: nothing here changes anything."""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from pileus.kernel.units import MIB
from pileus.link.foreign import ForeignDisk, ForeignGuest, ForeignNic

_UNITS = {"b": 1, "bytes": 1, "k": 1 << 10, "kib": 1 << 10, "m": MIB, "mib": MIB, "g": 1 << 30, "gib": 1 << 30}
"""libvirt writes KiB, whatever was given."""
_SOURCES = {"file": "file", "block": "dev", "dir": "dir", "network": "name", "volume": "volume"}
_SWITCHES = {"bridge": "bridge", "network": "network"}
_FOUND = frozenset({"file", "block"})
_LEFT_ALONE = frozenset({"bridge", "network", "ethernet"})
"""How an interface may be connected that we leave as it is."""
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_PLUGGED = frozenset({"disk", "filesystem", "hostdev", "interface", "rng", "tpm", "watchdog"})
_BUILT_IN = frozenset({"audio", "controller", "emulator", "graphics", "hub", "input", "memballoon", "video"})
_LINES = frozenset({"channel", "console", "parallel", "serial"})
_TUNED = frozenset({"blkiotune", "cputune", "memoryBacking", "memtune", "numatune", "launchSecurity"})
"""What somebody has set by hand and we never look at."""


def foreign_guest(xml: str, *, running: bool, persistent: bool) -> ForeignGuest:
    """What a definition says, with what stands in the way of taking such a guest over."""
    domain = ET.fromstring(xml)  # noqa: S314 - libvirt writes it, and expands nothing
    disks = tuple(_disk(each) for each in domain.iterfind("devices/disk"))
    nics = tuple(_nic(each) for each in domain.iterfind("devices/interface"))
    kind = domain.find("os/type")
    return ForeignGuest(
        id=domain.findtext("uuid", ""),
        name=domain.findtext("name", ""),
        running=running,
        vcpus=_vcpus(domain),
        memory_mib=_memory_mib(domain),
        machine=kind.get("machine", "") if kind is not None else "",
        firmware=_firmware(domain),
        disks=disks,
        nics=nics,
        obstacles=tuple(_obstacles(domain, disks, nics, persistent=persistent)),
        untouched=tuple(_untouched(domain)),
    )


def _vcpus(domain: ET.Element) -> int:
    vcpu = domain.find("vcpu")
    return int(vcpu.get("current") or vcpu.text or 1) if vcpu is not None else 1


def _memory_mib(domain: ET.Element) -> int:
    memory = domain.find("memory")
    if memory is None:
        return 0
    return int(memory.text or 0) * _UNITS[memory.get("unit", "KiB").lower()] // MIB


def _firmware(domain: ET.Element) -> str:
    system = domain.find("os")
    loader = domain.find("os/loader")
    efi = system is not None and system.get("firmware") == "efi"
    return "uefi" if efi or (loader is not None and loader.get("type") == "pflash") else "bios"


def _disk(disk: ET.Element) -> ForeignDisk:
    target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
    kind = disk.get("type", "")
    path = source.get(_SOURCES.get(kind, ""), "") if source is not None else ""
    return ForeignDisk(
        target=target.get("dev", "") if target is not None else "",
        device=disk.get("device", "disk"),
        bus=target.get("bus", "") if target is not None else "",
        kind=kind,
        path=path,
        # Without a medium it has one while it does not run, and none while it does.
        format=driver.get("type", "") if driver is not None and path else "",
    )


def _nic(interface: ET.Element) -> ForeignNic:
    mac, source, model = interface.find("mac"), interface.find("source"), interface.find("model")
    kind = interface.get("type", "")
    return ForeignNic(
        mac=mac.get("address", "") if mac is not None else "",
        kind=kind,
        # While it runs, that of a network names the bridge behind it too.
        source=source.get(_SWITCHES.get(kind, "dev"), "") if source is not None else "",
        model=model.get("type", "") if model is not None else "",
    )


def _obstacles(
    domain: ET.Element, disks: tuple[ForeignDisk, ...], nics: tuple[ForeignNic, ...], *, persistent: bool
) -> Iterator[str]:
    kind = domain.find("os/type")
    if kind is None or kind.text != "hvm" or kind.get("arch", "x86_64") != "x86_64":
        yield "it is not a whole x86-64 machine"
    if not persistent:
        yield "its definition is not kept: it would be gone when it ends"
    if domain.find("os/kernel") is not None:
        yield "it is started with a kernel from the host, not from its disk"
    for device, what in (("hostdev", "a device of the host"), ("filesystem", "a folder of the host")):
        if domain.find(f"devices/{device}") is not None:
            yield f"it was given {what}"
    if not any(disk.device == "disk" for disk in disks):
        yield "it has no disk"
    for element, disk in zip(domain.iterfind("devices/disk"), disks, strict=True):
        yield from _disk_obstacles(element, disk)
    for nic in nics:
        if nic.kind not in _LEFT_ALONE:
            yield f"interface {nic.mac} is on no bridge, but of type {nic.kind}"


def _disk_obstacles(element: ET.Element, disk: ForeignDisk) -> Iterator[str]:
    if disk.kind not in _FOUND:
        yield f"disk {disk.target} is neither a file nor a block device, but of type {disk.kind}"
    elif disk.device == "disk" and not disk.path:
        yield f"disk {disk.target} has no file"
    if disk.device == "lun":
        yield f"disk {disk.target} takes SCSI commands as they come"
    backing = element.find("backingStore")
    if backing is not None and backing.get("type") is not None:
        yield f"disk {disk.target} stands on another image, which others may use"
    if element.find("shareable") is not None:
        yield f"disk {disk.target} is shared with other guests"


def _untouched(domain: ET.Element) -> Iterator[str]:
    """What is not described by anything else, so that it is left as it is and people are told."""
    if any(child.tag.startswith(_QEMU) for child in domain):
        yield "arguments for QEMU itself"
    for device in dict.fromkeys(each.tag for each in domain.iterfind("devices/*")):
        if device not in _PLUGGED | _BUILT_IN | _LINES:
            yield f"device {device}"
    for child in domain:
        if child.tag in _TUNED and len(child):
            yield f"setting {child.tag}"
