"""The tasks of a snapshot's life.

Meanwhile its volumes are in a state that says so, and the instance that has them is `busy_with` it: of what is kept at
one moment nothing is attached, taken away or made larger at that moment.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState
from pileus.cloud.instances.workflows.hosting import COPY_S, ensure_disk, ensure_guest, remove_disk
from pileus.cloud.schedules.model import gone_with
from pileus.cloud.snapshots.model import SNAPSHOTS, Snapshot, SnapshotState
from pileus.cloud.volumes.model import VOLUMES, Volume, VolumeState
from pileus.cloud.world import Nothing, World
from pileus.kernel.ids import InstanceId, SnapshotId, VolumeId
from pileus.link.messages import Method
from pileus.link.snapshots import (
    Consistency,
    SnapshotObserved,
    SnapshotRemoval,
    SnapshotRevert,
    SnapshotSpec,
    VolumeOf,
)
from pileus.state.state import Change, Origin, State, put, remove
from pileus.workflow.workflow import Changes, Run, Workflow, step_with, workflow

TAKE_S = 1200.0
"""How long a host may take to save a guest's memory."""
MERGE_S = COPY_S
"""How long a host may take to merge what was written since a snapshot."""


class OfSnapshot(msgspec.Struct, frozen=True):
    """Which snapshot; all else is in the records."""

    snapshot: SnapshotId


@workflow("snapshot.create")
async def create_snapshot(run: Run[World], wish: OfSnapshot) -> None:
    """Have the host keep what the volumes are now."""
    observed = await run(take, wish)
    await run(note, wish, observed)


@create_snapshot.finish
def taken(state: State, wish: OfSnapshot) -> Changes:
    snapshot = state[SNAPSHOTS].get(wish.snapshot)
    return [put(snapshot.to(SnapshotState.AVAILABLE)), *released(state, snapshot)]


@create_snapshot.withdraw
def not_taken(state: State, wish: OfSnapshot) -> Changes:
    snapshot = state[SNAPSHOTS].get(wish.snapshot)
    return [remove(snapshot), *released(state, snapshot)]


@step_with(patience_s=60)
async def take(world: World, wish: OfSnapshot) -> SnapshotObserved:
    snapshot = world.state[SNAPSHOTS].get(wish.snapshot)
    spec = SnapshotSpec(
        id=wish.snapshot,
        volumes=named(world.state, snapshot.volume_ids),
        guest=_user(world.state, snapshot),
        memory=snapshot.memory,
    )
    return await world.hosts.ask(snapshot.host_id, Method.SNAPSHOT_ENSURE, spec, SnapshotObserved, timeout_s=TAKE_S)


@take.undo
async def let_go(world: World, wish: OfSnapshot) -> None:
    await remove_from_host(world, world.state[SNAPSHOTS].get(wish.snapshot))


@step_with()
async def note(world: World, wish: OfSnapshot, observed: SnapshotObserved) -> None:
    snapshot = world.state[SNAPSHOTS].get(wish.snapshot)
    noted = msgspec.structs.replace(snapshot, consistency=str(observed.consistency))
    if noted != snapshot:
        await world.state.commit([put(noted)], Origin(actor="system", operation="snapshot.create: note"))


class RevertSnapshot(OfSnapshot, frozen=True):
    """Which snapshot, the id of this deed, and what its instance was before."""

    to: str
    before: InstanceState | None
    memory: bool = False


@workflow("snapshot.revert")
async def revert_snapshot(run: Run[World], wish: RevertSnapshot) -> None:
    """Have the volumes be what they were, and the guest run again if it did."""
    await run(go_back, wish)
    await run(bring_up, wish)


@revert_snapshot.finish
def reverted(state: State, wish: RevertSnapshot) -> list[Change]:
    snapshot = state[SNAPSHOTS].get(wish.snapshot)
    after = state_after(wish) if snapshot.instance_id is not None else None
    return [put(snapshot.to(SnapshotState.AVAILABLE)), *released(state, snapshot, after=after)]


