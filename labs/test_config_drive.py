"""A config drive on a real QEMU, in a guest that has no network."""

import gzip
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest
from libvirt_guest import Guest
from libvirt_host import LibvirtHost, missing
from msgspec.structs import replace

from pileus.agent.configdrive import ConfigDrives
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.storage.port import DiskSource
from pileus.link.guests import FirstBoot

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]

SCRIPT = b"#!/bin/sh\necho told by the drive >/dev/ttyS0\n#" + b"." * 65_000


async def test_a_guest_without_a_network_becomes_what_its_config_drive_says_and_can_only_read_it(
    hypervisor: LibvirtHypervisor, host: LibvirtHost
) -> None:
    guest = Guest(host, hypervisor)
    await guest.installed()
    script = SCRIPT.ljust(65_536, b".")
    boot = FirstBoot(hostname="hermit", user_data=b64encode(script).decode(), user_data_base64=True)
    guest.spec = replace(guest.spec, nics=(), first_boot=boot)
    drives = ConfigDrives(host.disks / "config-drives")
    source = await drives.ensure(guest.spec)
    assert source is not None
    root = {guest.root: DiskSource(kind="file", path=str(guest.disk), format="raw")}
    await hypervisor.define(guest.spec, root, {}, config_drive=source)
    await guest.start()
    said = await guest.says(b"root@hermit:~# ")
    assert "source=config-drive" in said
    if "told by the drive" not in said:
        await guest.says(b"told by the drive")
    assert f"{sha256(script).hexdigest()}  -" in await guest.answers(
        "mount -o ro LABEL=config-2 /mnt || mount -o ro $(findfs LABEL=config-2) /mnt;"
        " sha256sum </mnt/openstack/latest/user_data"
    )
    disk = "$(basename $(findfs LABEL=config-2))"
    assert "ro 1\n" in await guest.answers(f"echo ro $(cat /sys/block/{disk}/ro)")
    assert "none of eth\n" in await guest.answers("echo $(ls /sys/class/net | grep eth || echo none) of eth")
    # What is new comes with the next start; also in bytes that are no text.
    packed = gzip.compress(b"#!/bin/sh\n", mtime=0)
    told = FirstBoot(hostname="hermit", user_data=b64encode(packed).decode(), user_data_base64=True)
    guest.spec = replace(guest.spec, first_boot=told)
    assert await drives.ensure(guest.spec) == source
    same = "umount /mnt; mount -o ro $(findfs LABEL=config-2) /mnt; sha256sum </mnt/openstack/latest/user_data"
    assert sha256(script).hexdigest() in await guest.answers(same)
    await hypervisor.stop(guest.spec.id)
    await guest.start()
    await guest.booted()
    assert sha256(packed).hexdigest() in await guest.answers(same)
    assert Path(source.path).stat().st_mode & 0o777 == 0o600
    await hypervisor.undefine(guest.spec.id)
    await drives.remove(guest.spec.id)
    assert not Path(source.path).parent.exists()
