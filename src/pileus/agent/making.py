"""The deeds by which a guest is brought to its record, and taken away: what requests and keeping have in common."""

import asyncio
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import structlog
from msgspec import structs

from pileus.agent.comparing import is_suspended, is_up, observed, power_of
from pileus.agent.configdrive import ConfigDrives
from pileus.agent.hypervisor.port import GuestFound, GuestState, Hypervisor
from pileus.agent.media import Media
from pileus.agent.metadata import Metadata
from pileus.agent.network.port import HostNetwork
from pileus.agent.records import GuestRecord, Records, Removed, specs_of
from pileus.agent.storage.port import DiskSource
from pileus.agent.turns import Turns
from pileus.agent.volumes import Tell, Volumes
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, NotFound, PileusError
from pileus.kernel.ids import InstanceId, NetworkId
from pileus.link.guests import GuestObserved, GuestSpec, Leaving, Power
from pileus.link.messages import Progress
from pileus.link.templates import GuestTemplate

AT_ONCE: Final = 8
"""Guests that are made or removed at the same time."""
_LOOK_S: Final = 1.0
"""How often a guest that was asked to end is looked at, should the hypervisor not tell."""
ASK_AGAIN_S: Final = 10.0
"""After this long it is asked again: a guest that still boots does not hear the first time."""

log = structlog.stdlib.get_logger()


