"""The guests of a host: brought to what they ought to be, kept so, and never half made."""

import asyncio
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import structlog
from msgspec import structs

from pileus.agent.crashes import Crashes
from pileus.agent.hypervisor.port import ByteStream, GuestFound, GuestState, Hypervisor
from pileus.agent.metadata import Metadata
from pileus.agent.network.port import HostNetwork, Plug
from pileus.agent.records import GuestRecord, Records, Removed
from pileus.agent.turns import Turns
from pileus.agent.volumes import REMEMBERED, Tell, Volumes
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, NotFound, PileusError, Stale, Unavailable
from pileus.kernel.ids import InstanceId, NetworkId, PortId, VolumeId
from pileus.link.records import GuestObserved, GuestReboot, GuestRemoval, GuestSpec, NicSpec, Power, Progress, Restart

AT_ONCE: Final = 8
"""Guests that are made or removed at the same time."""
_LOOK_S: Final = 1.0
"""How often a guest that was asked to end is looked at, should the hypervisor not tell."""

_FINAL: Final = {
    Restart.ALWAYS: frozenset[GuestState](),
    Restart.ON_FAILURE: frozenset({GuestState.SHUT_DOWN}),
    Restart.NEVER: frozenset({GuestState.SHUT_DOWN, GuestState.CRASHED}),
}
"""How a guest may end that is then left so."""

log = structlog.stdlib.get_logger()


