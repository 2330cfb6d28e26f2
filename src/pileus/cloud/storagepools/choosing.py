"""Which storage pool a volume goes to: the one that is named, one of a class, or the default of a resource pool."""

from collections.abc import Sequence

from pileus.cloud.pools.model import Pool
from pileus.cloud.storagepools.model import STORAGE_POOLS, Purpose, StoragePool, named
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.state.state import State


def candidates(state: State, pool: Pool, *, name: str | None, storage_class: str | None) -> Sequence[StoragePool]:
    """The storage pools for a volume on a host of this resource pool, the likeliest first.

    Raises:
        Invalid: both a pool and a class are named.
        NotFound: there is no such pool or class.
        Conflict: it is not for volumes, or not for this resource pool.
    """
    if name is not None and storage_class is not None:
        both = "a storage pool has one class: name one or the other"
        raise Invalid("some fields are wrong", fields={"storage_class": both})
    if storage_class is not None:
        return _of_class(state, pool, storage_class)
    found = named(state, name or pool.storage_pool)
    if found is None:
        raise NotFound(f"there is no storage pool {name}", fields={"storage_pool": "not found"})
    check_suits(found, pool)
    return [found]


def as_before(state: State, pool: Pool, name: str, storage_class: str) -> Sequence[StoragePool]:
    """The storage pools for a volume, on a host of this resource pool, that was in this one, of this class.

    That one first, if it will still do; then others of its class.

    Raises:
        Conflict: there is none, with what would help.
    """
    suitable = [each for each in state[STORAGE_POOLS] if _suits(each, pool)]
    found = [each for each in suitable if each.name == name or each.storage_class == storage_class]
    if not found:
        gone = "is not there any more" if named(state, name) is None else f"is not for volumes in pool {pool.name}"
        raise Conflict(
            f"storage pool {name}, where it was, {gone}, and no other one there is of class {storage_class}: name a"
            " storage pool or a class",
            fields={"storage_pool": "missing"},
        )
    return sorted(found, key=lambda each: (each.name != name, each.name))


def check_suits(storage_pool: StoragePool, pool: Pool) -> None:
    """Raises Conflict if volumes on hosts of this resource pool cannot be in this storage pool."""
    if Purpose.VOLUMES not in storage_pool.purposes:
        raise Conflict(
            f"storage pool {storage_pool.name} is for {' and '.join(storage_pool.purposes)}, not for volumes",
            fields={"storage_pool": "is not for volumes"},
        )
    if not storage_pool.serves(pool.id):
        raise Conflict(
            f"storage pool {storage_pool.name} is not for hosts of pool {pool.name}",
            fields={"storage_pool": f"is not for pool {pool.name}"},
        )


def _suits(storage_pool: StoragePool, pool: Pool) -> bool:
    return Purpose.VOLUMES in storage_pool.purposes and storage_pool.serves(pool.id)


def _of_class(state: State, pool: Pool, storage_class: str) -> Sequence[StoragePool]:
    found = [each for each in state[STORAGE_POOLS].by("class", storage_class) if _suits(each, pool)]
    if not found:
        classes = {each.storage_class for each in state[STORAGE_POOLS] if each.serves(pool.id)}
        raise NotFound(
            f"there is no storage pool of class {storage_class} for pool {pool.name}: there are"
            f" {', '.join(sorted(classes))}",
            fields={"storage_class": "not found"},
        )
    return sorted(found, key=lambda each: (each.name != pool.storage_pool, each.name))
