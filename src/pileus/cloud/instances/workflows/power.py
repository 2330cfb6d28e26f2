"""Starting, stopping, pausing, suspending and restarting the guest of an instance."""

import msgspec

from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState
from pileus.cloud.instances.workflows.hosting import GUEST_S, MEMORY_S, OfInstance, ensure_guest
from pileus.cloud.world import World
from pileus.kernel.ids import InstanceId
from pileus.link.guests import BootDevice, GuestObserved, GuestReboot
from pileus.link.messages import Method
from pileus.state.state import Change, State, put
from pileus.workflow.workflow import Run, step, step_with, workflow


class StartInstance(OfInstance, frozen=True):
    """Which instance, and what its firmware is to try first this time, if anything else than always."""

    boot_from: BootDevice | None = None


@workflow("instance.start")
async def start_instance(run: Run[World], wish: StartInstance) -> None:
    """Start the guest."""
    await run(apply_power, wish)


@start_instance.finish
def started(state: State, wish: StartInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.RUNNING))]


@start_instance.withdraw
def still_stopped(state: State, wish: StartInstance) -> list[Change]:
    return [put(_reverted(state[INSTANCES].get(wish.instance), wish))]


class FromState(OfInstance, frozen=True):
    """Which instance, and what it was before."""

    before: InstanceState = InstanceState.RUNNING


@workflow("instance.stop")
async def stop_instance(run: Run[World], wish: FromState) -> None:
    """Ask the guest to end, and end it if it does not."""
    if wish.before is InstanceState.SUSPENDED:
        await run(forget_memory, wish)
    else:
        await run(apply_power, wish)


@stop_instance.finish
def stopped(state: State, wish: FromState) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.STOPPED))]


@stop_instance.withdraw
def not_stopped(state: State, wish: FromState) -> list[Change]:
    return [put(_reverted(state[INSTANCES].get(wish.instance), wish))]


@workflow("instance.pause")
async def pause_instance(run: Run[World], wish: OfInstance) -> None:
    """Stop the guest's CPUs; its memory stays."""
    await run(apply_power, wish)


@pause_instance.finish
def paused(state: State, wish: OfInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.PAUSED))]


@pause_instance.withdraw
def not_paused(state: State, wish: OfInstance) -> list[Change]:
    return [put(_reverted(state[INSTANCES].get(wish.instance), wish))]


@workflow("instance.suspend")
async def suspend_instance(run: Run[World], wish: FromState) -> None:
    """Keep the guest's memory on its host's disk, and end it."""
    await run(apply_power, wish)


@suspend_instance.finish
def suspended(state: State, wish: FromState) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.SUSPENDED))]


@suspend_instance.withdraw
def not_suspended(state: State, wish: FromState) -> list[Change]:
    return [put(_reverted(state[INSTANCES].get(wish.instance), wish))]


class ResumeInstance(FromState, frozen=True):
    """Which instance, and what it was before."""

    before: InstanceState = InstanceState.PAUSED


@workflow("instance.resume")
async def resume_instance(run: Run[World], wish: ResumeInstance) -> None:
    """Let the guest go on where it was."""
    await run(apply_power, wish)


@resume_instance.finish
def resumed(state: State, wish: ResumeInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.RUNNING))]


@resume_instance.withdraw
def not_resumed(state: State, wish: ResumeInstance) -> list[Change]:
    return [put(_reverted(state[INSTANCES].get(wish.instance), wish))]


@step
async def apply_power(world: World, wish: OfInstance) -> None:
    instance = world.state[INSTANCES].get(wish.instance)
    if isinstance(wish, StartInstance) and wish.boot_from is not None:
        order = dict.fromkeys((wish.boot_from, *instance.boot_order))
        instance = msgspec.structs.replace(instance, boot_order=tuple(order))
    await ensure_guest(world, instance, timeout_s=MEMORY_S)


@apply_power.undo
async def restore_power(world: World, wish: OfInstance) -> None:
    await ensure_guest(world, _reverted(world.state[INSTANCES].get(wish.instance), wish), timeout_s=MEMORY_S)


@step_with(forward_only=True)
async def forget_memory(world: World, wish: OfInstance) -> None:
    # What is forgotten cannot be had back: a task that has begun to forget it can only go on.
    await ensure_guest(world, world.state[INSTANCES].get(wish.instance))


_BEFORE = {
    InstanceState.STARTING: InstanceState.STOPPED,
    InstanceState.PAUSING: InstanceState.RUNNING,
}


def _reverted(instance: Instance, wish: OfInstance) -> Instance:
    """The instance as it was before the change of power that is under way."""
    before = wish.before if isinstance(wish, FromState) else _BEFORE[instance.state]
    return instance.to(before).newer()


class RebootInstance(msgspec.Struct, frozen=True):
    """Which instance, and whether by the reset button."""

    instance: InstanceId
    hard: bool


@workflow("instance.reboot")
async def reboot_instance(run: Run[World], wish: RebootInstance) -> None:
    """Restart the guest."""
    await run(restart, wish)


@reboot_instance.finish
def rebooted(state: State, wish: RebootInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.RUNNING))]


@reboot_instance.withdraw
def not_rebooted(state: State, wish: RebootInstance) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.RUNNING))]


@step
async def restart(world: World, wish: RebootInstance) -> None:
    host = world.state[INSTANCES].get(wish.instance).host_id
    reboot = GuestReboot(id=wish.instance, hard=wish.hard)
    await world.hosts.ask(host, Method.GUEST_REBOOT, reboot, GuestObserved, timeout_s=GUEST_S)
