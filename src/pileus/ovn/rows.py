"""Rows of the OVN northbound database as plain data: what is wanted, what is found, and the difference of the two.

A row's UUID is computed from the record that it is made of (UUID version 5), and ovsdb-server keeps the one that it is
given. So a row can name another one before either exists, a difference needs no look-up, and a database that was
emptied comes back with the same names.

Columns that many records add to (the ports of a switch, the members of a group, the names in a DNS table) are not part
of the row but made of *elements*: one port more is one element more, whatever the size of the switch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, cast
from uuid import UUID, uuid5

import msgspec

Value = str | int | frozenset[str] | Mapping[str, str] | Mapping[str, int]
Columns = Mapping[str, Value]

_NAMESPACE = UUID("6f1a0c1e-7a4b-5b7e-9a52-0d5c6f0e4b11")


@lru_cache(maxsize=4096)
def row_id(table: str, *of: str) -> str:
    """The UUID of the row that is made of these ids. Kept for a while: ports share their switches and groups."""
    return str(uuid5(_NAMESPACE, "/".join((table, *of))))


class Shape(Enum):
    """How a column is written in OVSDB's JSON (RFC 7047, section 5.1)."""

    STRING = "string"
    INTEGER = "integer"
    OPTIONAL = "optional string"
    OPTIONAL_INTEGER = "optional integer"
    OPTIONAL_REFERENCE = "optional reference"
    STRINGS = "set of strings"
    MAP = "map"
    REFERENCES = "set of references, one element each"
    ENTRIES = "map, one element each"


COLLECTED = frozenset({Shape.REFERENCES, Shape.ENTRIES})

_IDS = {"external_ids": Shape.MAP}

TABLES: Mapping[str, Mapping[str, Shape]] = {
    "Logical_Switch": {
        "name": Shape.STRING,
        "ports": Shape.REFERENCES,
        "acls": Shape.REFERENCES,
        "dns_records": Shape.REFERENCES,
        "qos_rules": Shape.REFERENCES,
        "other_config": Shape.MAP,
        **_IDS,
    },
    "Logical_Switch_Port": {
        "name": Shape.STRING,
        "type": Shape.STRING,
        "options": Shape.MAP,
        "addresses": Shape.STRINGS,
        "port_security": Shape.STRINGS,
        "dhcpv4_options": Shape.OPTIONAL_REFERENCE,
        "dhcpv6_options": Shape.OPTIONAL_REFERENCE,
        "tag_request": Shape.OPTIONAL_INTEGER,
        **_IDS,
    },
    "DHCP_Options": {"cidr": Shape.STRING, "options": Shape.MAP, **_IDS},
    "DNS": {"records": Shape.ENTRIES, **_IDS},
    "Logical_Router": {
        "name": Shape.STRING,
        "ports": Shape.REFERENCES,
        "static_routes": Shape.REFERENCES,
        "policies": Shape.REFERENCES,
        "nat": Shape.REFERENCES,
        "load_balancer": Shape.REFERENCES,
        "options": Shape.MAP,
        **_IDS,
    },
    "Logical_Router_Port": {
        "name": Shape.STRING,
        "mac": Shape.STRING,
        "networks": Shape.STRINGS,
        "options": Shape.MAP,
        "ha_chassis_group": Shape.OPTIONAL_REFERENCE,
        "ipv6_ra_configs": Shape.MAP,
        "peer": Shape.OPTIONAL,
        **_IDS,
    },
    "Logical_Router_Static_Route": {
        "ip_prefix": Shape.STRING,
        "nexthop": Shape.STRING,
        "output_port": Shape.OPTIONAL,
        **_IDS,
    },
    "Logical_Router_Policy": {
        "priority": Shape.INTEGER,
        "match": Shape.STRING,
        "action": Shape.STRING,
        "nexthops": Shape.STRINGS,
        **_IDS,
    },
    "NAT": {
        "type": Shape.STRING,
        "external_ip": Shape.STRING,
        "logical_ip": Shape.STRING,
        "external_mac": Shape.OPTIONAL,
        "logical_port": Shape.OPTIONAL,
        **_IDS,
    },
    "Load_Balancer": {"name": Shape.STRING, "protocol": Shape.OPTIONAL, "vips": Shape.MAP, **_IDS},
    "QoS": {
        "priority": Shape.INTEGER,
        "direction": Shape.STRING,
        "match": Shape.STRING,
        "bandwidth": Shape.MAP,
        **_IDS,
    },
    "HA_Chassis_Group": {"name": Shape.STRING, "ha_chassis": Shape.REFERENCES, **_IDS},
    "HA_Chassis": {"chassis_name": Shape.STRING, "priority": Shape.INTEGER, **_IDS},
    "Port_Group": {"name": Shape.STRING, "ports": Shape.REFERENCES, "acls": Shape.REFERENCES, **_IDS},
    "ACL": {
        "name": Shape.OPTIONAL,
        "priority": Shape.INTEGER,
        "direction": Shape.STRING,
        "match": Shape.STRING,
        "action": Shape.STRING,
        **_IDS,
    },
}
"""The tables and columns that are ours; in columns that are not here others (ovn-northd) may write."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row, without the columns that are collected and without those that are empty."""

    table: str
    id: str
    columns: Columns

    @property
    def key(self) -> "Key":
        return self.table, self.id, "", ""


