"""Limiting what volumes do."""

from typing import Annotated

import msgspec
from pydantic import Field

from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.volumes.cloning import volumes
from pileus.cloud.volumes.model import SETTLED, Volume, VolumeLimits
from pileus.cloud.volumes.workflows import LimitVolume, limit_volume
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import VolumeId
from pileus.kernel.units import KIB, TIB
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Wire
from pileus.state.state import Change, put
from pileus.workflow.workflow import begin

__all__ = ["volumes"]


class VolumeLimit(Wire):
    iops: Annotated[int, Field(ge=10, le=10_000_000)] | None = None
    """Operations per second, reads and writes together."""
    bytes_per_s: Annotated[int, Field(ge=64 * KIB, le=TIB)] | None = None
    """Reads and writes together."""


@volumes.put("/{id}/limits", starts=limit_volume)
def set_limits(ask: Ask, volume: Volume, wish: VolumeLimit) -> Plan:
    """Limit what a volume does, at once if its instance runs. What is not given is not limited.

    Of these limits, those of its instance and those of its storage pool the lowest counts.
    """
    if volume.state not in SETTLED:
        raise Conflict(f"volume {volume.name} is {volume.state}")
    given = wish.model_dump(exclude_none=True)
    changed = msgspec.structs.replace(volume, limits=VolumeLimits(**given))
    changes: list[Change] = [put(changed)]
    if volume.instance_id is not None:
        instance = ask.state[INSTANCES].get(volume.instance_id)
        changes.append(put(instance.busy(f"volume {volume.name} is being limited")))
    words = ", ".join(f"{name} {value}" for name, value in given.items()) or "nothing"
    return Plan(
        summary=f"limit volume {volume.name}: {words}",
        changes=changes,
        begin=begin(limit_volume, LimitVolume(VolumeId(volume.id), volume.limits or VolumeLimits())),
        answers=changed,
        undo="set them back",
    )
