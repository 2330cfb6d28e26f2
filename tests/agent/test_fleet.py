"""Many simulated hosts in one process."""

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from pileus.agent.agent import Pace
from pileus.kernel.clock import SystemClock
from pileus.kernel.ids import HostId
from pileus.link.channel import Channel
from pileus.link.guests import GuestObserved, Power
from pileus.link.handlers import Handlers
from pileus.link.hosts import Hello, HostReport, Welcome
from pileus.link.messages import Method
from pileus.link.volumes import VolumeObserved
from pileus.testing.fleet import Link, SimulatedFleet, in_memory, over_tls
from pileus.testing.links import LoopbackCloud, until

from .conftest import a_guest, a_volume, an_image


class Controller:
    """As much of one as agents need."""

    def __init__(self, handlers: Handlers | None = None) -> None:
        self.handlers = handlers or Handlers()
        self.channels: dict[HostId, Channel] = {}
        self.hellos: list[Hello] = []
        self.reports: list[HostReport] = []
        self.handlers.add(Method.HELLO, Hello, self._hello)
        self.handlers.add_note(Method.REPORT, HostReport, self._report)
        self.handlers.add_note(Method.GUEST_OBSERVED, GuestObserved, lambda _, __: None)

    async def connected(self, channel: Channel, host: HostId) -> None:
        self.channels[host] = channel
        await asyncio.Event().wait()

    async def _hello(self, hello: Hello, _call: object) -> Welcome:
        self.hellos.append(hello)
        return Welcome(host=HostId(hello.facts.name), report_every_s=0.05)

    def _report(self, report: HostReport, _channel: Channel) -> None:
        self.reports.append(report)


@asynccontextmanager
async def running(fleet: SimulatedFleet, link: Link) -> AsyncGenerator[None, None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(fleet.run(link))
        yield
        task.cancel()


async def test_a_fleet_in_memory_connects_reports_and_makes_guests() -> None:
    fleet, controller = SimulatedFleet(20, clock=SystemClock()), Controller()
    async with running(fleet, in_memory(controller.handlers, controller.connected)):
        await until(lambda: len(controller.hellos) == 20 and len(controller.reports) >= 40)
        assert {hello.facts.name for hello in controller.hellos} == {f"host-{n}" for n in range(1, 21)}
        volume = a_volume(image=an_image())
        guest = a_guest(volume)
        host = fleet.hosts[7]
        channel = controller.channels[host.id]
        await channel.request(Method.VOLUME_ENSURE, volume, VolumeObserved, timeout_s=60)
        observed = await channel.request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60)
        assert observed.power is Power.RUNNING
        assert host.hypervisor.guests.keys() == {guest.id}


async def test_a_fleet_over_tls_connects(tmp_path: Path) -> None:
    cloud = LoopbackCloud(tmp_path)
    controller = Controller(cloud.server_handlers)
    fleet = SimulatedFleet(3, clock=cloud.clock)
    identities = {host.id: cloud.join(host.id) for host in fleet.hosts}
    link = over_tls(lambda: [cloud.address], lambda host: identities[host.id], cloud.clock)
    async with cloud.server, running(fleet, link):
        await until(lambda: len(controller.hellos) == 3 and len(controller.reports) >= 3)


async def test_a_killed_agent_comes_back_with_its_guests(tmp_path: Path) -> None:
    fleet, controller = SimulatedFleet(1, clock=SystemClock(), folder=tmp_path), Controller()
    (host,) = fleet.hosts
    guest = a_guest()
    async with running(fleet, in_memory(controller.handlers, controller.connected)):
        await until(lambda: controller.hellos)
        await controller.channels[host.id].request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60)
        host.kill_agent()
        await until(lambda: len(controller.hellos) == 2)
        (seen,) = controller.hellos[1].inventory.guests
        assert (seen.id, seen.power) == (guest.id, Power.RUNNING)
        assert host.hypervisor.guests[guest.id].starts == 1


async def test_a_fleet_with_a_folder_is_the_same_one_in_the_next_process(tmp_path: Path) -> None:
    volume = a_volume(image=an_image())
    guest = a_guest(volume)
    ids: list[HostId] = []
    for life in range(2):
        fleet, controller = SimulatedFleet(2, clock=SystemClock(), folder=tmp_path), Controller()
        host = fleet.hosts[1]
        ids.append(host.id)
        async with running(fleet, in_memory(controller.handlers, controller.connected)):
            await until(lambda: len(controller.hellos) == 2)  # noqa: B023 - awaited in the loop
            if not life:
                channel = controller.channels[host.id]
                await channel.request(Method.VOLUME_ENSURE, volume, VolumeObserved, timeout_s=60)
                await channel.request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60)
            await until(lambda: [each.id for each in host.hypervisor.running()] == [guest.id])  # noqa: B023
            assert host.storage.volumes.keys() == {volume.id}
    assert ids[0] == ids[1]


async def test_a_fleet_in_memory_dials_again_when_a_link_is_lost() -> None:
    fleet, controller = SimulatedFleet(1, clock=SystemClock()), Controller()
    async with running(fleet, in_memory(controller.handlers, controller.connected)):
        await until(lambda: controller.hellos)
        controller.channels[fleet.hosts[0].id].abort()
        await until(lambda: len(controller.hellos) == 2)


async def test_an_idle_agent_is_light() -> None:
    controller = Controller()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        fleet = SimulatedFleet(100, clock=SystemClock(), pace=Pace(between_rounds_s=3600))
        async with running(fleet, in_memory(controller.handlers, controller.connected)):
            await until(lambda: len(controller.hellos) == 100 and len(controller.reports) >= 100)
            controller.hellos.clear()
            controller.reports.clear()
            after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 100 < 100 * 1024


async def test_a_simulated_hosts_load_is_what_its_guests_would_make() -> None:
    fleet, controller = SimulatedFleet(1, clock=SystemClock()), Controller()
    (host,) = fleet.hosts
    async with running(fleet, in_memory(controller.handlers, controller.connected)):
        await until(lambda: controller.hellos)
        await controller.channels[host.id].request(Method.GUEST_ENSURE, a_guest(), GuestObserved, timeout_s=60)
        await until(lambda: controller.reports and controller.reports[-1].load.memory == 256 / 131_072)
