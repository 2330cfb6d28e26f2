"""What is in the drives of instances."""

from typing import Annotated

import msgspec
from pydantic import Field

from pileus.cloud.images.operations.noun import usable_medium
from pileus.cloud.instances.model import Instance, Medium
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.workflows import change_media
from pileus.cloud.instances.workflows.media import ChangeMedia
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import ImageId, InstanceId
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import put
from pileus.workflow.workflow import begin

Drive = Annotated[int, Field(ge=0, le=7)]


class MediumInsert(Wire):
    image_id: Annotated[Id, ref("image")]
    drive: Drive | None = None
    """By default the first one that is empty."""


class MediumEject(Wire):
    drive: Drive | None = None
    """By default the only one that is not empty."""


@instances.post("/{id}/insert", starts=change_media)
def insert(ask: Ask, instance: Instance, wish: MediumInsert) -> Plan:
    """Put an ISO image into a drive of an instance, running or stopped."""
    instance.must_be_ours("its drives are as they were found")
    image = usable_medium(ask, wish.image_id)
    drive = _empty_drive(instance) if wish.drive is None else wish.drive
    if drive >= instance.frame.drives:
        highest = instance.frame.drives - 1
        raise Invalid(
            f"instance {instance.name} of template {instance.template} has no drive {drive}",
            fields={"drive": f"0 to {highest}" if highest else "0"},
        )
    if any(each.drive == drive for each in instance.media):
        raise Conflict(
            f"there is a medium in drive {drive} of instance {instance.name}: eject it first",
            fields={"drive": "not empty"},
        )
    medium = Medium(image_id=ImageId(image.id), drive=drive)
    return _exchange(
        instance,
        (*instance.media, medium),
        summary=f"insert {image.name} into drive {drive} of instance {instance.name}",
        doing=f"{image.name} is being inserted",
        undo="eject it",
    )


@instances.post("/{id}/eject", starts=change_media)
def eject(ask: Ask, instance: Instance, wish: MediumEject) -> Plan:
    """Take the ISO image out of a drive of an instance, also if its guest is reading it."""
    drives = [each.drive for each in instance.media]
    if not drives:
        raise Conflict(f"the drives of instance {instance.name} are empty")
    if wish.drive is None and len(drives) > 1:
        raise Conflict(
            f"instance {instance.name} has media in drives {', '.join(map(str, sorted(drives)))}: name one",
            fields={"drive": "missing"},
        )
    drive = drives[0] if wish.drive is None else wish.drive
    if drive not in drives:
        raise Conflict(f"drive {drive} of instance {instance.name} is empty", fields={"drive": "empty"})
    return _exchange(
        instance,
        tuple(each for each in instance.media if each.drive != drive),
        summary=f"eject what is in drive {drive} of instance {instance.name}",
        doing="a medium is being ejected",
        undo="insert it again",
    )


def _empty_drive(instance: Instance) -> int:
    taken = {each.drive for each in instance.media}
    empty = next((drive for drive in range(instance.frame.drives) if drive not in taken), None)
    if empty is None:
        raise Conflict(f"no drive of instance {instance.name} is empty: eject something first")
    return empty


def _exchange(instance: Instance, media: tuple[Medium, ...], *, summary: str, doing: str, undo: str) -> Plan:
    changed = msgspec.structs.replace(instance.busy(doing), media=media)
    return Plan(
        summary=summary,
        changes=(put(changed),),
        begin=begin(change_media, ChangeMedia(InstanceId(instance.id), instance.media)),
        answers=changed,
        undo=undo,
    )
