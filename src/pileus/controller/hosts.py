"""The hosts, as the controller talks to them: who is connected, what they report, what is asked of them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import structlog

from pileus.cloud.hosts.model import HOSTS, Host
from pileus.cloud.instances.model import ALLOWED, INSTANCES, WITH_GUEST, Instance, InstanceState
from pileus.cloud.instances.placement import Placer, running_on
from pileus.cloud.instances.specs import guest_spec
from pileus.cloud.storagepools.supply import Supplies
from pileus.kernel.clock import Clock
from pileus.kernel.errors import PileusError, Unavailable
from pileus.kernel.ids import HostId
from pileus.link.certificates import Authority
from pileus.link.channel import Channel
from pileus.link.guests import GuestObserved, Power
from pileus.link.handlers import Call, Handlers
from pileus.link.hosts import Hello, HostReport, Load, Welcome
from pileus.link.images import ImageBring, ImagePack, ImageSend
from pileus.link.messages import Message, Method, Progress
from pileus.link.moves import VolumeMove, VolumeMoveCopy
from pileus.link.renewal import answer_renewals
from pileus.link.volumes import VolumeRemoval
from pileus.scheduler.model import Load as MeasuredLoad
from pileus.state.state import Change, Origin, State, put
from pileus.workflow.workflow import tell_progress

log = structlog.stdlib.get_logger()

T = TypeVar("T")

_PER_HOST = 16
"""Requests under way at one host at a time; more wait here, where they cost the host nothing."""
_WIPED_PER_HOST = 1
_PACKED_PER_HOST = 2
_BROUGHT_PER_HOST = 2
_MOVED_PER_HOST = 2
_MEND_S = 180.0

_SEEN = {
    Power.RUNNING: InstanceState.RUNNING,
    Power.STOPPED: InstanceState.STOPPED,
    Power.PAUSED: InstanceState.PAUSED,
    Power.SUSPENDED: InstanceState.SUSPENDED,
}

_progress = msgspec.json.Decoder(Progress)


class HostLinks:
    """Every host's agent. What an agent is asked waits here for its turn; what it tells becomes records and load."""

    def __init__(self, state: State, placer: Placer, supplies: Supplies, authority: Authority, clock: Clock) -> None:
        self._state = state
        self.supplies = supplies
        self._placer = placer
        self._clock = clock
        self._channels: dict[HostId, Channel] = {}
        self._turns: dict[tuple[HostId, str], asyncio.Semaphore] = {}
        self._loads: dict[HostId, Load] = {}
        self._changes = asyncio.TaskGroup()
        self.ready = asyncio.Event()
        self.handlers = Handlers()
        self.handlers.add(Method.HELLO, Hello, self._hello)
        answer_renewals(self.handlers, authority)
        self.handlers.add_note(Method.REPORT, HostReport, self._report)
        self.handlers.add_note(Method.GUEST_OBSERVED, GuestObserved, self._observed)

    async def serve(self) -> None:
        """Take in what hosts tell, until cancelled. Hosts count as away until they have said hello."""
        away = [put(_connected(host, yes=False, clock=self._clock)) for host in self._state[HOSTS] if host.connected]
        if away:
            await self._state.commit(away, Origin(actor="system", operation="controller started"))
        async with self._changes:
            self.ready.set()
            await asyncio.get_running_loop().create_future()

    async def ask(self, host: HostId, method: Method, body: Message, answer: type[T], *, timeout_s: float) -> T:
        """Ask a host's agent; see `pileus.cloud.world.Hosts`."""
        async with self._turn(host, body):
            return await self._channel(host).request(method, body, answer, timeout_s=timeout_s, progress=_teller())

    def _turn(self, host: HostId, body: Message) -> asyncio.Semaphore:
        lane, most = _lane(body)
        turn = self._turns.get((host, lane))
        if turn is None:
            turn = self._turns[host, lane] = asyncio.Semaphore(most)
        return turn

    def _channel(self, host: HostId) -> Channel:
        channel = self._channels.get(host)
        if channel is None:
            known = self._state[HOSTS].find(host)
            raise Unavailable(f"the agent of host {known.name if known else host} is not connected")
        return channel

    def channel(self, host: HostId) -> Channel:
        """The channel to a host, for streams. Raises Unavailable."""
        return self._channel(host)

    def load(self, host: HostId) -> Load | None:
        return self._loads.get(host)

    def admit(self, host: HostId, serial: int) -> str | None:
        """Why a host with this certificate is not let in, or None."""
        del serial  # a renewed certificate and the one before are both good until they are over
        return None if host in self._state[HOSTS] else "this host is not one of ours, or was removed"

    async def accompany(self, channel: Channel, host: HostId) -> None:
        """Runs beside a host's channel until that is lost."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._gone(host, channel)

    def _gone(self, host: HostId, channel: Channel) -> None:
        if self._channels.get(host) is not channel:
            return
        del self._channels[host]
        self.supplies.forget(host)
        self._loads.pop(host, None)
        known = self._state[HOSTS].find(host)
        if known is not None and known.connected and self._state.broken is None:
            self._state.apply(
                [put(_connected(known, yes=False, clock=self._clock))],
                Origin(actor=f"host:{host}", operation="host.lost"),
            )
        log.warning("host lost", host=host, name=known.name if known else "")

    async def _hello(self, hello: Hello, call: Call) -> Welcome:
        id = HostId(call.peer)
        known = self._state[HOSTS].get(id)
        now = msgspec.structs.replace(_connected(known, yes=True, clock=self._clock), facts=hello.facts)
        pools = self.supplies.noted(id, hello.pools)
        await self._state.commit([put(now), *pools], Origin(actor=f"host:{id}", operation="host.hello"))
        self._channels[id] = call.channel
        inventory = hello.inventory
        orphans = tuple(guest.id for guest in inventory.guests if guest.id not in self._state[INSTANCES])
        if orphans:
            log.warning("guests without a record", host=known.name, guests=orphans)
        for guest in inventory.guests:
            self._take_in(id, guest)
        self._changes.create_task(self._mend(id, {guest.id: guest for guest in inventory.guests}))
        log.info("host connected", host=id, name=known.name, guests=len(inventory.guests))
        return Welcome(host=id, orphans=orphans)

    def _report(self, report: HostReport, channel: Channel) -> None:
        host = HostId(channel.peer)
        self._take_wires(host, report.physical_networks)
        self._loads[host] = report.load
        measured = MeasuredLoad(
            cpu=report.load.cpu,
            memory=report.load.memory,
            disk=report.load.disk,
            instances=running_on(self._state, host),
        )
        self._placer.report(host, measured)
        self.supplies.take(host, report.pools)

    def _take_wires(self, host: HostId, found: tuple[str, ...] | None) -> None:
        """A bridge was made or taken away on the host, by hand or by `pileus up`. The record follows."""
        known = self._state[HOSTS].find(host)
        if known is None or known.facts is None or found is None or found == known.facts.physical_networks:
            return
        facts = msgspec.structs.replace(known.facts, physical_networks=found)
        changed: list[Change] = [put(msgspec.structs.replace(known, facts=facts))]
        self._state.apply(changed, Origin(actor=f"host:{host}", operation="host.rewired"))
        log.info("physical networks changed", host=known.name, found=found)

    def _observed(self, guest: GuestObserved, channel: Channel) -> None:
        self._take_in(HostId(channel.peer), guest)

    def _take_in(self, host: HostId, guest: GuestObserved) -> None:
        """A guest is as nobody asked: it ended by itself, or was found running. The record follows."""
        instance = self._state[INSTANCES].find(guest.id)
        if instance is None or instance.host_id != host or instance.state not in WITH_GUEST:
            return
        is_now = _SEEN[guest.power]
        if guest.generation < instance.generation or is_now is instance.state:
            return
        if is_now not in ALLOWED[instance.state]:
            # Its agent has seen that too, and is about to bring it back.
            log.warning("guest is as it cannot be", instance=guest.id, state=instance.state, found=guest.power)
            return
        changed: list[Change] = [put(instance.found(is_now, reason=guest.cause))]
        self._state.apply(changed, Origin(actor=f"host:{host}", operation="guest.observed"))

    async def _mend(self, host: HostId, found: dict[str, GuestObserved]) -> None:
        """Have the host make those guests so that it has not, or has as they were before."""
        for instance in self._to_mend(host, found):
            try:
                await self.ask(
                    host, Method.GUEST_ENSURE, guest_spec(self._state, instance), GuestObserved, timeout_s=_MEND_S
                )
                log.info("guest mended", host=host, instance=instance.id)
            except PileusError as refused:
                log.warning("guest not mended", host=host, instance=instance.id, reason=refused.detail)

    def _to_mend(self, host: HostId, found: dict[str, GuestObserved]) -> Sequence[Instance]:
        return [
            instance
            for instance in self._state[INSTANCES].by("host_id", host)
            if instance.state in WITH_GUEST
            and not instance.busy_with  # whoever changes it will tell the host
            and (instance.id not in found or found[instance.id].generation < instance.generation)
        ]


def _lane(body: Message) -> tuple[str, int]:
    """With what else a request waits for its turn, and how many of these are under way at one time."""
    # What takes hours must not keep the host from everything else.
    if isinstance(body, VolumeMoveCopy):
        return "moving", _MOVED_PER_HOST
    if isinstance(body, VolumeRemoval | VolumeMove) and body.secure:
        return "wiping", _WIPED_PER_HOST
    if isinstance(body, ImagePack | ImageSend):
        return "packing", _PACKED_PER_HOST
    if isinstance(body, ImageBring):
        return "bringing images", _BROUGHT_PER_HOST
    return "", _PER_HOST


def _connected(host: Host, *, yes: bool, clock: Clock) -> Host:
    return msgspec.structs.replace(host, connected=yes, since=clock.now())


def _teller() -> Callable[[msgspec.Raw], None] | None:
    """What an agent tells of its progress is the progress of the step that asks; it arrives outside of the step."""
    tell = tell_progress.get(None)
    if tell is None:
        return None

    def told(raw: msgspec.Raw) -> None:
        progress = _progress.decode(raw)
        tell(progress.step, progress.fraction)

    return told
