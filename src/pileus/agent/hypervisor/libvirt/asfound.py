"""The definitions of guests that were made without us: taken over with what they have, and let go of. Pure.

What we do not know stays in a definition as it is, raw arguments of QEMU's included.
"""

import re
from collections.abc import Mapping
from io import StringIO
from xml.etree import ElementTree as ET

import msgspec

from pileus.agent.hypervisor.libvirt.disks import disk_alias, disk_element
from pileus.agent.hypervisor.libvirt.domain import METADATA_NAMESPACE, Ground, console_socket, domain_name
from pileus.agent.hypervisor.libvirt.elements import add
from pileus.agent.hypervisor.libvirt.limits import add_cpu_limit, add_disk_limit
from pileus.agent.hypervisor.libvirt.nics import nic_element
from pileus.agent.hypervisor.libvirt.templates import hardware_of
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import InstanceId, PortId, VolumeId
from pileus.link.guests import GuestDisk, GuestSpec, Leaving

_MARKS = f"{{{METADATA_NAMESPACE}}}instance"
_MADE_UP = re.compile(r"ns\d+")
"""Prefixes that ElementTree keeps for itself."""
_OURS = disk_alias(VolumeId(""))


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """What is written into a definition that is ours."""

    generation: int
    adopted: str = ""
    """The id of a guest that was taken over: a copy that somebody makes of it has the marks, and another id."""
    autostart: bool = False
    """Whether libvirtd started it by itself before; now that is the agent's to decide."""


def marks_of(metadata: str) -> Marks:
    """What an element of our namespace says."""
    said = ET.fromstring(metadata).attrib  # noqa: S314 - libvirt gives back what we wrote
    return Marks(
        generation=int(said["generation"]), adopted=said.get("adopted", ""), autostart=said.get("autostart") == "yes"
    )


def is_marked(marks: Marks, id: InstanceId, name: str) -> bool:
    """Whether the domain of this id and name is the one that these marks were made for."""
    return id == marks.adopted or name == domain_name(id)


def marks_xml(guest: GuestSpec, *, autostart: bool) -> str:
    """The element for libvirt to put into the metadata of a guest that runs."""
    element = ET.Element("instance")
    _mark(element, guest, autostart=autostart)
    return ET.tostring(element, encoding="unicode")


def as_found_xml(
    definition: str,
    guest: GuestSpec,
    disks: Mapping[VolumeId, DiskSource],
    plugs: Mapping[PortId, Plug],
    *,
    direct: frozenset[VolumeId],
    autostart: bool,
) -> str:
    """The definition of a guest that was made without us, with the disks and network cards that it is to have.

    `definition` is what it is defined as, `direct` the volumes whose file system can go past the page cache.
    """
    domain = _parsed(definition)
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = add(domain, "metadata")
    for old in metadata.findall(_MARKS):
        metadata.remove(old)
    _mark(ET.SubElement(metadata, _MARKS), guest, autostart=autostart)
    devices = domain.find("devices")
    if devices is None:
        devices = add(domain, "devices")
    _put_disks(devices, guest, disks, direct)
    _put_nics(devices, guest, plugs)
    if guest.limits is not None:
        _limit_cpu(domain, guest)
    return ET.tostring(domain, encoding="unicode")


def left_xml(definition: str, id: InstanceId, name: str, ground: Ground, leaving: Leaving) -> str:
    """The definition of a guest that goes on without us: without our marks, and with nothing that goes with us."""
    domain = _parsed(definition)
    metadata = domain.find("metadata")
    marks = metadata.find(_MARKS) if metadata is not None else None
    if metadata is None or marks is None:
        return definition
    metadata.remove(marks)
    if not len(metadata):
        domain.remove(metadata)
    devices = domain.find("devices")
    if devices is None:
        return ET.tostring(domain, encoding="unicode")
    found = set(marks.get("macs", "").split())
    for interface in devices.findall("interface"):
        mac = interface.find("mac")
        if mac is not None and mac.get("address", "").lower() not in found:
            _rewire(interface, leaving.bridge)
    if name == domain_name(id):
        _without_what_is_ours(devices, id, ground)
    return ET.tostring(domain, encoding="unicode")


def _parsed(definition: str) -> ET.Element:
    """The definition, of which the prefixes of foreign namespaces stay what they are."""
    for _, (prefix, uri) in ET.iterparse(StringIO(definition), ["start-ns"]):  # noqa: S314 - libvirt's own
        if prefix and not _MADE_UP.fullmatch(prefix):
            ET.register_namespace(prefix, uri)
    ET.register_namespace("pileus", METADATA_NAMESPACE)
    return ET.fromstring(definition)  # noqa: S314 - libvirt's own


def _mark(element: ET.Element, guest: GuestSpec, *, autostart: bool) -> None:
    said = {
        "generation": str(guest.generation),
        "project": guest.project,
        "name": guest.name,
        "adopted": guest.id,
        "macs": " ".join(mac.lower() for mac in guest.found_macs),
    }
    if autostart:
        said["autostart"] = "yes"
    for key, value in said.items():
        element.set(key, value)


