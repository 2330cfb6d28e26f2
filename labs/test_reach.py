"""What is said of who reaches whom agrees with OVN's own tracing of packets, over clouds made at random."""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Iterator
from ipaddress import ip_address, ip_network
from itertools import islice, product
from pathlib import Path
from typing import Any

import cache
import msgspec
import pytest
import pytest_asyncio
from ovn_lab import Database, Processes, missing

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.nat.model import PORT_FORWARDINGS, SNAT_RULES
from pileus.cloud.networks.model import NETWORKS, PORTS, ROUTERS, SUBNETS, NetworkKind, Port
from pileus.cloud.networks.reach import Packet, Trace, Verdict, from_port
from pileus.cloud.securitygroups.model import Direction
from pileus.controller.nouns import KINDS
from pileus.kernel.clock import FrozenClock
from pileus.kernel.ids import FloatingIpId, HostId
from pileus.kernel.programs import run
from pileus.ovn.made import logical_router
from pileus.ovn.names import mac_of
from pileus.ovn.northbound import OvnNorthbound
from pileus.ovn.view import NetworkRecord
from pileus.state.state import Origin, State, put
from pileus.testing.contracts.northbound import PATIENCE_S
from pileus.testing.memorystore import MemoryStore
from pileus.testing.networks import floating_ip, forwarding, group, peering, port, router, rule, snat_rule, subnet, vpc

LACKS = missing()
pytestmark = [pytest.mark.lab, pytest.mark.skipif(LACKS is not None, reason=LACKS or "")]

CLOUDS = 4
OUTSIDE = {"outside": "172.24.0", "second": "172.25.0"}
"""External networks, and the beginning of their addresses."""
SOMEBODY_ELSE = "02:00:00:00:ff:01"
"""A machine on the wire."""
PACKETS = 60
"""Of each cloud."""


class Central:
    """OVN's two databases with northd between them, and no host: enough to trace packets."""

    def __init__(self, folder: Path, processes: Processes, database: Database) -> None:
        self.folder, self.processes, self.database = folder, processes, database

    async def traced(self, network: str, flow: str) -> str:
        """What OVN does with a packet, as it tells it."""
        return await run(
            self.database.programs("ovn-trace"),
            f"--db=unix:{self.folder / 'sb.sock'}",
            *["--ct=new"] * 8,
            "--minimal",
            network,
            flow,
        )

    async def follows(self) -> None:
        """Come back when northd has made flows of all that is wanted."""
        await run(self.database.programs("ovn-nbctl"), f"--db={self.database.remote}", "--wait=sb", "sync")

    async def know_neighbours(self, state: State) -> None:
        """Have each router know the others outside, as it would after asking for them once."""
        database = f"--db=unix:{self.folder / 'sb.sock'}"
        for external in {uplink.network_id for each in state[ROUTERS] for uplink in each.uplinks}:
            ends = [(each, up) for each in state[ROUTERS] for up in each.uplinks if up.network_id == external]
            owners = [(address, logical_router(each, up)) for each, up in ends for address in up.addresses]
            by = {each.id: logical_router(each, up) for each, up in ends}
            known = (*state[FLOATING_IPS], *state[PORT_FORWARDINGS], *state[SNAT_RULES])
            owners += sorted({(x.address, by[x.router_id]) for x in known if x.network_id == external and x.router_id})
            for each, up in ends:
                asker = "-".join(logical_router(each, up))
                find = ("--bare", "--columns=_uuid", "find", "Datapath_Binding", f"external_ids:name={asker}")
                datapath = (await run(self.database.programs("ovn-sbctl"), database, *find)).strip()
                for address, owner in owners:
                    mac = f'mac="{mac_of(*owner, "out")}"'
                    columns = f"logical_port={asker}-out", f'ip="{address}"', mac, f"datapath={datapath}"
                    await run(self.database.programs("ovn-sbctl"), database, "create", "MAC_Binding", *columns)


@pytest_asyncio.fixture
async def central(tmp_path: Path) -> AsyncGenerator[Central]:
    processes = Processes()
    database = Database(await asyncio.to_thread(cache.programs), tmp_path, processes)
    try:
        await asyncio.gather(database.make("nb"), database.make("sb"))
        processes.start(
            database.programs("ovn-northd"),
            f"--ovnnb-db={database.remote}",
            f"--ovnsb-db=unix:{tmp_path / 'sb.sock'}",
            f"--unixctl={tmp_path / 'northd.ctl'}",
            log=tmp_path / "northd.log",
        )
        yield Central(tmp_path, processes, database)
    finally:
        processes.end()


