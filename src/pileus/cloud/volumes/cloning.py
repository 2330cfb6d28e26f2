"""Copies of volumes, as they are or were."""

from typing import Annotated

from pydantic import Field

from pileus.cloud.instances.placement import Placer, room_for_volume
from pileus.cloud.snapshots.model import SNAPSHOTS, SnapshotState, must_take_layers
from pileus.cloud.snapshots.workflows import CloneVolume, clone_volume, held
from pileus.cloud.volumes.model import Volume, VolumeState
from pileus.cloud.volumes.operations import SizeGib, volumes
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import SnapshotId, VolumeId
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Labels, Name, Wire, ref
from pileus.state.state import Change, put
from pileus.workflow.workflow import begin

__all__ = ["volumes"]


class VolumeClone(Wire):
    name: Name
    snapshot_id: Annotated[Id, ref("snapshot")] | None = None
    """As it was then; without one, as it is now."""
    size_gib: SizeGib | None = None
    """Without one, as large as it is."""
    description: Description = ""
    labels: Labels = Field(default_factory=dict[str, str])
    secure_delete: bool | None = None
    """Whether its data is overwritten when it is deleted; without one, as the volume's."""


@volumes.post("/{id}/clone", starts=clone_volume)
def clone(ask: Ask, volume: Volume, wish: VolumeClone) -> Plan:
    """Make a copy of a volume, as it is or as it was at a snapshot, on the same host. It may be in use meanwhile."""
    must_take_layers(ask.state, volume, "cloned")
    if volume.host_id is None:
        raise Conflict(f"volume {volume.name} was never attached: there is nothing in it to copy")
    if wish.size_gib is not None and wish.size_gib < volume.size_gib:
        raise Invalid("some fields are wrong", fields={"size_gib": f"the volume has {volume.size_gib} GiB"})
    size_gib = wish.size_gib or volume.size_gib
    room_for_volume(ask.state, ask.view(Placer).fleet, volume.host_id, size_gib, volume.storage_pool)
    copy = Volume(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=volume.project_id,
        name=wish.name,
        description=wish.description,
        labels=wish.labels,
        size_gib=size_gib,
        storage_pool=volume.storage_pool,
        storage_class=volume.storage_class,
        host_id=volume.host_id,
        needs=volume.needs,
        secure_delete=volume.secure_delete if wish.secure_delete is None else wish.secure_delete,
    )
    changes: list[Change] = [put(copy)]
    if wish.snapshot_id is not None:
        snapshot = ask.see(SNAPSHOTS, wish.snapshot_id, "snapshot_id", of=volume.project_id)
        if volume.id not in snapshot.volume_ids:
            raise Invalid("some fields are wrong", fields={"snapshot_id": "is not of this volume"})
        moment, when = SnapshotId(snapshot.id), f" at snapshot {snapshot.name}"
        changes.append(put(snapshot.to(SnapshotState.COPYING)))
    else:
        moment, when = SnapshotId(ask.new_id()), ""
        changes += held(ask.state, [volume], VolumeState.SNAPSHOTTING, f"volume {volume.name} is being copied")
    deed = CloneVolume(VolumeId(volume.id), moment, wish.snapshot_id is not None, VolumeId(copy.id))
    return Plan(
        summary=f"copy volume {volume.name}{when} to {copy.name}",
        changes=changes,
        begin=begin(clone_volume, deed),
        answers=copy,
        undo="delete the copy",
    )
