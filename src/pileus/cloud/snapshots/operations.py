"""What one may do with snapshots."""

from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState
from pileus.cloud.instances.placement import Placer, check_real_room
from pileus.cloud.snapshots.model import SNAPSHOTS, Snapshot, SnapshotState, must_take_layers
from pileus.cloud.snapshots.subject import must_have_no_others, subject
from pileus.cloud.snapshots.workflows import (
    OfSnapshot,
    RevertSnapshot,
    create_snapshot,
    delete_snapshot,
    held,
    revert_snapshot,
)
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, Volume, VolumeState
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId, ScheduleId, SnapshotId, VolumeId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Labels, Name, Wire, ref
from pileus.state.state import Change, put
from pileus.workflow.workflow import begin


class SnapshotCreate(Wire):
    name: Name
    instance_id: Annotated[Id, ref("instance")] | None = None
    """Of all its volumes, at one moment."""
    volume_id: Annotated[Id, ref("volume")] | None = None
    """Of this volume alone."""
    memory: bool = False
    """Also of what the instance has in memory; it stands still while that is saved."""
    description: Description = ""
    labels: Labels = Field(default_factory=dict[str, str])

    @model_validator(mode="after")
    def _is_of_one(self) -> Self:
        if (self.instance_id is None) == (self.volume_id is None):
            raise ValueError("name either an instance or a volume")
        if self.memory and self.instance_id is None:
            raise ValueError("a volume has no memory: name an instance")
        return self


class SnapshotChange(Wire):
    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None


snapshots = Noun(
    SNAPSHOTS,
    plural="snapshots",
    columns=("name", "state", "instance_id", "size_gib", "consistency", "created_at"),
    about="Snapshots: what volumes and whole instances were at a moment.",
)
snapshots.list(filters=("name", "state", "instance_id", "host_id", "schedule_id", "labels"), sorts=("name", "size_gib"))
snapshots.show()


@snapshots.post(starts=create_snapshot)
def create(ask: Ask, wish: SnapshotCreate) -> Plan:
    """Keep what a volume or a whole instance is now. Its guest runs on, and is asked to write everything before."""
    return take(ask, wish)


def take(ask: Ask, wish: SnapshotCreate, *, schedule_id: ScheduleId | None = None) -> Plan:
    """The plan of a snapshot that a person asks for, or a schedule."""
    instance, volumes = subject(ask, wish.instance_id, wish.volume_id, "keep")
    for volume in volumes:
        must_take_layers(ask.state, volume, "kept as a snapshot")
    name = instance.name if instance else volumes[0].name
    if wish.memory and instance is not None and instance.state is not InstanceState.RUNNING:
        raise Conflict(
            f"instance {name} is {instance.state}: only a running one has memory to keep",
            fields={"memory": "the instance does not run"},
        )
    project, host = volumes[0].project_id, volumes[0].host_id
    assert host is not None
    for volume in volumes:
        check_real_room(ask.view(Placer), host, volume.storage_pool)
    boots = ask.state[INSTANCES].find(volumes[0].instance_id or "") if volumes[0].slot == BOOT_SLOT else None
    snapshot = Snapshot(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=project,
        name=wish.name,
        description=wish.description,
        labels=wish.labels,
        host_id=host,
        instance_id=InstanceId(instance.id) if instance else None,
        volume_ids=tuple(VolumeId(volume.id) for volume in volumes),
        size_gib=sum(volume.size_gib for volume in volumes),
        memory=wish.memory,
        memory_mib=boots.memory_mib if boots else 0,
        vcpus=boots.vcpus if boots else 0,
        template=boots.template if boots else None,
        image_id=(boots.image_id if boots else None) or volumes[0].image_id,
        schedule_id=schedule_id,
    )
    doing = f"snapshot {wish.name} is being taken"
    return Plan(
        summary=f"take snapshot {wish.name} of {'instance' if instance else 'volume'} {name}",
        changes=(put(snapshot), *held(ask.state, volumes, VolumeState.SNAPSHOTTING, doing)),
        begin=begin(create_snapshot, OfSnapshot(SnapshotId(snapshot.id))),
        answers=snapshot,
        undo="delete the snapshot",
    )


