"""Which addresses of which network are taken or reserved, kept in step with the records, and which one is next.

Records come in any order when they are loaded: an address counts as taken whether its subnet is known yet or not.
Ports, routers and floating IPs of one network never get the same address: they are on the same wire.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from socket import AF_INET, AF_INET6, inet_ntoa, inet_pton

import msgspec

from pileus.cloud.floatingips.model import FloatingIp
from pileus.cloud.networks.model import Port, Router, Subnet
from pileus.cloud.reservations.model import Reservation
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import NetworkId, SubnetId
from pileus.state.records import Record

_SEARCHED_AT_MOST = 1 << 20
"""Addresses looked at before a subnet counts as full: a /64 has more than anybody can look at."""


class _Taken:
    """How often which addresses of one IP version are held in a network, as numbers."""

    __slots__ = ("counts", "last_given")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.last_given = 0

    def count(self, number: int, more: int) -> None:
        held = self.counts.get(number, 0) + more
        if held:
            self.counts[number] = held
            if more > 0:
                self.last_given = number
        else:
            del self.counts[number]


_Span = tuple[int, int]
"""Addresses as numbers, the first and the last, both included."""


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """How many addresses of a subnet are what; the gateway's is none of them."""

    free: int
    reserved: int
    in_use: int


class _Pool:
    """The addresses of one subnet, as numbers."""

    __slots__ = ("kept", "ranges", "subnet", "taken")

    def __init__(self, subnet: Subnet, taken: _Taken, kept: Mapping[str, _Span]) -> None:
        """The pool of a subnet, with what is `kept` for others by reservations."""
        self.subnet = subnet
        self.taken = taken
        self.kept = kept
        self.ranges: list[_Span] = []
        self.reckon()

    def reckon(self) -> None:
        """Find out anew where addresses are taken from, when another reservation is made or given back."""
        ranges = [usable(ip_network(self.subnet.cidr))]
        if self.subnet.ranges:
            ranges = [(number_of(each.first), number_of(each.last)) for each in self.subnet.ranges]
        closed = [*self.kept.values()]
        if self.subnet.gateway:
            gateway = number_of(self.subnet.gateway)
            closed.append((gateway, gateway))
        self.ranges = without(ranges, closed)

    def free(self, also_taken: Container[int]) -> int | None:
        """The next free address behind the one given last, round and round: a freed one rests as long as possible."""
        for number in self._from_last():
            if number not in self.taken.counts and number not in also_taken:
                return number
        return None

    def _from_last(self) -> Iterator[int]:
        left = _SEARCHED_AT_MOST
        last_given = self.taken.last_given
        for wanted_above in (True, False):
            for first, last in self.ranges:
                start = max(first, last_given + 1) if wanted_above else first
                end = last if wanted_above else min(last, last_given)
                yield from range(start, min(end, start + left) + 1)
                left -= max(end - start, 0)


def without(ranges: Iterable[_Span], closed: Iterable[_Span]) -> list[_Span]:
    """What is left of ranges when others are taken out of them; in order, all ends included."""
    left = sorted(ranges)
    for begin, end in closed:
        left = [
            part
            for first, last in left
            for part in ((first, min(last, begin - 1)), (max(first, end + 1), last))
            if part[0] <= part[1]
        ]
    return left


