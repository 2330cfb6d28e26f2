"""Several lines out of the cloud, and IPv6, on real OVN and Open vSwitch: what leaves by which, and comes back.

Each line's provider drops what does not have its addresses: that somebody is answered says by which line.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
import pytest_asyncio
import upstreams
from ovn_cloud import SERVER, Cloud, at_work, closed, name_server, reached, running, says, told
from ovn_lab import HOSTS, lab, missing, until
from upstreams import WORLD, A, B

from pileus.cloud.networks.model import Ipv6Mode, NetworkKind, Router
from pileus.cloud.securitygroups.model import Direction
from pileus.kernel.eui64 import slaac_address
from pileus.kernel.ids import HostId, NetworkId, PortId
from pileus.link.guests import NicSpec
from pileus.ovn.ovsdb import Ovsdb
from pileus.ovn.rows import TABLES, facts_read, selections
from pileus.ovn.view import NetworkRecord
from pileus.testing.contracts.network import Echo
from pileus.testing.networks import floating_ip, forwarding, group, port, router, rule, snat_rule, subnet, vpc

LACKS = missing()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(LACKS is not None, reason=LACKS or ""),
    pytest.mark.asyncio(loop_scope="module"),
]

# `a` and `b` are in one subnet, `b` with a floating IP of the second line; `c` is where the prefixes are the second
# line's, and `own` where they are nobody's.
PLACES = {"a": ("h1", "blue"), "b": ("h2", "blue"), "c": ("h3", "given"), "own": ("h2", "own")}
PLANS = {
    "blue": ("10.0.0", f"{A.delegated}:1::/64"),
    "given": ("10.0.1", f"{B.delegated}:1::/64"),
    "own": ("10.0.2", "fd00:2::/64"),
}
MACS = {name: f"02:00:00:00:00:0{at}" for at, name in enumerate(PLACES, 1)}
DELEGATED_BY = {"blue": "a", "given": "b", "own": None}
ROUTER = {"a": (f"{A.ipv4}.100", f"{A.ipv6}::100"), "b": (f"{B.ipv4}.100", f"{B.ipv6}::100")}
FLOATING, OF_RULES = f"{B.ipv4}.111", f"{B.ipv4}.112"


def addresses(name: str) -> tuple[str, str]:
    four, six = PLANS[PLACES[name][1]]
    return f"{four}.1{list(PLACES).index(name)}", slaac_address(six, MACS[name])


def edge(*, routes: Sequence[tuple[str, str]] = (), sources: Sequence[tuple[str, str]] = ()) -> Router:
    subnets = [f"{of}-{version}" for of in PLANS for version in (4, 6)]
    ways_out = ("a", *ROUTER["a"]), ("b", *ROUTER["b"])
    return router("edge", subnets=subnets, outside=ways_out[0], further=ways_out[1:], routes=routes, sources=sources)


def line(name: str, *, in_service: bool = True) -> NetworkRecord:
    of = {"a": A, "b": B}[name]
    return vpc(name, kind=NetworkKind.EXTERNAL, physical=of.physical, mtu=1500, in_service=in_service)


def cloud() -> list[NetworkRecord]:
    made: list[NetworkRecord] = [group("open")]
    for version in (4, 6):
        made += [rule(f"{way}-{version}", of="open", direction=way, ip_version=version) for way in Direction]
    for name, of in (("a", A), ("b", B)):
        made += [
            line(name),
            subnet(f"{name}-4", of=name, cidr=of.cidr, gateway=of.gateway, dhcp=False),
            subnet(f"{name}-6", of=name, cidr=f"{of.ipv6}::/64", gateway=of.ipv6_gateway, dhcp=False),
        ]
    for name, (four, six) in PLANS.items():
        gateway, by = six.replace("/64", "1"), DELEGATED_BY[name]
        made += [
            vpc(name),
            subnet(f"{name}-4", of=name, cidr=f"{four}.0/24", gateway=f"{four}.1"),
            subnet(f"{name}-6", of=name, cidr=six, gateway=gateway, mode=Ipv6Mode.SLAAC, delegated_by=by),
        ]
    for name, (host, of) in PLACES.items():
        at = [(f"{of}-{version}", address) for version, address in zip((4, 6), addresses(name), strict=True)]
        made.append(port(name, of=of, mac=MACS[name], at=at, groups=["open"], host=host))
    return [
        *made,
        edge(),
        floating_ip("fip-b", of="b", address=FLOATING, port="b", fixed=addresses("b")[0], by="edge"),
        floating_ip("fip-rules", of="b", address=OF_RULES),
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Cloud]:
    async with lab(tmp_path_factory.mktemp("lines")) as running_lab, running(running_lab.database.remote) as northbound:
        prefixes_by = {PLANS["blue"][1]: ROUTER["a"][1], PLANS["given"][1]: ROUTER["b"][1]}
        world = await upstreams.begin(running_lab, prefixes_by=prefixes_by)
        northbound.load(cloud(), gateways=[HostId(name) for name in HOSTS[:3]])
        for name, (host, of) in PLACES.items():
            await running_lab.hosts[host].network.serve({NetworkId(each): 1442 for each in PLANS}, Echo())
            nic = NicSpec(port=PortId(name), network=NetworkId(of), mac=MACS[name], addresses=addresses(name), mtu=1442)
            await running_lab.add(host, nic)
        await at_work(northbound, *PLACES)
        await asyncio.gather(*(guest.ask_for_address() for guest in running_lab.guests.values()))
        servers = [await name_server(guest.path, name) for name, guest in running_lab.guests.items()]
        servers.append(await name_server(world, "world"))
        made = Cloud(running_lab, northbound)
        await told(made.guest("a").path, WORLD[4])
        yield made
        for server in servers:
            server.close()


async def is_seen_as(made: Cloud, name: str, address: str, version: int = 4) -> None:
    """Wait until the world sees a guest with this address."""
    await says(made.guest(name).path, WORLD[version], f"world sees {address}")


async def test_who_says_nothing_goes_out_by_the_first_line(made: Cloud) -> None:
    for name in ("a", "c"):
        await is_seen_as(made, name, ROUTER["a"][0])


async def test_what_came_in_by_a_line_is_answered_by_it(made: Cloud) -> None:
    world = made.lab.path("world")
    assert await told(world, FLOATING) == f"b sees {WORLD[4]}"
    await is_seen_as(made, "b", FLOATING)
    into = forwarding("pf", of="b", at=OF_RULES, outside=8001, to=addresses("a")[0], inside=SERVER, by="edge")
    await made.change(into)
    assert await told(world, OF_RULES, port=8001) == f"a sees {WORLD[4]}"
    await is_seen_as(made, "a", ROUTER["a"][0])  # what it begins itself goes by the first line as before
    await made.change(gone=(into,))


async def test_guests_still_reach_each_other(made: Cloud) -> None:
    for version in (0, 1):
        b, there = made.guest("b").path, addresses("c")[version]
        assert await told(b, there) == f"c sees {addresses('b')[version]}"


async def test_sources_destinations_and_rules_choose_a_line(made: Cloud) -> None:
    a = addresses("a")[0]
    await made.change(edge(sources=[("10.0.1.0/24", "b")]))
    await is_seen_as(made, "c", ROUTER["b"][0])
    await is_seen_as(made, "a", ROUTER["a"][0])
    await made.change(edge(routes=[("192.0.2.0/24", B.gateway)]))
    await is_seen_as(made, "a", ROUTER["b"][0])
    await made.change(edge())
    await is_seen_as(made, "a", ROUTER["a"][0])
    own = snat_rule("snat", of="b", at=OF_RULES, source=f"{a}/32", by="edge")
    await made.change(own)
    await is_seen_as(made, "a", OF_RULES)
    await made.change(gone=(own,))
    await is_seen_as(made, "a", ROUTER["a"][0])


async def test_a_line_out_of_service_is_passed_over_until_it_is_back(made: Cloud) -> None:
    await made.change(line("a", in_service=False))
    await is_seen_as(made, "a", ROUTER["b"][0])
    await is_seen_as(made, "a", ROUTER["b"][1], 6)
    await is_seen_as(made, "b", FLOATING)
    await made.change(line("a"), line("b", in_service=False))
    await is_seen_as(made, "a", ROUTER["a"][0])
    await is_seen_as(made, "b", ROUTER["a"][0])
    await made.change(line("b"))
    await is_seen_as(made, "b", FLOATING)


async def test_delegated_prefixes_are_routed_by_their_line_both_ways(made: Cloud) -> None:
    world = made.lab.path("world")
    for name in ("a", "c"):
        own = addresses(name)[1]
        await is_seen_as(made, name, own, 6)
        assert await told(world, own) == f"{name} sees {WORLD[6]}"
        await reached(made.guest(name), WORLD[6])


async def test_other_prefixes_are_translated(made: Cloud) -> None:
    await is_seen_as(made, "own", ROUTER["a"][1], 6)


async def test_groups_hold_for_what_comes_in_by_ipv6(made: Cloud) -> None:
    world, there = made.lab.path("world"), addresses("c")[1]
    into = rule("ingress-6", of="open", direction=Direction.INGRESS, ip_version=6)
    await told(world, there)
    await made.change(gone=(into,))
    await closed(world, there)
    await is_seen_as(made, "c", there, 6)  # its own connections are answered
    await made.change(into)
    await told(world, there)


async def test_an_emptied_database_gets_the_ways_out_back(made: Cloud) -> None:
    other = await Ovsdb.connect(made.lab.database.remote, "OVN_Northbound")
    wanted = facts_read(await other.transact(selections()))
    await other.transact([{"op": "delete", "table": table, "where": []} for table in TABLES])

    async def back() -> bool:
        return facts_read(await other.transact(selections())) == wanted

    await until(back, "everything is back")
    await other.close()
    await at_work(made.northbound)
    await is_seen_as(made, "a", ROUTER["a"][0])
    await is_seen_as(made, "b", FLOATING)
    await is_seen_as(made, "c", addresses("c")[1], 6)
