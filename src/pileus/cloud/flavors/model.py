"""What a flavor is: a size of instances. No I/O."""

from typing import Any

from pileus.cloud.instances.model import Limits
from pileus.state.kinds import Kind
from pileus.state.records import Record


class Flavor(Record, frozen=True, kw_only=True):
    """A size that instances are made in. Instances keep their size when a flavor goes."""

    name: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    description: str = ""
    limits: Limits | None = None
    """What an instance that gets this size is limited to, until it is limited otherwise; None for nothing."""


def _without_limits(flavor: dict[str, Any]) -> dict[str, Any]:
    """Version 2 knows limits."""
    return {**flavor, "limits": None}


FLAVORS = Kind("flavor", Flavor, unique={"name": lambda flavor: flavor.name}, upgrades=(_without_limits,))
