"""The templates of guests on a real QEMU: what their firmware starts, and what their kernels find."""

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from libvirt_guest import Guest
from libvirt_host import LibvirtHost, missing

from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.hypervisor.libvirt.firmware import traits
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import ImageId, VolumeId, new_id
from pileus.kernel.units import MIB
from pileus.link.guests import GuestDisk
from pileus.link.images import ImageSource
from pileus.link.templates import FRAMES, TO_BE_GIVEN, GuestTemplate

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]

lacks = sorted(FRAMES[GuestTemplate.WINDOWS].needs - traits())
needs_firmware = pytest.mark.skipif(bool(lacks), reason=f"this machine lacks {', '.join(lacks)} (ovmf, swtpm-tools)")


async def booting(host: LibvirtHost, hypervisor: LibvirtHypervisor, template: GuestTemplate) -> Guest:
    """A guest of this template with the small image, which has just been switched on."""
    guest = Guest(host, hypervisor, template=template, memory_mib=256)
    await guest.installed()
    await guest.given(sources={})
    await guest.start()
    return guest


@pytest.mark.parametrize("template", TO_BE_GIVEN)
def test_the_accepted_definition_is_valid_to_libvirt_and_a_config_drive_moves_no_device(
    host: LibvirtHost, template: GuestTemplate
) -> None:
    if FRAMES[template].needs - traits():
        pytest.skip(f"this machine lacks {', '.join(lacks)}")
    places: list[list[tuple[tuple[str, str], ...]]] = []
    for kind in ("tcg", "config-drive"):
        golden = Path(__file__).parents[1] / f"tests/golden/domain/{template}-{kind}.xml"
        host.virsh("define", "--validate", str(golden))
        defined = ET.fromstring(host.virsh("dumpxml", "pileus-b302099a8057"))
        places.append([tuple(each.items()) for each in defined.iterfind("devices/*/address")])
        host.virsh("undefine", "--nvram", "pileus-b302099a8057")
    without, with_drive = places
    assert len(with_drive) == len(without) + 1
    assert set(without) < set(with_drive)


async def test_a_legacy_guest_starts_from_ide_and_is_plugged_nothing_into(
    hypervisor: LibvirtHypervisor, host: LibvirtHost
) -> None:
    guest = await booting(host, hypervisor, GuestTemplate.LEGACY)
    await guest.booted()
    found = await guest.answers("cat /sys/block/sda/device/model; cat /sys/bus/pci/devices/*/device | tr '\\n' ' '")
    assert "QEMU HARDDISK" in found
    assert "0x8139" in found
    assert "0x1237" in found  # the 440FX
    assert "none at virtio" in await guest.answers("echo $(ls /sys/bus/virtio/devices | grep . || echo none) at virtio")
    more = VolumeId(new_id())
    (host.disks / more).write_bytes(bytes(MIB))
    source = DiskSource(kind="file", path=str(host.disks / more), format="raw")
    with pytest.raises(Conflict):
        await guest.given(GuestDisk(volume=more, slot=1), sources={more: source})
    # Defined it is: the next start brings it.
    await hypervisor.stop(guest.spec.id)
    await guest.start()
    await guest.booted()
    assert "2048\n" in await guest.answers("until cat /sys/block/sdb/size; do sleep 1; done 2>/dev/null")


@needs_firmware
async def test_a_guest_with_uefi_keeps_its_variables_and_its_tpm_and_leaves_neither(
    hypervisor: LibvirtHypervisor, host: LibvirtHost
) -> None:
    guest = await booting(host, hypervisor, GuestTemplate.LINUX_UEFI)
    await guest.booted()
    found = await guest.answers("cat /sys/firmware/efi/fw_platform_size /sys/class/tpm/tpm0/tpm_version_major")
    assert "64\n2\n" in found
    kept = [host.nvram(guest.spec.id), host.tpm(guest.spec.id)]
    assert [each.exists() for each in kept] == [True, True]
    await hypervisor.stop(guest.spec.id)
    await guest.given(sources={})
    assert [each.exists() for each in kept] == [True, True]
    await hypervisor.undefine(guest.spec.id)
    assert [each.exists() for each in kept] == [False, False]


@needs_firmware
async def test_windows_firmware_starts_nothing_that_is_not_signed(
    hypervisor: LibvirtHypervisor, host: LibvirtHost
) -> None:
    guest = await booting(host, hypervisor, GuestTemplate.WINDOWS)
    assert "failed to load" in await guest.says(b"Access Denied")


async def test_a_guest_reads_the_cd_that_is_put_into_its_drive_until_it_is_taken_out(
    hypervisor: LibvirtHypervisor, host: LibvirtHost
) -> None:
    guest = await booting(host, hypervisor, GuestTemplate.LINUX)
    await guest.booted()
    pool = DirectoryPool.open(host.disks / "pool")
    content = b"a CD".ljust(MIB, b".")
    image = ImageSource(
        id=ImageId(new_id()),
        sha256=sha256(content).hexdigest(),
        size_bytes=MIB,
        virtual_size_bytes=MIB,
        format="iso",
        url="",
    )

    async def fetch(_: ImageSource) -> AsyncIterator[bytes]:
        yield content

    await pool.ensure_image(image, fetch, lambda _: None)
    medium = await pool.offer(image.id)
    await hypervisor.change_media(guest.spec, {0: medium})
    # A guest that has it open locks the drive.
    read = "until [ \"$(head -c 4 /dev/sr0)\" = 'a CD' ]; do :; done; exec 3</dev/sr0; echo read it"
    assert "read it\n" in await guest.answers(read)
    assert Path(medium.path).stat().st_uid == 0
    await hypervisor.change_media(guest.spec, {})
    assert "gone\n" in await guest.answers("exec 3<&-; until ! head -c 4 /dev/sr0; do :; done 2>/dev/null; echo gone")
