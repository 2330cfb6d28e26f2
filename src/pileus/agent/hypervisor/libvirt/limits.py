"""How much of its host a guest may take: in its definition, and while it runs.

CPU is limited by the kernel's bandwidth control (https://docs.kernel.org/scheduler/sched-bwc.html), disks by QEMU.
"""

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from pileus.agent.hypervisor.libvirt.elements import add
from pileus.link.records import GuestLimits

_PERIOD_US = 100_000
_NO_QUOTA = -1
_UNLIMITED = GuestLimits()


def add_cpu_limit(domain: ET.Element, limits: GuestLimits | None) -> None:
    """Limit the time of each vCPU."""
    if limits is not None and limits.cpu_percent:
        tune = add(domain, "cputune")
        for name, value in cpu_parameters(limits).items():
            add(tune, name.removeprefix("vcpu_"), text=str(value))


def add_disk_limit(disk: ET.Element, limits: GuestLimits | None) -> None:
    """Limit what one disk does."""
    wanted = {name: value for name, value in disk_parameters(limits or _UNLIMITED).items() if value}
    if wanted:
        tune = add(disk, "iotune")
        for name, value in wanted.items():
            add(tune, name, text=str(value))


def cpu_parameters(limits: GuestLimits) -> Mapping[str, int]:
    """As libvirt calls them when a guest runs."""
    quota = limits.cpu_percent * _PERIOD_US // 100 if limits.cpu_percent else _NO_QUOTA
    return {"vcpu_period": _PERIOD_US, "vcpu_quota": quota}


def disk_parameters(limits: GuestLimits) -> Mapping[str, int]:
    """As libvirt calls them, all of them: what is 0 is not limited."""
    iops, size = limits.disk_burst_iops, limits.disk_burst_bytes_per_s
    return {
        "total_bytes_sec": limits.disk_bytes_per_s,
        "total_iops_sec": limits.disk_iops,
        "total_bytes_sec_max": size,
        "total_iops_sec_max": iops,
        "total_bytes_sec_max_length": limits.disk_burst_s if size else 0,
        "total_iops_sec_max_length": limits.disk_burst_s if iops else 0,
    }
