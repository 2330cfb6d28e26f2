"""Which hosts may have room for a demand, remembered for each size and kind of demands.

A fleet is asked for few different sizes again and again: going through all hosts once for each is cheap, once for each
demand is not.
"""

from collections.abc import Iterable, Mapping

from pileus.kernel.ids import HostId, PoolId
from pileus.scheduler.bitsets import bitset
from pileus.scheduler.ledger import HostLedger
from pileus.scheduler.model import Demand, HostView

_KEPT = 128
"""How many different demands are remembered with the hosts that have room for them."""

_Kind = tuple[PoolId, str | None, frozenset[str], str]
_Key = tuple[PoolId, str | None, frozenset[str], str, int, int, int]


class Shape:
    """The hosts that may have room for demands of one size and kind.

    Which hosts are full is noticed when one is chosen in vain, and forgotten when something leaves it: keeping it exact
    for every size in use would make each promise as dear as there are sizes.
    """

    __slots__ = ("full", "hosts", "size")

    def __init__(self, hosts: int, demand: Demand) -> None:
        self.hosts = hosts
        self.full: set[HostLedger] = set()
        self.size = demand.vcpus, demand.memory_mib, demand.disk_mib, demand.storage_pool

    def leave_out(self, host: HostLedger) -> None:
        self.hosts ^= host.bit
        self.full.add(host)
        host.left_out = True

    def sift(self, hosts: Iterable[HostLedger]) -> None:
        """Leave out all at once that have no room."""
        for host in hosts:
            if self.hosts & host.bit and not host.has_room(*self.size):
                self.leave_out(host)

    def take_back(self, host: HostLedger) -> None:
        """Count on a host again from which something has left, if it has room now."""
        if host in self.full and host.has_room(*self.size):
            self.full.remove(host)
            self.hosts |= host.bit


class Shapes:
    """The shapes that were asked for last. What they are made from is forgotten by `forget`."""

    def __init__(self, hosts: Mapping[HostId, HostLedger]) -> None:
        self._hosts = hosts
        self._kinds: dict[_Kind, int] = {}
        self._shapes: dict[_Key, Shape] = {}

    def of(self, demand: Demand, room_for_hosts: int) -> Shape:
        """The demand's shape; `room_for_hosts` is above every slot that a host has."""
        kind = demand.pool, demand.zone, demand.traits, demand.storage_pool
        key = (*kind, demand.vcpus, demand.memory_mib, demand.disk_mib)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= _KEPT:
                del self._shapes[next(iter(self._shapes))]
            if kind not in self._kinds:
                if len(self._kinds) >= _KEPT:
                    del self._kinds[next(iter(self._kinds))]
                suitable = (host.slot for host in self._hosts.values() if _suits(host.view, demand))
                self._kinds[kind] = bitset(suitable, room_for_hosts)
            shape = self._shapes[key] = Shape(self._kinds[kind], demand)
        return shape

    def take_back(self, host: HostLedger) -> None:
        """Count on a host again from which something has left, wherever it has room now."""
        for shape in self._shapes.values():
            shape.take_back(host)
        host.left_out = any(host in shape.full for shape in self._shapes.values())

    def forget(self) -> None:
        """Make all anew when they are asked for: hosts or their facts are others."""
        self._kinds.clear()
        self._shapes.clear()


def _suits(view: HostView, demand: Demand) -> bool:
    """What decides apart from room, names and groups."""
    return (
        view.pool == demand.pool
        and view.out_of_service is None
        and (demand.zone is None or view.zone == demand.zone)
        and demand.traits <= view.traits
        and (not demand.storage_pool or demand.storage_pool in view.storage)
    )
