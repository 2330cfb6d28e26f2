"""What every hypervisor driver owes an agent of guests that are started, stopped, paused, suspended and die."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pileus.agent.hypervisor.port import GuestFound, GuestState, Hypervisor
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.testing.contracts.guest import Crash, GuestContract


class PowerContract(GuestContract):
    """The promise."""

    async def test_starting_twice_is_starting_once(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await hypervisor.start(id)
        assert (await hypervisor.list())[id].state is GuestState.RUNNING

    async def test_stopping_twice_is_stopping_once(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await hypervisor.stop(id)
        await hypervisor.stop(id)
        assert (await hypervisor.list())[id].state is GuestState.SHUT_DOWN

    async def test_a_stopped_guest_can_be_started_again(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        for _ in range(2):
            await hypervisor.start(id)
            assert (await hypervisor.list())[id].state is GuestState.RUNNING
            await hypervisor.stop(id)

    async def test_asking_a_guest_to_end_does_not_wait_for_it(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        async with asyncio.timeout(self.patience_s):
            await hypervisor.shut_down(id)
        # It may have ended, or not: both are its right.
        await hypervisor.stop(id)
        assert (await hypervisor.list())[id].state is GuestState.SHUT_DOWN

    async def test_pausing_twice_is_pausing_once_and_resuming_goes_on(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        for asked, state in ((hypervisor.pause, GuestState.PAUSED), (hypervisor.resume, GuestState.RUNNING)):
            for _ in range(2):
                await asked(id)
                assert (await hypervisor.list())[id].state is state

    async def test_a_paused_guest_stays_so_when_it_is_changed_or_the_agent_goes_away(
        self,
        hypervisor: Hypervisor,
        another: Callable[[], Awaitable[Hypervisor]],
        defined: Callable[..., Awaitable[InstanceId]],
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await hypervisor.pause(id)
        await defined(generation=2)
        assert (await (await another()).list())[id].state is GuestState.PAUSED

    async def test_a_paused_guest_can_be_stopped(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await hypervisor.pause(id)
        await hypervisor.stop(id)
        assert (await hypervisor.list())[id].state is GuestState.SHUT_DOWN

    async def test_a_guest_that_does_not_run_is_neither_paused_nor_resumed(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        for asked in (hypervisor.pause, hypervisor.resume, hypervisor.suspend):
            with pytest.raises(Conflict):
                await asked(id)

    async def test_a_suspended_guest_does_not_run_and_goes_on_when_it_is_started(
        self,
        hypervisor: Hypervisor,
        another: Callable[[], Awaitable[Hypervisor]],
        defined: Callable[..., Awaitable[InstanceId]],
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        for _ in range(2):
            await hypervisor.suspend(id)
            assert (await hypervisor.list())[id].state is GuestState.SUSPENDED
        assert (await (await another()).list())[id].state is GuestState.SUSPENDED
        await defined(generation=2)
        assert (await hypervisor.list())[id] == GuestFound(state=GuestState.SUSPENDED, generation=2)
        await hypervisor.start(id)
        assert (await hypervisor.list())[id].state is GuestState.RUNNING

    async def test_a_paused_guest_that_is_suspended_runs_when_it_is_started(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await hypervisor.pause(id)
        await hypervisor.suspend(id)
        await hypervisor.start(id)
        assert (await hypervisor.list())[id].state is GuestState.RUNNING

    async def test_a_guest_whose_memory_is_forgotten_is_shut_down(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await hypervisor.suspend(id)
        for _ in range(2):
            await hypervisor.forget_memory(id)
            assert (await hypervisor.list())[id] == GuestFound(state=GuestState.SHUT_DOWN, generation=1)

    async def test_a_guest_runs_after_its_reset_button_was_pressed(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]]
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await hypervisor.reboot(id, hard=True)
        await self.until(hypervisor, id, lambda found: found is not None and found.state is GuestState.RUNNING)

    async def test_a_guest_whose_process_died_has_crashed_and_why_is_told(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]], crash: Crash
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await crash(id)
        await self.until(hypervisor, id, lambda found: found is not None and found.state is GuestState.CRASHED)
        assert (await hypervisor.list())[id].cause

    async def test_a_crashed_guest_can_be_started_again(
        self, hypervisor: Hypervisor, defined: Callable[..., Awaitable[InstanceId]], crash: Crash
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        await crash(id)
        await self.until(hypervisor, id, lambda found: found is not None and found.state is GuestState.CRASHED)
        await hypervisor.start(id)
        assert (await hypervisor.list())[id].state is GuestState.RUNNING