class Element(msgspec.Struct, frozen=True, kw_only=True):
    """One element of a collected column: a reference, or an entry of a map."""

    table: str
    id: str
    column: str
    entry: str
    """The UUID referred to, or the key in the map."""
    value: str = ""
    """The value in the map."""

    @property
    def key(self) -> "Key":
        return self.table, self.id, self.column, self.entry


Fact = Row | Element
Key = tuple[str, str, str, str]
Facts = Mapping[Key, Fact]


def facts(of: Iterable[Fact]) -> dict[Key, Fact]:
    """The facts by their keys."""
    return {each.key: each for each in of}


class Difference(msgspec.Struct, frozen=True):
    """What turns one set of facts into another."""

    gone: Sequence[Fact] = ()
    """As they were."""
    come: Sequence[Fact] = ()
    """Those that are new."""
    changed: Sequence[tuple[Fact, Fact]] = ()
    """As they were, and as they are to be."""

    def __bool__(self) -> bool:
        return bool(self.gone or self.come or self.changed)

    def __len__(self) -> int:
        return len(self.gone) + len(self.come) + len(self.changed)


def difference(found: Facts, wanted: Facts) -> Difference:
    """What has to change for `found` to be `wanted`."""
    return Difference(
        gone=[fact for key, fact in found.items() if key not in wanted],
        come=[fact for key, fact in wanted.items() if key not in found],
        changed=[
            (found[key], fact) for key, fact in wanted.items() if (was := found.get(key)) is not None and was != fact
        ],
    )


def apply(rows: dict[Key, Fact], change: Difference) -> None:
    """Make the change in these facts."""
    for fact in change.gone:
        rows.pop(fact.key, None)
    rows.update((fact.key, fact) for fact in change.come)
    rows.update((fact.key, fact) for _, fact in change.changed)


# JSON as any, because that is what OVSDB's notation is: lists of lists of atoms.
Json = Any


