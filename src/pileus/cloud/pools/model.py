"""What a resource pool is: hosts that belong together. No I/O."""

from typing import Any

from pileus.kernel.ids import NetworkId
from pileus.state.kinds import Kind
from pileus.state.records import Record


class Pool(Record, frozen=True, kw_only=True):
    """Hosts that belong together and are apart from all others; a host belongs to one."""

    name: str
    description: str = ""
    cpu_overcommit: float = 2.0
    """vCPUs promised per thread of a host at most."""
    memory_overcommit: float = 1.0
    is_default: bool = False
    """Whether instances go here that name no pool."""
    storage_pool: str = "local"
    """Where disks are of which nobody says where."""
    default_network_id: NetworkId | None = None
    """What its instances are on that name no network, if their project may use it; None for their project's own."""


def _pool_2(pool: dict[str, Any]) -> dict[str, Any]:
    """Since version 2 a pool has a storage pool of its own, and can have a default network."""
    return {**pool, "storage_pool": "local", "default_network_id": None}


POOLS = Kind(
    "pool",
    Pool,
    indexes={"default_network": lambda pool: pool.default_network_id},
    unique={"name": lambda pool: pool.name, "default": lambda pool: True if pool.is_default else None},
    upgrades=(_pool_2,),
)
