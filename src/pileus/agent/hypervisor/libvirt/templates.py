"""Which devices the guests of each template have; to add one is to add a row, here and to `pileus.link.templates`."""

from collections.abc import Mapping

import msgspec

from pileus.kernel.errors import Invalid
from pileus.link.templates import FRAMES, Frame, GuestTemplate


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """The devices that a guest's operating system has drivers for."""

    frame: Frame
    machine: str
    disk_bus: str
    disk_prefix: str
    drive_bus: str
    drive_prefix: str
    nic_model: str
    paravirtual: bool = True
    """Whether it has virtio's channel, balloon and source of randomness."""
    last_letters: bool = False
    """Whether disks are called by letters from the end: others have those at the beginning."""
    tablet: bool = False
    """Whether it has a mouse that says where it is, not whither it goes."""
    uefi: bool = False
    """Firmware by OVMF, with variables of its own, and a TPM 2.0 by swtpm."""
    secure_boot: bool = False
    clock_offset: str = "utc"
    windows: bool = False
    """Whether it is told that its hypervisor is Hyper-V, which spares Windows much waiting."""

    @property
    def is_q35(self) -> bool:
        return self.machine == "q35"


def _virtio(template: GuestTemplate) -> Hardware:
    return Hardware(
        frame=FRAMES[template],
        machine="q35",
        disk_bus="virtio",
        disk_prefix="vd",
        # Not SATA: kernels for clouds have no drivers for that.
        drive_bus="scsi",
        drive_prefix="sd",
        nic_model="virtio",
    )


def _windows(template: GuestTemplate) -> Hardware:
    return Hardware(
        frame=FRAMES[template],
        machine="q35",
        disk_bus="sata",
        disk_prefix="sd",
        drive_bus="sata",
        drive_prefix="sd",
        nic_model="e1000e",
        tablet=True,
        uefi=True,
        secure_boot=True,
        clock_offset="localtime",
        windows=True,
    )


_HARDWARE: Mapping[GuestTemplate, Hardware] = {
    GuestTemplate.LINUX: _virtio(GuestTemplate.LINUX),
    GuestTemplate.LINUX_UEFI: msgspec.structs.replace(_virtio(GuestTemplate.LINUX_UEFI), uefi=True),
    GuestTemplate.LEGACY: Hardware(
        frame=FRAMES[GuestTemplate.LEGACY],
        machine="pc",
        disk_bus="ide",
        disk_prefix="hd",
        drive_bus="ide",
        drive_prefix="hd",
        nic_model="rtl8139",
        paravirtual=False,
        tablet=True,
    ),
    GuestTemplate.WINDOWS: _windows(GuestTemplate.WINDOWS),
    GuestTemplate.WINDOWS_VIRTIO: msgspec.structs.replace(
        _windows(GuestTemplate.WINDOWS_VIRTIO), disk_bus="virtio", disk_prefix="vd", nic_model="virtio"
    ),
    # What is plugged into it besides what it has; libvirt finds the places.
    GuestTemplate.AS_FOUND: msgspec.structs.replace(_virtio(GuestTemplate.AS_FOUND), machine="", last_letters=True),
}


def hardware_of(template: str) -> Hardware:
    """The devices of a template. Raises Invalid if there is none of that name."""
    if template not in FRAMES:
        raise Invalid(f"no template {template!r}", fields={"template": f"one of {', '.join(FRAMES)}"})
    return _HARDWARE[GuestTemplate(template)]
