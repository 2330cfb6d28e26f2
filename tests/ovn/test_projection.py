import os
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pileus.cloud.networks.model import Ipv6Mode, NetworkKind
from pileus.cloud.securitygroups.model import Direction
from pileus.kernel.ids import HostId
from pileus.ovn.pending import Pending, joined
from pileus.ovn.projection import project, project_everything
from pileus.ovn.rows import Element, Fact, Key, Row, Value, apply, difference
from pileus.ovn.view import NetworkRecord, View
from pileus.state.state import Change, put
from pileus.testing.networks import (
    default_group,
    floating_ip,
    forwarding,
    group,
    peering,
    port,
    router,
    rule,
    small_cloud,
    snat_rule,
    subnet,
    vpc,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "ovn" / "small_cloud.json"


def text(rows: dict[Key, Fact]) -> str:
    """The rows as a person reads them: by table and name, references by what they refer to."""
    names = {fact.id: label(fact) for fact in rows.values() if isinstance(fact, Row)}
    tables: dict[str, dict[str, dict[str, object]]] = {}
    collected: dict[tuple[str, str, str], list[str]] = {}
    for fact in rows.values():
        shown = tables.setdefault(fact.table, {}).setdefault(names[fact.id], {})
        if isinstance(fact, Row):
            shown.update((name, seen(value, names)) for name, value in fact.columns.items() if name != "external_ids")
        else:
            many = collected.setdefault((fact.table, fact.id, fact.column), [])
            many.append(names.get(fact.entry) or f"{fact.entry} = {fact.value}")
            shown[fact.column] = many
    for many in collected.values():
        many.sort()
    return msgspec.json.format(msgspec.json.encode(tables, order="sorted"), indent=2).decode() + "\n"


def label(row: Row) -> str:
    columns = row.columns
    parts = (columns.get(name) for name in ("name", "cidr", "chassis_name", "logical_ip", "ip_prefix", "match"))
    ids = columns["external_ids"]
    assert not isinstance(ids, str | int | frozenset)
    return " ".join((f"{ids['pileus-kind']} {ids['pileus-id']}", *(str(part) for part in parts if part)))


def seen(value: Value, names: dict[str, str]) -> object:
    return (
        sorted(value) if isinstance(value, frozenset) else names.get(value, value) if isinstance(value, str) else value
    )


def rows_of(*records: NetworkRecord, gateways: tuple[str, ...] = ()) -> dict[Key, Fact]:
    return project_everything(View(records, gateways=map(HostId, gateways)))


def only(rows: dict[Key, Fact], table: str) -> list[Row]:
    return [fact for fact in rows.values() if isinstance(fact, Row) and fact.table == table]


def matches(*records: NetworkRecord) -> set[str]:
    return {str(row.columns["match"]) for row in only(rows_of(*records), "ACL")}


def test_a_small_cloud_is_projected_to_these_rows() -> None:
    rows = rows_of(*small_cloud(), gateways=("host-1", "host-2"))
    shown = text(rows)
    if os.environ.get("PILEUS_GOLDEN") == "accept":
        GOLDEN.write_text(shown)
    assert shown == GOLDEN.read_text()


def test_every_reference_leads_to_a_row_that_is_wanted() -> None:
    rows = rows_of(*small_cloud(), gateways=("host-1", "host-2"))
    ids = {fact.id for fact in rows.values() if isinstance(fact, Row)}
    assert {fact.id for fact in rows.values()} == ids
    for fact in rows.values():
        if isinstance(fact, Element):
            assert fact.column == "records" or fact.entry in ids
        else:
            references = {name for name in fact.columns if name.endswith("_options") or name == "ha_chassis_group"}
            assert {str(fact.columns[name]) for name in references} <= ids


def test_the_same_records_in_another_order_are_projected_to_the_same_rows() -> None:
    assert rows_of(*small_cloud()) == rows_of(*reversed(small_cloud()))


def test_a_floating_ip_is_translated_on_the_ports_host_only_if_that_is_one_of_several_gateways() -> None:
    def logical_port(*gateways: str) -> Value | None:
        rows = rows_of(*small_cloud(), gateways=gateways)
        (nat,) = (row for row in only(rows, "NAT") if row.columns["type"] == "dnat_and_snat")
        return nat.columns.get("logical_port")

    assert logical_port("host-1") is None
    assert logical_port("host-2", "host-3") is None
    assert logical_port("host-1", "host-2") == "p-one"


def test_a_rule_that_names_a_group_waits_until_the_group_is_there() -> None:
    naming = rule("r", of="one", direction=Direction.INGRESS, remote_group_id="two")
    assert matches(group("one"), naming) == set()
    assert matches(group("one"), group("two"), naming) == {
        "outport == @members_one && ip4 && ip4.src == $members_two_ip4"
    }


def test_names_that_several_ports_have_are_answered_with_all_addresses() -> None:
    rows = rows_of(
        vpc("net"),
        port("b", of="net", mac="02:00:00:00:00:02", at=[("s", "10.0.0.2")], hostname="Web"),
        port("a", of="net", mac="02:00:00:00:00:01", at=[("s", "10.0.0.1")], hostname="web"),
    )
    answers = {fact.entry: fact.value for fact in rows.values() if isinstance(fact, Element) and fact.table == "DNS"}
    assert answers == {
        "web": "10.0.0.1 10.0.0.2",
        "web.internal": "10.0.0.1 10.0.0.2",
        "1.0.0.10.in-addr.arpa": "web.internal",
        "2.0.0.10.in-addr.arpa": "web.internal",
    }


def test_one_port_more_is_the_same_few_rows_in_a_small_network_and_in_a_large_one() -> None:
    def cost(ports: int) -> tuple[int, int]:
        pending = Pending(View([vpc("net"), *default_group("default"), *(numbered(at) for at in range(ports))]))
        pending.take([put(numbered(ports))])
        return len(pending.owners()), len(joined(pending.pop()))

    def numbered(at: int) -> NetworkRecord:
        address = f"10.{at >> 8}.{at & 255}.1"
        name = f"vm-{at}"
        return port(name, of="net", mac="02:00:00:00:00:01", at=[("s", address)], groups=["default"], hostname=name)

    assert cost(1) == cost(500)


# Small pools of ids, so that records meet each other in all ways, also in those that a sound state never has.
NETWORKS, SUBNETS, HOSTS = st.sampled_from(["n1", "n2"]), st.sampled_from(["s1", "s2"]), st.sampled_from(["h1", "h2"])
GROUPS, PORTS, ROUTERS = st.sampled_from(["g1", "g2"]), st.sampled_from(["p1", "p2"]), st.sampled_from(["r1", "r2"])


@st.composite
def ports(draw: st.DrawFn) -> NetworkRecord:
    """A port with an address of its own: in a sound state no two ports of a network have the same."""
    id = draw(PORTS)
    return port(
        id,
        of=draw(NETWORKS),
        mac="02:00:00:00:00:01",
        at=[(draw(SUBNETS), f"10.0.0.{id[1]}")],
        groups=draw(st.lists(GROUPS, unique=True)),
        host=draw(st.none() | HOSTS),
        hostname=draw(st.sampled_from(["", "web", "db"])),
    )


records: st.SearchStrategy[NetworkRecord] = st.one_of(
    st.builds(
        vpc,
        NETWORKS,
        kind=st.sampled_from(NetworkKind),
        physical=st.just("provider"),
        mtu=st.sampled_from([1400, 1442]),
        in_service=st.booleans(),
    ),
    st.builds(
        subnet,
        SUBNETS,
        of=NETWORKS,
        cidr=st.sampled_from(["10.0.0.0/24", "10.0.1.0/24", "fd00::/64"]),
        gateway=st.sampled_from([None, "10.0.0.1", "fd00::1"]),
        dhcp=st.booleans(),
        mode=st.none() | st.sampled_from(Ipv6Mode),
        delegated_by=st.none() | NETWORKS,
    ),
    st.builds(
        router,
        ROUTERS,
        subnets=st.lists(SUBNETS, unique=True),
        outside=st.none() | st.just(("n1", "10.0.0.5", "fd00::5")),
        further=st.lists(st.tuples(st.just("n2"), st.sampled_from(["10.0.1.5", "fd00::5"])), max_size=1),
        snat=st.booleans(),
        routes=st.lists(st.tuples(st.just("10.9.0.0/16"), st.sampled_from(["10.0.0.1", "10.0.1.9"])), max_size=1),
        sources=st.lists(st.tuples(st.sampled_from(["10.0.0.0/24", "fd00::/64"]), NETWORKS), max_size=1),
    ),
    st.builds(
        peering,
        st.sampled_from(["e1", "e2"]),
        st.just("r1"),
        st.sampled_from(["r2", "r3"]),
        link=st.integers(0, 2),
        active=st.booleans(),
    ),
    st.builds(group, GROUPS),
    st.builds(
        rule,
        st.sampled_from(["a1", "a2"]),
        of=GROUPS,
        direction=st.sampled_from(Direction),
        remote_group_id=st.none() | GROUPS,
    ),
    ports(),
    st.builds(
        floating_ip,
        st.sampled_from(["f1", "f2"]),
        of=NETWORKS,
        address=st.just("192.0.2.9"),
        port=st.none() | PORTS,
        fixed=st.just("10.0.0.1"),
        by=st.none() | ROUTERS,
        mbit=st.none() | st.just(20),
    ),
    st.builds(
        forwarding,
        st.sampled_from(["pf1", "pf2"]),
        at=st.just("192.0.2.9"),
        outside=st.sampled_from([22, 80]),
        to=st.just("10.0.0.1"),
        inside=st.just(22),
        by=ROUTERS,
        of=NETWORKS,
    ),
    st.builds(
        snat_rule,
        st.sampled_from(["snat1", "snat2"]),
        at=st.just("192.0.2.9"),
        source=st.sampled_from(["10.0.0.0/24", "10.0.1.0/24", "10.0.1.7/32"]),
        by=ROUTERS,
        of=NETWORKS,
    ),
)
steps = st.lists(st.tuples(st.booleans(), records) | st.lists(HOSTS, unique=True), max_size=25)


@settings(max_examples=150)
@given(steps, st.data())
def test_differences_of_changes_lead_to_what_is_projected_from_scratch(
    steps: list[tuple[bool, NetworkRecord] | list[str]], data: st.DataObject
) -> None:
    kept: dict[tuple[type[NetworkRecord], str], NetworkRecord] = {}
    rows: dict[Key, Fact] = {}
    pending = Pending(View())
    for step in steps:
        if isinstance(step, list):
            pending.gateways_are(map(HostId, step))
        else:
            stays, record = step
            key = type(record), record.id
            pending.take([Change(record, removes=not stays)])
            kept.pop(key, None)
            if stays:
                kept[key] = record
        if data.draw(st.booleans()):
            for part in data.draw(st.permutations(pending.pop())):  # as a database may be given them
                apply(rows, joined([part]))
    apply(rows, joined(pending.pop()))
    scratch = View(kept.values(), gateways=pending.view.gateways)
    assert rows == project_everything(scratch)


def test_nothing_is_made_of_a_network_that_others_serve_not_even_at_the_start() -> None:
    unmanaged = vpc("n1", kind=NetworkKind.UNMANAGED)
    guest = port("p1", of="n1", mac="02:00:00:00:00:01", at=[])
    assert rows_of(unmanaged, guest) == {}
    pending = Pending(View())
    pending.take([Change(unmanaged, removes=False), Change(guest, removes=False)])
    assert pending.pop() == []


@settings(max_examples=100)
@given(st.lists(records))
def test_each_row_and_each_element_has_one_owner(records: list[NetworkRecord]) -> None:
    view = View(records)
    owners: dict[Key, str] = {}
    for owner in view.owners():
        for fact in project(view, owner):
            assert owners.setdefault(fact.key, str(owner)) == str(owner)


@settings(max_examples=50)
@given(st.lists(records), st.lists(records))
def test_the_difference_makes_the_one_out_of_the_other(one: list[NetworkRecord], other: list[NetworkRecord]) -> None:
    rows = rows_of(*one)
    apply(rows, difference(rows, rows_of(*other)))
    assert rows == rows_of(*other)
    assert not difference(rows, rows_of(*other))


# Ways out


def a_line(name: str, plan: str, *, in_service: bool = True) -> list[NetworkRecord]:
    return [
        vpc(name, kind=NetworkKind.EXTERNAL, physical=name, in_service=in_service),
        subnet(f"{name}-4", of=name, cidr=f"{plan}.0/24", gateway=f"{plan}.1", dhcp=False),
    ]


def with_lines(*lines: NetworkRecord, further: bool = True) -> list[NetworkRecord]:
    made = router(
        "edge",
        subnets=["inside"],
        outside=("a", "192.0.2.9"),
        further=[("b", "198.51.100.9")] if further else [],
        sources=[("10.0.0.0/24", "b")] if further else [],
    )
    return [*lines, vpc("net"), subnet("inside", of="net", cidr="10.0.0.0/24", gateway="10.0.0.1"), made]


def by_default(rows: dict[Key, Fact]) -> set[str]:
    """Where logical routers send what they have no other route for."""
    routes = only(rows, "Logical_Router_Static_Route")
    return {str(row.columns["nexthop"]) for row in routes if row.columns["ip_prefix"] == "0.0.0.0/0"}


def test_a_router_with_one_line_has_no_policies_and_one_with_two_names_first_what_stays_inside() -> None:
    one, two = a_line("a", "192.0.2"), a_line("b", "198.51.100")
    assert only(rows_of(*with_lines(*one, *two, further=False)), "Logical_Router_Policy") == []
    policies = only(rows_of(*with_lines(*one, *two)), "Logical_Router_Policy")
    first, second = sorted(policies, key=lambda row: str(row.columns["action"]))
    assert (first.columns["match"], first.columns["action"]) == ("ip4.dst == 10.0.0.0/24", "allow")
    assert (second.columns["match"], second.columns["action"]) == ("ip4.src == 10.0.0.0/24", "reroute")
    priorities = [int(str(policy.columns["priority"])) for policy in (first, second)]
    assert priorities[0] > priorities[1]


def test_a_line_that_comes_leaves_the_rows_of_the_first_one_as_they_were() -> None:
    lines = [*a_line("a", "192.0.2"), *a_line("b", "198.51.100")]
    one, two = rows_of(*with_lines(*lines, further=False)), rows_of(*with_lines(*lines))
    assert not difference(one, two).gone
    assert not difference(one, two).changed


def test_what_a_line_out_of_service_carried_goes_by_the_next() -> None:
    one, two = a_line("a", "192.0.2"), a_line("b", "198.51.100")
    both = rows_of(*with_lines(*one, *two))
    assert by_default(both) == {"192.0.2.1", "198.51.100.1"}
    without = rows_of(*with_lines(*a_line("a", "192.0.2", in_service=False), *two))
    assert by_default(without) == {"169.254.64.2", "198.51.100.1"}, "across the link, and on from there"
    neither = rows_of(*with_lines(*one, *a_line("b", "198.51.100", in_service=False)))
    assert [row.columns["action"] for row in only(neither, "Logical_Router_Policy")] == ["allow"]
