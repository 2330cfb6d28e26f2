"""Static routes and peerings on real OVN and Open vSwitch: which VPCs reach each other, and which do not."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from ovn_cloud import Cloud, at_work, closed, heard, name_server, running, told
from ovn_lab import Guest, lab, missing

from pileus.cloud.networks.model import Ipv6Mode, Port
from pileus.cloud.securitygroups.model import Direction
from pileus.kernel.eui64 import slaac_address
from pileus.kernel.ids import PortId
from pileus.link.guests import NicSpec
from pileus.ovn.view import NetworkRecord
from pileus.testing.networks import group, peering, port, router, rule, subnet, vpc

LACKS = missing()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(LACKS is not None, reason=LACKS or ""),
    pytest.mark.asyncio(loop_scope="module"),
]

# Three VPCs in a row, `middle` peered with both others; `left-twin` has the plan of `left`, and is peered with nobody.
# `gateway` is a guest that forwards, for a network behind it that no switch knows.
MACS = {name: f"02:00:00:00:00:0{at}" for at, name in enumerate(("left", "middle", "right", "twin", "gateway"), 1)}
PLANS = {"left": "1", "middle": "2", "right": "3", "twin": "1"}
PLACES = {"left": "h1", "middle": "h2", "right": "h3", "twin": "h3", "gateway": "h2"}
BEHIND = "192.168.77.1"


def address(name: str, version: int = 4) -> str:
    of = "middle" if name == "gateway" else name
    if version == 4:
        return f"10.{PLANS[of]}.0.{9 if name == 'gateway' else 11}"
    return slaac_address(f"fd00:{PLANS[of]}::/64", MACS[name])


def a_port(name: str) -> Port:
    of = "middle" if name == "gateway" else name
    at = [(f"{of}-4", address(name)), (f"{of}-6", address(name, 6))]
    speaks_for = ["192.168.77.0/24"] if name == "gateway" else []
    return port(name, of=of, mac=MACS[name], at=at, groups=["open"], host=PLACES[name], speaks_for=speaks_for)


def cloud() -> list[NetworkRecord]:
    made: list[NetworkRecord] = [group("open")]
    for version in (4, 6):
        made += [rule(f"{way}-{version}", of="open", direction=way, ip_version=version) for way in Direction]
    for name, plan in PLANS.items():
        made += [
            vpc(name),
            subnet(f"{name}-4", of=name, cidr=f"10.{plan}.0.0/24", gateway=f"10.{plan}.0.1"),
            subnet(f"{name}-6", of=name, cidr=f"fd00:{plan}::/64", gateway=f"fd00:{plan}::1", mode=Ipv6Mode.SLAAC),
            router(f"{name}-edge", subnets=[f"{name}-4", f"{name}-6"]),
        ]
    return [
        *made,
        peering("left-middle", "left-edge", "middle-edge"),
        peering("middle-right", "middle-edge", "right-edge", link=1),
        *map(a_port, MACS),
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Cloud]:
    async with lab(tmp_path_factory.mktemp("ovn")) as running_lab, running(running_lab.database.remote) as northbound:
        northbound.load(cloud())
        for each in map(a_port, MACS):
            addresses = tuple(fixed.address for fixed in each.addresses)
            nic = NicSpec(port=PortId(each.id), network=each.network_id, mac=each.mac, addresses=addresses, mtu=1442)
            await running_lab.add(PLACES[each.id], nic)
        await at_work(northbound, *MACS)
        await asyncio.gather(*(configure(guest) for guest in running_lab.guests.values()))
        servers = [await name_server(guest.path, name) for name, guest in running_lab.guests.items()]
        yield Cloud(running_lab, northbound)
        for server in servers:
            server.close()


async def configure(guest: Guest) -> None:
    four, six = guest.nic.addresses
    gateway = four.rpartition(".")[0] + ".1"
    await guest.run("ip", "address", "add", f"{four}/24", "dev", "eth0")
    await guest.run("ip", "route", "add", "default", "via", gateway)
    # A router that announces itself may have been quicker.
    await guest.run("ip", "address", "replace", f"{six}/64", "dev", "eth0", "nodad")
    await guest.run("ip", "-6", "route", "replace", "default", "via", f"{six.partition('::')[0]}::1")


@pytest.mark.parametrize("version", [4, 6])
async def test_peered_vpcs_reach_each_other_across_hosts(made: Cloud, version: int) -> None:
    for one, other in (("left", "middle"), ("middle", "left"), ("right", "middle")):
        there = address(other, version)
        assert await told(made.guest(one).path, there) == f"{other} sees {address(one, version)}"


@pytest.mark.parametrize("version", [4, 6])
async def test_what_lies_behind_another_peering_is_not_reached(made: Cloud, version: int) -> None:
    left = made.guest("left")
    await told(left.path, address("middle", version))
    assert await heard(left.path, address("right", version)) is None
    assert await heard(made.guest("twin").path, address("middle", version)) is None, "nobody peered this one"


async def test_a_peering_that_ends_or_waits_for_agreement_lets_nothing_through(made: Cloud) -> None:
    left, there = made.guest("left"), address("middle")
    active = peering("left-middle", "left-edge", "middle-edge")
    await made.change(gone=(active,))
    await closed(left.path, there)
    await made.change(peering("left-middle", "left-edge", "middle-edge", active=False))
    assert await heard(left.path, there) is None
    await made.change(active)
    await told(left.path, there)


async def test_a_static_route_leads_through_a_guest_that_may_forward(made: Cloud) -> None:
    gateway, middle = made.guest("gateway"), made.guest("middle")
    await gateway.run("ip", "address", "add", f"{BEHIND}/32", "dev", "lo")
    assert await heard(middle.path, BEHIND) is None
    edge = router("middle-edge", subnets=["middle-4", "middle-6"], routes=[("192.168.77.0/24", address("gateway"))])
    await made.change(edge)
    assert await told(middle.path, BEHIND) == f"gateway sees {address('middle')}"
    mute = a_port("gateway")
    await made.change(
        port(
            "gateway",
            of="middle",
            mac=mute.mac,
            at=[("middle-4", address("gateway"))],
            groups=["open"],
            host=PLACES["gateway"],
        )
    )
    await closed(middle.path, BEHIND)  # it speaks for itself alone again
    await made.change(mute)
