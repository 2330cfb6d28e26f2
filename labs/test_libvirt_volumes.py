"""Volumes of a directory on a real QEMU: what a guest sees of them while it runs, and after it was stopped."""

from pathlib import Path

import pytest
from libvirt_guest import Guest
from libvirt_host import LibvirtHost, missing
from msgspec.structs import replace

from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.storage.directory import DirectoryPool
from pileus.kernel.ids import VolumeId, new_id
from pileus.kernel.units import MIB
from pileus.link.guests import GuestDisk
from pileus.link.volumes import VolumeSpec

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]

# Sets d to the disk of this serial number, whatever the guest's kernel calls it.
FIND = (
    'd=; until [ "$d" ]; do for s in /sys/block/vd*/serial; do'
    ' [ "$(cat $s)" = {serial} ] && d=${{s%/serial}} && d=${{d##*/}}; done; done'
)


async def test_a_volume_goes_from_guest_to_guest_with_its_data_grows_and_leaves_nothing(
    hypervisor: LibvirtHypervisor, host: LibvirtHost, tmp_path: Path
) -> None:
    pool = DirectoryPool.open(host.disks / "pool")
    volume, other = (VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=16 * MIB) for _ in range(2))
    for each in (volume, other):
        await pool.ensure(each, lambda _: None)
    sources = {each.id: await pool.source(each.id) for each in (volume, other)}
    find = FIND.format(serial=volume.id[:20])
    one, two = Guest(host, hypervisor), Guest(host, hypervisor)
    for guest in (one, two):
        await guest.installed()
        await guest.given(sources={})
        await guest.start()
    for guest in (one, two):
        await guest.booted()

    # Attached while the guest runs.
    disk = GuestDisk(volume=volume.id, slot=3, size_bytes=volume.size_bytes)
    await one.given(disk, sources=sources)
    assert f"size {16 * MIB // 512}\n" in await one.answers(f"{find}; echo size $(cat /sys/block/$d/size)")
    assert "written\n" in await one.answers("echo precious > /dev/$d && sync && echo written")

    # Grown while the guest runs.
    volume = replace(volume, generation=2, size_bytes=32 * MIB)
    await pool.ensure(volume, lambda _: None)
    disk = replace(disk, size_bytes=volume.size_bytes)
    await one.given(disk, sources=sources)
    grown = f"until [ $(cat /sys/block/$d/size) = {32 * MIB // 512} ]; do :; done; echo seen"
    assert "seen\n" in await one.answers(grown)

    # Detached, and attached to another guest in another slot.
    await one.given(sources=sources)
    assert "gone\n" in await one.answers("until ! [ -e /sys/block/$d ]; do :; done; echo gone")
    await two.given(disk, sources=sources)
    where = "echo it is at $(readlink -f /sys/block/$d/device/..) with $(head -c 8 /dev/$d)"
    before = (await two.answers(f"{find}; {where}")).partition("it is at /")[2].split()[:3]
    assert before[1:] == ["with", "precious"]

    # Stopped and started with one disk more ahead of it.
    await hypervisor.stop(two.spec.id)
    await two.given(GuestDisk(volume=other.id, slot=1), disk, sources=sources)
    await two.start()
    await two.booted()
    after = (await two.answers(f"{find}; {where}")).partition("it is at /")[2].split()[:3]
    assert after == before

    # Removed with its data.
    await two.given(sources=sources)
    for each in (volume, other):
        await pool.remove(each.id)
    assert [each for each in (host.disks / "pool").rglob("*") if each.is_file()] == []