@pytest.mark.parametrize("seed", range(CLOUDS))
async def test_what_is_said_agrees_with_ovn(central: Central, seed: int) -> None:
    dice = random.Random(seed)
    state = await projected(central, list(a_cloud(dice)))
    await central.know_neighbours(state)
    said: set[Verdict] = set()
    for sender, packet in islice(packets(dice, state), PACKETS):
        trace = from_port(state, sender, packet, lambda _: True)
        traced = await central.traced(sender.network_id, flow(state, sender, packet))
        assert ends(traced) in expected(state, trace), f"{packet}\n{trace}\n{traced}"
        said.add(trace.verdict)
    assert said >= {Verdict.YES, Verdict.NO}, "a cloud in which everything is the same shows nothing"


async def test_what_is_said_of_guests_on_physical_wires_agrees_with_ovn(central: Central) -> None:
    state = await projected(central, a_cloud_on_wires())
    senders = [port for port in state[PORTS] if port.addresses]
    addresses = [each.addresses[0].address for each in senders] + ["192.168.20.66", "172.24.0.66", "192.0.2.80"]
    said: set[Verdict] = set()
    for sender, to, number in product(senders, addresses, (80, 443)):
        source = sender.addresses[0].address
        if source != to and next_hop(state, sender, to) is not None:
            packet = Packet(source=source, destination=to, protocol="tcp", port=number)
            trace = from_port(state, sender, packet, lambda _: True)
            traced = await central.traced(sender.network_id, flow(state, sender, packet))
            assert ends(traced) in expected(state, trace), f"{packet}\n{trace}\n{traced}"
            said.add(trace.verdict)
    assert said == set(Verdict)


async def projected(central: Central, records: list[NetworkRecord]) -> State:
    """A state of these records, and OVN's flows for them."""
    state = State(KINDS, MemoryStore(), FrozenClock())
    state.apply([put(record) for record in records], Origin(actor="system", operation="test"))
    northbound = OvnNorthbound(central.database.remote)
    northbound.load(records, gateways=[HostId("h1")])
    task = asyncio.create_task(northbound.run())
    try:
        await northbound.settled(timeout_s=PATIENCE_S)
    finally:
        task.cancel()
        await asyncio.wait((task,))
    await central.follows()
    return state


def a_cloud_on_wires() -> list[NetworkRecord]:
    """A flat network with an address pool, one without a gateway, and guests on an external network themselves."""
    to_web = {"protocol": "tcp", "port_min": 80, "port_max": 80}
    places = (
        ("desk", "office", "192.168.20.11"),
        ("chair", "office", "192.168.20.12"),
        ("shelf", "cellar", "192.168.20.11"),
        ("edge", "outside", "172.24.0.50"),
        ("mail", "outside", "172.24.0.51"),
    )
    return [
        vpc("office", kind=NetworkKind.FLAT, physical="lan", vlan=20),
        subnet("office-4", of="office", cidr="192.168.20.0/24", gateway="192.168.20.1"),
        vpc("cellar", kind=NetworkKind.FLAT, physical="lan", vlan=30),
        subnet("cellar-4", of="cellar", cidr="192.168.20.0/24", gateway=None),
        vpc("outside", kind=NetworkKind.EXTERNAL, physical="provider"),
        subnet("outside-4", of="outside", cidr="172.24.0.0/24", gateway="172.24.0.1"),
        group("web"),
        rule("web-out", of="web", direction=Direction.EGRESS),
        rule("web-in", of="web", direction=Direction.INGRESS, **to_web),
        *(
            port(name, of=of, mac=f"02:00:00:00:01:{at:02x}", at=[(f"{of}-4", address)], groups=["web"])
            for at, (name, of, address) in enumerate(places)
        ),
        port("shut", of="office", mac="02:00:00:00:01:99", at=[("office-4", "192.168.20.13")]),
    ]


