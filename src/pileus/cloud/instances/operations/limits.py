"""Limiting how much of their hosts instances take."""

from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.instances.model import Instance, Limits
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.workflows.limits import SetLimits
from pileus.cloud.instances.workflows.limits import set_limits as workflow
from pileus.kernel.ids import InstanceId
from pileus.kernel.units import KIB, TIB
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Wire
from pileus.state.state import put
from pileus.workflow.workflow import begin

_BURST_S = 1

Percent = Annotated[int, Field(ge=1, le=100)]
Iops = Annotated[int, Field(ge=10, le=10_000_000)]
BytesPerS = Annotated[int, Field(ge=64 * KIB, le=TIB)]


class InstanceLimits(Wire):
    cpu_percent: Percent | None = None
    """Of the time of a CPU, for each of its vCPUs."""
    disk_iops: Iops | None = None
    """Operations per second, for each of its volumes."""
    disk_bytes_per_s: BytesPerS | None = None
    """For each of its volumes."""
    disk_burst_iops: Iops | None = None
    """What a volume may do for disk_burst_s seconds when it was idle before."""
    disk_burst_bytes_per_s: BytesPerS | None = None
    disk_burst_s: Annotated[int, Field(ge=1, le=3600)] | None = None
    """How long a burst lasts; by default a second."""

    @model_validator(mode="after")
    def _bursts_exceed_limits(self) -> Self:
        for of, burst, limit in (
            ("disk_iops", self.disk_burst_iops, self.disk_iops),
            ("disk_bytes_per_s", self.disk_burst_bytes_per_s, self.disk_bytes_per_s),
        ):
            if burst is not None and (limit is None or burst <= limit):
                raise ValueError(f"a burst exceeds the limit that counts otherwise: give a smaller {of}")
        if self.disk_burst_s is not None and self.disk_burst_iops is None and self.disk_burst_bytes_per_s is None:
            raise ValueError("disk_burst_s is of a burst: give disk_burst_iops or disk_burst_bytes_per_s")
        return self


@instances.put("/{id}/limits", starts=workflow)
def set_limits(ask: Ask, instance: Instance, wish: InstanceLimits) -> Plan:
    """Limit how much of its host an instance takes, at once if it runs. What is not given is not limited."""
    given = wish.model_dump(exclude_none=True)
    if "disk_burst_iops" in given or "disk_burst_bytes_per_s" in given:
        given.setdefault("disk_burst_s", _BURST_S)
    busy = instance.busy("its limits are being changed")
    changed = msgspec.structs.replace(busy, limits=Limits(**given))
    words = ", ".join(f"{name} {value}" for name, value in given.items()) or "nothing"
    return Plan(
        summary=f"limit instance {instance.name}: {words}",
        changes=(put(changed),),
        begin=begin(workflow, SetLimits(InstanceId(instance.id), instance.limits or Limits())),
        answers=changed,
        undo="set them back",
    )
