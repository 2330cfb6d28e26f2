"""IPv6 on real OVN and Open vSwitch: how guests come to addresses, what they reach, and what they cannot pretend."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable

import dhcpv6
import pytest
import pytest_asyncio
from ovn_cloud import Cloud, at_work, attempt, closed, heard, name_server, reached, running, told
from ovn_lab import HOSTS, Guest, lab, missing, until

from pileus.cloud.networks.model import Ipv6Mode, Port
from pileus.cloud.securitygroups.model import Direction
from pileus.kernel.eui64 import slaac_address
from pileus.kernel.ids import NetworkId, PortId
from pileus.link.guests import NicSpec
from pileus.ovn.view import NetworkRecord
from pileus.testing.contracts.network import Echo
from pileus.testing.networks import group, port, router, rule, subnet, vpc

LACKS = missing()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(LACKS is not None, reason=LACKS or ""),
    pytest.mark.asyncio(loop_scope="module"),
]

# Two VPCs with one address plan: `a` and `far` even have the same addresses. `c` is in a network of its own behind the
# router of the first, in which addresses are told by DHCPv6.
MACS = {"a": "02:00:00:00:00:01", "b": "02:00:00:00:00:02", "c": "02:00:00:00:00:03", "far": "02:00:00:00:00:01"}
PLACES = {"a": ("h1", "blue"), "b": ("h2", "blue"), "c": ("h3", "told"), "far": ("h2", "green")}
NETWORKS = [NetworkId(name) for name in ("blue", "told", "green")]
ADDRESSES = {
    "a": ("10.0.0.11", slaac_address("fd00:a::/64", MACS["a"])),
    "b": ("10.0.0.12", slaac_address("fd00:a::/64", MACS["b"])),
    "c": ("10.0.1.13", "fd00:b::77"),
    "far": ("10.0.0.11", slaac_address("fd00:a::/64", MACS["far"])),
}
RESOLVER = "fd00:b::53"


def ports() -> list[Port]:
    return [
        port(
            name,
            of=of,
            mac=MACS[name],
            at=[(f"{of}-{at}", address) for at, address in zip((4, 6), ADDRESSES[name], strict=True)],
            groups=["others" if of == "green" else "default"],
            host=host,
            hostname=f"vm-{name}",
        )
        for name, (host, of) in PLACES.items()
    ]


def open_group(id: str) -> list[NetworkRecord]:
    """Everything out, and in from members of the same group, in both IP versions."""
    out, into = Direction.EGRESS, Direction.INGRESS
    return [
        group(id),
        *(rule(f"{id}-out-{version}", of=id, direction=out, ip_version=version) for version in (4, 6)),
        *(
            rule(f"{id}-in-{version}", of=id, direction=into, ip_version=version, remote_group_id=id)
            for version in (4, 6)
        ),
    ]


def cloud() -> list[NetworkRecord]:
    return [
        vpc("blue"),
        subnet("blue-4", of="blue", cidr="10.0.0.0/24", gateway="10.0.0.1"),
        subnet("blue-6", of="blue", cidr="fd00:a::/64", gateway="fd00:a::1", mode=Ipv6Mode.SLAAC),
        vpc("told"),
        subnet("told-4", of="told", cidr="10.0.1.0/24", gateway="10.0.1.1"),
        subnet("told-6", of="told", cidr="fd00:b::/64", gateway="fd00:b::1", mode=Ipv6Mode.STATEFUL, dns=[RESOLVER]),
        router("blue-edge", subnets=["blue-4", "blue-6", "told-4", "told-6"]),
        vpc("green"),
        subnet("green-4", of="green", cidr="10.0.0.0/24", gateway="10.0.0.1"),
        subnet("green-6", of="green", cidr="fd00:a::/64", gateway="fd00:a::1", mode=Ipv6Mode.SLAAC),
        router("green-edge", subnets=["green-4", "green-6"]),
        *open_group("default"),
        *open_group("others"),
        *ports(),
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Cloud]:
    async with lab(tmp_path_factory.mktemp("ovn")) as running_lab, running(running_lab.database.remote) as northbound:
        northbound.load(cloud())
        for name in HOSTS[:3]:
            await running_lab.hosts[name].network.serve(
                {NetworkId(of): 1442 for of in ("blue", "told", "green")}, Echo()
            )
        for name, (host, of) in PLACES.items():
            nic = NicSpec(port=PortId(name), network=NetworkId(of), mac=MACS[name], addresses=ADDRESSES[name], mtu=1442)
            await running_lab.add(host, nic)
        await at_work(northbound, *PLACES)
        await asyncio.gather(*(_begin(guest) for guest in running_lab.guests.values()))
        servers = [await name_server(guest.path, name) for name, guest in running_lab.guests.items()]
        yield Cloud(running_lab, northbound)
        for server in servers:
            server.close()


async def _begin(guest: Guest) -> None:
    """What a guest does when it boots: it asks for routers, and for an IPv4 address."""
    await guest.run("ip", "link", "set", "eth0", "down")
    await guest.run("ip", "link", "set", "eth0", "up")
    await guest.ask_for_address()
    await until(lambda: _has_default_route(guest), "a router has announced itself")


async def _has_default_route(guest: Guest) -> bool:
    return "default via fe80::" in await guest.run("ip", "-6", "route")


async def _addresses(guest: Guest) -> set[str]:
    said = await guest.run("ip", "-6", "-oneline", "address", "show", "dev", "eth0", "scope", "global", "-tentative")
    return set(re.findall(r"inet6 ([0-9a-f:]+)/", said))


async def test_a_guest_makes_the_address_of_its_port_out_of_what_the_router_announces(made: Cloud) -> None:
    for name in ("a", "b", "far"):
        guest = made.guest(name)
        await until(lambda guest=guest, name=name: _is(_addresses(guest), {ADDRESSES[name][1]}), f"{name} has it")
    assert (await made.guest("a").run("cat", "/proc/sys/net/ipv6/conf/eth0/mtu")).strip() == "1442"


async def test_a_guest_is_told_the_address_of_its_port_and_resolvers_by_dhcpv6(made: Cloud) -> None:
    c = made.guest("c")
    assert await _addresses(c) == set(), "nothing is to be made up"
    assert await dhcpv6.leased(c.path, "eth0", MACS["c"]) == ("fd00:b::77", [RESOLVER])
    await c.run("ip", "address", "replace", "fd00:b::77/128", "dev", "eth0", "nodad")


async def _is(found: Awaitable[set[str]], wanted: set[str]) -> bool:
    return await found == wanted


async def test_guests_reach_each_other_across_hosts_and_subnets(made: Cloud) -> None:
    a, b, c = (ADDRESSES[name][1] for name in ("a", "b", "c"))
    assert await told(made.guest("a").path, b) == f"b sees {a}"
    await made.guest("c").run("ip", "address", "replace", "fd00:b::77/128", "dev", "eth0", "nodad")
    assert await told(made.guest("a").path, c) == f"c sees {a}"
    assert await told(made.guest("c").path, b) == f"b sees {c}"


async def test_networks_with_the_same_addresses_do_not_see_each_other(made: Cloud) -> None:
    far, own, b = made.guest("far"), ADDRESSES["far"][1], ADDRESSES["b"][1]
    assert await told(far.path, own) == f"far sees {own}", "its own address is its own"
    assert await heard(far.path, b) is None


async def test_rules_hold_for_ipv6_apart_from_ipv4(made: Cloud) -> None:
    a, b = made.guest("a"), ADDRESSES["b"]
    open_to_all = rule("default-in-6", of="default", direction=Direction.INGRESS, ip_version=6)
    inwards = next(record for record in cloud() if record.id == "default-in-6")
    await made.change(gone=(open_to_all,))
    await closed(a.path, b[1])
    assert await told(a.path, b[0]) == f"b sees {ADDRESSES['a'][0]}"
    ping = rule(
        "six", of="default", direction=Direction.INGRESS, ip_version=6, protocol="icmp", remote_cidr="fd00:a::/64"
    )
    await made.change(ping)
    await reached(a, b[1])
    assert await heard(a.path, b[1]) is None, "only ICMP is opened"
    await made.change(inwards, gone=(ping,))
    await told(a.path, b[1])


async def test_a_guest_speaks_with_its_own_addresses_only(made: Cloud) -> None:
    a, b = made.guest("a"), ADDRESSES["b"][1]
    await a.run("ip", "address", "add", "fd00:a::99/64", "dev", "eth0", "nodad")
    try:
        assert await attempt(a.run("busybox", "ping6", "-c1", "-W1", "-I", "fd00:a::99", b)) is None
    finally:
        await a.run("ip", "address", "del", "fd00:a::99/64", "dev", "eth0")
    await reached(a, b)


async def test_names_are_answered_with_ipv6_addresses(made: Cloud) -> None:
    said = await made.guest("a").run("busybox", "nslookup", "-type=aaaa", "vm-b.internal", "169.254.169.254")
    assert set(re.findall(r"^Address: ([0-9a-f:]+)$", said, re.MULTILINE)) == {ADDRESSES["b"][1]}
