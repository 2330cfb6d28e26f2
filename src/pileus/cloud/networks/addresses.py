"""Which addresses of which subnet are taken, kept in step with the records, and which one is next."""

from collections.abc import Container, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from pileus.cloud.floatingips.model import FloatingIp
from pileus.cloud.networks.model import Port, Router, Subnet
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import NetworkId, SubnetId
from pileus.state.records import Record

_SEARCHED_AT_MOST = 1 << 20
"""Addresses looked at before a subnet counts as full: a /64 has more than anybody can look at."""


class _Pool:
    """The addresses of one subnet, as numbers."""

    __slots__ = ("last_given", "ranges", "reserved", "subnet", "taken")

    def __init__(self, subnet: Subnet) -> None:
        self.taken: dict[int, int] = {}
        self.last_given = 0
        self.describe(subnet)

    def describe(self, subnet: Subnet) -> None:
        self.subnet = subnet
        network = ip_network(subnet.cidr)
        self.reserved = {int(ip_address(subnet.gateway))} if subnet.gateway else set[int]()
        if subnet.ranges:
            self.ranges = [(int(ip_address(each.first)), int(ip_address(each.last))) for each in subnet.ranges]
        else:
            first, last = _usable(network)
            self.ranges = [(first, last)]

    def free(self, also_taken: Container[int]) -> int | None:
        """The next free address behind the one given last, round and round: a freed one rests as long as possible."""
        for number in self._from_last():
            if number not in self.taken and number not in self.reserved and number not in also_taken:
                return number
        return None

    def _from_last(self) -> Iterator[int]:
        left = _SEARCHED_AT_MOST
        for wanted_above in (True, False):
            for first, last in self.ranges:
                start = max(first, self.last_given + 1) if wanted_above else first
                end = last if wanted_above else min(last, self.last_given)
                yield from range(start, min(end, start + left) + 1)
                left -= max(end - start, 0)

    def holds(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.ranges)


def _usable(network: IPv4Network | IPv6Network) -> tuple[int, int]:
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.version == 4 and network.prefixlen >= 31:
        return first, last
    # The first is the subnet itself, in IPv6 the anycast address of its routers (RFC 4291, section 2.6.1).
    return first + 1, last - (1 if network.version == 4 else 0)


class Addresses:
    """A view of the state: every address that a port, a router or a floating IP has."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}
        self._subnets_of: dict[str, dict[str, None]] = {}

    def changed(self, kind: str, before: Record | None, after: Record | None) -> None:
        if kind == "subnet":
            self._subnet_changed(before, after)
        elif kind in ("port", "router", "floating_ip"):
            for record, count in ((before, -1), (after, 1)):
                for subnet, address in self._held(record):
                    self._count(subnet, address, count)

    def _subnet_changed(self, before: Record | None, after: Record | None) -> None:
        if isinstance(after, Subnet):
            if (pool := self._pools.get(after.id)) is not None:
                pool.describe(after)
            else:
                self._pools[after.id] = _Pool(after)
                self._subnets_of.setdefault(after.network_id, {})[after.id] = None
        elif isinstance(before, Subnet):
            del self._pools[before.id]
            del self._subnets_of[before.network_id][before.id]

    def _held(self, record: Record | None) -> Iterator[tuple[str, str]]:
        if isinstance(record, Port):
            for each in record.addresses:
                yield each.subnet_id, each.address
        elif isinstance(record, Router) and record.external_network_id and record.external_address:
            yield from self._in_network(record.external_network_id, record.external_address)
        elif isinstance(record, FloatingIp):
            yield from self._in_network(record.network_id, record.address)

    def _in_network(self, network: NetworkId, address: str) -> Iterator[tuple[str, str]]:
        for id in self._subnets_of.get(network, ()):
            if ip_address(address) in ip_network(self._pools[id].subnet.cidr):
                yield id, address

    def _count(self, subnet: str, address: str, count: int) -> None:
        pool = self._pools.get(subnet)
        if pool is None:
            return
        number = int(ip_address(address))
        held = pool.taken.get(number, 0) + count
        if held:
            pool.taken[number] = held
            if count > 0:
                pool.last_given = number
        else:
            del pool.taken[number]

    def used(self, subnet: SubnetId) -> int:
        """How many addresses of a subnet are taken."""
        return len(self._pools[subnet].taken)

    def next(self, subnet: SubnetId, *, besides: Iterable[str] = ()) -> str:
        """A free address; those in `besides` count as taken. Raises Conflict when there is none."""
        pool = self._pools[subnet]
        number = pool.free({int(ip_address(each)) for each in besides})
        if number is None:
            raise Conflict(f"subnet {pool.subnet.name} ({pool.subnet.cidr}) has no free address")
        return _text(number, pool.subnet)

    def next_of_network(self, network: NetworkId) -> str:
        """A free address of any IPv4 subnet of a network. Raises Conflict when there is none."""
        for id in self._subnets_of.get(network, ()):
            pool = self._pools[id]
            if (number := pool.free(())) is not None:
                return _text(number, pool.subnet)
        raise Conflict("the network has no free address")

    def check(self, subnet: SubnetId, address: str) -> str | None:
        """Why this address cannot be had, or None."""
        pool = self._pools[subnet]
        wanted = ip_address(address)
        if wanted not in ip_network(pool.subnet.cidr):
            return f"is not in {pool.subnet.cidr}"
        if int(wanted) in pool.taken:
            return "is taken"
        if int(wanted) in pool.reserved or not _usable(ip_network(pool.subnet.cidr))[0] <= int(wanted):
            return "is reserved"
        return None


def _text(number: int, subnet: Subnet) -> str:
    return str(IPv6Address(number) if ":" in subnet.cidr else IPv4Address(number))
