"""What limits do to a real guest, measured against the same guest without them.

A busy machine slows a guest down as well: so what is limited must take as long as its limit says, whatever else there
is, and without the limit it is looked at again until it was quicker.
"""

import re
import time

import pytest
from libvirt_guest import Guest
from libvirt_host import LibvirtHost, missing
from msgspec.structs import replace
from patience import WITHIN_S

from pileus.agent.hypervisor.libvirt.domain import domain_name
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

    def on_cpu() -> float:
        """For how many seconds its vCPU has run."""
        stats = host.virsh("domstats", "--vcpu", domain_name(guest.spec.id))
        return int(re.findall(r"vcpu\.0\.time=(\d+)", stats)[-1]) / 1e9

    async def is_quick_again(work: str, limited: float) -> None:
        deadline = time.monotonic() + WITHIN_S
        while 2 * (free := await takes(work, GuestLimits())) > limited:
            assert time.monotonic() < deadline, f"it took {limited:.1f} s, and without limits {free:.1f} s"
        print(f"limited {limited:.1f} s, then {free:.1f} s")

    before = on_cpu()
    limited = await takes(COUNT, GuestLimits(cpu_percent=5))
    assert on_cpu() - before < 0.1 * limited
    await is_quick_again(COUNT, limited)

    for work, limits, own, at_least_s in (
        (READ, GuestLimits(disk_bytes_per_s=4 * MIB), None, 8 / 4),
        (READ_OFTEN, GuestLimits(disk_iops=50), None, 150 / 50),
        (READ_OFTEN, GuestLimits(disk_iops=100_000), DiskLimits(iops=50), 150 / 50),
    ):
        limited = await takes(work, limits, own)
        assert limited > 0.8 * at_least_s, "it may take a tenth of a second's worth at once"
        await is_quick_again(work, limited)