@step_with(forward_only=True)
async def go_back(world: World, wish: RevertSnapshot) -> None:
    snapshot = world.state[SNAPSHOTS].get(wish.snapshot)
    back = SnapshotRevert(
        id=wish.snapshot,
        to=wish.to,
        volumes=named(world.state, snapshot.volume_ids),
        guest=snapshot.instance_id,
        memory=wish.memory,
    )
    await world.hosts.ask(snapshot.host_id, Method.SNAPSHOT_REVERT, back, Nothing, timeout_s=MERGE_S)


@step_with(forward_only=True)
async def bring_up(world: World, wish: RevertSnapshot) -> None:
    snapshot = world.state[SNAPSHOTS].get(wish.snapshot)
    if snapshot.instance_id is not None:
        instance = world.state[INSTANCES].get(snapshot.instance_id)
        await ensure_guest(world, msgspec.structs.replace(instance, state=state_after(wish)))


def state_after(wish: RevertSnapshot) -> InstanceState:
    """What an instance is when it has gone back."""
    runs = wish.memory or wish.before is InstanceState.RUNNING
    return InstanceState.RUNNING if runs else InstanceState.STOPPED


@workflow("snapshot.delete")
async def delete_snapshot(run: Run[World], wish: OfSnapshot) -> None:
    """Merge what was written since; the volumes stay what they are."""
    await run(take_away, wish)


@delete_snapshot.finish
def deleted(state: State, wish: OfSnapshot) -> Changes:
    snapshot = state[SNAPSHOTS].get(wish.snapshot)
    return [remove(snapshot), *released(state, snapshot)]


@step_with(forward_only=True)
async def take_away(world: World, wish: OfSnapshot) -> None:
    await remove_from_host(world, world.state[SNAPSHOTS].get(wish.snapshot))


class CopyOf(msgspec.Struct, frozen=True):
    """What is copied: a volume, as it was at a snapshot; one of this id is taken for it if there is none."""

    source: VolumeId
    snapshot: SnapshotId
    is_taken: bool


class CloneVolume(CopyOf, frozen=True):
    """The new volume, and what it is a copy of."""

    volume: VolumeId


@workflow("volume.clone")
async def clone_volume(run: Run[World], wish: CloneVolume) -> None:
    """Copy a volume as it was at one moment, while it is used."""
    await run(take_for_copy, wish)
    await run(copy, wish)
    await run(drop_after_copy, wish)


@clone_volume.finish
def cloned(state: State, wish: CloneVolume) -> list[Change]:
    return [put(state[VOLUMES].get(wish.volume).to(VolumeState.AVAILABLE)), *left(state, wish)]


@clone_volume.withdraw
def not_cloned(state: State, wish: CloneVolume) -> list[Change]:
    return [remove(state[VOLUMES].get(wish.volume)), *gone_with(state, wish.volume), *left(state, wish)]


@step_with(patience_s=60)
async def take_for_copy(world: World, wish: CopyOf) -> Consistency:
    if wish.is_taken:
        return Consistency(world.state[SNAPSHOTS].get(wish.snapshot).consistency)
    source = world.state[VOLUMES].get(wish.source)
    assert source.host_id is not None
    spec = SnapshotSpec(id=wish.snapshot, volumes=(_named(source),), guest=source.instance_id)
    observed = await world.hosts.ask(source.host_id, Method.SNAPSHOT_ENSURE, spec, SnapshotObserved, timeout_s=TAKE_S)
    return observed.consistency


@take_for_copy.undo
async def drop_again(world: World, wish: CopyOf) -> None:
    await drop(world, wish)


@step_with(patience_s=120)
async def copy(world: World, wish: CloneVolume) -> None:
    volume = world.state[VOLUMES].get(wish.volume)
    await ensure_disk(world, volume, copy_of=(wish.source, wish.snapshot))


