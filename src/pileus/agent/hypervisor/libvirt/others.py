"""Looking at the domains of a libvirtd that are not ours. Every call here only reads."""

from collections.abc import Callable, Sequence

import msgspec

from pileus.agent.hypervisor.libvirt.binding import Library, VirConnect, VirDomain, error_code
from pileus.agent.hypervisor.libvirt.domain import APPLIANCE_PREFIX
from pileus.agent.hypervisor.libvirt.foreign import foreign_guest
from pileus.link.foreign import ForeignDisk, ForeignGuest


class Others:
    """The guests of others."""

    def __init__(self, library: Library, is_ours: Callable[[VirDomain], bool]) -> None:
        self._library = library
        self._is_ours = is_ours

    def look(self, libvirt: VirConnect) -> Sequence[ForeignGuest]:
        """All of them as they are now; blocks."""
        found: list[ForeignGuest] = []
        for domain in libvirt.listAllDomains(0):
            try:
                if not (domain.name().startswith(APPLIANCE_PREFIX) or self._is_ours(domain)):
                    found.append(self._seen(domain))
            except self._library.libvirtError as error:
                if error_code(error) != self._library.VIR_ERR_NO_DOMAIN:  # gone since it was listed
                    raise
        return found

    def _seen(self, domain: VirDomain) -> ForeignGuest:
        running = bool(domain.isActive())
        guest = foreign_guest(domain.XMLDesc(0), running=running, persistent=bool(domain.isPersistent()))
        disks = tuple(msgspec.structs.replace(each, size_bytes=self._size(domain, each)) for each in guest.disks)
        return msgspec.structs.replace(guest, disks=disks)

    def _size(self, domain: VirDomain, disk: ForeignDisk) -> int:
        try:
            return domain.blockInfo(disk.target)[0] if disk.path else 0
        except self._library.libvirtError:  # its file is gone, or nobody may read it
            return 0
