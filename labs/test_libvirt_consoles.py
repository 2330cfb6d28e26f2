"""Screens of guests on a real QEMU, by a real libvirtd that belongs to the test."""

import asyncio
import re
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from libvirt_host import LibvirtHost, missing
from patience import WITHIN_S
from rfb import Refused, Viewer

from pileus.agent.hypervisor.libvirt import binding
from pileus.agent.hypervisor.libvirt.domain import console_log, domain_name
from pileus.agent.hypervisor.libvirt.driver import LibvirtHypervisor
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import InstanceId, ProjectId, VolumeId, new_id
from pileus.kernel.units import MIB
from pileus.link.guests import FirstBoot, GuestDisk, GuestSpec, Power

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"libvirt lab: {missing()}")]


@pytest.fixture
async def hypervisor(host: LibvirtHost) -> AsyncIterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor(binding.load(), uri=host.uri, ground=host.ground, accelerator_reason="for the lab")
    yield hypervisor
    for id in await hypervisor.list():
        await hypervisor.undefine(id)
    await hypervisor.close()
    assert [*host.ground.sockets.glob("*"), *host.ground.logs.glob("*")] == []


@pytest.fixture
async def guest(host: LibvirtHost, hypervisor: LibvirtHypervisor) -> InstanceId:
    """A guest that runs, whose firmware shows that it finds nothing to boot."""
    spec = GuestSpec(
        id=InstanceId(new_id()),
        generation=1,
        name="seen",
        project=ProjectId(new_id()),
        vcpus=1,
        memory_mib=64,
        power=Power.RUNNING,
        disks=(GuestDisk(volume=VolumeId(new_id())),),
        nics=(),
        first_boot=FirstBoot(hostname="seen"),
    )
    disk = host.disks / spec.disks[0].volume
    with disk.open("wb") as file:
        file.truncate(MIB)
    await hypervisor.define(spec, {spec.disks[0].volume: DiskSource(kind="file", path=str(disk), format="raw")}, {})
    await hypervisor.start(spec.id)
    return spec.id


@pytest.fixture
async def viewer(hypervisor: LibvirtHypervisor) -> AsyncIterator[Callable[[InstanceId], Awaitable[Viewer]]]:
    """Brings somebody in front of a guest's screen."""
    async with AsyncExitStack() as lines:

        async def come(guest: InstanceId) -> Viewer:
            line = await hypervisor.consoles.screen(guest)
            lines.push_async_callback(line.close)
            return Viewer(line)

        yield come


async def test_a_screen_is_seen_with_its_password_only_and_listens_nowhere(
    host: LibvirtHost,
    hypervisor: LibvirtHypervisor,
    guest: InstanceId,
    viewer: Callable[[InstanceId], Awaitable[Viewer]],
) -> None:
    consoles = hypervisor.consoles
    with pytest.raises(Refused):
        await (await viewer(guest)).sign_in("")

    await consoles.set_screen_password(guest, "first---", good_for_s=3600)
    await consoles.set_screen_password(guest, "second--", good_for_s=3600)
    for wrong in ("first---", "second-", "", "SECOND--"):
        with pytest.raises(Refused):
            await (await viewer(guest)).sign_in(wrong)
    seated = await viewer(guest)
    await seated.sign_in("second--")
    async with asyncio.timeout(WITHIN_S):
        while not any(await seated.picture()):
            await asyncio.sleep(0.2)
    width, height = seated.size
    assert width >= 640
    assert height >= 350
    await seated.press(0xFF0D)

    # Its firmware may be drawing the screen anew at this moment.
    async with asyncio.timeout(WITHIN_S):
        while len(set(pixels_of(shown := await consoles.screenshot(guest)))) < 2:
            await asyncio.sleep(0.2)
    assert min(size_of(shown)) > 300

    await consoles.set_screen_password(guest, "late----", good_for_s=-5)
    with pytest.raises(Refused):
        await (await viewer(guest)).sign_in("late----")
    async with asyncio.timeout(WITHIN_S):
        while not any(await seated.picture()):  # who is in stays
            await asyncio.sleep(0.2)

    listening = host.run("ss", "--listening", "--tcp", "--udp", "--unix", "--processes", "--no-header").splitlines()
    mine = [each for each in listening if "qemu-system" in each]
    assert [each for each in mine if not re.search(r"monitor\.sock|guest_agent|\.serial", each)] == []
    assert "late----" not in host.virsh("dumpxml", domain_name(guest))

    await hypervisor.stop(guest)
    async with asyncio.timeout(WITHIN_S):
        await seated.end()
    with pytest.raises(Conflict):
        await consoles.screen(guest)
    with pytest.raises(Conflict):
        await consoles.screenshot(guest)
    with pytest.raises(Conflict):
        await consoles.set_screen_password(guest, "x", good_for_s=1)


async def test_what_a_guest_said_is_kept_for_as_long_as_the_guest(
    host: LibvirtHost, hypervisor: LibvirtHypervisor, guest: InstanceId
) -> None:
    log = console_log(host.ground, guest)
    said = await hypervisor.consoles.said(guest, last_bytes=MIB)
    assert log.read_bytes().startswith(said)
    await hypervisor.stop(guest)
    log.write_bytes(b"newest\n")
    log.with_name(f"{log.name}.0").write_bytes(b"older\n")
    log.with_name(f"{log.name}.1").write_bytes(b"oldest\n")
    assert await hypervisor.consoles.said(guest, last_bytes=MIB) == b"oldest\nolder\nnewest\n"
    assert await hypervisor.consoles.said(guest, last_bytes=9) == b"r\nnewest\n"
    assert await hypervisor.consoles.said(guest, last_bytes=3) == b"st\n"
    await hypervisor.undefine(guest)
    with pytest.raises(NotFound):
        await hypervisor.consoles.said(guest, last_bytes=MIB)


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def pixels_of(png: bytes) -> bytes:
    """All that its parts of data hold."""
    at, data = 8, b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    return zlib.decompress(data)