@copy.undo
async def remove_copy(world: World, wish: CloneVolume) -> None:
    await remove_disk(world, world.state[VOLUMES].get(wish.volume))


@step_with(forward_only=True)
async def drop_after_copy(world: World, wish: CloneVolume) -> None:
    await drop(world, wish)


WORKFLOWS: tuple[Workflow[World, Any], ...] = (create_snapshot, revert_snapshot, delete_snapshot, clone_volume)


async def remove_from_host(world: World, snapshot: Snapshot) -> None:
    """Have the host keep it no more."""
    removal = SnapshotRemoval(id=SnapshotId(snapshot.id), volumes=named(world.state, snapshot.volume_ids))
    await world.hosts.ask(snapshot.host_id, Method.SNAPSHOT_REMOVE, removal, Nothing, timeout_s=MERGE_S)


async def drop(world: World, wish: CopyOf) -> None:
    """Have the host keep no more what was kept for a copy only."""
    source = world.state[VOLUMES].find(wish.source)
    if not wish.is_taken and source is not None and source.host_id is not None:
        removal = SnapshotRemoval(id=wish.snapshot, volumes=(_named(source),))
        await world.hosts.ask(source.host_id, Method.SNAPSHOT_REMOVE, removal, Nothing, timeout_s=MERGE_S)


def held(state: State, volumes: list[Volume], into: VolumeState, doing: str) -> list[Change]:
    """The volumes in this state, and their instance busy: the way of `released` into a task.

    Raises:
        Conflict: one of them is being worked on.
    """
    changes: list[Change] = [put(volume.to(into)) for volume in volumes]
    instances = {volume.instance_id for volume in volumes if volume.instance_id is not None}
    for id in sorted(instances):
        instance = state[INSTANCES].get(id)
        changes.append(put(_busy(instance, doing)))
    return changes


def released(state: State, snapshot: Snapshot, *, after: InstanceState | None = None) -> list[Change]:
    """Its volumes as they were before the task, and their instance at rest, in its state `after` if that changes."""
    volumes = [state[VOLUMES].get(id) for id in snapshot.volume_ids]
    return at_rest(state, volumes, after=after)


def left(state: State, wish: CopyOf) -> list[Change]:
    """What was copied as it was before: the volume, or the snapshot."""
    if wish.is_taken:
        return [put(state[SNAPSHOTS].get(wish.snapshot).to(SnapshotState.AVAILABLE))]
    return at_rest(state, [state[VOLUMES].get(wish.source)])


def at_rest(state: State, volumes: Sequence[Volume], *, after: InstanceState | None = None) -> list[Change]:
    """These volumes as they were before a task, and their instance; see `released`."""
    changes: list[Change] = [
        put(volume.to(VolumeState.IN_USE if volume.instance_id is not None else VolumeState.AVAILABLE))
        for volume in volumes
    ]
    for id in sorted({volume.instance_id for volume in volumes if volume.instance_id is not None}):
        instance = state[INSTANCES].get(id).at_rest()
        changes.append(put(instance if after is None else instance.to(after)))
    return changes


def _busy(instance: Instance, doing: str) -> Instance:
    """Its guest is not told anything, so that its generation stays."""
    return msgspec.structs.replace(instance.busy(doing), generation=instance.generation)


def named(state: State, volumes: Iterable[VolumeId]) -> tuple[VolumeOf, ...]:
    """These volumes as their host is told of them."""
    return tuple(_named(state[VOLUMES].get(id)) for id in volumes)


def _named(volume: Volume) -> VolumeOf:
    return VolumeOf(id=VolumeId(volume.id), pool=volume.storage_pool, secure=volume.secure_delete)


def _user(state: State, snapshot: Snapshot) -> InstanceId | None:
    return state[VOLUMES].get(snapshot.volume_ids[0]).instance_id