def a_cloud(dice: random.Random) -> Iterator[NetworkRecord]:  # noqa: C901 - one thing after another
    """Two networks and two outside, joined by routers or not; groups with any rules; guests and floating IPs."""
    for at, (name, plan) in enumerate(OUTSIDE.items()):
        yield vpc(name, kind=NetworkKind.EXTERNAL, physical=f"line-{at}", in_service=at == 0 or dice.random() < 0.8)
        yield subnet(f"{name}-4", of=name, cidr=f"{plan}.0/24", gateway=f"{plan}.1", dhcp=False)
        yield subnet(f"{name}-6", of=name, cidr=f"2001:db8:{at}::/64", gateway=f"2001:db8:{at}::1", dhcp=False)
    subnets = {
        f"{network}-{at}": (network, f"10.{number}.{at}.0/24" if at < 2 else f"fd00:{number}::/64")
        for number, network in enumerate(("blue", "green"))
        for at in range(3)
    }
    for network in ("blue", "green"):
        yield vpc(network)
    for name, (network, cidr) in subnets.items():
        by = dice.choice((None, *OUTSIDE)) if ":" in cidr else None
        yield subnet(name, of=network, cidr=cidr, gateway=str(ip_network(cidr)[1]), delegated_by=by)
    free = dice.sample(sorted(subnets), len(subnets))
    joined = free[:3], free[3 : dice.randint(4, 6)]
    for at, (name, inside) in enumerate(zip(("edge", "core"), joined, strict=True)):
        number = 100 + at
        ways_out = [
            (each, f"{plan}.{number}", f"2001:db8:{n}::{number}") for n, (each, plan) in enumerate(OUTSIDE.items())
        ]
        if dice.random() < 0.3:
            ways_out = [each[:2] for each in ways_out]
        several = dice.random() < 0.6
        leads_out = name == "edge" or several or dice.random() < 0.5
        cidrs = [subnets[each][1] for each in inside if several and (len(ways_out[0]) > 2 or "." in subnets[each][1])]
        sources = [(each, dice.choice(tuple(OUTSIDE))) for each in cidrs if dice.random() < 0.3]
        routes = [("198.51.100.0/24", f"{OUTSIDE['second']}.9")] if several and dice.random() < 0.5 else []
        yield router(
            name,
            subnets=inside,
            outside=ways_out[0] if leads_out else None,
            further=ways_out[1:] if several else (),
            snat=dice.random() < 0.7,
            sources=sources,
            routes=routes,
        )
    if dice.random() < 0.5:
        yield peering("peering", "edge", "core")
    names = "web", "db", "all"
    for name in names:
        yield group(name)
    for at in range(24):
        yield rule(f"r{at}", of=dice.choice(names), **a_rule(dice, names))
    yield rule("all-out", of="all", direction=Direction.EGRESS)
    yield rule("all-out-6", of="all", direction=Direction.EGRESS, ip_version=6)
    at_edge: list[tuple[str, str]] = []
    for number, (name, (network, cidr)) in enumerate(subnets.items()):
        for at in range(2):
            address = str(ip_network(cidr)[11 + at])
            mine = [dice.choice(names), "all"] if dice.random() < 0.8 else dice.sample(names, dice.randint(0, 1))
            mac = f"02:00:00:00:0{at}:{number:02x}"
            yield port(f"p-{name}-{at}", of=network, mac=mac, at=[(name, address)], groups=sorted({*mine}))
            if name in joined[0] and "." in address:
                at_edge.append((f"p-{name}-{at}", address))
    for at, (of, address) in enumerate(dice.sample(at_edge, min(2, len(at_edge)))):
        yield floating_ip(f"f{at}", of="outside", address=f"172.24.0.{111 + at}", port=of, fixed=address, by="edge")
    if at_edge:
        of, address = dice.choice(at_edge)
        yield floating_ip("f-second", of="second", address="172.25.0.111", port=of, fixed=address, by="edge")
    yield floating_ip("f-free", of="outside", address="172.24.0.119")
    yield from translations(dice, at_edge)


def translations(dice: random.Random, inside: list[tuple[str, str]]) -> Iterator[NetworkRecord]:
    """A floating IP with rules, for guests behind the router `edge`."""
    # Of two addresses: when one serves rules of both kinds, ovn-trace does not look for its forwarded ports.
    yield floating_ip("f-rules", of="outside", address="172.24.0.118")
    yield floating_ip("f-sender", of="outside", address="172.24.0.117")
    for outside, (of, to) in zip((80, 443), inside, strict=False):
        port_inside = dice.choice((80, 443))
        leads = forwarding(
            f"pf{outside}", at="172.24.0.118", outside=outside, to=to, inside=port_inside, by="edge", port=of
        )
        yield msgspec.structs.replace(leads, floating_ip_id=FloatingIpId("f-rules"))
    for _, source in inside[-1:]:
        yield snat_rule("s0", at="172.24.0.117", source=f"{source}/32", by="edge")


def a_rule(dice: random.Random, names: tuple[str, ...]) -> dict[str, Any]:
    version = dice.choice((4, 4, 6))
    protocol = dice.choice((None, "tcp", "udp", "icmp"))
    first = (
        dice.choice((None, 80, 443)) if protocol in ("tcp", "udp") else dice.choice((None, 8 if version == 4 else 128))
    )
    last = None if first is None else first + dice.choice((0, 400)) if protocol in ("tcp", "udp") else 0
    peer: dict[str, Any] = {"remote_group_id": dice.choice(names)} if dice.random() < 0.4 else {}
    if not peer and dice.random() < 0.5:
        everywhere = ("10.0.0.0/16", "10.1.0.0/24", "172.24.0.0/24", "0.0.0.0/0") if version == 4 else ("fd00::/64",)
        peer = {"remote_cidr": dice.choice(everywhere)}
    return {
        "direction": dice.choice(tuple(Direction)),
        "ip_version": version,
        "protocol": protocol,
        "port_min": first,
        "port_max": last,
        **peer,
    }


