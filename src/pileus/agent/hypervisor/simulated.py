"""A hypervisor in memory. It outlives its agent as a real one does: hand the same one to the next agent."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from msgspec import structs

from pileus.agent.faults import Faults
from pileus.agent.hypervisor.port import NOTHING_IN, GuestFound, GuestState, HypervisorFacts
from pileus.agent.hypervisor.simulatedappliance import SimulatedAppliance
from pileus.agent.hypervisor.simulatedconsoles import SimulatedConsoles
from pileus.agent.hypervisor.simulatedguest import UP, DefinedGuest, connected, left, most_of, plugged, written
from pileus.agent.hypervisor.simulatedlayers import SimulatedLayers
from pileus.agent.hypervisor.simulatedmirrors import SimulatedMirrors
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Conflict, NotFound, Unavailable
from pileus.kernel.ids import InstanceId, PortId, VolumeId
from pileus.link.foreign import ForeignGuest
from pileus.link.guests import GuestSpec, Leaving
from pileus.link.templates import TPM, UEFI, GuestTemplate, check_hot_plug


class SimulatedHypervisor:
    """Runs guests that are nothing but their state."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.guests: dict[InstanceId, DefinedGuest] = {}
        self.deaf: set[InstanceId] = set()
        """Guests that do not end when they are asked to, nor let go of a device, nor hold their file systems still."""
        self.passwords: dict[tuple[InstanceId, str], str] = {}
        """By guest and user, those that were set."""
        self.others: dict[str, ForeignGuest] = {}
        """Guests that somebody made without Pileus, by the hypervisor's ids."""
        self.layers = SimulatedLayers(self)
        self.mirrors = SimulatedMirrors(self)
        self.appliance = SimulatedAppliance(self)
        self._lost = False
        self._watchers: set[asyncio.Queue[InstanceId | None]] = set()
        self.consoles = SimulatedConsoles(self._hostname)

    async def facts(self) -> HypervisorFacts:
        await self.before("facts")
        return HypervisorFacts(
            name="simulated",
            version="1",
            accelerator="simulated",
            accelerator_reason="no guest runs here",
            architecture="x86_64",
            traits=(UEFI, TPM),
        )

    async def define(
        self,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
        media: Mapping[int, DiskSource] = NOTHING_IN,
        config_drive: DiskSource | None = None,
    ) -> None:
        await self.before("define")
        if guest.template == GuestTemplate.AS_FOUND and guest.id not in self.guests:
            self._take_over(guest)
        defined = DefinedGuest(
            spec=guest, disks=dict(disks), plugs=dict(plugs), media=dict(media), config_drive=config_drive
        )
        if (known := self.guests.get(guest.id)) is not None:
            defined = structs.replace(
                defined,
                state=known.state,
                cause=known.cause,
                starts=known.starts,
                plugged=known.plugged,
                size=known.size,
                most=known.most,
                written=known.written,
                inserted=known.inserted,
                reads=known.reads,
                limits=known.limits,
                connected=known.connected,
                other=known.other,
            )
        self.guests[guest.id] = defined
        self.faults.after("hypervisor.define")

    async def change_disks(self, guest: GuestSpec, disks: Mapping[VolumeId, DiskSource]) -> None:
        await self.before("change_disks")
        known = self.guest(guest.id)
        wanted = plugged(guest)
        if known.state in UP and known.plugged != wanted:
            if known.plugged.keys() != wanted.keys():
                check_hot_plug(guest)
            if known.plugged.keys() - wanted.keys() and guest.id in self.deaf:
                raise Conflict("the guest does not let go of a disk")
            files = {volume: known.written.get(volume, disks[volume].path) for volume in wanted}
            self.guests[guest.id] = structs.replace(known, plugged=wanted, written=files)
        self.faults.after("hypervisor.change_disks")

    async def change_media(self, guest: GuestSpec, media: Mapping[int, DiskSource]) -> None:
        await self.before("change_media")
        known = self.guest(guest.id)
        if known.state in UP:
            self.guests[guest.id] = structs.replace(known, inserted=dict(media))
        self.faults.after("hypervisor.change_media")

    async def change_limits(self, guest: GuestSpec) -> None:
        await self.before("change_limits")
        known = self.guest(guest.id)
        if known.state in UP:
            self.guests[guest.id] = structs.replace(known, limits=guest.limits)
        self.faults.after("hypervisor.change_limits")

    async def change_nics(self, guest: GuestSpec, plugs: Mapping[PortId, Plug]) -> None:  # noqa: ARG002
        await self.before("change_nics")
        known = self.guest(guest.id)
        wanted = connected(guest)
        if known.state in UP and known.connected != wanted:
            check_hot_plug(guest)
            if known.connected - wanted and guest.id in self.deaf:
                raise Conflict("the guest does not let go of a network interface")
            self.guests[guest.id] = structs.replace(known, connected=wanted)
        self.faults.after("hypervisor.change_nics")

    async def change_size(self, guest: GuestSpec) -> None:
        await self.before("change_size")
        known = self.guest(guest.id)
        wanted = guest.vcpus, guest.memory_mib
        if known.state in UP:
            if any(want > most for want, most in zip(wanted, known.most, strict=True)):
                raise Conflict("the guest was started with less than that as its most")
            if guest.id in self.deaf and any(want < has for want, has in zip(wanted, known.size, strict=True)):
                raise Conflict("the guest does not let go of it")
            self.guests[guest.id] = structs.replace(known, size=wanted)
        self.faults.after("hypervisor.change_size")

    async def start(self, id: InstanceId) -> None:
        await self.before("start")
        guest = self.guest(id)
        if guest.state is GuestState.SUSPENDED:
            self.become(id, GuestState.RUNNING)
        elif guest.state not in UP:
            self.guests[id] = structs.replace(
                guest,
                starts=guest.starts + 1,
                size=(guest.spec.vcpus, guest.spec.memory_mib),
                most=most_of(guest.spec),
                plugged=plugged(guest.spec),
                written=written(guest),
                inserted=guest.media,
                reads=guest.config_drive,
                limits=guest.spec.limits,
                connected=connected(guest.spec),
            )
            self.become(id, GuestState.RUNNING)
        self.faults.after("hypervisor.start")

    async def shut_down(self, id: InstanceId) -> None:
        await self.before("shut_down")
        if self.guest(id).state is GuestState.RUNNING and id not in self.deaf:
            self.become(id, GuestState.SHUT_DOWN)
        self.faults.after("hypervisor.shut_down")

    async def stop(self, id: InstanceId) -> None:
        await self.before("stop")
        if self.guest(id).state not in {GuestState.SHUT_DOWN, GuestState.SUSPENDED}:
            self.become(id, GuestState.SHUT_DOWN)
        self.faults.after("hypervisor.stop")

    async def pause(self, id: InstanceId) -> None:
        await self.before("pause")
        if self.up(id).state is GuestState.RUNNING:
            self.become(id, GuestState.PAUSED)
        self.faults.after("hypervisor.pause")

    async def resume(self, id: InstanceId) -> None:
        await self.before("resume")
        if self.up(id).state is GuestState.PAUSED:
            self.become(id, GuestState.RUNNING)
        self.faults.after("hypervisor.resume")

    async def suspend(self, id: InstanceId) -> None:
        await self.before("suspend")
        if self.guest(id).state is not GuestState.SUSPENDED:
            self.up(id)
            self.become(id, GuestState.SUSPENDED)
        self.faults.after("hypervisor.suspend")

    async def forget_memory(self, id: InstanceId) -> None:
        await self.before("forget_memory")
        if self.guest(id).state is GuestState.SUSPENDED:
            self.become(id, GuestState.SHUT_DOWN)
        self.faults.after("hypervisor.forget_memory")

    async def reboot(self, id: InstanceId, *, hard: bool) -> None:
        await self.before("reboot")
        guest = self.up(id)
        if hard or id not in self.deaf:
            self.guests[id] = structs.replace(guest, starts=guest.starts + 1)
        self.faults.after("hypervisor.reboot")

    async def set_password(self, id: InstanceId, user: str, password: str) -> None:
        await self.before("set_password")
        if self.up(id).state is not GuestState.RUNNING or id in self.deaf:
            raise Conflict("the guest's agent does not answer")
        self.passwords[id, user] = password

    async def undefine(self, id: InstanceId) -> None:
        await self.before("undefine")
        if self.guests.pop(id, None) is not None:
            self.consoles.forget(id)
            self.mirrors.end(id)
            self._tell(id)
        self.faults.after("hypervisor.undefine")

    async def leave(self, id: InstanceId, leaving: Leaving) -> None:
        await self.before("leave")
        if (guest := self.guests.pop(id, None)) is not None:
            self.others[id] = left(guest, leaving)
        self.faults.after("hypervisor.leave")

    def _take_over(self, guest: GuestSpec) -> None:
        other = self.others.pop(guest.id, None)
        if other is None:
            raise NotFound(f"the hypervisor has no guest {guest.id}")
        has = DefinedGuest(spec=guest, disks={}, plugs={}, other=other)
        if other.running:
            size, disks = (guest.vcpus, guest.memory_mib), plugged(guest)
            has = structs.replace(
                has, state=GuestState.RUNNING, size=size, most=most_of(guest), plugged=disks, starts=1
            )
        self.guests[guest.id] = has

    async def foreign(self) -> Sequence[ForeignGuest]:
        await self.before("foreign")
        return tuple(self.others.values())

    async def close(self) -> None:
        """Nothing is open."""

    async def list(self) -> dict[InstanceId, GuestFound]:
        await self.before("list")
        return {
            id: GuestFound(
                state=guest.state,
                generation=guest.spec.generation,
                cause=guest.cause,
                vcpus=guest.size[0] if guest.state in UP else 0,
            )
            for id, guest in self.guests.items()
        }

    async def changes(self) -> AsyncIterator[InstanceId]:
        if self._lost:
            return
        mine = asyncio.Queue[InstanceId | None]()
        self._watchers.add(mine)
        try:
            while (id := await mine.get()) is not None:
                yield id
        finally:
            self._watchers.discard(mine)

    def running(self) -> Iterator[GuestSpec]:
        """The guests that run now."""
        return (guest.spec for guest in self.guests.values() if guest.state is GuestState.RUNNING)

    # What may happen to guests and hypervisor by themselves.

    def crash(self, id: InstanceId, cause: str = "killed by signal 9") -> None:
        """The guest's process dies."""
        self.become(id, GuestState.CRASHED, cause)

    def shuts_itself_down(self, id: InstanceId) -> None:
        """Somebody in the guest switches it off."""
        self.become(id, GuestState.SHUT_DOWN)

    def host_restarts(self) -> None:
        """The host is switched off and on again: it knows its guests, and none runs."""
        for id, guest in list(self.guests.items()):
            if guest.state is not GuestState.SUSPENDED:
                self.become(id, GuestState.SHUT_DOWN)

    def lose(self) -> None:
        """The hypervisor answers no more; its guests run on."""
        self._lost = True
        for watcher in self._watchers:
            watcher.put_nowait(None)

    def come_back(self) -> None:
        self._lost = False

    async def before(self, call: str) -> None:
        await self.faults.before(f"hypervisor.{call}")
        if self._lost:
            raise Unavailable("the hypervisor does not answer")

    def guest(self, id: InstanceId) -> DefinedGuest:
        guest = self.guests.get(id)
        if guest is None:
            raise NotFound(f"the hypervisor has no guest {id}")
        return guest

    def up(self, id: InstanceId) -> DefinedGuest:
        guest = self.guest(id)
        if guest.state not in UP:
            raise Conflict(f"guest {guest.spec.name!r} does not run")
        return guest

    async def _hostname(self, id: InstanceId, *, up: bool) -> str:
        await self.before("console")
        return (self.up(id) if up else self.guest(id)).spec.first_boot.hostname

    def become(self, id: InstanceId, state: GuestState, cause: str = "") -> None:
        self.guests[id] = structs.replace(self.guests[id], state=state, cause=cause)
        if state not in UP:
            self.consoles.end(id)
            self.mirrors.end(id)
        self._tell(id)

    def _tell(self, id: InstanceId) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(id)
