"""What every hypervisor driver owes an agent. A driver's own tests subclass this and bring the fixtures."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from pileus.agent.hypervisor.port import GuestState, Hypervisor
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import InstanceId, new_id
from pileus.testing.contracts.devices import DevicesContract
from pileus.testing.contracts.guest import Crash
from pileus.testing.contracts.power import PowerContract
from pileus.testing.links import until


class HypervisorContract(PowerContract, DevicesContract):
    """The whole promise. A subclass brings the fixtures that its parts name."""

    async def test_a_hypervisor_says_what_it_is(self, hypervisor: Hypervisor) -> None:
        facts = await hypervisor.facts()
        assert facts.name
        assert facts.version
        assert facts.architecture
        assert facts.accelerator in {"kvm", "tcg", "simulated"}
        assert facts.accelerator_reason

    async def test_a_defined_guest_is_known_and_does_not_run(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined(generation=7)
        found = (await hypervisor.list())[id]
        assert (found.state, found.generation) == (GuestState.SHUT_DOWN, 7)

    async def test_defining_twice_is_defining_once(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        assert await defined() == await defined()
        assert len(await hypervisor.list()) == 1

    async def test_a_running_guest_is_changed_without_being_stopped(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined(generation=1)
        await hypervisor.start(id)
        await defined(generation=2)
        found = (await hypervisor.list())[id]
        assert (found.state, found.generation) == (GuestState.RUNNING, 2)

    async def test_a_suspended_guest_is_undefined_with_its_memory(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await hypervisor.suspend(id)
        await hypervisor.undefine(id)
        await defined()
        assert (await hypervisor.list())[id].state is GuestState.SHUT_DOWN

    async def test_an_undefined_guest_is_stopped_and_forgotten(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await hypervisor.undefine(id)
        assert not await hypervisor.list()
        await self._is_unknown(hypervisor, id)

    async def test_undefining_twice_is_undefining_once(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.undefine(id)
        await hypervisor.undefine(id)
        assert not await hypervisor.list()

    async def test_a_guest_that_is_not_there_is_not_found(self, hypervisor: Hypervisor) -> None:
        await self._is_unknown(hypervisor, InstanceId(new_id()))

    async def test_changes_are_told_as_they_happen(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]], crash: Crash
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        async with _watching(hypervisor) as changes:
            await until(lambda: changes.ready, within_s=self.patience_s)
            changes.seen.clear()
            await crash(id)
            await until(lambda: id in changes.seen, within_s=self.patience_s)

    async def test_guests_go_on_when_the_agent_goes_away(
        self,
        hypervisor: Hypervisor,
        another: Callable[[], Awaitable[Hypervisor]],
        defined: Callable[..., Awaitable[InstanceId]],
    ) -> None:
        id = await defined(generation=3)
        await hypervisor.start(id)
        found = (await (await another()).list())[id]
        assert (found.state, found.generation) == (GuestState.RUNNING, 3)

    async def test_a_second_console_takes_over_from_the_first(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        first = await hypervisor.consoles.serial(id)
        second = await hypervisor.consoles.serial(id)
        async with asyncio.timeout(self.patience_s):
            while await first.read():
                pass
        await second.write(b"\r")
        await second.close()
        await first.close()

    async def _is_unknown(self, hypervisor: Hypervisor, id: InstanceId) -> None:
        power = hypervisor.start, hypervisor.stop, hypervisor.shut_down, hypervisor.pause, hypervisor.resume
        for asked in (*power, hypervisor.suspend, hypervisor.forget_memory, hypervisor.consoles.serial):
            with pytest.raises(NotFound):
                await asked(id)
        with pytest.raises(NotFound):
            await hypervisor.reboot(id, hard=True)


class _Watching:
    def __init__(self) -> None:
        self.seen: list[InstanceId] = []
        self.ready = False


@asynccontextmanager
async def _watching(hypervisor: Hypervisor) -> AsyncGenerator[_Watching, None]:
    watching = _Watching()

    async def watch() -> None:
        changes = hypervisor.changes()
        watching.ready = True
        async for id in changes:
            watching.seen.append(id)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(watch())
        yield watching
        task.cancel()
