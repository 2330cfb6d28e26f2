"""How rows are made of records: each says what it is made of."""

from collections.abc import Iterator
from typing import NamedTuple

from pileus.cloud.networks.model import Router, Subnet
from pileus.ovn.rows import Element, Fact, Row, Value, row_id
from pileus.ovn.view import Kind, View


class Made(NamedTuple):
    """Makes rows that say what they are made of."""

    kind: Kind
    id: str

    def row(self, table: str, id: str, **columns: Value) -> Row:
        ids = {"pileus-kind": self.kind.value, "pileus-id": self.id}
        return Row(table=table, id=id, columns={**columns, "external_ids": ids})

    def route(self, router: Router, part: str, to: str, next_hop: str, **columns: Value) -> Iterator[Fact]:
        id = row_id("Logical_Router_Static_Route", router.id, part)
        yield self.row("Logical_Router_Static_Route", id, ip_prefix=to, nexthop=next_hop, **columns)
        yield reference("Logical_Router", row_id("Logical_Router", router.id), "static_routes", id)

    def nat(self, router: Router, part: str, **columns: Value) -> Iterator[Fact]:
        id = row_id("NAT", router.id, part)
        yield self.row("NAT", id, **columns)
        yield reference("Logical_Router", row_id("Logical_Router", router.id), "nat", id)


def reference(table: str, id: str, column: str, to: str) -> Element:
    return Element(table=table, id=id, column=column, entry=to)


def subnets_joined(view: View, router: Router) -> list[Subnet]:
    """The subnets that a router has a port in, in its own order."""
    found = (view.subnets.get(id) for id in dict.fromkeys(router.subnet_ids))
    return [
        each for each in found if each is not None and each.gateway is not None and each.network_id in view.networks
    ]