class Guests:
    """Makes, changes, stops and removes guests, and corrects what has become different from what it ought to be."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        network: HostNetwork,
        volumes: Volumes,
        records: Records[InstanceId, GuestRecord | Removed],
        clock: Clock,
        *,
        boot: str,
        patience_s: float,
        observed: Callable[[GuestObserved], None],
    ) -> None:
        """Guests on this hypervisor.

        `boot` names this boot of the host. A guest that was asked to end has `patience_s` seconds to do so. `observed`
        is told of whatever a guest does by itself.
        """
        self._hypervisor = hypervisor
        self._network = network
        self._volumes = volumes
        self._records = records
        self._clock = clock
        self._boot = boot
        self._patience_s = patience_s
        self._observed = observed
        self._metadata = Metadata(self._specs)
        self._turns = Turns()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._crashes: dict[InstanceId, Crashes] = {}
        self._ending: dict[InstanceId, asyncio.Event] = {}
        self._hurried: set[InstanceId] = set()
        self._serving = asyncio.Lock()
        self._served: dict[NetworkId, int] | None = None
        self._strangers: frozenset[InstanceId] = frozenset()
        self._found: Mapping[InstanceId, GuestFound] | None = None

    # What the controller asks for.

    async def ensure(self, spec: GuestSpec, tell: Tell) -> GuestObserved:
        """Have the guest as specified. If it is new and that fails, nothing is left of it.

        The same generation again changes nothing: a guest that has shut itself down since stays down.

        Raises:
            Stale: a later generation is known, or this one has been removed.
            NotFound: a disk of it is not here.
            Unavailable: hypervisor, switch or storage do not answer.
        """
        async with self._turns.of(spec.id):
            before = self._records.get(spec.id)
            if isinstance(before, Removed):
                before = await self._finish_removal(spec.id, before)
            known = -1 if before is None else _generation(before)
            if known > spec.generation or (isinstance(before, Removed) and known == spec.generation):
                raise Stale(f"guest {spec.id} is at generation {known} on this host")
            if isinstance(before, GuestRecord) and known == spec.generation:
                record = before
                found = await self._find(spec.id)
                if found is not None and self._ended_itself(record, found):
                    return await self._accept_end(record, found)
                if found is not None and not _differs(record, found):
                    return self._as_observed(record, found)
            else:
                record = self._next_record(spec, before)
                await self._records.put(spec.id, record)
                self._crashes.pop(spec.id, None)
            try:
                return await self._make(record, tell)
            except Exception:
                if not isinstance(before, GuestRecord):
                    await self._undo(record)
                raise

    async def remove(self, removal: GuestRemoval) -> None:
        """Have the guest no more; it is stopped at once. Its volumes stay.

        Raises:
            Stale: a later generation is known.
            Unavailable: hypervisor or switch do not answer; the removal goes on by itself.
        """
        with self._hurrying(removal.id):
            async with self._turns.of(removal.id):
                before = self._records.get(removal.id)
                known = removal.generation if before is None else _generation(before)
                if isinstance(before, GuestRecord) and known > removal.generation:
                    raise Stale(f"guest {removal.id} is at generation {known} on this host")
                removed = Removed(
                    generation=max(known, removal.generation),
                    at=self._clock.now(),
                    ports=before.ports if before else (),
                )
                await self._records.put(removal.id, removed)
                await self._finish_removal(removal.id, removed)

    async def reboot(self, wish: GuestReboot) -> GuestObserved:
        """Restart a running guest.

        Raises:
            NotFound: there is no such guest here.
            Conflict: it does not run.
        """
        async with self._turns.of(wish.id):
            record = self._known(wish.id)
            found = await self._find(wish.id)
            if not _is_up(found):
                raise Conflict(f"guest {record.spec.name!r} does not run")
            await self._hypervisor.reboot(wish.id, hard=wish.hard)
            return self._as_observed(record, found)

    async def console(self, id: InstanceId) -> ByteStream:
        """The serial console.

        Raises:
            NotFound: there is no such guest here.
            Conflict: it does not run.
        """
        record = self._known(id)
        if not _is_up(await self._find(id)):
            raise Conflict(f"guest {record.spec.name!r} does not run")
        return await self._hypervisor.console(id)

    async def observe(self, *, or_last: bool = False) -> list[GuestObserved]:
        """Every guest that is here or ought to be; one without a record is as the hypervisor has it.

        Raises:
            Unavailable: the hypervisor does not answer; with `or_last` only if it has not answered yet.
        """
        try:
            found = dict(await self._look())
        except Unavailable:
            if not or_last or self._found is None:
                raise
            found = dict(self._found)
        observed: list[GuestObserved] = []
        for id, record in self._records.items():
            if isinstance(record, GuestRecord):
                observed.append(self._as_observed(record, found.pop(id, None)))
        for id, stranger in found.items():
            power = Power.RUNNING if _is_up(stranger) else Power.STOPPED
            observed.append(
                GuestObserved(
                    id=id,
                    generation=stranger.generation,
                    power=power,
                    since=self._clock.now(),
                    cause="this host has no record of it",
                )
            )
        return observed

    @property
    def running(self) -> int:
        """How many guests ran when the hypervisor was last asked."""
        return sum(_is_up(each) for each in self._found.values()) if self._found else 0

    def user_of(self, volume: VolumeId) -> GuestSpec | None:
        """The guest that has this volume as a disk, if any has."""
        return next((spec for spec in self._specs() for disk in spec.disks if disk.volume == volume), None)

    # Making.

    def _next_record(self, spec: GuestSpec, before: GuestRecord | Removed | None) -> GuestRecord:
        since, former = self._clock.now(), ()
        if isinstance(before, GuestRecord):
            kept = {nic.port for nic in spec.nics}
            former = tuple(port for port in dict.fromkeys(before.ports) if port not in kept)
            since = before.since if before.power is spec.power else since
        return GuestRecord(spec=spec, power=spec.power, since=since, former_ports=former)

    async def _make(self, record: GuestRecord, tell: Tell, *, cause: str = "") -> GuestObserved:
        """Bring the guest to its record, whatever it is like now."""
        spec = record.spec
        async with self._slots:
            disks = {disk.volume: await self._volumes.source(disk.volume, disk.pool) for disk in spec.disks}
            tell(Progress(step="connecting"))
            plugs = {nic.port: await self._network.plug(spec.id, nic) for nic in spec.nics}
            await self._serve()
            tell(Progress(step="defining"))
            await self._hypervisor.define(spec, disks, plugs)
            if record.power is not Power.STOPPED and _is_up(await self._find(spec.id)):
                await self._hypervisor.change_disks(spec, disks)
            for port in record.former_ports:
                await self._network.unplug(port)
        changed = await self._bring_to(record.power, spec.id, tell)
        record = structs.replace(
            record,
            made=True,
            boot=self._boot,
            former_ports=(),
            since=self._clock.now() if changed else record.since,
            cause=cause if changed else record.cause,
        )
        await self._records.put(spec.id, record)
        return _observed(record, record.power, record.cause)

    async def _bring_to(self, power: Power, id: InstanceId, tell: Tell) -> bool:
        """Start, stop, pause or resume the guest, if it needs that."""
        found = await self._find(id)
        up, paused = _is_up(found), found is not None and found.state is GuestState.PAUSED
        if power is Power.STOPPED and up:
            tell(Progress(step="stopping"))
            await self._shut_down(id)
        elif power is not Power.STOPPED and not up:
            tell(Progress(step="starting"))
            await self._hypervisor.start(id)
        if power is Power.PAUSED and not paused:
            tell(Progress(step="pausing"))
            await self._hypervisor.pause(id)
        elif power is Power.RUNNING and paused:
            tell(Progress(step="resuming"))
            await self._hypervisor.resume(id)
        return _power(found, power) is not power

    async def _shut_down(self, id: InstanceId) -> None:
        """Ask the guest to end, and end it if it does not in time or is to be removed."""
        found = await self._find(id)
        if found is not None and found.state is GuestState.PAUSED:
            await self._hypervisor.resume(id)  # or it does not hear
        await self._hypervisor.shut_down(id)
        told = self._ending[id] = asyncio.Event()
        try:
            async with asyncio.timeout(self._patience_s):
                while id not in self._hurried:
                    if not _is_up(await self._find(id)):
                        return
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await told.wait()
                    told.clear()
        except TimeoutError:
            log.info("guest did not end when asked", guest=id, patience_s=self._patience_s)
        finally:
            del self._ending[id]
        await self._hypervisor.stop(id)

    @contextmanager
    def _hurrying(self, id: InstanceId) -> Generator[None, None, None]:
        """Nobody waits for this guest to end in order any more."""
        self._hurried.add(id)
        self.changed(id)
        try:
            yield
        finally:
            self._hurried.discard(id)

    async def _serve(self) -> None:
        """Have metadata and DNS answered for the networks of all guests here."""
        async with self._serving:
            wanted = {nic.network: nic.mtu for spec in self._specs() for nic in spec.nics}
            if wanted == self._served:
                return
            self._served = None
            await self._network.serve(wanted, self._metadata)
            self._served = wanted

    # Unmaking.

    async def _undo(self, record: GuestRecord) -> None:
        """Leave nothing of a guest that could not be made, but let the same wish come again."""
        id = record.spec.id
        removed = Removed(generation=record.spec.generation - 1, at=self._clock.now(), ports=record.ports)
        try:
            await self._records.put(id, removed)
            await self._finish_removal(id, removed)
        except PileusError as why:
            log.warning("undo of a guest goes on later", guest=id, why=str(why), internal=why.internal)

    async def _finish_removal(self, id: InstanceId, removed: Removed) -> Removed:
        if removed.finished:
            return removed
        self._crashes.pop(id, None)
        async with self._slots:
            with suppress(NotFound):
                await self._hypervisor.undefine(id)
            for port in removed.ports:
                await self._network.unplug(port)
            await self._serve()
        finished = Removed(generation=removed.generation, at=self._clock.now(), finished=True)
        await self._records.put(id, finished)
        return finished

    # Keeping.

    def changed(self, id: InstanceId) -> bool:
        """The hypervisor says that a guest has changed; whether anybody has to look at it."""
        if (told := self._ending.get(id)) is not None:
            told.set()
        return not self._turns.busy(id)

    def due_in_s(self) -> float | None:
        """Seconds until a guest that failed is to be tried again."""
        due = [each.due for each in self._crashes.values() if each.due is not None]
        return max(0.0, min(due) - self._clock.monotonic()) if due else None

    async def settle(self) -> None:
        """Correct every guest that is not as it ought to be; one that is being worked on is left to that.

        Raises:
            Unavailable: the hypervisor does not answer.
        """
        found = await self._look()
        self._say_strangers(found)
        async with asyncio.TaskGroup() as tasks:
            for id, record in self._records.items():
                if not self._turns.busy(id) and self._needs_care(record, found.get(id)):
                    tasks.create_task(self._settle(id))
        try:
            await self._serve()
            await self._settle_ports(anything_strange=bool(self._strangers))
        except PileusError as why:
            log.warning("network not settled yet", why=str(why), internal=why.internal)

    def _needs_care(self, record: GuestRecord | Removed, found: GuestFound | None) -> bool:
        match record:
            case Removed(finished=False):
                return True
            case Removed():
                return self._clock.now() - record.at > REMEMBERED
            case GuestRecord():
                return found is None or _differs(record, found)

    async def _settle(self, id: InstanceId) -> None:
        async with self._turns.of(id):
            try:
                match self._records.get(id):
                    case Removed(finished=True) as removed:
                        if self._clock.now() - removed.at > REMEMBERED:
                            await self._records.forget(id)
                    case Removed() as removed:
                        await self._finish_removal(id, removed)
                    case GuestRecord() as record:
                        # What was seen before the turn may be over.
                        await self._settle_guest(record, await self._find(id))
                    case None:
                        pass
            except PileusError as why:
                log.warning("guest not settled yet", guest=id, why=str(why), internal=why.internal)

    async def _settle_guest(self, record: GuestRecord, found: GuestFound | None) -> None:
        id = record.spec.id
        if found is not None and not _differs(record, found):
            return
        cause = ""
        if found is not None and record.made and found.generation == record.spec.generation:
            if record.power is Power.STOPPED:
                log.warning("guest runs that ought not to", guest=id)
                await self._shut_down(id)
                return
            if record.power is Power.PAUSED and _is_up(found):
                log.warning("guest runs that ought to be paused", guest=id)
                await self._hypervisor.pause(id)
                return
            if self._ended_itself(record, found):
                self._observed(await self._accept_end(record, found))
                return
            if record.boot != self._boot:
                cause = "started again after the host was restarted"
            else:
                cause = f"started again: {_why(found)}"
                if not self._counts_as_due(record, found):
                    return
        await self._try_again(record, cause)

    def _ended_itself(self, record: GuestRecord, found: GuestFound) -> bool:
        if not record.made or found.generation != record.spec.generation:
            return False
        if record.power is Power.PAUSED:
            return not _is_up(found)  # its memory, which it was paused to keep, is lost
        return (
            record.power is Power.RUNNING
            and record.boot == self._boot  # a host that goes down takes its guests with it
            and found.state in _FINAL[record.spec.restart]
        )

    async def _accept_end(self, record: GuestRecord, found: GuestFound) -> GuestObserved:
        """A guest that ended is not started again: from now on it ought to be stopped."""
        paused = record.power is Power.PAUSED
        cause = found.cause or ("it ended while it was paused" if paused else _why(found))
        record = structs.replace(record, power=Power.STOPPED, since=self._clock.now(), cause=cause)
        await self._records.put(record.spec.id, record)
        log.info("guest ended and is left so", guest=record.spec.id, cause=cause)
        return _observed(record, Power.STOPPED, cause)

    def _counts_as_due(self, record: GuestRecord, found: GuestFound) -> bool:
        """Count a crash that is not yet counted; whether the guest is to be started again now."""
        crashes = self._crashes.setdefault(record.spec.id, Crashes())
        now = self._clock.monotonic()
        if crashes.due is None:
            delay_s = crashes.failed(now)
            self._tell_failure(record, crashes.words(_why(found), delay_s))
        return crashes.due is None or crashes.due <= now

    async def _try_again(self, record: GuestRecord, cause: str) -> None:
        crashes = self._crashes.setdefault(record.spec.id, Crashes())
        now = self._clock.monotonic()
        if crashes.due is not None and crashes.due > now:
            return
        crashes.trying(now)
        try:
            observed = await self._make(record, _tell_nobody, cause=cause)
        except PileusError as why:
            delay_s = crashes.failed(self._clock.monotonic())
            log.warning("guest cannot be made", guest=record.spec.id, internal=why.internal)
            self._tell_failure(record, crashes.words(f"it cannot be started: {why}", delay_s))
        else:
            log.info("guest corrected", guest=record.spec.id, power=observed.power, cause=cause)
            self._observed(observed)

    def _tell_failure(self, record: GuestRecord, cause: str) -> None:
        log.warning("guest failed", guest=record.spec.id, cause=cause)
        self._observed(_observed(structs.replace(record, since=self._clock.now()), Power.STOPPED, cause))

    def _say_strangers(self, found: Mapping[InstanceId, GuestFound]) -> None:
        ours = {id for id, record in self._records.items() if not (isinstance(record, Removed) and record.finished)}
        strangers = frozenset(found.keys() - ours)
        for id in strangers - self._strangers:
            log.warning("guest without a record, left alone", guest=id)
        self._strangers = strangers

    async def _settle_ports(self, *, anything_strange: bool) -> None:
        """Plug what is missing, and unplug what is nobody's: unless a guest without a record may be using it."""
        plugged = await self._network.list()
        for id, nic in self._missing(plugged):
            async with self._turns.of(id):
                record = self._records.get(id)
                if isinstance(record, GuestRecord) and nic in record.spec.nics:
                    log.warning("port plugged again", guest=id, port=nic.port)
                    await self._network.plug(id, nic)
        if not anything_strange:
            for port in plugged.keys() - self._claimed():
                # Looked up again, for time passes with every one.
                if port not in self._claimed():
                    log.warning("port unplugged, it is nobody's", port=port)
                    await self._network.unplug(port)

    def _claimed(self) -> set[PortId]:
        return {port for _, record in self._records.items() for port in record.ports}

    def _missing(self, plugged: Mapping[PortId, Plug]) -> list[tuple[InstanceId, NicSpec]]:
        return [
            (id, nic)
            for id, record in self._records.items()
            if isinstance(record, GuestRecord) and record.made and not self._turns.busy(id)
            for nic in record.spec.nics
            if nic.port not in plugged
        ]

    # Looking.

    def _specs(self) -> list[GuestSpec]:
        return [record.spec for _, record in self._records.items() if isinstance(record, GuestRecord)]

    def _known(self, id: InstanceId) -> GuestRecord:
        record = self._records.get(id)
        if not isinstance(record, GuestRecord):
            raise NotFound(f"there is no guest {id} on this host")
        return record

    async def _look(self) -> Mapping[InstanceId, GuestFound]:
        self._found = await self._hypervisor.list()
        return self._found

    async def _find(self, id: InstanceId) -> GuestFound | None:
        return (await self._look()).get(id)

    def _as_observed(self, record: GuestRecord, found: GuestFound | None) -> GuestObserved:
        power = _power(found, record.power)
        if power is record.power:
            return _observed(record, power, record.cause)
        return _observed(record, power, found.cause if found is not None else "it is not made yet")


