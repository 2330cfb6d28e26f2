"""Removing an instance, for good or so that it can be had back, and what has to go with it."""

from datetime import datetime

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS, without_port
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.instances.specs import ports_of
from pileus.cloud.instances.workflows.creation import forget
from pileus.cloud.instances.workflows.hosting import OfInstance, ensure_guest, remove_boot_disk, remove_guest
from pileus.cloud.networks.model import PORTS
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES
from pileus.cloud.world import World
from pileus.state.state import Change, State, put
from pileus.workflow.workflow import Changes, Run, step, step_with, workflow


@workflow("instance.delete")
async def delete_instance(run: Run[World], wish: OfInstance) -> None:
    """Take the guest and its disks from the host."""
    await run(take_guest_away, wish)
    await run(take_disks_away, wish)


@delete_instance.finish
def deleted(state: State, wish: OfInstance) -> Changes:
    return forget(state, wish)


@workflow("instance.soft_delete")
async def soft_delete_instance(run: Run[World], wish: OfInstance) -> None:
    """Take the guest from the host, and keep its disk there."""
    await run(take_guest_away, wish)


@soft_delete_instance.finish
def laid_aside(state: State, wish: OfInstance) -> Changes:
    instance = state[INSTANCES].get(wish.instance).to(InstanceState.DELETED)
    others = [each for each in state[VOLUMES].by("instance", wish.instance) if each.slot != BOOT_SLOT]
    ports = ports_of(state, instance)
    left = tuple(each.address for port in ports if not port.kept for each in port.addresses)
    return [
        put(msgspec.structs.replace(instance, addresses=left, attached_volume_ids=(), floating_addresses=())),
        *(put(volume.released()) for volume in others),
        *(put(port.released()) for port in ports if port.kept),
        *_ports_laid_aside(state, wish),
    ]


def _ports_laid_aside(state: State, wish: OfInstance) -> list[Change]:
    """Its own ports keep their addresses, but no name in DNS, which another may have meanwhile, and no floating IP."""
    ports = [each for each in state[PORTS].by("instance_id", wish.instance) if not each.kept]
    return [
        *(put(msgspec.structs.replace(port, host_id=None, hostname="")) for port in ports),
        *(put(without_port(each)) for port in ports for each in state[FLOATING_IPS].by("port_id", port.id)),
    ]


@step_with(forward_only=True)
async def take_guest_away(world: World, wish: OfInstance) -> None:
    await remove_guest(world, world.state[INSTANCES].get(wish.instance))


@step_with(forward_only=True)
async def take_disks_away(world: World, wish: OfInstance) -> None:
    await remove_boot_disk(world, wish.instance)


class Undelete(OfInstance, frozen=True):
    """Which instance, and since when it was deleted."""

    deleted_at: datetime | None


@workflow("instance.undelete")
async def undelete_instance(run: Run[World], wish: Undelete) -> None:
    """Connect the ports, and define the guest on its host again."""
    await run(connect_again, wish)
    await run(define_again, wish)


@undelete_instance.finish
def had_back(state: State, wish: Undelete) -> Changes:
    return [put(state[INSTANCES].get(wish.instance).to(InstanceState.STOPPED))]


@undelete_instance.withdraw
def still_deleted(state: State, wish: Undelete) -> Changes:
    instance = state[INSTANCES].get(wish.instance).to(InstanceState.DELETED)
    again = msgspec.structs.replace(instance, deleted_at=wish.deleted_at, floating_addresses=())
    return [put(again), *_ports_laid_aside(state, wish)]


@step
async def connect_again(world: World, wish: Undelete) -> None:
    await world.networks.settled()


@step
async def define_again(world: World, wish: Undelete) -> None:
    await ensure_guest(world, world.state[INSTANCES].get(wish.instance))


@define_again.undo
async def take_away_again(world: World, wish: Undelete) -> None:
    await remove_guest(world, world.state[INSTANCES].get(wish.instance))