def _put_disks(
    devices: ET.Element, guest: GuestSpec, disks: Mapping[VolumeId, DiskSource], direct: frozenset[VolumeId]
) -> None:
    by_name = {disk.target or disk_alias(disk.volume): disk for disk in guest.disks}
    missing = {disk_alias(disk.volume): disk for disk in guest.disks if not disk.target}
    for element in devices.findall("disk"):
        if element.get("device", "disk") != "disk":
            continue
        wanted = by_name.get(_name_of(element))
        if wanted is None:
            devices.remove(element)
            continue
        missing.pop(disk_alias(wanted.volume), None)
        _limit_disk(element, wanted, guest)
        if not wanted.target:
            _write_to(element, disks[wanted.volume])
    hardware = hardware_of(guest.template)
    for disk in missing.values():
        is_direct, source = disk.volume in direct, disks[disk.volume]
        devices.append(disk_element(disk, source, hardware, direct=is_direct, iothread=False, limits=guest.limits))


def _name_of(disk: ET.Element) -> str:
    """By which a disk is known: our alias, or what its definition calls it."""
    alias, target = disk.find("alias"), disk.find("target")
    name = alias.get("name", "") if alias is not None else ""
    if name.startswith(_OURS):
        return name
    return target.get("dev", "") if target is not None else ""


def _write_to(disk: ET.Element, source: DiskSource) -> None:
    """A volume of a pool may have become another file, if it was made what it was at a snapshot."""
    place, driver = disk.find("source"), disk.find("driver")
    if place is not None:
        place.set("dev" if source.kind == "block" else "file", source.path)
    if driver is not None:
        driver.set("type", source.format)


def _limit_disk(element: ET.Element, disk: GuestDisk, guest: GuestSpec) -> None:
    if guest.limits is None and disk.limits is None:
        return
    for old in element.findall("iotune"):
        element.remove(old)
    add_disk_limit(element, disk, guest.limits)


def _limit_cpu(domain: ET.Element, guest: GuestSpec) -> None:
    """Only what limits vCPUs is exchanged: which processors they run on stays."""
    tune = domain.find("cputune")
    limit = ET.Element("domain")
    add_cpu_limit(limit, guest.limits)
    if tune is None:
        domain.extend(limit)
        return
    for tag in ("period", "quota"):
        for old in tune.findall(tag):
            tune.remove(old)
    for new in limit.iterfind("cputune/*"):
        tune.append(new)


def _put_nics(devices: ET.Element, guest: GuestSpec, plugs: Mapping[PortId, Plug]) -> None:
    found = {mac.lower() for mac in guest.found_macs}
    missing = {nic.mac.lower(): nic for nic in guest.nics}
    for interface in devices.findall("interface"):
        mac = interface.find("mac")
        address = mac.get("address", "").lower() if mac is not None else ""
        if address in found:
            continue
        if missing.pop(address, None) is None:
            devices.remove(interface)
    hardware = hardware_of(guest.template)
    for nic in missing.values():
        devices.append(nic_element(nic, plugs[nic.port], hardware, guest.nics.index(nic)))


def _rewire(interface: ET.Element, bridge: str) -> None:
    """Have an interface on a bridge, or on nothing, instead of a device that goes with us; its card stays."""
    for tag in ("source", "target", "script"):
        for old in interface.findall(tag):
            interface.remove(old)
    interface.set("type", "bridge" if bridge else "ethernet")
    if bridge:
        add(interface, "source", bridge=bridge)
    else:
        add(interface, "link", state="down")


def _without_what_is_ours(devices: ET.Element, id: InstanceId, ground: Ground) -> None:
    """The files of a guest that we made are its volumes: all others are ours, and may go at any time."""
    for disk in devices.findall("disk"):
        if disk.get("device", "disk") == "cdrom":
            for medium in disk.findall("source"):
                disk.remove(medium)
        elif not _name_of(disk).startswith(_OURS):
            devices.remove(disk)
    socket = str(console_socket(ground, id))
    for tag in ("serial", "console"):
        for line in devices.findall(tag):
            source = line.find("source")
            if source is not None and source.get("path") == socket:
                _on_a_terminal(line)


def _on_a_terminal(line: ET.Element) -> None:
    for tag in ("source", "log"):
        for old in line.findall(tag):
            line.remove(old)
    line.set("type", "pty")


def present(definition: str, guest: GuestSpec) -> Mapping[VolumeId, str]:
    """The volumes that a guest has by its definition, found or plugged in, each with the name of its target."""
    by_name = {disk.target or disk_alias(disk.volume): disk.volume for disk in guest.disks}
    has: dict[VolumeId, str] = {}
    for disk in _disks(definition):
        target = disk.find("target")
        if target is not None and (volume := by_name.get(_name_of(disk))) is not None:
            has[volume] = target.get("dev", "")
    return has


def unwanted(definition: str, guest: GuestSpec) -> set[str]:
    """The aliases of the disks that a running guest has and is not to have."""
    wanted = {disk.target or disk_alias(disk.volume) for disk in guest.disks}
    aliases = ((_name_of(disk), disk.find("alias")) for disk in _disks(definition))
    return {alias.get("name", "") for name, alias in aliases if alias is not None and name not in wanted}


def _disks(definition: str) -> list[ET.Element]:
    every = ET.fromstring(definition).iterfind("devices/disk")  # noqa: S314 - libvirt's own
    return [disk for disk in every if disk.get("device", "disk") == "disk"]
