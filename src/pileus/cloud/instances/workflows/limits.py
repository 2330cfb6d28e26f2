"""Telling a host how much of it a guest may take."""

import msgspec

from pileus.cloud.instances.model import INSTANCES, Instance, Limits
from pileus.cloud.instances.workflows.hosting import OfInstance, ensure_guest
from pileus.cloud.networks.model import PORTS
from pileus.cloud.world import World
from pileus.state.state import Change, State, put
from pileus.workflow.workflow import Run, step, workflow


class SetLimits(OfInstance, frozen=True):
    """Which instance, and how it was limited before."""

    before: Limits


@workflow("instance.set_limits")
async def set_limits(run: Run[World], wish: SetLimits) -> None:
    """Tell the host, and the switches."""
    await run(tell_host, wish)
    await run(limit_ports, wish)


@set_limits.finish
def are_set(state: State, wish: SetLimits) -> list[Change]:
    return [put(state[INSTANCES].get(wish.instance).at_rest())]


@set_limits.withdraw
def are_not_set(state: State, wish: SetLimits) -> list[Change]:
    former = _as_before(state[INSTANCES].get(wish.instance), wish)
    return [put(former), *ports_limited(state, former)]


@step
async def tell_host(world: World, wish: SetLimits) -> None:
    await ensure_guest(world, world.state[INSTANCES].get(wish.instance))


@tell_host.undo
async def tell_former(world: World, wish: SetLimits) -> None:
    await ensure_guest(world, _as_before(world.state[INSTANCES].get(wish.instance), wish))


@step
async def limit_ports(world: World, wish: OfInstance) -> None:
    # The ports are records, and the switches follow the records: there is nothing to do but wait, or to undo.
    await world.networks.settled()


def ports_limited(state: State, instance: Instance) -> list[Change]:
    """What changes about the instance's ports with its limits."""
    return [
        put(msgspec.structs.replace(port, instance_bandwidth_mbit=instance.bandwidth_mbit))
        for port in state[PORTS].by("instance_id", instance.id)
        if port.instance_bandwidth_mbit != instance.bandwidth_mbit
    ]


def _as_before(instance: Instance, wish: SetLimits) -> Instance:
    # Never None again: a guest that was limited has to be told that it no longer is.
    return msgspec.structs.replace(instance.at_rest().newer(), limits=wish.before)
