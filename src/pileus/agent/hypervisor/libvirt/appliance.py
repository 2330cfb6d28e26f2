"""The appliance on libvirt and QEMU: a guest without definition, which libvirtd ends when its agent is gone.

A kernel is booted over the initramfs that `pileus.guestimage.appliance` builds. The request goes in on a small disk
beside the one that is to be changed, and the answer comes back on it. Whatever a disk may do to that kernel, all that
is believed of the answer is which of a few words it is.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import structlog

from pileus.agent.hypervisor.libvirt.binding import Library, VirConnect, error_code
from pileus.agent.hypervisor.libvirt.board import add_clock, add_processor
from pileus.agent.hypervisor.libvirt.connection import Connection
from pileus.agent.hypervisor.libvirt.domain import APPLIANCE_PREFIX, Ground, appliance_name
from pileus.agent.hypervisor.libvirt.elements import add
from pileus.agent.hypervisor.libvirt.templates import hardware_of
from pileus.agent.storage.port import DiskSource
from pileus.guestimage.appliance import INITRAMFS, KERNEL
from pileus.kernel.errors import Conflict, TimedOut, Unavailable
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import InstanceId

log = structlog.stdlib.get_logger()

_MEMORY_MIB: Final = 192
_DEED_S: Final = 60.0
_WITHIN_S: Final = 120.0
"""From its start to its end; emulated it takes some ten seconds."""
_LOOK_S: Final = 0.2
_REQUEST_BYTES: Final = 4096
"""As much again is for the answer."""
_COMMAND_LINE: Final = "rdinit=/init quiet panic=-1"
DONE: Final = "ok"
REFUSALS: Final[Mapping[str, str]] = {
    "no-user": "the system on its disk has no such user, or no password file with that user in it",
    "none": "no Linux system was found on its disk",
    "several": "several systems were found on its disk, and no telling which one it boots",
    "damaged": "a file system on its disk is damaged, or needs more than this can do",
    "unwritable": "the password file on its disk cannot be written: the file system is full, or is not to be changed",
    "crypto_LUKS": "its disk is encrypted (LUKS)",
    "BitLocker": "its disk is encrypted (BitLocker)",
    "LVM2_member": "its system is in logical volumes (LVM), which are not looked into",
    "linux_raid_member": "its system is on a software RAID, which is not looked into",
    "ntfs": "a Windows file system (NTFS) was found on its disk",
}


class LibvirtAppliance:
    """Appliances of a libvirtd, one at a time (an Appliance)."""

    def __init__(self, library: Library, connection: Connection, ground: Ground) -> None:
        self._library = library
        self._connection = connection
        self._ground = ground
        self._alone = asyncio.Lock()
        self._running: str = ""

    async def set_password(self, id: InstanceId, disk: DiskSource, user: str, hash: str) -> None:
        folder = self._ground.appliance
        if folder is None or not await asyncio.to_thread((folder / KERNEL).exists):
            raise Conflict("its host has nothing that could look into its disk; `pileus up` there gets it ready")
        async with self._alone:
            exchange = folder / f"{appliance_name(id)}.raw"
            self._running = appliance_name(id)
            try:
                request = f"{user}\n{hash}\n".encode().ljust(2 * _REQUEST_BYTES, b"\0")
                await asyncio.to_thread(write_atomically, exchange, request)
                await self._run(appliance_xml(id, disk, exchange, folder, self._ground))
                said = await asyncio.to_thread(_answer, exchange)
            finally:
                await asyncio.to_thread(exchange.unlink, missing_ok=True)
                self._running = ""
        if said in REFUSALS:
            raise Conflict(REFUSALS[said], internal=said)
        if said != DONE:
            raise Unavailable("what looked into its disk ended without an answer", internal=f"said {said!r}")
        log.info("password set in a disk", guest=id, user=user)

    async def sweep(self) -> None:
        await self._connection.call("end appliances", self._end_others, timeout_s=_DEED_S)
        if (folder := self._ground.appliance) is not None:
            await asyncio.to_thread(self._remove_exchanges, folder)

    async def _run(self, xml: str) -> None:
        """From its start to its end. Raises TimedOut if that does not come."""
        name, flag = self._running, self._library.VIR_DOMAIN_START_AUTODESTROY

        def start(libvirt: VirConnect) -> None:
            if not self._is_there(libvirt, name):
                libvirt.createXML(xml, flag)

        try:
            await self._connection.call("look into the disk", start, timeout_s=_DEED_S)
            async with asyncio.timeout(_WITHIN_S):
                while await self._looks(name):  # noqa: ASYNC110 - libvirt tells, but not to one who lost it meanwhile
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as late:
            raise TimedOut(f"what looked into its disk did not end within {_WITHIN_S:g} s") from late
        finally:
            await asyncio.shield(
                self._connection.call("end it", lambda libvirt: self._end(libvirt, name), timeout_s=_DEED_S)
            )

    async def _looks(self, name: str) -> bool:
        what = "see what looks into the disk"
        return await self._connection.call(what, lambda libvirt: self._is_there(libvirt, name), timeout_s=_DEED_S)

    def _is_there(self, libvirt: VirConnect, name: str) -> bool:
        return any(each.name() == name for each in libvirt.listAllDomains(0))

    def _end(self, libvirt: VirConnect, name: str) -> None:
        for each in libvirt.listAllDomains(0):
            if each.name() == name:
                try:
                    each.destroyFlags(0)
                except self._library.libvirtError as error:
                    if error_code(error) != self._library.VIR_ERR_NO_DOMAIN:  # it has ended by itself
                        raise

    def _end_others(self, libvirt: VirConnect) -> None:
        for each in libvirt.listAllDomains(0):
            name = each.name()
            if name.startswith(APPLIANCE_PREFIX) and name != self._running:
                log.warning("appliance ended that nobody waits for", name=name)
                self._end(libvirt, name)

    def _remove_exchanges(self, folder: Path) -> None:
        # Each holds the hash of a password.
        for each in folder.glob(f"*{APPLIANCE_PREFIX}*"):
            if not self._running or self._running not in each.name:
                each.unlink(missing_ok=True)


def _answer(exchange: Path) -> str:
    with exchange.open("rb") as file:
        file.seek(_REQUEST_BYTES)
        said, end, _ = file.read(_REQUEST_BYTES).partition(b"\n")
    return said.decode("ascii", errors="replace") if end else ""


def appliance_xml(id: InstanceId, disk: DiskSource, exchange: Path, folder: Path, ground: Ground) -> str:
    """What an appliance looks like to libvirt: the least of a guest that can have two disks."""
    hardware = hardware_of("linux")
    kvm = ground.accelerator == "kvm"
    domain = ET.Element("domain", type="kvm" if kvm else "qemu")
    add(domain, "name", text=appliance_name(id))
    add(domain, "memory", text=str(_MEMORY_MIB), unit="MiB")
    add(domain, "vcpu", text="1")
    system = add(domain, "os")
    add(system, "type", text="hvm", arch="x86_64", machine=hardware.machine)
    add(system, "kernel", text=str(folder / KERNEL))
    add(system, "initrd", text=str(folder / INITRAMFS))
    add(system, "cmdline", text=_COMMAND_LINE)
    add_processor(domain, hardware, kvm=kvm)
    add_clock(domain, hardware, kvm=kvm)
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        add(domain, event, text="destroy")
    devices = add(domain, "devices")
    given = DiskSource(kind="file", path=str(exchange), format="raw")
    for target, serial, source in (("vda", "pileus-disk", disk), ("vdb", "pileus-exchange", given)):
        type, attribute = ("block", "dev") if source.kind == "block" else ("file", "file")
        element = add(devices, "disk", type=type, device="disk")
        add(element, "driver", name="qemu", type=source.format, cache="writeback")
        add(element, "source", **{attribute: source.path})
        add(element, "target", dev=target, bus="virtio")
        add(element, "serial", text=serial)
    add(devices, "controller", type="usb", model="none")
    add(devices, "memballoon", model="none")
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")
