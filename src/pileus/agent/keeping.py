"""What keeps the guests of a host as they ought to be: those that end, fail, or run when they should not."""

import asyncio
from collections.abc import Callable, Mapping

import structlog
from msgspec import structs

from pileus.agent.comparing import FINAL_ENDS, differs, is_up, lacks_vcpus, observed, why_ended
from pileus.agent.crashes import Crashes
from pileus.agent.hypervisor.port import GuestFound, GuestState
from pileus.agent.making import Making
from pileus.agent.network.port import Plug
from pileus.agent.records import GuestRecord, Removed
from pileus.agent.volumes import REMEMBERED
from pileus.kernel.errors import PileusError
from pileus.kernel.ids import InstanceId, PortId
from pileus.link.guests import GuestObserved, NicSpec, Power
from pileus.link.messages import Progress

log = structlog.stdlib.get_logger()


class Keeping:
    """Corrects what has become different from what it ought to be."""

    def __init__(self, making: Making, tell: Callable[[GuestObserved], None]) -> None:
        """`tell` is told of whatever a guest does by itself."""
        self._making = making
        self._records = making.records
        self._turns = making.turns
        self._clock = making.clock
        self._tell = tell
        self._crashes: dict[InstanceId, Crashes] = {}
        self._strangers: frozenset[InstanceId] = frozenset()

    def forgive(self, id: InstanceId) -> None:
        """Count the failures of this guest no more: it is to be another one, or none."""
        self._crashes.pop(id, None)

    def due_in_s(self) -> float | None:
        """Seconds until a guest that failed is to be tried again."""
        due = [each.due for each in self._crashes.values() if each.due is not None]
        return max(0.0, min(due) - self._clock.monotonic()) if due else None

    async def settle(self) -> None:
        """Correct every guest that is not as it ought to be; one that is being worked on is left to that.

        Raises:
            Unavailable: the hypervisor does not answer.
        """
        found = await self._making.look()
        self._say_strangers(found)
        async with asyncio.TaskGroup() as tasks:
            for id, record in self._records.items():
                if not self._turns.busy(id) and self._needs_care(record, found.get(id)):
                    tasks.create_task(self._settle(id))
        try:
            await self._making.serve()
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
                return found is None or differs(record, found) or lacks_vcpus(record, found)

    async def _settle(self, id: InstanceId) -> None:
        async with self._turns.of(id):
            try:
                match self._records.get(id):
                    case Removed(finished=True) as removed:
                        if self._clock.now() - removed.at > REMEMBERED:
                            await self._records.forget(id)
                    case Removed() as removed:
                        await self._making.finish_removal(id, removed)
                    case GuestRecord() as record:
                        # What was seen before the turn may be over.
                        await self._settle_guest(record, await self._making.find(id))
                    case None:
                        pass
            except PileusError as why:
                log.warning("guest not settled yet", guest=id, why=str(why), internal=why.internal)

    async def _settle_guest(self, record: GuestRecord, found: GuestFound | None) -> None:
        id = record.spec.id
        if found is not None and not differs(record, found):
            if lacks_vcpus(record, found):
                log.warning("guest lacks vCPUs", guest=id, has=found.vcpus, ought=record.spec.vcpus)
                await self._making.hypervisor.change_size(record.spec)
            return
        cause = ""
        if found is not None and record.made and found.generation == record.spec.generation:
            if record.power is Power.STOPPED:
                log.warning("guest runs, or is suspended, that ought not to", guest=id)
                if is_up(found):
                    await self._making.shut_down(id)
                else:
                    await self._making.hypervisor.forget_memory(id)
                return
            if record.power in {Power.PAUSED, Power.SUSPENDED} and is_up(found):
                log.warning("guest runs that ought not to go on", guest=id, power=record.power)
                hypervisor = self._making.hypervisor
                await (hypervisor.pause(id) if record.power is Power.PAUSED else hypervisor.suspend(id))
                return
            if self.ended_itself(record, found):
                self._tell(await self.accept_end(record, found))
                return
            if record.boot != self._making.boot:
                cause = "started again after the host was restarted"
            else:
                cause = f"started again: {why_ended(found)}"
                if not self._counts_as_due(record, found):
                    return
        await self._try_again(record, cause)

    def ended_itself(self, record: GuestRecord, found: GuestFound) -> bool:
        if not record.made or found.generation != record.spec.generation:
            return False
        if record.power in {Power.PAUSED, Power.SUSPENDED}:
            # Its memory, which it was paused or suspended to keep, is lost.
            return found.state not in {GuestState.RUNNING, GuestState.PAUSED, GuestState.SUSPENDED}
        return (
            record.power is Power.RUNNING
            and record.boot == self._making.boot  # a host that goes down takes its guests with it
            and found.state in FINAL_ENDS[record.spec.restart]
        )

    async def accept_end(self, record: GuestRecord, found: GuestFound) -> GuestObserved:
        """A guest that ended is not started again: from now on it ought to be stopped."""
        kept = record.power in {Power.PAUSED, Power.SUSPENDED}
        cause = found.cause or (f"it was {record.power}, and its memory is lost" if kept else why_ended(found))
        record = structs.replace(record, power=Power.STOPPED, since=self._clock.now(), cause=cause)
        await self._records.put(record.spec.id, record)
        log.info("guest ended and is left so", guest=record.spec.id, cause=cause)
        return observed(record, Power.STOPPED, cause)

    def _counts_as_due(self, record: GuestRecord, found: GuestFound) -> bool:
        """Count a crash that is not yet counted; whether the guest is to be started again now."""
        crashes = self._crashes.setdefault(record.spec.id, Crashes())
        now = self._clock.monotonic()
        if crashes.due is None:
            delay_s = crashes.failed(now)
            self._tell_failure(record, crashes.words(why_ended(found), delay_s))
        return crashes.due is None or crashes.due <= now

    async def _try_again(self, record: GuestRecord, cause: str) -> None:
        crashes = self._crashes.setdefault(record.spec.id, Crashes())
        now = self._clock.monotonic()
        if crashes.due is not None and crashes.due > now:
            return
        crashes.trying(now)
        try:
            observed = await self._making.make(record, _tell_nobody, cause=cause)
        except PileusError as why:
            delay_s = crashes.failed(self._clock.monotonic())
            log.warning("guest cannot be made", guest=record.spec.id, internal=why.internal)
            self._tell_failure(record, crashes.words(f"it cannot be started: {why}", delay_s))
        else:
            log.info("guest corrected", guest=record.spec.id, power=observed.power, cause=cause)
            self._tell(observed)

    def _tell_failure(self, record: GuestRecord, cause: str) -> None:
        log.warning("guest failed", guest=record.spec.id, cause=cause)
        self._tell(observed(structs.replace(record, since=self._clock.now()), Power.STOPPED, cause))

    def _say_strangers(self, found: Mapping[InstanceId, GuestFound]) -> None:
        ours = {id for id, record in self._records.items() if not (isinstance(record, Removed) and record.finished)}
        strangers = frozenset(found.keys() - ours)
        for id in strangers - self._strangers:
            log.warning("guest without a record, left alone", guest=id)
        self._strangers = strangers

    async def _settle_ports(self, *, anything_strange: bool) -> None:
        """Plug what is missing, and unplug what is nobody's: unless a guest without a record may be using it."""
        plugged = await self._making.network.list()
        for id, nic in self._missing(plugged):
            async with self._turns.of(id):
                record = self._records.get(id)
                if isinstance(record, GuestRecord) and nic in record.spec.nics:
                    log.warning("port plugged again", guest=id, port=nic.port)
                    await self._making.network.plug(id, nic)
        if not anything_strange:
            for port in plugged.keys() - self._claimed():
                # Looked up again, for time passes with every one.
                if port not in self._claimed():
                    log.warning("port unplugged, it is nobody's", port=port)
                    await self._making.network.unplug(port)

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


def _tell_nobody(_: Progress) -> None:
    """Nobody waits for this."""