def _why(found: GuestFound) -> str:
    crashed = found.state is GuestState.CRASHED
    return found.cause or ("it crashed" if crashed else "the guest shut itself down")


def _tell_nobody(_: Progress) -> None:
    """Nobody waits for this."""


def _generation(record: GuestRecord | Removed) -> int:
    return record.spec.generation if isinstance(record, GuestRecord) else record.generation


def _is_up(found: GuestFound | None) -> bool:
    # A guest is paused by its hypervisor when its disk fails: it has not ended.
    return found is not None and found.state in {GuestState.RUNNING, GuestState.PAUSED}


def _differs(record: GuestRecord, found: GuestFound) -> bool:
    return (
        not record.made or found.generation != record.spec.generation or _power(found, record.power) is not record.power
    )


def _power(found: GuestFound | None, wanted: Power) -> Power:
    """A guest's power; one that its hypervisor has paused, and nobody else, counts as running."""
    if found is None or not _is_up(found):
        return Power.STOPPED
    return Power.PAUSED if wanted is Power.PAUSED and found.state is GuestState.PAUSED else Power.RUNNING


def _observed(record: GuestRecord, power: Power, cause: str) -> GuestObserved:
    return GuestObserved(
        id=record.spec.id, generation=record.spec.generation, power=power, since=record.since, cause=cause
    )
