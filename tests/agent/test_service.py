"""An agent over its link: real TLS on loopback, simulated engines."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from types import NoneType

import msgspec
import pytest

from pileus.agent.agent import Agent, Pace
from pileus.agent.service import AgentService
from pileus.kernel.errors import NotFound, Unavailable
from pileus.kernel.ids import HostId, InstanceId, new_id
from pileus.link.channel import Channel
from pileus.link.consoles import ConsoleRequest
from pileus.link.guests import GuestObserved, GuestRemoval, Power
from pileus.link.hosts import Hello, HostReport, Inventory, Welcome
from pileus.link.messages import Method, Progress
from pileus.link.volumes import VolumeObserved, VolumeRemoval
from pileus.testing.links import LoopbackCloud, running, until

from .conftest import HostBench, a_guest, a_volume, an_image


class Controller:
    """The controller's end, as far as an agent needs one."""

    def __init__(self, folder: Path) -> None:
        self.cloud = LoopbackCloud(folder)
        self.hellos: list[Hello] = []
        self.reports: list[HostReport] = []
        self.observed: list[GuestObserved] = []
        self.host = HostId(new_id())
        handlers = self.cloud.server_handlers
        handlers.add(Method.HELLO, Hello, self._hello)
        handlers.add_note(Method.REPORT, HostReport, lambda report, _: self.reports.append(report))
        handlers.add_note(Method.GUEST_OBSERVED, GuestObserved, lambda observed, _: self.observed.append(observed))

    async def _hello(self, hello: Hello, _call: object) -> Welcome:
        self.hellos.append(hello)
        return Welcome(host=self.host, report_every_s=0.01)

    @property
    def channel(self) -> Channel:
        channel = self.cloud.server.channel(self.host)
        assert channel is not None
        return channel

    @asynccontextmanager
    async def with_agent(self, agent: Agent) -> AsyncGenerator[Channel, None]:
        """The agent runs and is welcomed."""
        service = AgentService(agent)
        dialler = self.cloud.dialler(self.cloud.join(self.host), service.handlers, service.accompany)
        async with self.cloud.server, asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(service.run())
            async with running(dialler):
                await until(lambda: self.hellos)
                yield self.channel
            serving.cancel()


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


async def test_an_agent_says_what_it_is_and_has_and_goes_on_to_report(bench: HostBench, controller: Controller) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    async with controller.with_agent(agent):
        (hello,) = controller.hellos
        assert (hello.facts.name, hello.facts.vcpus, hello.facts.accelerator) == ("host-1", 8, "simulated")
        assert [each.id for each in hello.inventory.guests] == [guest.id]
        await until(lambda: len(controller.reports) > 2)
        assert controller.reports[-1].running_guests == 1


async def test_a_guest_is_made_and_removed_over_the_link(bench: HostBench, controller: Controller) -> None:
    volume = a_volume(image=an_image())
    guest = a_guest(volume)
    async with controller.with_agent(bench.agent()) as channel:
        made = await channel.request(Method.VOLUME_ENSURE, volume, VolumeObserved, timeout_s=60)
        assert made.size_bytes == volume.size_bytes
        observed = await channel.request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60)
        assert observed.power is Power.RUNNING
        inventory = await channel.request(Method.INVENTORY, None, Inventory, timeout_s=60)
        assert (len(inventory.guests), len(inventory.volumes)) == (1, 1)
        await channel.request(Method.GUEST_REMOVE, GuestRemoval(id=guest.id, generation=1), NoneType, timeout_s=60)
        await channel.request(Method.VOLUME_REMOVE, VolumeRemoval(id=volume.id, generation=1), NoneType, timeout_s=60)
        assert await channel.request(Method.INVENTORY, None, Inventory, timeout_s=60) == Inventory()


async def test_what_takes_longer_than_a_moment_tells_of_its_progress(
    bench: HostBench, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = list[str]()

    def tell(raw: msgspec.Raw) -> None:
        steps.append(msgspec.json.decode(raw, type=Progress).step)

    guest = a_guest()
    async with controller.with_agent(bench.agent()) as channel, asyncio.TaskGroup() as tasks:
        monkeypatch.setattr("pileus.agent.service._A_MOMENT_S", 3600.0)
        await channel.request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60, progress=tell)
        assert steps == []
        monkeypatch.setattr("pileus.agent.service._A_MOMENT_S", 0.0)
        started = bench.faults.hold("hypervisor.start")
        other = msgspec.structs.replace(guest, id=a_guest().id)
        tasks.create_task(channel.request(Method.GUEST_ENSURE, other, GuestObserved, timeout_s=60, progress=tell))
        await until(lambda: steps == ["connecting", "defining", "starting"])
        started.set()


async def test_a_refusal_crosses_the_link(bench: HostBench, controller: Controller) -> None:
    async with controller.with_agent(bench.agent()) as channel:
        with pytest.raises(NotFound):
            await channel.request(Method.GUEST_ENSURE, a_guest(a_volume()), GuestObserved, timeout_s=60)


async def test_what_a_guest_does_by_itself_is_told(bench: HostBench, controller: Controller) -> None:
    guest = a_guest()
    async with controller.with_agent(bench.agent()) as channel:
        await channel.request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60)
        bench.hypervisor.shuts_itself_down(guest.id)
        await until(lambda: controller.observed)
        assert controller.observed[0].power is Power.STOPPED


async def test_work_goes_on_when_the_link_is_lost(bench: HostBench, controller: Controller) -> None:
    agent, guest = bench.agent(pace=Pace(between_rounds_s=3600)), a_guest()
    defined = bench.faults.hold("hypervisor.define")
    bench.faults.calls = []
    async with controller.with_agent(agent) as channel:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_fails(channel.request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60)))
            await until(lambda: "hypervisor.define" in (bench.faults.calls or ()))
            channel.abort()
        defined.set()
        await until(lambda: len(controller.hellos) == 2)
        observed = await controller.channel.request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60)
        assert observed.power is Power.RUNNING
        assert bench.hypervisor.guests[guest.id].starts == 1


async def test_a_console_is_carried_both_ways_and_ends_with_its_guest(bench: HostBench, controller: Controller) -> None:
    guest = a_guest()
    async with controller.with_agent(bench.agent()) as channel:
        await channel.request(Method.GUEST_ENSURE, guest, GuestObserved, timeout_s=60)
        stream = await channel.open_stream(Method.CONSOLE, ConsoleRequest(id=guest.id), timeout_s=60)
        assert b"login:" in await stream.read()
        await stream.write(b"root\r")
        assert await stream.read() == b"root\r\n"
        bench.hypervisor.crash(guest.id)
        assert await stream.read() == b""
        with pytest.raises(NotFound):
            await channel.open_stream(Method.CONSOLE, ConsoleRequest(id=InstanceId(new_id())), timeout_s=60)


async def test_an_agent_whose_hypervisor_is_away_still_says_hello_and_reports(
    bench: HostBench, controller: Controller
) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    await agent.hello()
    bench.hypervisor.lose()
    async with controller.with_agent(agent) as channel:
        assert [each.power for each in controller.hellos[0].inventory.guests] == [Power.RUNNING]
        with pytest.raises(Unavailable):
            await channel.request(Method.INVENTORY, None, Inventory, timeout_s=60)
        await until(lambda: len(controller.reports) > 2)


async def _fails(request: Awaitable[object]) -> None:
    with pytest.raises(Unavailable):
        await request
