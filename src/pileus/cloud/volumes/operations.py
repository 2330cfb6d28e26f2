"""What one may do with volumes."""

from typing import Annotated

import msgspec
from pydantic import Field

from pileus.cloud.images.model import Image
from pileus.cloud.images.operations.noun import usable_image
from pileus.cloud.instances.model import INSTANCES, Instance
from pileus.cloud.instances.operations.hardware import check_plugging
from pileus.cloud.instances.placement import Placer, default_pool, host_name, room_for_volume, room_on
from pileus.cloud.pools.model import POOLS
from pileus.cloud.snapshots.model import must_have_none
from pileus.cloud.storagepools.choosing import candidates
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES, Volume, VolumeState
from pileus.cloud.volumes.workflows import (
    AttachVolume,
    GrowVolume,
    OfVolume,
    attach_volume,
    delete_volume,
    detach_volume,
    grow_volume,
)
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import HostId, ImageId, InstanceId, VolumeId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Labels, Name, Wire, ref
from pileus.state.state import Change, put
from pileus.workflow.workflow import begin

SizeGib = Annotated[int, Field(ge=1, le=65_536)]


class VolumeCreate(Wire):
    name: Name
    size_gib: SizeGib | None = None
    """Without one, as large as the image."""
    image_id: Annotated[Id, ref("image")] | None = None
    """What it is a copy of; empty without one."""
    description: Description = ""
    labels: Labels = Field(default_factory=dict[str, str])
    protected: bool = False
    secure_delete: bool = False
    """Whether its data is overwritten when it is deleted."""
    storage_pool: Name | None = None
    """Where its disk is to be, by name; by default where the default pool has its disks."""
    storage_class: Name | None = None
    """Instead, the class of storage pool that it is to be in."""


class VolumeChange(Wire):
    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    protected: bool | None = None
    secure_delete: bool | None = None
    """Whether its data is overwritten when it is deleted."""


class VolumeAttach(Wire):
    instance_id: Annotated[Id, ref("instance")]


class VolumeGrow(Wire):
    size_gib: SizeGib


volumes = Noun(
    VOLUMES,
    plural="volumes",
    columns=("name", "size_gib", "state", "storage_pool", "instance_id"),
    about="Volumes: block devices.",
)
volumes.list(filters=("name", "state", "instance_id", "host_id", "storage_pool", "labels"), sorts=("name", "size_gib"))
volumes.show()


@volumes.post()
def create(ask: Ask, wish: VolumeCreate) -> Plan:
    """Create a volume. The host on which its disk is made is decided when it is first attached."""
    pool = default_pool(ask.state)
    if pool is None:
        raise Conflict("there is no default pool: name a storage pool", fields={"storage_pool": "missing"})
    chosen = candidates(ask.state, pool, name=wish.storage_pool, storage_class=wish.storage_class)
    image = usable_image(ask, wish.image_id) if wish.image_id else None
    volume = Volume(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        name=wish.name,
        description=wish.description,
        labels=wish.labels,
        size_gib=_size(wish, image),
        state=VolumeState.AVAILABLE,
        image_id=ImageId(image.id) if image else None,
        needs=image.needs if image else None,
        protected=wish.protected,
        secure_delete=wish.secure_delete,
        storage_pool="" if wish.storage_class else chosen[0].name,
        storage_class=chosen[0].storage_class,
    )
    return Plan(
        summary=f"create volume {volume.name} of {volume.size_gib} GiB",
        changes=(put(volume),),
        answers=volume,
        undo="delete the volume",
    )


@volumes.patch()
def change(ask: Ask, volume: Volume, wish: VolumeChange) -> Plan:
    """Rename, describe, label or protect a volume; say whether deleting it overwrites it."""
    changed = msgspec.structs.replace(volume, **wish.model_dump(exclude_none=True))
    return Plan(summary=f"change volume {volume.name}", changes=(put(changed),), answers=changed, undo="change it back")


@volumes.post("/{id}/attach", starts=attach_volume)
def attach(ask: Ask, volume: Volume, wish: VolumeAttach) -> Plan:
    """Attach a volume to an instance on its host, running or stopped."""
    changed = volume.to(VolumeState.ATTACHING)
    instance = ask.see(INSTANCES, wish.instance_id, "instance_id", of=volume.project_id)
    if volume.host_id not in (None, instance.host_id):
        raise Conflict(
            f"volume {volume.name} is on host {host_name(ask.state, HostId(volume.host_id or ''))}, instance"
            f" {instance.name} on {host_name(ask.state, instance.host_id)}: a volume on a host's own storage can be"
            " attached only there",
            fields={"instance_id": "on another host"},
        )
    check_plugging(instance, "attaching a volume")
    is_new = volume.host_id is None
    if is_new:
        pool = ask.state[POOLS].get(instance.pool_id)
        by_class = None if volume.storage_pool else volume.storage_class
        chosen = candidates(ask.state, pool, name=volume.storage_pool or None, storage_class=by_class)
        there = room_on(ask.view(Placer), ask.state, instance.host_id, volume.size_gib, chosen)
        changed = msgspec.structs.replace(changed, storage_pool=there.name)
    changed = msgspec.structs.replace(
        changed, instance_id=InstanceId(instance.id), host_id=instance.host_id, slot=_free_slot(ask, instance)
    )
    return Plan(
        summary=f"attach volume {volume.name} to instance {instance.name}",
        changes=(put(changed), put(instance.busy(f"volume {volume.name} is being attached"))),
        begin=begin(attach_volume, AttachVolume(VolumeId(volume.id), is_new=is_new)),
        answers=changed,
        undo="detach it",
    )


