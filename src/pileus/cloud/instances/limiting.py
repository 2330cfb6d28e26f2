"""How people say how much of its host an instance may take: of an instance, and of a size of instances."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pileus.cloud.instances.model import Limits
from pileus.cloud.networks.limiting import BandwidthMbit
from pileus.kernel.units import KIB, TIB
from pileus.operations.wire import Wire

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
    network_mbit: BandwidthMbit | None = None
    """In each direction, in Mbit/s, for each of its ports that has no limit of its own."""

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


def limits_of(wish: InstanceLimits) -> Limits:
    """What is wished for; what is not given is not limited."""
    given: dict[str, int] = {name: getattr(wish, name) or 0 for name in InstanceLimits.model_fields}
    if given["disk_burst_iops"] or given["disk_burst_bytes_per_s"]:
        given["disk_burst_s"] = given["disk_burst_s"] or _BURST_S
    return Limits(**given)
