"""Taking over a guest that somebody made without us. It does not notice, whatever becomes of the task."""

from typing import Any

import msgspec

from pileus.cloud.foreign.model import SHADOWS, drifted
from pileus.cloud.foreign.operations import LOOK_S
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.instances.specs import ports_of, volumes_of
from pileus.cloud.instances.workflows.creation import forget
from pileus.cloud.instances.workflows.hosting import OfInstance, ensure_disk, ensure_guest, leave_disk, remove_guest
from pileus.cloud.networks.model import NETWORKS, PORTS, NetworkKind
from pileus.cloud.volumes.model import VOLUMES
from pileus.cloud.world import World
from pileus.kernel.errors import Conflict
from pileus.link.foreign import ForeignGuests
from pileus.link.guests import Leaving
from pileus.link.messages import Message, Method
from pileus.state.state import Change, State, put, remove
from pileus.workflow.workflow import Changes, Run, Workflow, step, workflow


class AdoptGuest(OfInstance, frozen=True):
    """Which guest, and the instance that is made of it."""

    shadow: str


@workflow("foreign_guest.adopt")
async def adopt_guest(run: Run[World], wish: AdoptGuest) -> None:
    """See that the guest is still what was planned with, then take over its disks and itself."""
    await run(look_again, wish)
    await run(take_over, wish)


@adopt_guest.finish
def taken_over(state: State, wish: AdoptGuest) -> Changes:
    instance = state[INSTANCES].get(wish.instance).at_rest()
    return [put(instance), remove(state[SHADOWS].get(wish.shadow))]


@adopt_guest.withdraw
def still_foreign(state: State, wish: AdoptGuest) -> Changes:
    instance, shadow = state[INSTANCES].get(wish.instance), state[SHADOWS].get(wish.shadow)
    volumes = state[VOLUMES].by("instance", wish.instance)
    those = {volume.id for volume in volumes}
    # Its host has heard of this generation, and would take another wish of it for late.
    shadow = msgspec.structs.replace(shadow, instance_id=None, generation=instance.generation)
    return [
        *(change for change in forget(state, wish) if change.record.id not in those),
        *(remove(volume) for volume in volumes),
        *_without_empty_networks(state, wish),
        put(shadow),
    ]


def _without_empty_networks(state: State, wish: AdoptGuest) -> list[Change]:
    """What stands for the wiring of this guest, and of no other."""
    mine = ports_of(state, state[INSTANCES].get(wish.instance))
    networks = [state[NETWORKS].get(id) for id in dict.fromkeys(port.network_id for port in mine)]
    those = {port.id for port in mine}
    return [
        remove(network)
        for network in networks
        if network.kind is NetworkKind.UNMANAGED and set(state[PORTS].ids_by("network_id", network.id)) <= those
    ]


@step
async def look_again(world: World, wish: AdoptGuest) -> None:
    shadow = world.state[SHADOWS].get(wish.shadow)
    seen = await world.hosts.ask(shadow.host_id, Method.FOREIGN_GUESTS, Message(), ForeignGuests, timeout_s=LOOK_S)
    now = drifted(shadow, next((each for each in seen.guests if each.id == shadow.uuid), None))
    if now.drift:
        raise Conflict(f"guest {shadow.name} has changed since it was looked at: {'; '.join(now.drift)}")
    if now.running != shadow.running:
        raise Conflict(f"guest {shadow.name} was {_words(shadow.running)} and is {_words(now.running)} by now")


@step
async def take_over(world: World, wish: AdoptGuest) -> None:
    instance = world.state[INSTANCES].get(wish.instance)
    for volume in volumes_of(world.state, instance):
        await ensure_disk(world, volume)
    await ensure_guest(world, instance)


@take_over.undo
async def let_go(world: World, wish: AdoptGuest) -> None:
    instance = world.state[INSTANCES].get(wish.instance)
    await remove_guest(world, instance, Leaving())
    for volume in volumes_of(world.state, instance):
        await leave_disk(world, volume)


def _words(running: bool) -> str:
    return "running" if running else "stopped"


WORKFLOWS: tuple[Workflow[World, Any], ...] = (adopt_guest,)
