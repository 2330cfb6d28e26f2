"""Guest templates: the kinds of virtual hardware, as far as both a controller and an agent must know of them.

Which devices they are is their driver's business; how many fit, and whether they come and go while a guest runs, is
what people are refused or granted things by.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from pileus.kernel.errors import Conflict
from pileus.link.guests import DISK_SLOTS, NIC_SLOTS, GuestSpec

UEFI, TPM = "uefi", "tpm"
"""What a host can give to guests, as traits of it."""


class GuestTemplate(StrEnum):
    """The set of devices that a guest is given, by what its operating system has drivers for."""

    LINUX = "linux"
    """virtio throughout, BIOS."""
    LINUX_UEFI = "linux-uefi"
    """virtio throughout, UEFI without Secure Boot, a TPM."""
    LEGACY = "legacy"
    """IDE disks, an RTL8139 card, a standard VGA: for what is older than virtio."""
    WINDOWS = "windows"
    """UEFI with Secure Boot and a TPM; SATA disks and an Intel card, for which Windows brings drivers."""
    WINDOWS_VIRTIO = "windows-virtio"
    """The same with virtio disks and network: for a Windows that has the drivers, and much faster."""
    AS_FOUND = "as-found"
    """What a guest had that was taken over, untouched; what is added is virtio. Nobody can ask for it."""


TO_BE_GIVEN = tuple(each for each in GuestTemplate if each is not GuestTemplate.AS_FOUND)
"""What somebody can ask for."""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What fits into a guest of a template."""

    disks: int = DISK_SLOTS
    """How many, with the one that it boots from."""
    nics: int = NIC_SLOTS
    drives: int = 2
    """For CDs and DVDs."""
    buses: str
    """What its disks and network cards are on, for people."""
    hot_plug: bool = True
    """Whether disks and network cards come and go while it runs."""
    needs: frozenset[str] = frozenset()
    """The traits of a host that it can be on."""


_WITH_TPM = frozenset({UEFI, TPM})
FRAMES: Mapping[GuestTemplate, Frame] = {
    GuestTemplate.LINUX: Frame(buses="virtio"),
    GuestTemplate.LINUX_UEFI: Frame(buses="virtio", needs=_WITH_TPM),
    # Four IDE devices, of which one is the drive.
    GuestTemplate.LEGACY: Frame(disks=3, nics=4, drives=1, buses="IDE", hot_plug=False),
    # Six ports of one SATA controller, of which two are the drives.
    GuestTemplate.WINDOWS: Frame(disks=4, buses="SATA", hot_plug=False, needs=_WITH_TPM),
    GuestTemplate.WINDOWS_VIRTIO: Frame(buses="virtio", needs=_WITH_TPM),
    # Whatever drives it has are its own.
    GuestTemplate.AS_FOUND: Frame(drives=0, buses="virtio"),
}


def frame_of(template: str) -> Frame | None:
    """What fits into a guest of this template; None if there is no such template."""
    return FRAMES[GuestTemplate(template)] if template in FRAMES else None


def check_hot_plug(guest: GuestSpec) -> None:
    """Raises Conflict if nothing can be plugged into this guest while it runs; a template nobody knows is let pass."""
    frame = frame_of(guest.template)
    if frame is not None and not frame.hot_plug:
        raise Conflict(
            f"guest {guest.name!r} has its devices on {frame.buses}, where none comes or goes while it runs: it will be"
            " changed when it is next started"
        )
