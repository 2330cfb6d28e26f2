"""What limits do to a real guest, measured against the same guest without them."""

import time

import pytest
from libvirt_guest import Guest
from libvirt_host import LibvirtHost, missing
from msgspec.structs import replace

from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.kernel.units import MIB
from pileus.link.guests import DiskLimits, GuestLimits

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]

COUNT = "i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done"
READ = "dd if=/dev/vda of=/dev/null bs=64k count=128 iflag=direct 2>/dev/null"
READ_OFTEN = "dd if=/dev/vda of=/dev/null bs=4k count=150 iflag=direct 2>/dev/null"


async def test_limits_slow_a_running_guest_down_and_leave_it_as_it_was(
    hypervisor: LibvirtHypervisor, host: LibvirtHost
) -> None:
    guest = Guest(host, hypervisor)
    await guest.installed()
    await guest.given(sources={})
    await guest.start()
    await guest.booted()

    async def takes(work: str, limits: GuestLimits, own: DiskLimits | None = None) -> float:
        disks = (replace(guest.spec.disks[0], limits=own), *guest.spec.disks[1:])
        await hypervisor.change_limits(replace(guest.spec, limits=limits, disks=disks))
        begun = time.monotonic()
        await guest.answers(work)
        return time.monotonic() - begun

    for work, limits, own in (
        (COUNT, GuestLimits(cpu_percent=5), None),
        (READ, GuestLimits(disk_bytes_per_s=4 * MIB), None),
        (READ_OFTEN, GuestLimits(disk_iops=50), None),
        (READ_OFTEN, GuestLimits(disk_iops=100_000), DiskLimits(iops=50)),
    ):
        free = await takes(work, GuestLimits())
        limited = await takes(work, limits, own)
        free_again = await takes(work, GuestLimits())
        print(f"{limits}, {own}: {free:.1f} s, limited {limited:.1f} s, then {free_again:.1f} s")
        assert limited > 2 * max(free, free_again)
