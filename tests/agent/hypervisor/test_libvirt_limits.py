"""What libvirt is told of the limits of a disk: the lower of its own and its guest's."""

import pytest

from pileus.agent.hypervisor.libvirt.limits import disk_parameters
from pileus.link.guests import DiskLimits, GuestLimits


@pytest.mark.parametrize(
    ("guest", "disk", "iops", "burst"),
    [
        (GuestLimits(), DiskLimits(), 0, 0),
        (GuestLimits(disk_iops=100), DiskLimits(), 100, 0),
        (GuestLimits(), DiskLimits(iops=100), 100, 0),
        (GuestLimits(disk_iops=100), DiskLimits(iops=50), 50, 0),
        (GuestLimits(disk_iops=100), DiskLimits(iops=500), 100, 0),
        (GuestLimits(disk_iops=100, disk_burst_iops=1000), DiskLimits(), 100, 1000),
        (GuestLimits(disk_iops=100, disk_burst_iops=1000), DiskLimits(iops=500), 100, 500),
        (GuestLimits(disk_iops=100, disk_burst_iops=1000), DiskLimits(iops=100), 100, 0),
        (GuestLimits(disk_iops=100, disk_burst_iops=1000), DiskLimits(iops=50), 50, 0),
    ],
)
def test_the_lower_limit_counts_and_bursts_stay_within_the_disks_own(
    guest: GuestLimits, disk: DiskLimits, iops: int, burst: int
) -> None:
    told = disk_parameters(guest, disk)
    assert (told["total_iops_sec"], told["total_iops_sec_max"]) == (iops, burst)