class Making:
    """Makes and unmakes guests. Whoever calls holds the guest's turn."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        network: HostNetwork,
        volumes: Volumes,
        media: Media,
        config_drives: ConfigDrives,
        records: Records[InstanceId, GuestRecord | Removed],
        clock: Clock,
        *,
        boot: str,
        patience_s: float,
    ) -> None:
        """Guests on this hypervisor.

        `boot` names this boot of the host. A guest that was asked to end has `patience_s` seconds to do so.
        """
        self.hypervisor = hypervisor
        self.network = network
        self.records = records
        self.clock = clock
        self.boot = boot
        self.turns = Turns()
        self.found: Mapping[InstanceId, GuestFound] | None = None
        """What the hypervisor had when it was last asked."""
        self._volumes = volumes
        self._media = media
        self._config_drives = config_drives
        self._patience_s = patience_s
        self._metadata = Metadata(self.specs)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._ending: dict[InstanceId, asyncio.Event] = {}
        self._hurried: set[InstanceId] = set()
        self._serving = asyncio.Lock()
        self._served: dict[NetworkId, int] | None = None

    async def make(self, record: GuestRecord, tell: Tell, *, cause: str = "") -> GuestObserved:
        """Bring the guest to its record, whatever it is like now."""
        spec = record.spec
        async with self._slots:
            disks = {disk.volume: await self._volumes.source(disk.volume, disk.pool) for disk in spec.disks}
            tell(Progress(step="connecting"))
            plugs = {nic.port: await self.network.plug(spec.id, nic) for nic in spec.nics}
            await self.serve()
            tell(Progress(step="defining"))
            media = await self._media.sources(spec.media)
            config_drive = await self._config_drives.ensure(spec)
            await self.hypervisor.define(spec, disks, plugs, media, config_drive)
            if record.power is not Power.STOPPED and is_up(await self.find(spec.id)):
                if record.resized:
                    # Only then: a guest that is just starting has not come to its size yet, and holds nobody up.
                    await self.hypervisor.change_size(spec)
                await self.hypervisor.change_disks(spec, disks)
                await self.hypervisor.change_media(spec, media)
                await self.hypervisor.change_nics(spec, plugs)
                if spec.limits is not None or any(disk.limits is not None for disk in spec.disks):
                    await self.hypervisor.change_limits(spec)
            for port in record.former_ports:
                await self.network.unplug(port)
        changed = await self._bring_to(record.power, spec.id, tell)
        record = structs.replace(
            record,
            made=True,
            resized=False,
            boot=self.boot,
            former_ports=(),
            since=self.clock.now() if changed else record.since,
            cause=cause if changed else record.cause,
        )
        await self.records.put(spec.id, record)
        return observed(record, record.power, record.cause)

    async def root_of(self, spec: GuestSpec) -> DiskSource:
        """Where the disk is that the guest boots from. Raises NotFound if it is not here."""
        root = next((disk for disk in spec.disks if disk.slot == 0), None)
        if root is None:
            raise NotFound(f"guest {spec.name!r} has no disk that it boots from")
        return await self._volumes.source(root.volume, root.pool)

    async def _bring_to(self, power: Power, id: InstanceId, tell: Tell) -> bool:
        """Start, stop, pause, suspend or resume the guest, if it needs that.

        Raises Conflict if it is to be suspended and does not run: there is no memory to keep.
        """
        found = await self.find(id)
        up, paused = is_up(found), found is not None and found.state is GuestState.PAUSED
        if power is Power.STOPPED and up:
            tell(Progress(step="stopping"))
            await self.shut_down(id)
        elif power is Power.STOPPED and is_suspended(found):
            await self.hypervisor.forget_memory(id)
        elif power is Power.SUSPENDED and not is_suspended(found):
            if not up:
                raise Conflict("the guest does not run: it has no memory to be kept")
            tell(Progress(step="suspending"))
            await self.hypervisor.suspend(id)
        elif power in {Power.RUNNING, Power.PAUSED} and not up:
            tell(Progress(step="starting"))
            await self.hypervisor.start(id)
        if power is Power.PAUSED and not paused:
            tell(Progress(step="pausing"))
            await self.hypervisor.pause(id)
        elif power is Power.RUNNING and paused:
            tell(Progress(step="resuming"))
            await self.hypervisor.resume(id)
        return power_of(found, power) is not power

    async def shut_down(self, id: InstanceId) -> None:
        """Ask the guest to end, and end it if it does not in time or is to be removed."""
        found = await self.find(id)
        if found is not None and found.state is GuestState.PAUSED:
            await self.hypervisor.resume(id)  # or it does not hear
        told = self._ending[id] = asyncio.Event()
        ask_at = self.clock.monotonic()
        try:
            async with asyncio.timeout(self._patience_s):
                while id not in self._hurried:
                    if not is_up(await self.find(id)):
                        return
                    if self.clock.monotonic() >= ask_at:
                        await self.hypervisor.shut_down(id)
                        ask_at += ASK_AGAIN_S
                        continue
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await told.wait()
                    told.clear()
        except TimeoutError:
            log.info("guest did not end when asked", guest=id, patience_s=self._patience_s)
        finally:
            del self._ending[id]
        await self.hypervisor.stop(id)

    @contextmanager
    def hurrying(self, id: InstanceId) -> Generator[None, None, None]:
        """Nobody waits for this guest to end in order any more."""
        self._hurried.add(id)
        self.heard_of(id)
        try:
            yield
        finally:
            self._hurried.discard(id)

    def heard_of(self, id: InstanceId) -> None:
        """The hypervisor says that a guest has changed."""
        if (told := self._ending.get(id)) is not None:
            told.set()

    async def serve(self) -> None:
        """Have metadata and DNS answered for the networks of all guests here."""
        async with self._serving:
            wanted = {nic.network: nic.mtu for spec in self.specs() for nic in spec.nics}
            if wanted == self._served:
                return
            self._served = None
            await self.network.serve(wanted, self._metadata)
            self._served = wanted

    async def undo(self, record: GuestRecord) -> None:
        """Leave nothing of a guest that could not be made, but let the same wish come again."""
        id = record.spec.id
        # One that was to be taken over stays whose it was.
        leaving = Leaving() if record.spec.template == GuestTemplate.AS_FOUND else None
        removed = Removed(
            generation=record.spec.generation - 1, at=self.clock.now(), ports=record.ports, leaving=leaving
        )
        try:
            await self.records.put(id, removed)
            await self.finish_removal(id, removed)
        except PileusError as why:
            log.warning("undo of a guest goes on later", guest=id, why=str(why), internal=why.internal)

    async def finish_removal(self, id: InstanceId, removed: Removed) -> Removed:
        if removed.finished:
            return removed
        async with self._slots:
            if removed.leaving is not None:
                await self.hypervisor.leave(id, removed.leaving)
            else:
                with suppress(NotFound):
                    await self.hypervisor.undefine(id)
            await self._config_drives.remove(id)
            for port in removed.ports:
                await self.network.unplug(port)
            await self.serve()
        finished = Removed(generation=removed.generation, at=self.clock.now(), finished=True)
        await self.records.put(id, finished)
        return finished

    def specs(self) -> list[GuestSpec]:
        return specs_of(self.records)

    def known(self, id: InstanceId) -> GuestRecord:
        record = self.records.get(id)
        if not isinstance(record, GuestRecord):
            raise NotFound(f"there is no guest {id} on this host")
        return record

    async def look(self) -> Mapping[InstanceId, GuestFound]:
        self.found = await self.hypervisor.list()
        return self.found

    async def find(self, id: InstanceId) -> GuestFound | None:
        return (await self.look()).get(id)
