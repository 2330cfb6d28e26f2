"""What one may do with resource pools."""

from typing import Annotated

import msgspec
from pydantic import Field

from pileus.cloud.hosts.model import HOSTS, INVITATIONS
from pileus.cloud.networks.connecting import is_closed
from pileus.cloud.networks.model import NETWORKS
from pileus.cloud.pools.model import POOLS, Pool
from pileus.cloud.storagepools.choosing import candidates
from pileus.cloud.storagepools.model import LOCAL, STORAGE_POOLS
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import NetworkId
from pileus.operations.caller import Role
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Description, Id, Name, Wire, ref
from pileus.state.state import put, remove

Overcommit = Annotated[float, Field(ge=0.1, le=64, allow_inf_nan=False)]


class PoolCreate(Wire):
    name: Name
    description: Description = ""
    cpu_overcommit: Overcommit = 2.0
    memory_overcommit: Overcommit = 1.0
    storage_pool: Name = LOCAL
    """Where disks are of which nobody says where."""


class PoolChange(Wire):
    name: Name | None = None
    description: Description | None = None
    cpu_overcommit: Overcommit | None = None
    memory_overcommit: Overcommit | None = None
    storage_pool: Name | None = None
    """Where disks are from now on of which nobody says where."""
    default_network_id: Annotated[Id, ref("network")] | None = None
    """A physical network that its instances are on that name none; null for their project's own."""


pools = Noun(
    POOLS,
    plural="pools",
    columns=("name", "cpu_overcommit", "memory_overcommit", "is_default"),
    about="Resource pools: hosts that belong together. An instance runs in one pool.",
)
pools.list(filters=("name",), sorts=("name",))
pools.show()


@pools.post(least=Role.PLATFORM)
def create(ask: Ask, wish: PoolCreate) -> Plan:
    """Create a resource pool."""
    pool = Pool(
        id=ask.new_id(),
        created_at=ask.now,
        name=wish.name,
        description=wish.description,
        cpu_overcommit=wish.cpu_overcommit,
        memory_overcommit=wish.memory_overcommit,
        storage_pool=wish.storage_pool,
    )
    candidates(ask.state, pool, name=wish.storage_pool, storage_class=None)
    return Plan(summary=f"create pool {wish.name}", changes=(put(pool),), answers=pool, undo="delete the pool")


@pools.patch(least=Role.PLATFORM)
def change(ask: Ask, pool: Pool, wish: PoolChange) -> Plan:
    """Change a resource pool. Less overcommitment moves nothing: it only refuses what comes."""
    changed = msgspec.structs.replace(pool, **wish.model_dump(exclude_none=True))
    candidates(ask.state, changed, name=changed.storage_pool, storage_class=None)
    if "default_network_id" in wish.model_fields_set:
        network = _for_everybody(ask, wish.default_network_id) if wish.default_network_id else None
        changed = msgspec.structs.replace(changed, default_network_id=network)
    return Plan(summary=f"change pool {pool.name}", changes=(put(changed),), answers=changed, undo="change it back")


def _for_everybody(ask: Ask, id: str) -> NetworkId:
    """The network that a pool's instances are on by default."""
    network = ask.see(NETWORKS, id, "default_network_id")
    if not network.is_physical or is_closed(network):
        raise Conflict(
            f"network {network.name} cannot be the default of a pool: that is a flat network, or an external one on"
            " which guests may be",
            fields={"default_network_id": "of another kind"},
        )
    return NetworkId(network.id)


@pools.delete(least=Role.PLATFORM)
def delete(ask: Ask, pool: Pool) -> Plan:
    """Delete a resource pool that has no hosts. Join tokens for it are no longer good."""
    if pool.is_default:
        raise Conflict("the default pool cannot be deleted")
    if hosts := ask.state[HOSTS].by("pool", pool.id):
        names = ", ".join(host.name for host in hosts[:10])
        raise Conflict(f"pool {pool.name} has hosts ({names}): move them to another pool first")
    if serve := ask.state[STORAGE_POOLS].by("pool", pool.id):
        names = ", ".join(each.name for each in serve[:10])
        raise Conflict(f"storage pools are for pool {pool.name} ({names}): change or delete them first")
    invited = [remove(each) for each in ask.state[INVITATIONS] if each.pool_id == pool.id]
    return Plan(summary=f"delete pool {pool.name}", changes=(remove(pool), *invited), undo="create the pool again")
