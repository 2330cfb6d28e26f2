"""The life of a guest on a real QEMU: suspended to disk and resumed, reset by its watchdog."""

import re

import pytest
from libvirt_guest import Guest
from libvirt_host import LibvirtHost, missing

from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.hypervisor.port import GuestState
from pileus.link.guests import Watchdog

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]

COUNT = "(n=0; while :; do n=$((n+1)); echo $n >/run/n; sleep 0.2; done) & echo counting as $!"
BOOT = "cat /proc/sys/kernel/random/boot_id"
# Without a driver, by its registers (Intel 6300ESB datasheet, section 16); both stages of its timer count milliseconds.
HANG = (
    "d=$(dirname $(grep -l 0x25ab /sys/bus/pci/devices/*/device)); echo 1 >$d/enable; b=$(head -n1 $d/resource);"
    " b=${b%% *}; for r in 0 4; do for u in 0x80 0x86; do devmem $((b+12)) 16 $u; done; devmem $((b+r)) 32 500; done;"
    " printf '\\002' | dd of=$d/config bs=1 seek=104 conv=notrunc 2>/dev/null"
)


async def size_of(guest: Guest) -> tuple[int, int]:
    """How many CPUs a guest sees, and how many KiB of memory."""
    said = await guest.answers("echo has $(nproc) $(grep MemTotal /proc/meminfo)")
    vcpus, kib = re.findall(r"has (\d+) MemTotal: (\d+)", said)[-1]
    return int(vcpus), int(kib)


async def boot_of(guest: Guest) -> str:
    """Which boot of the guest this is: each has an id of its own."""
    return re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", await guest.answers(BOOT))[-1]


async def test_a_guest_goes_on_where_it_was_suspended_and_its_watchdog_resets_it_when_it_hangs(
    hypervisor: LibvirtHypervisor, host: LibvirtHost
) -> None:
    guest = Guest(host, hypervisor)
    await guest.installed()
    await guest.changed(watchdog=Watchdog.RESET, memory_mib=160, max_memory_mib=256, max_vcpus=3)
    await guest.start()
    await guest.booted()

    # Given vCPUs and memory while it runs, and less memory again.
    sizes = [await size_of(guest)]
    for vcpus, memory_mib in ((3, 256), (3, 192)):
        await guest.changed(vcpus=vcpus, memory_mib=memory_mib)
        await hypervisor.change_size(guest.spec)
        until = f"until [ $(nproc) = {vcpus} ]; do :; done; echo followed"
        assert "followed" in await guest.answers(until)
        sizes.append(await size_of(guest))
    assert [vcpus for vcpus, _ in sizes] == [1, 3, 3]
    assert [round((kib - sizes[0][1]) / 1024) for _, kib in sizes] == [0, 96, 32]

    # Suspended, also over a restart of libvirtd and a change of its definition; then it counts on.
    boot = await boot_of(guest)
    assert "counting as " in await guest.answers(COUNT)
    await hypervisor.suspend(guest.spec.id)
    assert not host.qemu(f"pileus-{guest.spec.id[-12:]}").exists()
    host.kill_libvirtd()
    host.restart_libvirtd()
    await guest.changed()
    found = (await hypervisor.list())[guest.spec.id]
    assert (found.state, found.generation) == (GuestState.SUSPENDED, guest.spec.generation)
    await guest.start()
    assert "counted on" in await guest.answers(
        # It is empty for a moment, each time that it is written.
        "until n=$(cat /run/n) && [ $n ]; do :; done; until [ 0$(cat /run/n) -gt $n ]; do :; done; echo counted on"
    )
    assert await boot_of(guest) == boot

    # Its watchdog, once begun and not fed.
    await guest.types(f"echo hang''ing; {HANG}; sleep 300")
    await guest.says(b"hanging")
    await guest.booted()
    assert await boot_of(guest) != boot

    # Suspended once more, and its memory forgotten: it boots anew.
    await hypervisor.suspend(guest.spec.id)
    await hypervisor.forget_memory(guest.spec.id)
    await guest.start()
    await guest.booted()
