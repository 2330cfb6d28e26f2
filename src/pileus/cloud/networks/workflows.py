"""The tasks of a port's life: it is plugged into an instance, pulled out of it, or moved from one to another.

Meanwhile the instances concerned are `busy_with` that, as they are with volumes: a guest is changed by one task at a
time, so that of two generations of it the later one always has what the earlier one had.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.instances.model import FIRST_BOOTS, INSTANCES, Instance
from pileus.cloud.instances.specs import ports_of
from pileus.cloud.instances.workflows.hosting import ensure_guest
from pileus.cloud.networks.model import PORTS, Port, PortState, in_slots
from pileus.cloud.world import World
from pileus.kernel.ids import InstanceId, PortId
from pileus.state.state import Change, State, put
from pileus.workflow.workflow import Run, Workflow, step, workflow


class OfPort(msgspec.Struct, frozen=True):
    """Which port; all else is in the records."""

    port: PortId


class MovePort(msgspec.Struct, frozen=True):
    """Which port, and where it was plugged in before."""

    port: PortId
    source: InstanceId
    slot: int


@workflow("port.attach")
async def attach_port(run: Run[World], wish: OfPort) -> None:
    """Let the switches know the port, and plug it in."""
    await run(connect, wish)
    await run(plug_in, wish)


@attach_port.finish
def attached(state: State, wish: OfPort) -> list[Change]:
    port = state[PORTS].get(wish.port).to(PortState.ATTACHED)
    return [put(port), put(_at_rest(state, _instance(state, port), more=(port,)))]


@attach_port.withdraw
def not_attached(state: State, wish: OfPort) -> list[Change]:
    port = state[PORTS].get(wish.port)
    return [put(port.released()), put(_at_rest(state, _instance(state, port).newer()))]


@step
async def connect(world: World, wish: OfPort | MovePort) -> None:
    # The ports are records, and the switches follow the records: there is nothing to do but wait, or to undo.
    await world.networks.settled()


@step
async def plug_in(world: World, wish: OfPort) -> None:
    await _plug_in(world, wish.port)


@plug_in.undo
async def pull_out_again(world: World, wish: OfPort) -> None:
    await _pull_out_again(world, wish.port)


@workflow("port.detach")
async def detach_port(run: Run[World], wish: OfPort) -> None:
    """Take the port from the guest."""
    await run(pull_out, wish)


@detach_port.finish
def detached(state: State, wish: OfPort) -> list[Change]:
    port = state[PORTS].get(wish.port)
    return [put(port.released()), put(_at_rest(state, _instance(state, port), without=wish.port))]


@detach_port.withdraw
def still_attached(state: State, wish: OfPort) -> list[Change]:
    port = state[PORTS].get(wish.port).to(PortState.ATTACHED)
    return [put(port), put(_at_rest(state, _instance(state, port).newer(), more=(port,)))]


@step
async def pull_out(world: World, wish: OfPort) -> None:
    await ensure_guest(world, _instance_of(world, wish.port))


@pull_out.undo
async def plug_in_again(world: World, wish: OfPort) -> None:
    instance = _instance_of(world, wish.port)
    await ensure_guest(world, instance.newer(), ports=ports_of(world.state, instance))


@workflow("port.move")
async def move_port(run: Run[World], wish: MovePort) -> None:
    """Take the port from the one guest, and plug it into the other."""
    await run(pull_out_of_source, wish)
    await run(connect, wish)
    await run(plug_into_target, wish)


@move_port.finish
def moved(state: State, wish: MovePort) -> list[Change]:
    port = state[PORTS].get(wish.port).to(PortState.ATTACHED)
    source = _at_rest(state, state[INSTANCES].get(wish.source))
    return [put(port), put(source), put(_at_rest(state, _instance(state, port), more=(port,)))]


@move_port.withdraw
def not_moved(state: State, wish: MovePort) -> list[Change]:
    target, before = _instance(state, state[PORTS].get(wish.port)), _as_before(state, wish)
    source = state[INSTANCES].get(wish.source).newer()
    return [
        put(before),
        put(_at_rest(state, source, more=(before,))),
        put(_at_rest(state, target.newer(), without=wish.port)),
    ]


@step
async def pull_out_of_source(world: World, wish: MovePort) -> None:
    await ensure_guest(world, world.state[INSTANCES].get(wish.source))


@pull_out_of_source.undo
async def plug_into_source_again(world: World, wish: MovePort) -> None:
    source = world.state[INSTANCES].get(wish.source)
    before = in_slots([*ports_of(world.state, source), _as_before(world.state, wish)])
    await ensure_guest(world, source.newer(), ports=before)


@step
async def plug_into_target(world: World, wish: MovePort) -> None:
    await _plug_in(world, wish.port)


@plug_into_target.undo
async def pull_out_of_target(world: World, wish: MovePort) -> None:
    await _pull_out_again(world, wish.port)


WORKFLOWS: tuple[Workflow[World, Any], ...] = (attach_port, detach_port, move_port)


def plugged(state: State, port: Port, instance: Instance, *, slot: int, as_state: PortState) -> Port:
    """The port in this slot of an instance, with the instance's name on its network."""
    told = state[FIRST_BOOTS].find(instance.id)
    return msgspec.structs.replace(
        port.to(as_state),
        instance_id=InstanceId(instance.id),
        slot=slot,
        host_id=instance.host_id,
        hostname=told.hostname if told else "",
        instance_bandwidth_mbit=instance.bandwidth_mbit,
    )


def showing(state: State, instance: Instance, ports: Iterable[Port]) -> Instance:
    """The instance with the addresses of these ports, floating ones too, so that lists need no second question."""
    shown = in_slots(ports)
    floating = (each.address for port in shown for each in state[FLOATING_IPS].by("port_id", port.id))
    return msgspec.structs.replace(
        instance,
        addresses=tuple(each.address for port in shown for each in port.addresses),
        floating_addresses=tuple(floating),
    )


def _as_before(state: State, wish: MovePort) -> Port:
    port, source = state[PORTS].get(wish.port), state[INSTANCES].get(wish.source)
    return plugged(state, port, source, slot=wish.slot, as_state=PortState.ATTACHED)


async def _plug_in(world: World, id: PortId) -> None:
    await ensure_guest(world, _instance_of(world, id))


async def _pull_out_again(world: World, id: PortId) -> None:
    instance = _instance_of(world, id)
    others = [each for each in ports_of(world.state, instance) if each.id != id]
    await ensure_guest(world, instance.newer(), ports=others)


def _instance(state: State, port: Port) -> Instance:
    assert port.instance_id is not None
    return state[INSTANCES].get(port.instance_id)


def _instance_of(world: World, id: PortId) -> Instance:
    return _instance(world.state, world.state[PORTS].get(id))


def _at_rest(
    state: State, instance: Instance, *, more: tuple[Port, ...] = (), without: PortId | None = None
) -> Instance:
    """The instance with no task at work, showing its ports: with those in `more` as they are about to be."""
    others = [
        each
        for each in state[PORTS].by("instance_id", instance.id)
        if each.is_attached and each.id != without and each.id not in {port.id for port in more}
    ]
    return showing(state, instance.at_rest(), [*others, *more])
