"""How much of its host a guest may take: in its definition, and while it runs.

CPU is limited by the kernel's bandwidth control (https://docs.kernel.org/scheduler/sched-bwc.html), disks by QEMU.
"""

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from pileus.agent.hypervisor.libvirt.elements import add
from pileus.link.guests import DiskLimits, GuestDisk, GuestLimits

_PERIOD_US = 100_000
_NO_QUOTA = -1
_UNLIMITED = GuestLimits()


def add_cpu_limit(domain: ET.Element, limits: GuestLimits | None) -> None:
    """Limit the time of each vCPU."""
    if limits is not None and limits.cpu_percent:
        tune = add(domain, "cputune")
        for name, value in cpu_parameters(limits).items():
            add(tune, name.removeprefix("vcpu_"), text=str(value))


def add_disk_limit(element: ET.Element, disk: GuestDisk, limits: GuestLimits | None) -> None:
    """Limit what one disk does: by its own limits, and by those of its guest."""
    wanted = {name: value for name, value in disk_parameters(limits or _UNLIMITED, disk.limits).items() if value}
    if wanted:
        tune = add(element, "iotune")
        for name, value in wanted.items():
            add(tune, name, text=str(value))


def cpu_parameters(limits: GuestLimits) -> Mapping[str, int]:
    """As libvirt calls them when a guest runs."""
    quota = limits.cpu_percent * _PERIOD_US // 100 if limits.cpu_percent else _NO_QUOTA
    return {"vcpu_period": _PERIOD_US, "vcpu_quota": quota}


def disk_parameters(limits: GuestLimits, own: DiskLimits | None = None) -> Mapping[str, int]:
    """As libvirt calls them, all of them: what is 0 is not limited. Of two limits the lower one counts."""
    own = own or DiskLimits()
    most_iops, most_size = _lower(limits.disk_iops, own.iops), _lower(limits.disk_bytes_per_s, own.bytes_per_s)
    # A burst is over the guest's limit, and never over the disk's own.
    iops = limits.disk_burst_iops if most_iops == limits.disk_iops else 0
    size = limits.disk_burst_bytes_per_s if most_size == limits.disk_bytes_per_s else 0
    iops, size = _burst(iops, own.iops, most_iops), _burst(size, own.bytes_per_s, most_size)
    return {
        "total_bytes_sec": most_size,
        "total_iops_sec": most_iops,
        "total_bytes_sec_max": size,
        "total_iops_sec_max": iops,
        "total_bytes_sec_max_length": limits.disk_burst_s if size else 0,
        "total_iops_sec_max_length": limits.disk_burst_s if iops else 0,
    }


def _lower(one: int, other: int) -> int:
    return min(one, other) if one and other else one or other


def _burst(burst: int, own: int, most: int) -> int:
    """A burst that stays within the disk's own limit, if there is anything left of it then."""
    within = _lower(burst, own) if burst else 0
    return within if within > most else 0
