"""How rows are made of records: each says what it is made of."""

from collections.abc import Iterator
from typing import NamedTuple

from pileus.cloud.networks.model import Router, Subnet, Uplink
from pileus.ovn.rows import Element, Fact, Row, Value, row_id
from pileus.ovn.view import Kind, View


class Made(NamedTuple):
    """Makes rows that say what they are made of."""

    kind: Kind
    id: str

    def row(self, table: str, id: str, **columns: Value) -> Row:
        ids = {"pileus-kind": self.kind.value, "pileus-id": self.id}
        return Row(table=table, id=id, columns={**columns, "external_ids": ids})

    def route(self, at: "LogicalRouter", part: str, to: str, next_hop: str, **columns: Value) -> Iterator[Fact]:
        id = row_id("Logical_Router_Static_Route", *at, part)
        yield self.row("Logical_Router_Static_Route", id, ip_prefix=to, nexthop=next_hop, **columns)
        yield reference("Logical_Router", row_id("Logical_Router", *at), "static_routes", id)

    def nat(self, at: "LogicalRouter", part: str, **columns: Value) -> Iterator[Fact]:
        id = row_id("NAT", *at, part)
        yield self.row("NAT", id, **columns)
        yield reference("Logical_Router", row_id("Logical_Router", *at), "nat", id)

    def policy(self, at: "LogicalRouter", part: str, *, priority: int, match: str, **columns: Value) -> Iterator[Fact]:
        id = row_id("Logical_Router_Policy", *at, part)
        yield self.row("Logical_Router_Policy", id, priority=priority, match=match, **columns)
        yield reference("Logical_Router", row_id("Logical_Router", *at), "policies", id)

    def limit(self, network: str, mbit: int | None, *, out: str, into: str) -> Iterator[Fact]:
        """A limit in each direction on a network's switch, for what leaves and for what comes."""
        if mbit is None:
            return
        rate = mbit * 1000
        for direction, match in (("from-lport", out), ("to-lport", into)):
            id = row_id("QoS", self.id, direction)
            bandwidth = {"rate": rate, "burst": max(rate // _BURSTS_PER_S, _LEAST_BURST_KBIT)}
            yield self.row("QoS", id, priority=_LIMITED, direction=direction, match=match, bandwidth=bandwidth)
            yield reference("Logical_Switch", row_id("Logical_Switch", network), "qos_rules", id)


_LIMITED = 1000
"""The priority of a limit; there are no others."""
_BURSTS_PER_S, _LEAST_BURST_KBIT = 10, 500
"""What may come at once: a tenth of a second of it, but enough for a TCP window to open."""

LogicalRouter = tuple[str, ...]
"""The ids that one of OVN's routers is made of: of a router of ours, and of its uplink if that has one of its own."""


def logical_router(router: Router, uplink: Uplink | None = None) -> LogicalRouter:
    """The one that a router is, and has its first uplink; or that one of its further uplinks is."""
    return (router.id,) if uplink is None or uplink.link is None else (router.id, uplink.network_id)


def reference(table: str, id: str, column: str, to: str) -> Element:
    return Element(table=table, id=id, column=column, entry=to)


def subnets_joined(view: View, router: Router) -> list[Subnet]:
    """The subnets that a router has a port in, in its own order."""
    found = (view.subnets.get(id) for id in dict.fromkeys(router.subnet_ids))
    return [
        each for each in found if each is not None and each.gateway is not None and each.network_id in view.networks
    ]
