"""Messages that come twice, late or out of order, engines that fail, agents that die: in the end all is as it ought."""

import asyncio
from collections.abc import Awaitable
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from pileus.agent.agent import Agent, Pace
from pileus.agent.hypervisor.port import GuestState
from pileus.agent.records import AgentRecords, GuestRecord, Removed, VolumeRecord
from pileus.kernel.errors import Conflict, PileusError, Stale, Unavailable
from pileus.link.guests import GuestRemoval, Power
from pileus.link.volumes import VolumeRemoval

from .conftest import HostBench, a_guest, a_nic, a_volume

CALLS = (
    "hypervisor.define",
    "hypervisor.start",
    "hypervisor.stop",
    "hypervisor.shut_down",
    "hypervisor.undefine",
    "hypervisor.list",
    "network.plug",
    "network.unplug",
    "network.serve",
    "network.list",
    "storage.ensure",
    "storage.remove",
    "storage.list",
    "storage.source",
)
GENERATIONS = range(1, 7)
STEPS: list[tuple[str, int | str | None]] = [
    *(("ensure guest", generation) for generation in GENERATIONS for _ in range(4)),
    *(("remove guest", generation) for generation in GENERATIONS),
    *(("ensure volume", generation) for generation in GENERATIONS),
    *(("remove volume", generation) for generation in GENERATIONS),
    *(("fail", call) for call in CALLS),
    *((event, None) for event in ("crash", "shuts itself down", "host restarts", "agent restarts") for _ in range(3)),
    *(("round", None) for _ in range(6)),
]


class Disorder:
    """One guest with one volume, and the last word that was accepted of each."""

    def __init__(self) -> None:
        self.bench = HostBench(None)
        self.records = AgentRecords(None)
        volume = a_volume()
        self.volumes = [structs.replace(volume, generation=n, size_bytes=n * volume.size_bytes) for n in range(7)]
        guest = a_guest(volume)
        self.guests = [
            structs.replace(
                guest,
                generation=n,
                nics=(guest.nics[0], a_nic(n)),
                power=Power.STOPPED if n % 3 == 0 else Power.RUNNING,
            )
            for n in range(7)
        ]
        self.agent = self.new_agent()
        self.removed_up_to = {"guest": 0, "volume": 0}

    def new_agent(self) -> Agent:
        return self.bench.agent(records=self.records, pace=Pace(shut_down_s=0))

    async def step(self, what: str, which: int | str | None) -> None:  # noqa: C901 - one case for each
        id = self.guests[0].id
        match what, which:
            case "ensure guest", int():
                await self.accepted(self.agent.ensure_guest(self.guests[which], self.bench.tell))
            case "ensure volume", int():
                await self.accepted(self.agent.ensure_volume(self.volumes[which], self.bench.tell))
            case "remove guest", int():
                if await self.accepted(self.agent.remove_guest(GuestRemoval(id=id, generation=which))):
                    self.removed_up_to["guest"] = max(self.removed_up_to["guest"], which)
            case "remove volume", int():
                removal = VolumeRemoval(id=self.volumes[0].id, generation=which)
                if await self.accepted(self.agent.remove_volume(removal)):
                    self.removed_up_to["volume"] = max(self.removed_up_to["volume"], which)
            case "fail", str():
                self.bench.faults.fail(which, Unavailable("not now"))
            case "agent restarts", _:
                self.agent = self.new_agent()
            case "host restarts", _:
                self.bench.hypervisor.host_restarts()
                self.bench.host.boot += "+"
                self.agent = self.new_agent()
            case "round", _:
                await self.agent.reconcile()
            case "crash", _:
                if self.runs():
                    self.bench.hypervisor.crash(id)
            case _:
                if self.runs():
                    self.bench.hypervisor.shuts_itself_down(id)

    def runs(self) -> bool:
        guest = self.bench.hypervisor.guests.get(self.guests[0].id)
        return guest is not None and guest.state is GuestState.RUNNING

    async def accepted(self, asked: Awaitable[object]) -> bool:
        """Whether it was neither late nor refused; it may have failed nevertheless."""
        try:
            await asked
        except (Stale, Conflict):
            return False
        except PileusError:
            return True
        return True

    async def calm(self) -> None:
        """Everything works again, for long enough."""
        self.bench.faults.mend()
        for _ in range(3):
            self.bench.clock.advance(timedelta(minutes=2))
            await self.agent.reconcile()

    def check(self) -> None:
        self.check_guest(self.records.guests.get(self.guests[0].id))
        self.check_volume(self.records.volumes.get(self.volumes[0].id))

    def check_guest(self, record: GuestRecord | Removed | None) -> None:
        if not isinstance(record, GuestRecord):
            assert record is None or record.finished
            assert not self.bench.hypervisor.guests
            assert not self.bench.network.ports
            assert not self.bench.network.served
            return
        assert record.spec.generation > self.removed_up_to["guest"]
        if self.bench.storage.volumes:
            found = self.bench.hypervisor.guests[record.spec.id]
            assert record.made
            assert found.spec == record.spec
            assert self.runs() is (record.power is Power.RUNNING)
            assert self.bench.network.ports.keys() == {nic.port for nic in record.spec.nics}
            assert self.bench.network.served.keys() == {nic.network for nic in record.spec.nics}

    def check_volume(self, record: VolumeRecord | Removed | None) -> None:
        if not isinstance(record, VolumeRecord):
            assert record is None or record.finished
            assert not self.bench.storage.volumes
            return
        assert record.made
        assert record.spec.generation > self.removed_up_to["volume"]
        assert self.bench.storage.volumes[record.spec.id].size_bytes >= record.spec.size_bytes


@given(st.lists(st.sampled_from(STEPS), max_size=30))
@settings(max_examples=150)
def test_whatever_happens_in_whatever_order_nothing_is_left_half_made(
    steps: list[tuple[str, int | str | None]],
) -> None:
    async def happen() -> None:
        disorder = Disorder()
        await disorder.step("ensure volume", 1)
        for what, which in steps:
            await disorder.step(what, which)
        await disorder.calm()
        disorder.check()

    asyncio.run(happen())
