"""Which storage pool a backup goes to. Pure."""

from collections.abc import Sequence

from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.storagepools.model import Purpose, StoragePool, named, served_by
from pileus.cloud.volumes.model import Volume
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import HostId
from pileus.state.state import State

_MAKE_ONE = "an administrator makes one: `pileus storage-pool create NAME --path FOLDER --purposes backups`"


def place_for(state: State, volumes: Sequence[Volume], name: str | None) -> StoragePool:
    """The storage pool for a backup of these volumes: this one, or without a name the only one that will do.

    Raises:
        NotFound: there is none of this name.
        Conflict: it will not do, or none or several would.
    """
    host = volumes[0].host_id
    assert host is not None
    if name is None:
        return _only_one(state, volumes, host)
    pool = named(state, name)
    if pool is None:
        raise NotFound(f"there is no storage pool {name}", fields={"storage_pool": "not found"})
    if why := _why_not(state, pool, volumes, host):
        raise Conflict(f"storage pool {name} {why}", fields={"storage_pool": why})
    return pool


def _only_one(state: State, volumes: Sequence[Volume], host: HostId) -> StoragePool:
    served = served_by(state, state[HOSTS].get(host).pool_id)
    found = [pool for pool in served if not _why_not(state, pool, volumes, host)]
    if not found:
        raise Conflict(
            f"no storage pool on the host is for backups, besides what is to be backed up: {_MAKE_ONE}",
            fields={"storage_pool": "there is none"},
        )
    if len(found) > 1:
        names = ", ".join(sorted(pool.name for pool in found))
        raise Conflict(f"there are {names}: name one", fields={"storage_pool": "missing"})
    return found[0]


def _why_not(state: State, pool: StoragePool, volumes: Sequence[Volume], host: HostId) -> str:
    """Why a storage pool will not do, in words; empty if it will."""
    if Purpose.BACKUPS not in pool.purposes:
        return "is not for backups"
    if any(volume.storage_pool == pool.name for volume in volumes):
        return "has what is to be backed up: a backup is to outlive it"
    if not pool.serves(state[HOSTS].get(host).pool_id):
        return "is not on the host of what is to be backed up"
    return ""
