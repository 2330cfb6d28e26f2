"""The port `Hypervisor` on libvirt and QEMU.

libvirtd keeps the definitions and watches the processes; this keeps nothing that it could not do without. libvirtd may
be killed and started again at any time: its guests go on, calls raise Unavailable meanwhile, the first one after that
finds it again.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakSet, WeakValueDictionary

import msgspec

from pileus.agent.hypervisor.libvirt import guestagent
from pileus.agent.hypervisor.libvirt.adopting import Adopting
from pileus.agent.hypervisor.libvirt.appliance import LibvirtAppliance
from pileus.agent.hypervisor.libvirt.binding import Library, VirConnect, VirDomain, error_code
from pileus.agent.hypervisor.libvirt.changes import Changes
from pileus.agent.hypervisor.libvirt.connection import Connection
from pileus.agent.hypervisor.libvirt.consoles import LibvirtConsoles
from pileus.agent.hypervisor.libvirt.domain import (
    Ground,
    console_socket,
    domain_name,
    domain_xml,
)
from pileus.agent.hypervisor.libvirt.firmware import traits
from pileus.agent.hypervisor.libvirt.layered import LibvirtLayers
from pileus.agent.hypervisor.libvirt.mirroring import LibvirtMirrors
from pileus.agent.hypervisor.libvirt.others import Others
from pileus.agent.hypervisor.libvirt.plugging import Plugging
from pileus.agent.hypervisor.libvirt.power import DEED_S, Power
from pileus.agent.hypervisor.libvirt.sizing import VCPUS, Sizing
from pileus.agent.hypervisor.libvirt.states import (
    CHANGES,
    DomainState,
    Lifecycle,
    Order,
    Recalled,
    judge,
    recall,
)
from pileus.agent.hypervisor.port import NOTHING_IN, GuestFound, GuestState, HypervisorFacts
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Invalid, NotFound
from pileus.kernel.ids import InstanceId, PortId, VolumeId
from pileus.link.foreign import ForeignGuest
from pileus.link.guests import GuestSpec, Leaving
from pileus.link.templates import GuestTemplate

T = TypeVar("T")
_LOOK_S = 10.0
# sun_path of unix(7) holds 108 bytes, the last of them 0.
_SOCKET_PATH_AT_MOST = 107
_ALIVE = frozenset({GuestState.RUNNING, GuestState.PAUSED})


class _Seen(msgspec.Struct, frozen=True):
    """What libvirt says of a guest."""

    state: DomainState
    reason: int
    generation: int
    suspended: bool
    vcpus: int


class LibvirtHypervisor:
    """Runs guests on QEMU (a Hypervisor). Belongs to one event loop."""

    def __init__(self, library: Library, *, uri: str, ground: Ground, accelerator_reason: str) -> None:
        """Nothing is opened yet.

        Args:
            library: from `binding.load()`.
            uri: of libvirtd, `qemu:///system?socket=...`.
            ground: its folders have the same paths for libvirtd; they are made if they are missing.
            accelerator_reason: why this accelerator and no other, in words.

        Raises:
            Invalid: the path of the folder for sockets is too long.
        """
        excess = len(bytes(console_socket(ground, InstanceId("0" * 36)))) - _SOCKET_PATH_AT_MOST
        if excess > 0:
            raise Invalid(f"the path {ground.sockets} is {excess} bytes too long for sockets")
        self._library = library
        self._ground = ground
        self._accelerator_reason = accelerator_reason
        self._connection = Connection(library, uri, heard=self._heard, let_go=self._let_go, lost=self._lost)
        self.consoles = LibvirtConsoles(library, self._connection, ground)
        self._turns: WeakValueDictionary[InstanceId, asyncio.Lock] = WeakValueDictionary()
        self._looking = asyncio.Lock()
        self._recalled: dict[InstanceId, Recalled] = {}
        self._adopting = Adopting(library, ground)
        self._adopted: set[InstanceId] = set()
        """Guests whose name is not ours, so that their events are told apart from those of others."""
        kvm = ground.accelerator == "kvm"
        self._sizing = Sizing(library, self._do_to)
        self._plugging = Plugging(library, self._do_to, takes_direct_io=_takes_direct_io, iothread=kvm)
        self._power = Power(library, self._connection, self._do_to, self._ordered)
        self._layers = LibvirtLayers(library, self._do, self._do_to, self._ordered)
        self._mirrors = LibvirtMirrors(library, self._do_to)
        self.appliance = LibvirtAppliance(library, self._connection, ground)
        self._listeners: WeakSet[Changes] = WeakSet()

    @property
    def layers(self) -> LibvirtLayers:
        return self._layers

    @property
    def mirrors(self) -> LibvirtMirrors:
        return self._mirrors

    async def facts(self) -> HypervisorFacts:
        versions, architecture = await self._connection.call(
            "tell its version",
            lambda libvirt: ((libvirt.getLibVersion(), libvirt.getVersion()), str(libvirt.getInfo()[0])),
            timeout_s=DEED_S,  # the first time it asks QEMU what it can do
        )
        return HypervisorFacts(
            name="libvirt",
            version=f"libvirt {_version(versions[0])}, QEMU {_version(versions[1])}",
            accelerator=self._ground.accelerator,
            accelerator_reason=self._accelerator_reason,
            architecture=architecture,
            traits=tuple(sorted(await asyncio.to_thread(traits))),
        )

    async def define(
        self,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
        media: Mapping[int, DiskSource] = NOTHING_IN,
        config_drive: DiskSource | None = None,
    ) -> None:
        def define(libvirt: VirConnect) -> None:
            direct = frozenset(id for id, source in disks.items() if _takes_direct_io(source.path))
            if guest.template == GuestTemplate.AS_FOUND:
                self._adopting.take(libvirt, guest, disks, plugs, direct)
                return
            xml = domain_xml(guest, disks, plugs, self._ground, direct=direct, media=media, config_drive=config_drive)
            for folder in (self._ground.sockets, self._ground.logs):
                # Whoever reaches the socket of a console is at the guest's keyboard.
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            libvirt.defineXML(xml)

        await self._do("define the guest", guest.id, define)
        if guest.template == GuestTemplate.AS_FOUND:
            self._adopted.add(guest.id)

    async def change_disks(self, guest: GuestSpec, disks: Mapping[VolumeId, DiskSource]) -> None:
        await self._plugging.change_disks(guest, disks)

    async def change_media(self, guest: GuestSpec, media: Mapping[int, DiskSource]) -> None:
        await self._plugging.change_media(guest, media)

    async def change_limits(self, guest: GuestSpec) -> None:
        await self._plugging.change_limits(guest)

    async def change_nics(self, guest: GuestSpec, plugs: Mapping[PortId, Plug]) -> None:
        await self._plugging.change_nics(guest, plugs)

    async def change_size(self, guest: GuestSpec) -> None:
        await self._sizing.change_size(guest)

    async def start(self, id: InstanceId) -> None:
        await self._power.start(id)

    async def shut_down(self, id: InstanceId) -> None:
        await self._power.shut_down(id)

    async def stop(self, id: InstanceId) -> None:
        await self._power.stop(id)

    async def pause(self, id: InstanceId) -> None:
        await self._power.pause(id)

    async def resume(self, id: InstanceId) -> None:
        await self._power.resume(id)

    async def suspend(self, id: InstanceId) -> None:
        await self._power.suspend(id)

    async def forget_memory(self, id: InstanceId) -> None:
        await self._power.forget_memory(id)

    async def reboot(self, id: InstanceId, *, hard: bool) -> None:
        await self._power.reboot(id, hard=hard)

    async def set_password(self, id: InstanceId, user: str, password: str) -> None:
        def set_it(libvirt: VirConnect) -> None:
            guestagent.set_password(self._library, libvirt.lookupByUUIDString(id), user, password)

        # Not in the guest's turn: the agent in it may take its time, and nothing else is to wait for that.
        await self._connection.call("set a password in the guest", set_it, timeout_s=DEED_S)

    async def undefine(self, id: InstanceId) -> None:
        library = self._library
        everything = (
            library.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | library.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | library.VIR_DOMAIN_UNDEFINE_NVRAM
            | library.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        )
        try:
            if await self._connection.call(
                "see whose guest it is",
                lambda libvirt: self._is_ours(libvirt.lookupByUUIDString(id)),
                timeout_s=_LOOK_S,
            ):
                await self.stop(id)
                await self._do_to("undefine the guest", id, lambda domain: domain.undefineFlags(everything))
        except NotFound:
            pass  # as it ought to be; its files may still be there
        self._adopted.discard(id)
        self._recalled.pop(id, None)
        await self.consoles.forget(id)

    async def leave(self, id: InstanceId, leaving: Leaving) -> None:
        await self._do("leave the guest", id, lambda libvirt: self._adopting.leave(libvirt, id, leaving))
        self._adopted.discard(id)
        self._recalled.pop(id, None)
        await self.consoles.forget(id)

    async def list(self) -> dict[InstanceId, GuestFound]:
        looked = await self._connection.call("list its guests", self._look, timeout_s=_LOOK_S, turn=self._looking)
        return {id: self._judged(id, seen) for id, seen in looked.items()}

    async def foreign(self) -> Sequence[ForeignGuest]:
        others = Others(self._library, self._is_ours)
        return await self._connection.call("look at other guests", others.look, timeout_s=DEED_S)

    def changes(self) -> AsyncIterator[InstanceId]:
        changes = Changes(self._connection)
        self._listeners.add(changes)
        return changes

    async def close(self) -> None:
        """Let go of libvirt and of consoles; guests go on."""
        await self.consoles.close()
        self._lost()
        await self._connection.close()

    async def _do(self, what: str, id: InstanceId, deed: Callable[[VirConnect], T], *, timeout_s: float = DEED_S) -> T:
        turn = self._turns.setdefault(id, asyncio.Lock())
        return await self._connection.call(what, deed, timeout_s=timeout_s, turn=turn)

    async def _do_to(
        self, what: str, id: InstanceId, deed: Callable[[VirDomain], T], *, timeout_s: float = DEED_S
    ) -> T:
        return await self._do(what, id, lambda libvirt: deed(libvirt.lookupByUUIDString(id)), timeout_s=timeout_s)

    @contextmanager
    def _ordered(self, id: InstanceId, order: Order | None) -> Generator[None]:
        """Remember what the guest was told, before it can be heard to obey."""
        self._recalled[id] = msgspec.structs.replace(self._recalled.get(id, Recalled()), ordered=order)
        try:
            yield
        except NotFound:
            self._recalled.pop(id, None)
            raise

    def _look(self, libvirt: VirConnect) -> dict[InstanceId, _Seen]:
        found: dict[InstanceId, _Seen] = {}
        for domain in libvirt.listAllDomains(0):
            id = InstanceId(domain.UUIDString())
            try:
                if (marks := self._adopting.marks(domain)) is None:
                    continue
                state, reason = domain.state(0)
                suspended = state == DomainState.SHUTOFF and bool(domain.hasManagedSaveImage())
                vcpus = domain.info()[VCPUS] if domain.isActive() else 0
                found[id] = _Seen(DomainState(state), reason, marks.generation, suspended, vcpus)
                if marks.adopted:
                    self._adopted.add(id)
            except self._library.libvirtError as error:
                if error_code(error) == self._library.VIR_ERR_NO_DOMAIN:
                    continue  # gone since it was listed
                raise
        return found

    def _is_ours(self, domain: VirDomain) -> bool:
        return self._adopting.marks(domain) is not None

    def _judged(self, id: InstanceId, seen: _Seen) -> GuestFound:
        if seen.suspended:
            return GuestFound(state=GuestState.SUSPENDED, generation=seen.generation)
        recalled = self._recalled.get(id, Recalled())
        judged, cause = judge(seen.state, seen.reason, recalled)
        if judged in _ALIVE and not recalled.running:
            self._recalled[id] = msgspec.structs.replace(recalled, running=True)
        return GuestFound(state=judged, generation=seen.generation, cause=cause, vcpus=seen.vcpus)

    def _heard(self, id: InstanceId, name: str, event: Lifecycle, detail: int) -> None:
        if name != domain_name(id) and id not in self._adopted:
            return
        if event is Lifecycle.UNDEFINED:
            self._recalled.pop(id, None)
        else:
            self._recalled[id] = recall(self._recalled.get(id, Recalled()), event, detail)
        if event in CHANGES:
            for listener in tuple(self._listeners):
                listener.tell(id)

    def _let_go(self, id: InstanceId) -> None:
        self._plugging.let_go(id)

    def _lost(self) -> None:
        for listener in tuple(self._listeners):
            listener.end()
        self._listeners.clear()


def _takes_direct_io(path: str) -> bool:
    """Whether a file can be read past the page cache; some file systems (tmpfs, some FUSE) refuse."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _version(number: int) -> str:
    """From libvirt's way of writing versions: 1,000,000 major + 1,000 minor + release."""
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"
