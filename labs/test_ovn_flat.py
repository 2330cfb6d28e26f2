"""Flat networks and external addresses on guests' own interfaces, on real OVN and Open vSwitch, proven by packets.

Beside guests there are machines of the LAN, which are none of the cloud's: `office` on VLAN 20, which has an address
pool of ours, and `floor` on VLAN 30, which has a DHCP server of its own. Both VLANs have the same address plan.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from ovn_cloud import SERVER, Cloud, at_work, attempt, heard, name_server, pings, reached, running, told
from ovn_lab import OUTSIDE, Lab, lab, missing
from physical import dhcp_offer, plug_in_machine, remark, router_announcement, sees

from pileus.cloud.networks.model import NetworkKind
from pileus.cloud.securitygroups.model import Direction
from pileus.kernel.eui64 import slaac_address
from pileus.kernel.ids import NetworkId, PortId
from pileus.kernel.programs import run
from pileus.link.guests import NicSpec
from pileus.ovn.view import NetworkRecord
from pileus.testing.contracts.network import Echo
from pileus.testing.networks import group, port, rule, subnet, vpc

LACKS = missing()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(LACKS is not None, reason=LACKS or ""),
    pytest.mark.asyncio(loop_scope="module"),
]

MACHINE, A, B, DIRECT = "192.168.20.1", "192.168.20.11", "192.168.20.12", "172.24.0.50"
PLACES: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "a": ("h1", "office", [("office-4", A)]),
    "b": ("h2", "office", [("office-4", B)]),
    "c": ("h1", "floor", []),
    "d": ("h2", "floor", []),
    "e": ("h3", "outside", [("outside-4", DIRECT)]),
}
MTU = 1500


def mac_of(name: str) -> str:
    return f"02:00:00:00:00:{list(PLACES).index(name) + 1:02x}"


def cloud() -> list[NetworkRecord]:
    only_to_server = {"protocol": "tcp", "port_min": SERVER, "port_max": SERVER}
    return [
        vpc("office", kind=NetworkKind.FLAT, physical="provider", vlan=20, mtu=MTU),
        subnet("office-4", of="office", cidr="192.168.20.0/24", gateway=MACHINE, dns=["192.168.20.53"]),
        vpc("floor", kind=NetworkKind.FLAT, physical="provider", vlan=30, mtu=MTU),
        vpc("outside", kind=NetworkKind.EXTERNAL, physical="provider", mtu=MTU),
        subnet("outside-4", of="outside", cidr="172.24.0.0/24", gateway=OUTSIDE),
        group("some"),
        rule("some-out", of="some", direction=Direction.EGRESS),
        rule("some-out-6", of="some", direction=Direction.EGRESS, ip_version=6),
        rule("some-in", of="some", direction=Direction.INGRESS, **only_to_server),
        *(
            port(name, of=of, mac=mac_of(name), at=at, groups=["some"], host=host, hostname=f"vm-{name}")
            for name, (host, of, at) in PLACES.items()
        ),
    ]


async def serve_addresses(lab: Lab, namespace: str, folder: Path) -> None:
    """Be the DHCP server of a LAN."""
    config = folder / "udhcpd.conf"
    leases = folder / "udhcpd.leases"
    leases.touch()
    config.write_text(
        "interface eth0\nstart 192.168.20.100\nend 192.168.20.120\n"
        f"lease_file {leases}\npidfile {folder / 'udhcpd.pid'}\n"
        "opt subnet 255.255.255.0\nopt router 192.168.20.1\nopt mtu 1500\nopt staticroutes 10.9.0.0/16 192.168.20.1\n"
    )
    # It looks for each address whether somebody has it, and does nothing else meanwhile: by default for two seconds.
    command = ("nsenter", f"--net={namespace}", "busybox", "udhcpd", "-f", "-a", "50", str(config))
    lab.processes.start(*command, log=folder / "udhcpd.log")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Cloud]:
    folder = tmp_path_factory.mktemp("flat")
    async with lab(folder) as running_lab, running(running_lab.database.remote) as northbound:
        northbound.load(cloud())
        await running_lab.hosts["h1"].network.serve({NetworkId("office"): MTU, NetworkId("floor"): MTU}, Echo())
        office = await plug_in_machine(running_lab, "office", at="h4", vlan=20, address=MACHINE)
        floor = await plug_in_machine(running_lab, "floor", at="h4", vlan=30, address=MACHINE)
        await serve_addresses(running_lab, floor, folder)
        for name, (host, of, at) in PLACES.items():
            addresses = tuple(address for _, address in at)
            nic = NicSpec(port=PortId(name), network=NetworkId(of), mac=mac_of(name), addresses=addresses, mtu=MTU)
            await running_lab.add(host, nic)
        await at_work(northbound, *PLACES)
        await asyncio.gather(*(guest.ask_for_address() for guest in running_lab.guests.values()))
        paths = {name: guest.path for name, guest in running_lab.guests.items()} | {"office": office, "floor": floor}
        servers = [await name_server(path, name) for name, path in paths.items()]
        yield Cloud(running_lab, northbound)
        for server in servers:
            server.close()


async def test_guests_of_an_address_pool_are_on_the_lan_as_machines_are(made: Cloud) -> None:
    a, machine = made.guest("a"), made.lab.path("office")
    assert (a.lease["ip"], a.lease["router"], a.lease["dns"], a.lease["mtu"]) == (A, MACHINE, "192.168.20.53", "1500")
    assert await told(machine, A) == f"a sees {MACHINE}"
    assert await told(a.path, MACHINE) == f"office sees {A}", "without translation"
    assert await told(a.path, B) == f"b sees {A}", "on another host, by way of the wire"
    await reached(a, MACHINE)
    assert await attempt(made.lab.ip("netns", "exec", "office", "busybox", "ping", "-c1", "-W1", A)) is None, (
        "what no rule lets in does not get there"
    )


async def test_vlans_of_one_wire_do_not_hear_each_other(made: Cloud) -> None:
    """Both have machines, guests and even the same addresses."""
    assert await told(made.guest("a").path, MACHINE) == f"office sees {A}"
    c = made.guest("c")
    assert await told(c.path, MACHINE) == f"floor sees {c.lease['ip']}"
    assert await heard(c.path, A) is None
    assert await heard(made.lab.path("floor"), B) is None
    assert await heard(made.lab.path("office"), c.lease["ip"]) is None


async def test_strangers_on_the_lan_get_neither_addresses_nor_metadata(made: Cloud) -> None:
    office = ("nsenter", f"--net={made.lab.path('office')}")
    client = (*office, "busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "3", "-T", "1", "-s", "/bin/true")
    assert await attempt(run(*client)) is None, "the built-in DHCP answers ports of the cloud only"
    await made.lab.ip("-n", "office", "route", "add", "169.254.169.254/32", "dev", "eth0")
    assert await heard(made.lab.path("office"), "169.254.169.254", port=80) is None
    said = await made.guest("a").run("busybox", "wget", "-q", "-O", "-", "http://169.254.169.254/a")
    assert said == f"GET /a office {A}"


async def test_guests_are_told_their_addresses_by_the_lan_where_the_cloud_has_no_pool(made: Cloud) -> None:
    c, d = made.guest("c"), made.guest("d")
    assert c.lease["serverid"] == MACHINE
    assert re.fullmatch(r"192\.168\.20\.1\d\d", c.lease["ip"])
    floor = made.lab.path("floor")
    assert await told(floor, c.lease["ip"]) == f"c sees {MACHINE}"
    assert await told(c.path, d.lease["ip"]) == f"d sees {c.lease['ip']}"
    assert not await pings(d, c.lease["ip"]), "what no rule lets in does not get there"


async def test_no_guest_is_a_dhcp_server_or_a_router_to_the_lan(made: Cloud) -> None:
    for name, at in (("a", "office"), ("c", "floor")):
        guest, machine, mac = made.guest(name), made.lab.path(at), mac_of(name)
        source = guest.lease["ip"]
        marker = remark(mac, source, b"here I am")
        local = slaac_address("fe80::/64", mac)
        assert not await sees(machine, guest.path, dhcp_offer(mac, source), marker)
        assert not await sees(machine, guest.path, router_announcement(mac, local), marker)
        assert await sees(machine, guest.path, remark(mac, source, b"and here"), marker), "what is allowed is seen"


async def test_a_guest_on_the_lan_is_nobody_else(made: Cloud) -> None:
    for name, at in (("b", "office"), ("d", "floor")):
        guest, machine = made.guest(name), made.lab.path(at)
        marker = remark(mac_of(name), guest.lease["ip"], b"here I am")
        other_mac = remark("02:00:00:00:00:77", guest.lease["ip"], b"somebody else")
        assert not await sees(machine, guest.path, other_mac, marker)
        other_address = remark(mac_of(name), "192.168.20.66", b"somewhere else")
        # An address that the cloud did not give it cannot hold it to.
        assert await sees(machine, guest.path, other_address, marker) is (name == "d")


async def test_an_external_address_is_on_the_guests_own_interface(made: Cloud) -> None:
    e, internet = made.guest("e"), made.lab.path("internet")
    assert (e.lease["ip"], e.lease["router"]) == (DIRECT, OUTSIDE)
    server = await name_server(internet, "internet")
    try:
        assert await told(internet, DIRECT) == f"e sees {OUTSIDE}"
        assert await told(e.path, OUTSIDE) == f"internet sees {DIRECT}", "without translation"
    finally:
        server.close()
    marker = remark(mac_of("e"), DIRECT, b"here I am")
    assert not await sees(internet, e.path, remark(mac_of("e"), "172.24.0.51", b"somebody else"), marker)
    assert not await sees(internet, e.path, dhcp_offer(mac_of("e"), DIRECT), marker)