@snapshots.patch()
def change(ask: Ask, snapshot: Snapshot, wish: SnapshotChange) -> Plan:
    """Rename a snapshot, describe it, label it."""
    changed = msgspec.structs.replace(snapshot, **wish.model_dump(exclude_none=True))
    return Plan(
        summary=f"change snapshot {snapshot.name}", changes=(put(changed),), answers=changed, undo="change it back"
    )


@snapshots.post("/{id}/revert", starts=revert_snapshot)
def revert(ask: Ask, snapshot: Snapshot) -> Plan:
    """Go back: what was written since is lost. A snapshot of an instance stops it and starts it again."""
    changed = snapshot.to(SnapshotState.REVERTING)
    volumes = [ask.state[VOLUMES].get(id) for id in snapshot.volume_ids]
    instance = _to_revert(ask, snapshot, volumes)
    before = instance.state if instance else None
    wish = RevertSnapshot(SnapshotId(snapshot.id), ask.new_id(), before, memory=snapshot.memory)
    changes: list[Change] = [put(changed)]
    if instance is not None:
        changes += [put(volume.to(VolumeState.REVERTING)) for volume in volumes]
        changes.append(put(instance.to(InstanceState.REVERTING).newer()))
    else:
        changes += held(ask.state, volumes, VolumeState.REVERTING, f"volume {volumes[0].name} is being reverted")
    what = f"instance {instance.name}" if instance else f"volume {volumes[0].name}"
    return Plan(
        summary=f"revert {what} to snapshot {snapshot.name}",
        changes=changes,
        begin=begin(revert_snapshot, wish),
        answers=changed,
        undo="none: what was written since the snapshot is gone; take another one first to keep that",
    )


@snapshots.delete(starts=delete_snapshot)
def delete(ask: Ask, snapshot: Snapshot) -> Plan:
    """Delete a snapshot. Its volumes stay what they are now, and their guest runs on."""
    changed = snapshot.to(SnapshotState.DELETING)
    volumes = [ask.state[VOLUMES].get(id) for id in snapshot.volume_ids]
    doing = f"snapshot {snapshot.name} is being deleted"
    return Plan(
        summary=f"delete snapshot {snapshot.name}",
        changes=(put(changed), *held(ask.state, volumes, VolumeState.SNAPSHOTTING, doing)),
        begin=begin(delete_snapshot, OfSnapshot(SnapshotId(snapshot.id))),
        answers=changed,
        undo="none: what the volumes were then is forgotten",
    )


def _to_revert(ask: Ask, snapshot: Snapshot, volumes: list[Volume]) -> Instance | None:
    """The instance that is to go back as a whole, if any.

    Raises:
        Conflict: the volumes are not where they were, or the guest that has one runs.
    """
    if snapshot.instance_id is None:
        volume = volumes[0]
        user = ask.state[INSTANCES].find(volume.instance_id or "")
        if user is not None and user.state is not InstanceState.STOPPED:
            raise Conflict(
                f"volume {volume.name} is attached to instance {user.name}, which is {user.state}: stop it, or detach"
                " the volume, before it is exchanged under its guest"
            )
        return None
    instance = ask.state[INSTANCES].find(snapshot.instance_id)
    if instance is None:
        raise Conflict(f"the instance of snapshot {snapshot.name} is gone: make copies of its volumes instead")
    _must_have_its_volumes(ask, instance, snapshot, volumes)
    size = (instance.vcpus, instance.memory_mib)
    if snapshot.memory and size != (snapshot.vcpus, snapshot.memory_mib):
        raise Conflict(
            f"instance {instance.name} had {snapshot.vcpus} vCPUs and {snapshot.memory_mib} MiB of memory when its"
            f" memory was kept, and has {size[0]} and {size[1]} now: resize it first"
        )
    return instance


def _must_have_its_volumes(ask: Ask, instance: Instance, snapshot: Snapshot, volumes: list[Volume]) -> None:
    if away := [volume.name for volume in volumes if volume.instance_id != instance.id]:
        raise Conflict(f"{', '.join(away)} is not attached to instance {instance.name} as it was: attach it first")
    must_have_no_others(ask, instance, snapshot.volume_ids)