@volumes.post("/{id}/detach", starts=detach_volume)
def detach(ask: Ask, volume: Volume) -> Plan:
    """Detach a volume from its instance; a running guest is asked to let go of it."""
    changed = volume.to(VolumeState.DETACHING)
    if volume.slot == BOOT_SLOT:
        raise Conflict(f"volume {volume.name} is what its instance boots from, and goes with that")
    instance = ask.state[INSTANCES].get(volume.instance_id or "")
    check_plugging(instance, "detaching a volume")
    return Plan(
        summary=f"detach volume {volume.name} from instance {instance.name}",
        changes=(put(changed), put(instance.busy(f"volume {volume.name} is being detached"))),
        begin=begin(detach_volume, OfVolume(VolumeId(volume.id))),
        answers=changed,
        undo="attach it again",
    )


@volumes.post("/{id}/grow", starts=grow_volume)
def grow(ask: Ask, volume: Volume, wish: VolumeGrow) -> Plan:
    """Make a volume larger; a running guest sees it at once. What is in it stays as it is."""
    volume.must_be_ours("enlarged")
    if wish.size_gib <= volume.size_gib:
        raise Conflict(
            f"volume {volume.name} has {volume.size_gib} GiB, and can only become larger",
            fields={"size_gib": f"more than {volume.size_gib}"},
        )
    if volume.host_id is not None:
        grown_gib = wish.size_gib - volume.size_gib
        room_for_volume(ask.state, ask.view(Placer).fleet, volume.host_id, grown_gib, volume.storage_pool)
    changed = msgspec.structs.replace(
        volume.to(VolumeState.GROWING), size_gib=wish.size_gib, generation=volume.generation + 1
    )
    changes: list[Change] = [put(changed)]
    if volume.instance_id is not None:
        instance = ask.state[INSTANCES].get(volume.instance_id)
        busy = instance.busy(f"volume {volume.name} is being enlarged")
        if volume.slot == BOOT_SLOT:
            busy = msgspec.structs.replace(busy, disk_gib=wish.size_gib)
        changes.append(put(busy))
    return Plan(
        summary=f"grow volume {volume.name} from {volume.size_gib} to {wish.size_gib} GiB",
        changes=changes,
        begin=begin(grow_volume, GrowVolume(VolumeId(volume.id), from_gib=volume.size_gib)),
        answers=changed,
        undo="none: a volume does not become smaller",
    )


@volumes.delete(starts=delete_volume)
def delete(ask: Ask, volume: Volume) -> Plan:
    """Delete a volume that is not attached, with all that is in it."""
    if volume.protected:
        raise Conflict(f"volume {volume.name} is protected; take the protection away first")
    if volume.instance_id is not None:
        instance = ask.state[INSTANCES].find(volume.instance_id)
        name = instance.name if instance is not None else volume.instance_id
        raise Conflict(f"volume {volume.name} is attached to instance {name}: detach it first")
    must_have_none(ask.state, volume, "deleted")
    changed = msgspec.structs.replace(volume.to(VolumeState.DELETING), generation=volume.generation + 1)
    return Plan(
        summary=f"delete volume {volume.name}" + (" and overwrite its data" if volume.secure_delete else ""),
        changes=(put(changed),),
        begin=begin(delete_volume, OfVolume(VolumeId(volume.id))),
        answers=changed,
        undo="none: its data is gone",
    )


def _size(wish: VolumeCreate, image: Image | None) -> int:
    """In GiB. Raises Invalid if nobody says how large it is to be, or the image does not fit."""
    if image is None:
        if wish.size_gib is None:
            raise Invalid("some fields are wrong", fields={"size_gib": "how large is it to be?"})
        return wish.size_gib
    if wish.size_gib is not None and wish.size_gib < image.least_gib:
        raise Invalid("some fields are wrong", fields={"size_gib": f"image {image.name} needs {image.least_gib} GiB"})
    return wish.size_gib or image.least_gib


def _free_slot(ask: Ask, instance: Instance) -> int:
    taken = {volume.slot for volume in ask.state[VOLUMES].by("instance", instance.id)}
    disks = instance.frame.disks
    free = next((slot for slot in range(disks) if slot not in taken), None)
    if free is None:
        raise Conflict(
            f"instance {instance.name} has {disks} volumes, and with template {instance.template} room for no more"
        )
    return free
