"""The port `MirroredDisks` on libvirt and QEMU: a block job copies a disk while its guest runs, which then goes over.

That is done with the guest's CPUs held: what it wrote until then is in both files, and what it writes next only after
libvirt has the new file in its definition. Whoever dies in between, the definition says which of the two is the disk.
"""

import asyncio
from collections.abc import Mapping
from typing import Final
from xml.etree import ElementTree as ET

from pileus.agent.hypervisor.libvirt.binding import Library, VirDomain
from pileus.agent.hypervisor.libvirt.disks import disks_of
from pileus.agent.hypervisor.libvirt.layered import DoTo
from pileus.agent.hypervisor.libvirt.layers import files_of
from pileus.agent.hypervisor.libvirt.states import DomainState
from pileus.agent.storage.port import DiskSource, Told
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import InstanceId, VolumeId
from pileus.kernel.units import MIB

AT_MOST_BYTES_PER_S: Final = 256 * MIB
"""What one copying may take of the disks that guests use too."""
_LOOK_AGAIN_S: Final = 0.2
_ENDED: Final = "the guest ended while its disk was copied, or copying it failed"


class LibvirtMirrors:
    """Mirrors the disks of guests (a MirroredDisks)."""

    def __init__(self, library: Library, do_to: DoTo) -> None:
        self._library = library
        self._do_to = do_to

    async def mirrored(self, id: InstanceId) -> Mapping[VolumeId, str]:
        def look(domain: VirDomain) -> Mapping[VolumeId, str]:
            return mirrors_of(domain.XMLDesc(0)) if domain.isActive() else {}

        return await self._do_to("look at the guest's disks", id, look)

    async def mirror(self, id: InstanceId, volume: VolumeId, to: DiskSource, told: Told) -> None:
        await self._do_to("copy the guest's disk", id, lambda domain: self._begin(domain, volume, to))

        def look(domain: VirDomain) -> tuple[int, int] | None:
            """How far it is, in bytes; None if it is equal."""
            definition = domain.XMLDesc(0)
            job = domain.blockJobInfo(target_of(definition, volume)) if domain.isActive() else None
            if not job or mirrors_of(definition).get(volume) != to.path:
                raise Conflict(_ENDED)
            return None if is_equal(definition, volume) else (job["cur"], job["end"])

        while (far := await self._do_to("look at the guest's disks", id, look)) is not None:
            told(far[0] / max(1, far[1]))
            await asyncio.sleep(_LOOK_AGAIN_S)
        told(1.0)

    async def go_over(self, id: InstanceId, volume: VolumeId, to: DiskSource) -> None:
        def go_over(domain: VirDomain) -> None:
            definition = domain.XMLDesc(0)
            if files_of(definition).get(volume) == to.path:
                return
            if not domain.isActive() or mirrors_of(definition).get(volume) != to.path:
                raise Conflict(_ENDED)
            if not is_equal(definition, volume):
                raise Conflict("the copy of the guest's disk is not equal to it yet")
            runs = domain.state(0)[0] == DomainState.RUNNING
            if runs:
                domain.suspend()
            try:
                domain.blockJobAbort(target_of(definition, volume), self._library.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            finally:
                if runs:
                    domain.resume()

        await self._do_to("have the guest use the copy of its disk", id, go_over)

    async def stop_mirroring(self, id: InstanceId, volume: VolumeId) -> None:
        def stop(domain: VirDomain) -> None:
            definition = domain.XMLDesc(0)
            if domain.isActive() and volume in mirrors_of(definition):
                domain.blockJobAbort(target_of(definition, volume), 0)

        await self._do_to("stop copying the guest's disk", id, stop)

    def _begin(self, domain: VirDomain, volume: VolumeId, to: DiskSource) -> None:
        if not domain.isActive():
            raise Conflict(_ENDED)
        definition = domain.XMLDesc(0)
        if mirrors_of(definition).get(volume) == to.path:
            return
        library = self._library
        flags = (
            library.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
            | library.VIR_DOMAIN_BLOCK_COPY_SHALLOW
            | library.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        )
        limit = {library.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH: AT_MOST_BYTES_PER_S}
        domain.blockCopy(target_of(definition, volume), mirror_xml(to), limit, flags)


def mirror_xml(to: DiskSource) -> str:
    """Where a disk is to be copied to."""
    disk = ET.Element("disk", type="file")
    ET.SubElement(disk, "driver", type=to.format)
    ET.SubElement(disk, "source", file=to.path)
    return ET.tostring(disk, encoding="unicode")


def target_of(definition: str, volume: VolumeId) -> str:
    """What libvirt calls the disk of a volume. Raises NotFound."""
    target = disks_of(definition).get(volume)
    if target is None:
        raise NotFound(f"the guest has no disk of volume {volume}")
    return target


def mirrors_of(definition: str) -> dict[VolumeId, str]:
    """The file to which each disk of a running domain is being copied that is."""
    found: dict[VolumeId, str] = {}
    for volume, mirror in _mirrors(definition).items():
        source = mirror.find("source")
        found[volume] = source.get("file", "") if source is not None else ""
    return found


def is_equal(definition: str, volume: VolumeId) -> bool:
    """Whether the copying of a disk has come to where both files are kept equal."""
    mirror = _mirrors(definition).get(volume)
    return mirror is not None and mirror.get("ready") == "yes"


def _mirrors(definition: str) -> dict[VolumeId, ET.Element]:
    targets = {target: volume for volume, target in disks_of(definition).items()}
    found: dict[VolumeId, ET.Element] = {}
    for disk in ET.fromstring(definition).iterfind("devices/disk"):  # noqa: S314 - libvirt's own
        target, mirror = disk.find("target"), disk.find("mirror")
        volume = targets.get(target.get("dev", "") if target is not None else "")
        if volume is not None and mirror is not None and mirror.get("job") == "copy":
            found[volume] = mirror
    return found
