"""The layers of a guest's disks, in the words of libvirt: what is told to it, and read from it. Pure."""

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

from pileus.agent.hypervisor.libvirt.disks import disks_of
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import VolumeId


def chain_of(definition: str, volume: VolumeId) -> list[str]:
    """The files of a volume in a domain's XML, from the one that is written to downwards; empty if it has no such disk.

    The lower ones are known of a running domain only.
    """
    target = disks_of(definition).get(volume)
    for disk in ET.fromstring(definition).iterfind("devices/disk"):  # noqa: S314 - libvirt's own
        found = disk.find("target")
        if found is None or found.get("dev") != target:
            continue
        chain: list[str] = []
        layer: ET.Element | None = disk
        while layer is not None and (source := layer.find("source")) is not None:
            chain.append(source.get("file") or source.get("dev") or "")
            layer = layer.find("backingStore")
        return chain
    return []


def files_of(definition: str) -> dict[VolumeId, str]:
    """The file that each volume of a domain is written to."""
    return {volume: chain[0] for volume in disks_of(definition) if (chain := chain_of(definition, volume))}


def switch_xml(definition: str, disks: Mapping[VolumeId, DiskSource], memory: Path | None) -> str:
    """A domain's snapshot by which these disks go over to files that are there already.

    Raises:
        NotFound: the domain has no such disk.
    """
    snapshot = ET.Element("domainsnapshot")
    if memory is not None:
        ET.SubElement(snapshot, "memory", snapshot="external", file=str(memory))
    else:
        ET.SubElement(snapshot, "memory", snapshot="no")
    targets = _targets(definition)
    has = disks_of(definition)
    if missing := disks.keys() - has.keys():
        raise NotFound(f"the guest has no disk of volume {min(missing)}")
    switched = {has[volume]: source for volume, source in disks.items()}
    listed = ET.SubElement(snapshot, "disks")
    for target in targets:
        source = switched.get(target)
        if source is None:
            ET.SubElement(listed, "disk", name=target, snapshot="no")
            continue
        disk = ET.SubElement(listed, "disk", name=target, snapshot="external", type="file")
        ET.SubElement(disk, "driver", type=source.format)
        ET.SubElement(disk, "source", file=source.path)
    return ET.tostring(snapshot, encoding="unicode")


def with_disks(definition: str, disks: Mapping[VolumeId, DiskSource]) -> str:
    """The XML of a saved domain with these files as its disks."""
    domain = ET.fromstring(definition)  # noqa: S314 - libvirt's own
    sources = {target: disks[volume] for volume, target in disks_of(definition).items() if volume in disks}
    for disk in domain.iterfind("devices/disk"):
        target = disk.find("target")
        source = sources.get(target.get("dev", "") if target is not None else "")
        if source is None:
            continue
        for old in (*disk.findall("backingStore"), *disk.findall("source")):
            disk.remove(old)
        ET.SubElement(disk, "source", file=source.path)
        driver = disk.find("driver")
        if driver is not None:
            driver.set("type", source.format)
    return ET.tostring(domain, encoding="unicode")


def _targets(definition: str) -> list[str]:
    found = ET.fromstring(definition).iterfind("devices/disk/target")  # noqa: S314 - libvirt's own
    return [target.get("dev", "") for target in found]
