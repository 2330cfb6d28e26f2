"""Port forwarding, SNAT rules and bandwidth limits on real OVN and Open vSwitch, proven by packets."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from functools import partial

import msgspec
import pytest
import pytest_asyncio
from ovn_cloud import SERVER, Cloud, at_work, closed, heard, name_server, running, says, told
from ovn_lab import HOSTS, OUTSIDE, lab, missing, until

from pileus.agent.network.ovn_namespace import within
from pileus.cloud.networks.model import NetworkKind, Port
from pileus.cloud.securitygroups.model import Direction
from pileus.kernel.ids import HostId, NetworkId, PortId
from pileus.link.guests import NicSpec, PortTraffic
from pileus.ovn.view import NetworkRecord
from pileus.testing.contracts.network import Echo
from pileus.testing.networks import floating_ip, forwarding, group, port, router, rule, snat_rule, subnet, vpc

LACKS = missing()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(LACKS is not None, reason=LACKS or ""),
    pytest.mark.asyncio(loop_scope="module"),
]

PLACES = {"a": ("h1", "blue-0", "10.0.0.11"), "b": ("h2", "blue-0", "10.0.0.12"), "c": ("h2", "blue-1", "10.0.1.13")}
GATEWAYS = [HostId(name) for name in HOSTS[:3]]
FLOATING, OF_RULES = "172.24.0.114", "172.24.0.115"


def mac_of(name: str) -> str:
    return f"02:00:00:00:00:{list(PLACES).index(name) + 1:02x}"


def limited(mbit: int | None) -> NetworkRecord:
    return floating_ip("fip-b", of="outside", address=FLOATING, port="b", fixed="10.0.0.12", by="edge", mbit=mbit)


def cloud() -> list[NetworkRecord]:
    return [
        vpc("outside", kind=NetworkKind.EXTERNAL, physical="provider"),
        subnet("outside-0", of="outside", cidr="172.24.0.0/24", gateway=OUTSIDE, dhcp=False),
        vpc("blue"),
        subnet("blue-0", of="blue", cidr="10.0.0.0/24", gateway="10.0.0.1"),
        subnet("blue-1", of="blue", cidr="10.0.1.0/24", gateway="10.0.1.1"),
        router("edge", subnets=["blue-0", "blue-1"], outside=("outside", "172.24.0.100")),
        group("open"),
        rule("open-out", of="open", direction=Direction.EGRESS),
        rule("open-in", of="open", direction=Direction.INGRESS),
        *(
            port(name, of="blue", mac=mac_of(name), at=[(of, address)], groups=["open"], host=host)
            for name, (host, of, address) in PLACES.items()
        ),
        limited(None),
        floating_ip("fip-rules", of="outside", address=OF_RULES),
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Cloud]:
    async with lab(tmp_path_factory.mktemp("nat")) as running_lab, running(running_lab.database.remote) as northbound:
        northbound.load(cloud(), gateways=GATEWAYS)
        for name in ("h1", "h2"):
            await running_lab.hosts[name].network.serve({NetworkId("blue"): 1442}, Echo())
        for name, (host, _, address) in PLACES.items():
            nic = NicSpec(
                port=PortId(name), network=NetworkId("blue"), mac=mac_of(name), addresses=(address,), mtu=1442
            )
            await running_lab.add(host, nic)
        await at_work(northbound, *PLACES)
        await asyncio.gather(*(guest.ask_for_address() for guest in running_lab.guests.values()))
        servers = [await name_server(guest.path, name) for name, guest in running_lab.guests.items()]
        servers.append(await name_server(running_lab.path("internet"), "internet"))
        made = Cloud(running_lab, northbound)
        await told(running_lab.path("internet"), FLOATING)
        yield made
        for server in servers:
            server.close()


async def test_ports_of_one_address_lead_to_different_guests(made: Cloud) -> None:
    internet = made.lab.path("internet")
    to_a = forwarding("pf-a", at=OF_RULES, outside=8001, to="10.0.0.11", inside=SERVER, by="edge")
    to_c = forwarding("pf-c", at=OF_RULES, outside=8002, to="10.0.1.13", inside=SERVER, by="edge")
    await made.change(to_a, to_c)
    assert await told(internet, OF_RULES, port=8001) == f"a sees {OUTSIDE}"
    assert await told(internet, OF_RULES, port=8002) == f"c sees {OUTSIDE}"
    assert await heard(internet, OF_RULES, port=8003) is None, "what is not forwarded is not answered"
    await made.change(gone=(to_a,))
    await closed(internet, OF_RULES, port=8001)
    assert await told(internet, OF_RULES, port=8002) == f"c sees {OUTSIDE}"
    await made.change(gone=(to_c,))


async def test_a_subnet_goes_out_under_an_address_of_its_own_and_one_guest_under_another(made: Cloud) -> None:
    whole = snat_rule("snat-c", at=OF_RULES, source="10.0.1.0/24", by="edge")
    one = snat_rule("snat-a", at=OF_RULES, source="10.0.0.11/32", by="edge")
    await made.change(whole, one)
    for name, seen in (("a", OF_RULES), ("c", OF_RULES), ("b", FLOATING)):
        guest = made.guest(name)
        await says(guest.path, OUTSIDE, f"internet sees {seen}")
    to_c = forwarding("pf-c", at=OF_RULES, outside=8002, to="10.0.1.13", inside=SERVER, by="edge")
    await made.change(to_c)
    internet = made.lab.path("internet")
    await says(internet, OF_RULES, f"c sees {OUTSIDE}", port=8002)  # the same address leads a port in
    await made.change(gone=(whole, one, to_c))
    for name in ("a", "c"):
        await says(made.guest(name).path, OUTSIDE, "internet sees 172.24.0.100")


async def test_a_floating_ip_passes_no_more_than_it_may_in_either_direction(made: Cloud) -> None:
    inside, internet = made.guest("b").path, made.lab.path("internet")
    for source, sink, address in ((internet, inside, FLOATING), (inside, internet, OUTSIDE)):
        await made.change(limited(2))
        await until(partial(is_held, source, sink, address), "it passes no more")
        await made.change(limited(None))
        await until(partial(is_free, source, sink, address), "it passes what comes")


async def test_a_port_passes_no_more_than_it_may_in_either_direction(made: Cloud) -> None:
    guest, other = made.guest("a").path, made.guest("b").path
    free = next(each for each in cloud() if isinstance(each, Port) and each.id == "a")
    for source, sink, address in ((guest, other, "10.0.0.12"), (other, guest, "10.0.0.11")):
        await made.change(msgspec.structs.replace(free, bandwidth_mbit=2))
        await until(partial(is_held, source, sink, address), "it passes no more")
        await made.change(free)
        await until(partial(is_free, source, sink, address), "it passes what comes")


async def test_what_a_guest_sends_and_receives_is_counted(made: Cloud) -> None:
    async def passed() -> PortTraffic:
        return await made.lab.hosts["h2"].network.traffic(PortId("b"))

    before = await passed()
    await seconds_for(made.guest("b").path, made.lab.path("internet"), OUTSIDE)
    after = await passed()
    assert _BYTES < after.sent_bytes - before.sent_bytes < 3 * _BYTES, "with what was sent again"
    assert after.received_packets > before.received_packets, "its answers"


_BYTES = 1_000_000
_AT_LEAST_S = 3.0
"""For so many bytes at 2 Mbit/s, of which the burst may come at once."""
_SINK = 9009


async def is_held(source: str, sink: str, address: str) -> bool:
    return await seconds_for(source, sink, address) > _AT_LEAST_S


async def is_free(source: str, sink: str, address: str) -> bool:
    return await seconds_for(source, sink, address) < _AT_LEAST_S


async def seconds_for(source: str, sink: str, address: str) -> float:
    """How long it takes to bring so many bytes by TCP from one namespace to a listener in another."""

    def listening() -> socket.socket:
        server = socket.create_server(("", _SINK))
        server.setblocking(False)
        return server

    def made() -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        return client

    loop = asyncio.get_running_loop()
    with await within(sink, listening) as server, await within(source, made) as client:
        async with asyncio.timeout(60):
            accepting = asyncio.create_task(loop.sock_accept(server))
            await loop.sock_connect(client, (address, _SINK))
            accepted, _ = await accepting
            began = time.monotonic()
            sending = asyncio.create_task(loop.sock_sendall(client, bytes(_BYTES)))
            with accepted:
                received = 0
                while received < _BYTES:
                    received += len(await loop.sock_recv(accepted, 1 << 16))
            await sending
            return time.monotonic() - began
