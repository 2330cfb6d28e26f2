"""What fits into the guests of a template, and changing the template of an instance."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from pydantic import AfterValidator, Field

from pileus.cloud.images.model import Image
from pileus.cloud.instances.model import Instance, InstanceState, Medium
from pileus.cloud.instances.specs import volumes_of
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import ImageId
from pileus.link.guests import BootDevice
from pileus.link.templates import FRAMES, GuestTemplate
from pileus.operations.plan import Ask


def _each_once(order: tuple[BootDevice, ...]) -> tuple[BootDevice, ...]:
    if len(set(order)) != len(order):
        raise ValueError("each device once")
    return order


BootOrder = Annotated[tuple[BootDevice, ...], Field(min_length=1), AfterValidator(_each_once)]
"""What firmware tries, in this order."""


def check_nics(template: GuestTemplate, nics: int) -> None:
    """Raises Invalid if so many network cards do not fit into a guest."""
    frame = FRAMES[template]
    if nics > frame.nics:
        raise Invalid(
            f"an instance of template {template} has room for {frame.nics} network cards",
            fields={"network_ids": f"at most {frame.nics}"},
        )


def loaded(template: GuestTemplate, images: Sequence[Image]) -> tuple[Medium, ...]:
    """These images in the drives of a new instance, in their order. Raises Invalid if there are too few drives."""
    drives = FRAMES[template].drives
    if len(images) > drives:
        raise Invalid(
            f"an instance of template {template} has room for {drives} media, and {len(images)} are wanted",
            fields={"media_ids": "too many"},
        )
    return tuple(Medium(image_id=ImageId(image.id), drive=drive) for drive, image in enumerate(images))


def check_plugging(instance: Instance, what: str) -> None:
    """Raises Conflict if its guest would have to be plugged something into, or out of, that it cannot while it runs."""
    if instance.state is not InstanceState.STOPPED and not instance.frame.hot_plug:
        raise Conflict(
            f"instance {instance.name} is of template {instance.template}: with {instance.frame.buses}, {what} cannot"
            " be done while it runs; stop it, do it, and start it again"
        )


def with_template(ask: Ask, instance: Instance, template: GuestTemplate) -> Instance:
    """The instance with other devices from its next start.

    Raises:
        Conflict: it is not stopped, its firmware would be another one, or it has more than fits.
    """
    if template is instance.template:
        return instance
    if instance.state is not InstanceState.STOPPED or instance.busy_with:
        raise Conflict(f"instance {instance.name} is {instance.state}: its template is changed while it is stopped")
    before, after = instance.frame, FRAMES[template]
    if before.needs != after.needs:
        alike = ", ".join(
            each for each in FRAMES if FRAMES[each].needs == before.needs and each is not instance.template
        )
        raise Conflict(
            f"what is on the disk of instance {instance.name} starts by the firmware of template {instance.template}",
            fields={"template": f"one of {alike}"},
        )
    last = max(volume.slot or 0 for volume in volumes_of(ask.state, instance))
    if last >= after.disks:
        raise Conflict(
            f"instance {instance.name} has a volume in slot {last}, and template {template} room for {after.disks}"
            " disks",
            fields={"template": "too small"},
        )
    return msgspec.structs.replace(instance, template=template)
