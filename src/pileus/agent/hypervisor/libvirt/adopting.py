"""Taking over domains of a libvirtd that others have defined, and letting go of domains; none of them notices."""

from collections.abc import Mapping

from pileus.agent.hypervisor.libvirt.asfound import (
    Marks,
    as_found_xml,
    is_marked,
    left_xml,
    marks_of,
    marks_xml,
)
from pileus.agent.hypervisor.libvirt.binding import Library, VirConnect, VirDomain, error_code
from pileus.agent.hypervisor.libvirt.domain import METADATA_NAMESPACE, Ground
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import InstanceId, PortId, VolumeId
from pileus.link.guests import GuestSpec, Leaving

_PREFIX = "pileus"


class Adopting:
    """Makes domains ours, and others' again. Every call blocks, and may be repeated."""

    def __init__(self, library: Library, ground: Ground) -> None:
        self._library = library
        self._ground = ground

    def marks(self, domain: VirDomain) -> Marks | None:
        """What says that a domain is ours; None for one of others, or that is gone."""
        library = self._library
        try:
            try:
                said = domain.metadata(
                    library.VIR_DOMAIN_METADATA_ELEMENT, METADATA_NAMESPACE, library.VIR_DOMAIN_AFFECT_CONFIG
                )
            except library.libvirtError as error:
                if error_code(error) != library.VIR_ERR_OPERATION_INVALID:
                    raise
                # Somebody undefined it while it runs: all that there is to know is in the process.
                said = domain.metadata(library.VIR_DOMAIN_METADATA_ELEMENT, METADATA_NAMESPACE, 0)
        except library.libvirtError as error:
            if error_code(error) in {library.VIR_ERR_NO_DOMAIN, library.VIR_ERR_NO_DOMAIN_METADATA}:
                return None
            raise
        marks = marks_of(said)
        return marks if is_marked(marks, InstanceId(domain.UUIDString()), domain.name()) else None

    def take(
        self,
        libvirt: VirConnect,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
        direct: frozenset[VolumeId],
    ) -> None:
        """Have the domain of this id be the guest, with what it has and what it is to have besides."""
        library, domain = self._library, libvirt.lookupByUUIDString(guest.id)
        before = self.marks(domain)
        autostart = before.autostart if before is not None else bool(domain.autostart())
        definition = as_found_xml(self._definition(domain), guest, disks, plugs, direct=direct, autostart=autostart)
        # From here on it is ours, whatever happens; what follows is done again when the agent comes to it again.
        libvirt.defineXML(definition)
        if domain.autostart():
            domain.setAutostart(0)
        if domain.isActive():
            marks = marks_xml(guest, autostart=autostart)
            element, live = library.VIR_DOMAIN_METADATA_ELEMENT, library.VIR_DOMAIN_AFFECT_LIVE
            domain.setMetadata(element, marks, _PREFIX, METADATA_NAMESPACE, live)

    def leave(self, libvirt: VirConnect, id: InstanceId, leaving: Leaving) -> None:
        """Have the domain be one of others, if it is there and ours."""
        library = self._library
        try:
            domain = libvirt.lookupByUUIDString(id)
        except library.libvirtError as error:
            if error_code(error) == library.VIR_ERR_NO_DOMAIN:
                return
            raise
        marks = self.marks(domain)
        if marks is None:
            return
        if domain.isActive():
            element, live = library.VIR_DOMAIN_METADATA_ELEMENT, library.VIR_DOMAIN_AFFECT_LIVE
            domain.setMetadata(element, None, _PREFIX, METADATA_NAMESPACE, live)
        if marks.autostart:
            domain.setAutostart(1)
        # Last: until then it is ours, and this is done again.
        libvirt.defineXML(left_xml(self._definition(domain), id, domain.name(), self._ground, leaving))

    def _definition(self, domain: VirDomain) -> str:
        """What it is defined as, with its passwords: without them it would lose them."""
        return domain.XMLDesc(self._library.VIR_DOMAIN_XML_INACTIVE | self._library.VIR_DOMAIN_XML_SECURE)
