"""Changing the devices of a guest while it runs: what is to be there is compared with what is, and the rest is done."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol, TypeVar

import structlog

from pileus.agent.hypervisor.libvirt import asfound
from pileus.agent.hypervisor.libvirt.binding import Library, VirDomain
from pileus.agent.hypervisor.libvirt.disks import disk_alias, disk_xml, disks_of, drive_xml, media_of
from pileus.agent.hypervisor.libvirt.limits import cpu_parameters, disk_parameters
from pileus.agent.hypervisor.libvirt.nics import nic_xml, nics_of
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId, PortId, VolumeId
from pileus.link.guests import GuestLimits, GuestSpec
from pileus.link.templates import GuestTemplate, check_hot_plug

T = TypeVar("T")
log = structlog.stdlib.get_logger()

# A guest that is only just starting hears nothing yet.
_LETS_GO_S = 30.0
_LOOK_AGAIN_S = 0.2


class DoTo(Protocol):
    """Does something to the domain of a guest, in its turn; `what` is told if it fails."""

    def __call__(self, what: str, id: InstanceId, deed: Callable[[VirDomain], T]) -> Awaitable[T]: ...


class Plugging:
    """Plugs in and out what a running guest has."""

    def __init__(
        self, library: Library, do_to: DoTo, *, takes_direct_io: Callable[[str], bool], iothread: bool
    ) -> None:
        """`takes_direct_io` says whether a file can be read past the page cache; disks are served by an `iothread`."""
        self._library = library
        self._do_to = do_to
        self._takes_direct_io = takes_direct_io
        self._iothread = iothread
        self._unplugging: dict[InstanceId, asyncio.Event] = {}

    def let_go(self, id: InstanceId) -> None:
        """Take that libvirt says a guest has let go of a device."""
        if (told := self._unplugging.get(id)) is not None:
            told.set()

    async def change_disks(self, guest: GuestSpec, disks: Mapping[VolumeId, DiskSource]) -> None:
        """Plug in, unplug and enlarge disks; see the port."""
        wanted = {disk.volume for disk in guest.disks}
        is_as_found = guest.template == GuestTemplate.AS_FOUND

        def unwanted(definition: str) -> set[str]:
            if is_as_found:
                return asfound.unwanted(definition, guest)
            return {disk_alias(volume) for volume in disks_of(definition) if volume not in wanted}

        await self._must_be_pluggable(guest, lambda definition: set(disks_of(definition)) != wanted)
        await self._unplug(unwanted, guest.id, "disk")
        library = self._library

        def plug(domain: VirDomain) -> None:
            if not domain.isActive():
                return
            has = asfound.present(domain.XMLDesc(0), guest)
            for disk in guest.disks:
                if disk.volume not in has:
                    source = disks[disk.volume]
                    direct = self._takes_direct_io(source.path)
                    iothread = self._iothread and not is_as_found
                    xml = disk_xml(guest, disk, source, direct=direct, iothread=iothread)
                    domain.attachDeviceFlags(xml, library.VIR_DOMAIN_AFFECT_LIVE)
                # What is larger already stays so: the guest may be using it.
                elif disk.size_bytes and disk.size_bytes > domain.blockInfo(has[disk.volume])[0]:
                    domain.blockResize(has[disk.volume], disk.size_bytes, library.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

        await self._do_to("change the guest's disks", guest.id, plug)

    async def change_media(self, guest: GuestSpec, media: Mapping[int, DiskSource]) -> None:
        """Have these media in the drives; see the port."""
        flags = self._library.VIR_DOMAIN_AFFECT_LIVE | self._library.VIR_DOMAIN_DEVICE_MODIFY_FORCE

        def change(domain: VirDomain) -> bool:
            """Change what is not yet as wanted; whether all is."""
            if not domain.isActive():
                return True
            inserted = media_of(domain.XMLDesc(0), guest)
            if media.keys() - inserted.keys():
                raise Conflict(f"guest {guest.name!r} was started without such a drive: it has one when next started")
            wanted = {drive: medium.path if (medium := media.get(drive)) else "" for drive in inserted}
            for drive in (drive for drive in inserted if inserted[drive] != wanted[drive]):
                try:
                    domain.updateDeviceFlags(drive_xml(guest, drive, media.get(drive)), flags)
                except self._library.libvirtError as error:
                    # Many a guest closes the drive as soon as it sees it open.
                    log.info("medium not changed at once", guest=guest.id, drive=drive, why=str(error))
            return media_of(domain.XMLDesc(0), guest) == wanted

        try:
            async with asyncio.timeout(_LETS_GO_S):
                while not await self._do_to("change the media in the guest's drives", guest.id, change):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_AGAIN_S)
        except TimeoutError as late:
            raise Conflict("the guest does not let its drive be opened; it may be only just starting") from late

    async def change_limits(self, guest: GuestSpec) -> None:
        """Have the guest take no more than is specified; see the port."""
        limits, live = guest.limits or GuestLimits(), self._library.VIR_DOMAIN_AFFECT_LIVE
        own = {disk.volume: disk.limits for disk in guest.disks}

        def change(domain: VirDomain) -> None:
            if not domain.isActive():
                return
            domain.setSchedulerParametersFlags(cpu_parameters(limits), live)
            for volume, target in asfound.present(domain.XMLDesc(0), guest).items():
                domain.setBlockIoTune(target, disk_parameters(limits, own.get(volume)), live)

        await self._do_to("limit the guest", guest.id, change)

    async def change_nics(self, guest: GuestSpec, plugs: Mapping[PortId, Plug]) -> None:
        """Plug in and unplug network cards; see the port."""
        devices = {plug.device for plug in plugs.values()}

        def unwanted(definition: str) -> set[str]:
            return {alias for device, alias in nics_of(definition, guest).items() if device not in devices}

        await self._must_be_pluggable(guest, lambda definition: set(nics_of(definition, guest)) != devices)
        await self._unplug(unwanted, guest.id, "network card")

        def plug(domain: VirDomain) -> None:
            has = nics_of(domain.XMLDesc(0), guest) if domain.isActive() else devices
            for nic in guest.nics:
                if plugs[nic.port].device not in has:
                    xml = nic_xml(guest, nic, plugs[nic.port])
                    domain.attachDeviceFlags(xml, self._library.VIR_DOMAIN_AFFECT_LIVE)

        await self._do_to("change the guest's network cards", guest.id, plug)

    async def _must_be_pluggable(self, guest: GuestSpec, differs: Callable[[str], bool]) -> None:
        """Raises Conflict if the running guest has other devices, and none can come or go."""

        def check(domain: VirDomain) -> None:
            if domain.isActive() and differs(domain.XMLDesc(0)):
                check_hot_plug(guest)

        await self._do_to("look at the guest's devices", guest.id, check)

    async def _unplug(self, unwanted: Callable[[str], set[str]], id: InstanceId, what: str) -> None:
        """Take away the devices whose aliases are unwanted in the guest's definition.

        Raises Conflict if the guest does not let go of one in time.
        """
        asked: set[str] = set()

        def unplug(domain: VirDomain) -> bool:
            """Ask for each device once; whether all are gone."""
            there = unwanted(domain.XMLDesc(0)) if domain.isActive() else set[str]()
            for alias in there - asked:
                asked.add(alias)
                try:
                    domain.detachDeviceAlias(alias, self._library.VIR_DOMAIN_AFFECT_LIVE)
                except self._library.libvirtError as error:
                    # Most likely it has been asked before, and has not answered yet.
                    log.info("device not unplugged at once", guest=id, device=alias, why=str(error))
            return not there

        told = self._unplugging[id] = asyncio.Event()
        try:
            async with asyncio.timeout(_LETS_GO_S):
                while not await self._do_to(f"unplug a {what} of the guest", id, unplug):
                    # libvirt tells when a device is gone, but not to one who has lost it in between.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN_S):
                            await told.wait()
                    told.clear()
        except TimeoutError as late:
            raise Conflict(f"the guest does not let go of the {what}; it may be only just starting") from late
        finally:
            self._unplugging.pop(id, None)