def usable(network: IPv4Network | IPv6Network) -> tuple[int, int]:
    """The first and the last address of a subnet that somebody may have, as numbers."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.version == 4 and network.prefixlen >= 31:
        return first, last
    # The first is the subnet itself, in IPv6 the anycast address of its routers (RFC 4291, section 2.6.1).
    return first + 1, last - (1 if network.version == 4 else 0)


class Addresses:
    """A view of the state: every address that a port, a router or a floating IP has."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, int], _Taken] = {}
        """By network and IP version."""
        self._pools: dict[str, _Pool] = {}
        self._of_network: dict[str, dict[str, _Pool]] = {}
        """The same pools by network."""
        self._kept: dict[str, dict[str, _Span]] = {}
        """By subnet, what its reservations keep for others."""

    def changed(self, kind: str, before: Record | None, after: Record | None) -> None:
        if kind == "subnet":
            self._subnet_changed(before, after)
        elif kind == "reservation":
            self._reservation_changed(before, after)
        elif kind in ("port", "router", "floating_ip"):
            for record, count in ((before, -1), (after, 1)):
                for network, address in held(record):
                    self._taken_of(network, address).count(number_of(address), count)

    def _subnet_changed(self, before: Record | None, after: Record | None) -> None:
        if isinstance(after, Subnet):
            kept = self._kept.setdefault(after.id, {})
            pool = _Pool(after, self._taken_of(after.network_id, after.cidr), kept)
            self._pools[after.id] = pool
            self._of_network.setdefault(after.network_id, {})[after.id] = pool
        elif isinstance(before, Subnet):
            del self._pools[before.id]
            del self._of_network[before.network_id][before.id]

    def _reservation_changed(self, before: Record | None, after: Record | None) -> None:
        for record in (before, after):
            if isinstance(record, Reservation):
                kept = self._kept.setdefault(record.subnet_id, {})
                if record is after:
                    kept[record.id] = record.span
                else:
                    del kept[record.id]
                if (pool := self._pools.get(record.subnet_id)) is not None:
                    pool.reckon()

    def _taken_of(self, network: str, address: str) -> _Taken:
        key = network, version_of(address)
        found = self._taken.get(key)
        if found is None:
            found = self._taken[key] = _Taken()
        return found

    def taken(self) -> dict[tuple[str, int], dict[int, int]]:
        """Every address that is held, as a number, with how often: by network and IP version."""
        return {owner: dict(taken.counts) for owner, taken in self._taken.items() if taken.counts}

    def holders(self, network: str, address: str) -> int:
        """How many records of this network hold the address."""
        return self._taken_of(network, address).counts.get(number_of(address), 0)

    def held_within(self, subnet: SubnetId, span: _Span) -> list[str]:
        """The addresses of these that somebody has, in order."""
        pool = self._pools[subnet]
        return [_text(number, pool.subnet) for number in sorted(pool.taken.counts) if span[0] <= number <= span[1]]

    def counted(self, subnet: SubnetId) -> Counted:
        """How many addresses of a subnet are free, reserved and in use."""
        pool = self._pools[subnet]
        inside = ip_network(pool.subnet.cidr)
        ends = int(inside.network_address), int(inside.broadcast_address)
        held = [number for number in pool.taken.counts if ends[0] <= number <= ends[1]]
        open = sum(last - first + 1 for first, last in pool.ranges)
        given = sum(any(first <= number <= last for first, last in pool.ranges) for number in held)
        reserved = sum(last - first + 1 for first, last in pool.kept.values())
        return Counted(free=open - given, reserved=reserved, in_use=len(held))

    def next(self, subnet: SubnetId, *, besides: Iterable[str] = ()) -> str:
        """A free address; those in `besides` count as taken. Raises Conflict when there is none."""
        pool = self._pools[subnet]
        number = pool.free({number_of(each) for each in besides})
        if number is None:
            raise Conflict(f"subnet {pool.subnet.name} ({pool.subnet.cidr}) has no free address")
        return _text(number, pool.subnet)

    def next_of_network(self, network: NetworkId) -> str:
        """A free IPv4 address of any subnet of an external network. Raises Conflict when there is none."""
        return self.next_of(network, 4)[1]

    def next_of(self, network: NetworkId, version: int, *, besides: Iterable[str] = ()) -> tuple[SubnetId, str]:
        """A free address of any subnet of this IP version, and the subnet. Raises Conflict when there is none."""
        taken = {number_of(each) for each in besides}
        full: list[str] = []
        for pool in self._of_network.get(network, {}).values():
            if version_of(pool.subnet.cidr) == version:
                if (number := pool.free(taken)) is not None:
                    return SubnetId(pool.subnet.id), _text(number, pool.subnet)
                full.append(f"{pool.subnet.name} ({pool.subnet.cidr})")
        names = f": {', '.join(full)} given out" if full else f", and no IPv{version} subnet"
        raise Conflict(f"the network has no free address{names}")


def version_of(address: str) -> int:
    """The IP version of an address or prefix, 4 or 6."""
    return 6 if ":" in address else 4


def number_of(address: str) -> int:
    """An address of a record as a number; by the C library, in a tenth of the time of `ipaddress`."""
    return int.from_bytes(inet_pton(AF_INET6 if version_of(address) == 6 else AF_INET, address))


def held(record: Record | None) -> Iterator[tuple[str, str]]:
    """The addresses that a record holds: each with the network that it is of."""
    if isinstance(record, Port):
        for each in record.addresses:
            yield record.network_id, each.address
    elif isinstance(record, Router):
        for uplink in record.uplinks:
            for address in uplink.addresses:
                yield uplink.network_id, address
    elif isinstance(record, FloatingIp):
        yield record.network_id, record.address


def _text(number: int, subnet: Subnet) -> str:
    # In IPv6 there are addresses that the C library writes another way than records have them.
    return str(IPv6Address(number)) if version_of(subnet.cidr) == 6 else inet_ntoa(number.to_bytes(4))
