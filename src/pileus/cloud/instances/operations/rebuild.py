"""Giving instances a new disk."""

from typing import Annotated

import msgspec

from pileus.cloud.images.operations.noun import usable_image
from pileus.cloud.instances.model import Instance, InstanceState
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.placement import Placer, room_for_volume
from pileus.cloud.instances.specs import root_volume
from pileus.cloud.instances.workflows import rebuild_instance
from pileus.cloud.instances.workflows.rebuild import RebuildInstance
from pileus.cloud.snapshots.model import must_have_none
from pileus.cloud.volumes.model import VolumeState
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import ImageId, InstanceId, VolumeId
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import put
from pileus.workflow.workflow import begin


class InstanceRebuild(Wire):
    image_id: Annotated[Id, ref("image")] | None = None
    """By default the one that it was made from."""


@instances.post("/{id}/rebuild", starts=rebuild_instance)
def rebuild(ask: Ask, instance: Instance, wish: InstanceRebuild) -> Plan:
    """Give an instance a new disk made from an image. Name, addresses and size stay; what was on the disk is lost."""
    instance.must_be_ours("its disk is not one of ours, and is not replaced")
    image_id = wish.image_id or instance.image_id
    if image_id is None:
        raise Invalid("some fields are wrong", fields={"image_id": "it was made from none: name one"})
    image = usable_image(ask, image_id)
    if image.least_gib > instance.disk_gib:
        raise Conflict(
            f"image {image.name} needs {image.least_gib} GiB, the disk has {instance.disk_gib}: resize it first",
            fields={"image_id": "too large"},
        )
    changed = msgspec.structs.replace(instance.to(InstanceState.REBUILDING).newer(), image_id=ImageId(image.id))
    old = root_volume(ask.state, instance)
    if old.protected:
        raise Conflict(f"volume {old.name}, which it boots from, is protected; take the protection away first")
    must_have_none(ask.state, old, "replaced")
    room_for_volume(ask.state, ask.view(Placer).fleet, instance.host_id, old.size_gib, old.storage_pool)
    new = msgspec.structs.replace(
        old,
        id=ask.new_id(),
        created_at=ask.now,
        revision=0,
        state=VolumeState.CREATING,
        image_id=ImageId(image.id),
        needs=image.needs,
        instance_id=None,
        slot=None,
        generation=1,
    )
    exchange = RebuildInstance(
        InstanceId(instance.id), VolumeId(old.id), VolumeId(new.id), instance.state, instance.image_id
    )
    return Plan(
        summary=f"rebuild instance {instance.name} from image {image.name}",
        changes=(put(changed), put(new)),
        begin=begin(rebuild_instance, exchange),
        answers=changed,
        undo="none: what was on its disk is gone",
    )