def packets(dice: random.Random, state: State) -> Iterator[tuple[Port, Packet]]:
    """From any guest to any other, to gateways, to floating IPs, to the outside and to nobody."""
    ports = [state[PORTS].get(id) for id in sorted(state[PORTS].ids)]
    addresses = [each.address for port in ports for each in port.addresses]
    others = [
        *(f"172.24.0.{last}" for last in (100, 111, 112, 117, 118, 118, 119)),
        "192.0.2.80",
        "198.51.100.80",
        "172.25.0.111",
        "172.25.0.9",
        "2001:db8:1::9",
        "2001:db8:ffff::80",
        "10.7.7.7",
        "10.0.1.1",
    ]
    while True:
        sender = dice.choice(ports)
        source = sender.addresses[0].address
        destination = dice.choice(addresses if dice.random() < 0.7 else others)
        if destination == source or ip_address(destination).version != ip_address(source).version:
            continue
        protocol = dice.choice(("tcp", "udp", "icmp"))
        number = None if protocol == "icmp" else dice.choice((80, 443, 600))
        if next_hop(state, sender, destination) is None:
            continue
        yield sender, Packet(source=source, destination=destination, protocol=protocol, port=number)


def next_hop(state: State, sender: Port, destination: str) -> str | None:
    """The MAC address that a guest sends to, if anybody has one."""
    own = state[SUBNETS].get(sender.addresses[0].subnet_id)
    on_wire = state[NETWORKS].get(sender.network_id).is_physical
    if ip_address(destination) in ip_network(own.cidr):
        for each in state[PORTS].by("subnet", own.id):
            if each.addresses[0].address == destination:
                return each.mac
        if destination != own.gateway:
            return SOMEBODY_ELSE if on_wire else None
    if on_wire:
        return SOMEBODY_ELSE if own.gateway is not None else None
    for each in state[ROUTERS].by("subnet", own.id):
        return mac_of(each.id, own.id)
    return None


def flow(state: State, sender: Port, packet: Packet) -> str:
    """The packet in OVN's language of matches."""
    ip = f"ip{packet.version}"
    parts = [
        f'inport == "{sender.id}"',
        f"eth.src == {sender.mac}",
        f"eth.dst == {next_hop(state, sender, packet.destination)}",
        f"{ip}.src == {packet.source}",
        f"{ip}.dst == {packet.destination}",
        "ip.ttl == 64",
    ]
    if packet.protocol == "icmp":
        parts += [
            f"icmp{packet.version}.type == {8 if packet.version == 4 else 128}",
            f"icmp{packet.version}.code == 0",
        ]
    else:
        parts += [f"{packet.protocol}.dst == {packet.port}", f"{packet.protocol}.src == 40000"]
    return " && ".join(parts)


def ends(traced: str) -> str:
    """Where OVN's trace ends: at a port, at a router that is asked itself, on its way out, or nowhere."""
    if re.search(r"(tcp_reset|icmp4|icmp6) \{|ip.ttl = 255", traced):
        return "router"
    outputs = re.findall(r'output\("([^"]+)"\)|output to "([^"]+)"', traced)
    if outputs:
        return "outside" if (last := "".join(outputs[-1])).startswith("localnet-") else last
    return "outside" if "arp {" in traced or "nd_ns {" in traced else ""


def expected(state: State, trace: Trace) -> set[str]:
    """Where OVN's trace may end for what was said."""
    if trace.port is not None:
        return {trace.port.id}
    last = trace.hops[-1]
    if asked := re.fullmatch(r"from inside ask for (.+), port .+", trace.advice):
        # It gets there, but its answer is not translated back on its way: ovn-trace sees the first packet only.
        return {"outside", ""} | {port.id for port in state[PORTS] if port.addresses[0].address == asked[1]}
    if last.kind == "floating_ip":
        return {"outside", ""}  # nobody answers for it out there, or its router drops it
    if last.says.startswith("has the address"):
        # A router that is asked for anything but a ping refuses, or drops it if it has a way out.
        return {"router"} if trace.verdict is Verdict.YES else {"router", ""}
    return {"outside"} if trace.verdict is Verdict.BEYOND else {""}