def operations(change: Difference) -> list[Json]:
    """The difference as the operations of one OVSDB transaction (RFC 7047, section 5.2)."""
    mutations: dict[tuple[str, str], list[Json]] = {}

    def mutate(element: Element, mutator: str) -> None:
        many = mutations.setdefault((element.table, element.id), [])
        if TABLES[element.table][element.column] is Shape.REFERENCES:
            value: Json = ["uuid", element.entry]
        elif mutator == "delete":
            value = ["set", [element.entry]]
        else:
            value = ["map", [[element.entry, element.value]]]
        many.append([element.column, mutator, value])

    for fact in change.gone:
        if isinstance(fact, Element):
            mutate(fact, "delete")
    for fact in change.come:
        if isinstance(fact, Element):
            mutate(fact, "insert")
    for _, fact in change.changed:
        if isinstance(fact, Element):
            mutate(fact, "delete")  # an insertion leaves an entry alone whose key is there
            mutate(fact, "insert")
    return [
        *(_insertion(fact) for fact in change.come if isinstance(fact, Row)),
        *(_update(was, row) for was, row in change.changed if isinstance(was, Row) and isinstance(row, Row)),
        *({"op": "mutate", "table": table, "where": _is(id), "mutations": m} for (table, id), m in mutations.items()),
        *({"op": "delete", "table": row.table, "where": _is(row.id)} for row in change.gone if isinstance(row, Row)),
    ]


def _insertion(row: Row) -> Json:
    shapes = TABLES[row.table]
    columns = {name: _write(value, shapes[name]) for name, value in row.columns.items()}
    return {"op": "insert", "table": row.table, "uuid": row.id, "row": columns}


def _update(was: Row, row: Row) -> Json:
    shapes = TABLES[row.table]
    columns = {
        name: _write(value, shapes[name]) for name, value in row.columns.items() if was.columns.get(name) != value
    }
    columns |= {name: _empty(shapes[name]) for name in was.columns if name not in row.columns}
    return {"op": "update", "table": row.table, "where": _is(row.id), "row": columns}


def selections() -> list[Json]:
    """The operations that read everything that is ours, one for each of TABLES in its order."""
    return [
        {"op": "select", "table": table, "where": [], "columns": ["_uuid", *columns]}
        for table, columns in TABLES.items()
    ]


def facts_read(results: Sequence[Mapping[str, Json]]) -> dict[Key, Fact]:
    """The facts in the answer to `selections`."""
    return {
        fact.key: fact
        for table, result in zip(TABLES, results, strict=True)
        for row in result["rows"]
        for fact in facts_of(table, row)
    }


def facts_of(table: str, row: Mapping[str, Json]) -> Iterator[Fact]:
    """The facts in one row as it was read, with all columns of TABLES."""
    id = str(row["_uuid"][1])
    columns: dict[str, Value] = {}
    for name, shape in TABLES[table].items():
        value = _read(row[name], shape)
        if shape not in COLLECTED:
            if value or value == 0:
                columns[name] = value
        elif isinstance(value, frozenset):
            for entry in value:
                yield Element(table=table, id=id, column=name, entry=entry)
        elif isinstance(value, Mapping):
            for entry, text in value.items():
                yield Element(table=table, id=id, column=name, entry=entry, value=str(text))
    yield Row(table=table, id=id, columns=columns)


def _is(id: str) -> Json:
    return [["_uuid", "==", ["uuid", id]]]


def _write(value: Value, shape: Shape) -> Json:
    if shape is Shape.OPTIONAL_REFERENCE:
        return ["uuid", value]
    if isinstance(value, frozenset):
        return ["set", sorted(value)]
    if isinstance(value, Mapping):
        return ["map", sorted(value.items())]
    return value


def _empty(shape: Shape) -> Json:
    match shape:
        case Shape.STRING:
            return ""
        case Shape.INTEGER:
            return 0
        case Shape.MAP:
            return ["map", []]
        case _:
            return ["set", []]


def _read(value: Json, shape: Shape) -> Value | None:
    """A value as it was sent: an atom, ["uuid", id], ["set", [...]] or ["map", [...]]; a set of one may be an atom."""
    pair: list[Json] = cast("list[Json]", value) if isinstance(value, list) else ["set", [value]]
    many: list[Json] = [pair] if pair[0] == "uuid" else pair[1]
    match shape:
        case Shape.MAP | Shape.ENTRIES:
            return dict(many)
        case Shape.STRINGS:
            return frozenset(many)
        case Shape.REFERENCES:
            return frozenset(reference[1] for reference in many)
        case Shape.OPTIONAL_REFERENCE:
            return many[0][1] if many else None
        case _:
            return many[0] if many else None
