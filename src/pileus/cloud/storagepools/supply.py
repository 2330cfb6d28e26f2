"""What hosts have of storage pools, as they last reported; what is new about that becomes records, once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import structlog

from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.instances.placement import Placer
from pileus.cloud.storagepools.model import POOLS_ON_HOSTS, PoolOnHost, StoragePool, in_words, named
from pileus.kernel.clock import Clock
from pileus.kernel.ids import HostId, StoragePoolId, new_id
from pileus.link.storagepools import PoolObserved
from pileus.state.state import Change, Origin, State, put, remove

log = structlog.stdlib.get_logger()


class Supplies:
    """What hosts have of storage pools. The figures are of some seconds ago, and are kept in memory only."""

    def __init__(self, state: State, placer: Placer, clock: Clock) -> None:
        """`placer` is told of the room that there is."""
        self._state = state
        self._placer = placer
        self._clock = clock
        self._of: dict[HostId, Mapping[str, PoolObserved]] = {}

    def of(self, host: HostId) -> Mapping[str, PoolObserved]:
        """The storage pools of a host, by name; nothing while its agent has not reported."""
        return self._of.get(host, {})

    def forget(self, host: HostId) -> None:
        """Its agent is away."""
        self._of.pop(host, None)

    def take(self, host: HostId, found: Iterable[PoolObserved]) -> None:
        """Take what a host reports; what is new about it is recorded. Of one that was removed meanwhile, nothing."""
        if host not in self._state[HOSTS]:
            return
        if changes := self.noted(host, found):
            self._state.apply(changes, Origin(actor=f"host:{host}", operation="storage_pool.observed"))

    def noted(self, host: HostId, found: Iterable[PoolObserved]) -> Sequence[Change]:
        """Take what a host reports; the changes of records that follow."""
        seen = {each.name: each for each in found if self._is_known(each)}
        if seen != self._of.get(host):
            self._of[host] = seen
            self._placer.supply(host, seen)
        return list(self._changes(host, seen))

    def _is_known(self, found: PoolObserved) -> bool:
        """Not so what a host is just about to let go, though another pool may have the name."""
        pool = named(self._state, found.name)
        return pool is not None and found.id in (None, pool.id)

    def _changes(self, host: HostId, seen: Mapping[str, PoolObserved]) -> Iterator[Change]:
        known = {each.storage_pool_id: each for each in self._state[POOLS_ON_HOSTS].by("host", host)}
        for name, each in seen.items():
            pool = named(self._state, name)
            assert pool is not None
            before = known.pop(StoragePoolId(pool.id), None) or self._new(pool, host)
            after = before.seen(each, pool.overcommit, self._clock.now())
            if before.id not in self._state[POOLS_ON_HOSTS] or after is not before:
                _tell(before, after, pool, each)
                yield put(after)
        yield from map(remove, known.values())

    def _new(self, pool: StoragePool, host: HostId) -> PoolOnHost:
        now = self._clock.now()
        return PoolOnHost(id=new_id(), created_at=now, storage_pool_id=StoragePoolId(pool.id), host_id=host, since=now)


def _tell(before: PoolOnHost, after: PoolOnHost, pool: StoragePool, found: PoolObserved) -> None:
    told = log.bind(pool=pool.name, host=after.host_id)
    if found.use is None:
        told.warning("storage pool is not to be had", reason=found.reason)
        return
    use = in_words(found.use, pool.overcommit)
    if (after.filled, after.promised) > (before.filled, before.promised):
        told.warning("storage pool fills", use=use)
    elif (after.filled, after.promised) < (before.filled, before.promised):
        told.info("storage pool has room again", use=use)
