"""The network on real OVN and Open vSwitch: what guests see of it, proven by packets."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path

import cache
import msgspec
import pytest
import pytest_asyncio
import structlog
from ovn_cloud import (
    SERVER,
    Cloud,
    at_work,
    attempt,
    closed,
    heard,
    name_server,
    pings,
    reached,
    running,
    says,
    told,
    unreached,
)
from ovn_lab import (
    HOSTS,
    LINES,
    OUTSIDE,
    AgentRequest,
    Database,
    DistantNetwork,
    Processes,
    lab,
    missing,
    until,
)
from structlog.testing import LogCapture

from pileus.agent.network.ovn import namespace_of, tap_of
from pileus.agent.network.ovn_namespace import within
from pileus.cloud.networks.model import NetworkKind, Port
from pileus.cloud.securitygroups.model import Direction
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import HostId, InstanceId, NetworkId, PortId
from pileus.kernel.programs import run
from pileus.link.guests import NicSpec
from pileus.ovn.northbound import OvnNorthbound
from pileus.ovn.ovsdb import Json, Ovsdb
from pileus.ovn.projection import project_everything
from pileus.ovn.rows import Fact, Key, Row, facts_read, selections
from pileus.ovn.view import NetworkRecord, View
from pileus.state.state import put, remove
from pileus.testing.contracts.network import Ask, Echo, HostNetworkContract
from pileus.testing.contracts.northbound import PATIENCE_S, Found, NorthboundContract
from pileus.testing.networks import (
    default_group,
    floating_ip,
    group,
    port,
    router,
    rule,
    small_cloud,
    subnet,
    vpc,
)

LACKS = missing()
pytestmark = [pytest.mark.lab, pytest.mark.skipif(LACKS is not None, reason=LACKS or "")]


async def read(remote: str) -> dict[Key, Fact]:
    connection = await Ovsdb.connect(remote, "OVN_Northbound")
    try:
        return facts_read(await connection.transact(selections()))
    finally:
        await connection.close()


class TestOvnNorthbound(NorthboundContract):
    """The writer against a real ovsdb-server, with no OVN behind it."""

    @pytest.fixture
    async def database(self, tmp_path: Path) -> AsyncGenerator[Database]:
        processes = Processes()
        database = Database(await asyncio.to_thread(cache.programs), tmp_path, processes)
        try:
            await database.make()
            yield database
        finally:
            processes.end()

    @pytest.fixture
    async def northbound(self, database: Database) -> AsyncGenerator[OvnNorthbound]:
        async with running(database.remote) as northbound:
            yield northbound

    @pytest.fixture
    def log(self) -> Generator[LogCapture]:
        """What is logged, of structlog's own making."""
        capture = LogCapture()
        before = structlog.get_config()["processors"]
        structlog.configure(processors=[capture])
        yield capture
        structlog.configure(processors=before)

    @pytest.fixture
    def found(self, database: Database) -> Found:
        return partial(read, database.remote)

    async def test_what_others_change_is_put_right(self, northbound: OvnNorthbound, database: Database) -> None:
        northbound.load(small_cloud())
        await northbound.settled(timeout_s=PATIENCE_S)
        wanted = await read(database.remote)
        other = await Ovsdb.connect(database.remote, "OVN_Northbound")
        nothing: list[Json] = []
        meddlings: tuple[dict[str, Json], ...] = (
            {"op": "delete", "table": "Logical_Switch", "where": nothing},
            {"op": "insert", "table": "Logical_Switch", "row": {"name": "stranger"}},
            {"op": "update", "table": "ACL", "where": nothing, "row": {"action": "allow"}},
            {
                "op": "mutate",
                "table": "DNS",
                "where": nothing,
                "mutations": [["records", "insert", ["map", [["x", "1"]]]]],
            },
            {"op": "update", "table": "Port_Group", "where": nothing, "row": {"ports": ["set", nothing]}},
        )
        for meddling in meddlings:
            await other.transact([meddling])
            assert await read(database.remote) != wanted
            await until(lambda: _is(database, wanted), f"restored after {meddling}")
        await other.close()

    async def test_a_database_that_was_away_and_came_back_empty_is_filled(
        self, northbound: OvnNorthbound, database: Database
    ) -> None:
        northbound.load(small_cloud())
        await northbound.settled(timeout_s=PATIENCE_S)
        wanted = await read(database.remote)
        assert database.process is not None
        database.process.kill()
        database.process.wait()
        northbound.compare()
        with pytest.raises(Unavailable):
            await northbound.settled(timeout_s=0.3)
        (database.folder / "nb.db").unlink()
        await database.make()
        await northbound.settled(timeout_s=PATIENCE_S)
        assert await read(database.remote) == wanted

    async def test_changes_while_everything_is_compared_are_neither_lost_nor_made_twice(
        self, northbound: OvnNorthbound, database: Database, log: LogCapture
    ) -> None:
        kept = {at: numbered(at) for at in range(600)}
        northbound.load([*small_cloud(), *kept.values()])
        await northbound.settled(timeout_s=PATIENCE_S)
        other = await Ovsdb.connect(database.remote, "OVN_Northbound")
        for at in range(400):
            if at % 3:
                gone = kept.pop(at)
                northbound.changed([remove(gone)])
            else:
                kept[at] = msgspec.structs.replace(kept[at], hostname=f"renamed-{at}")
                kept[at + 1000] = numbered(at + 1000)
                northbound.changed([put(kept[at]), put(kept[at + 1000])])
            if at % 20 == 0:
                northbound.compare()
            if at % 100 == 50:
                await other.transact([{"op": "delete", "table": "Logical_Switch", "where": [["name", "==", "green"]]}])
            await asyncio.sleep(0)
            await asyncio.sleep(0.001 * (at % 7))
        await other.close()
        wanted = project_everything(View([*small_cloud(), *kept.values()]))
        await until(lambda: _is(database, wanted), "everything is there")
        assert [each for each in log.entries if each["log_level"] == "error"] == []

    async def test_a_record_that_is_refused_harms_only_itself(
        self, northbound: OvnNorthbound, database: Database
    ) -> None:
        good = [vpc("good"), vpc("fine"), group("web")]
        bad = rule("too long a name " * 8, of="web", direction=Direction.INGRESS)
        northbound.load([*good, bad])
        await northbound.settled(timeout_s=PATIENCE_S)
        assert await read(database.remote) == project_everything(View(good))
        northbound.changed([put(vpc("later"))])
        await northbound.settled(timeout_s=PATIENCE_S)
        assert await read(database.remote) == project_everything(View([*good, vpc("later")]))


def numbered(at: int) -> Port:
    address = f"10.7.{at >> 8}.{at & 255}"
    mac = f"02:00:00:07:{at >> 8:02x}:{at & 255:02x}"
    return port(f"n-{at}", of="green", mac=mac, at=[("green-0", address)], groups=["web"], hostname=f"n-{at}")


async def _is(database: Database, wanted: dict[Key, Fact]) -> bool:
    return await read(database.remote) == wanted


# The cloud that the tests below share: two VPCs with the same addresses, each with a router to the outside.
A, B, C, W, OTHER = (PortId(name) for name in ("a", "b", "c", "w", "other"))
PLACES = {
    A: ("h1", "blue", "blue-0", "10.0.0.11", ["default"]),
    B: ("h2", "blue", "blue-0", "10.0.0.12", ["default"]),
    C: ("h3", "blue", "blue-1", "10.0.1.13", ["default"]),
    W: ("h2", "blue", "blue-0", "10.0.0.14", ["web"]),
    OTHER: ("h1", "green", "green-0", "10.0.0.11", ["others"]),
}
GATEWAYS = [HostId(name) for name in HOSTS[:3]]
SERVED = {NetworkId(name): 1442 for name in ("blue", "green")}
SPARE = HOSTS[3]
"""The host that has none of them; networks and ports for the contract of network drivers are there."""


def mac_of(name: str) -> str:
    return f"02:00:00:00:00:{list(PLACES).index(PortId(name)) + 1:02x}"


def ports() -> list[Port]:
    return [
        port(name, of=of, mac=mac_of(name), at=[(within, address)], groups=groups, host=host, hostname=f"vm-{name}")
        for name, (host, of, within, address, groups) in PLACES.items()
    ]


def spare_nics() -> list[NicSpec]:
    return [
        NicSpec(
            port=PortId(f"spare-{at}"),
            network=NetworkId("spare"),
            mac=f"02:00:00:00:01:{at:02x}",
            addresses=(f"10.0.0.{20 + at}",),
            mtu=1442,
        )
        for at in range(3)
    ]


def cloud() -> list[NetworkRecord]:
    web = {"protocol": "tcp", "port_min": SERVER, "port_max": SERVER}
    return [
        vpc("outside", kind=NetworkKind.EXTERNAL, physical="provider"),
        subnet("outside-0", of="outside", cidr="172.24.0.0/24", gateway=OUTSIDE, dhcp=False),
        vpc("blue"),
        subnet("blue-0", of="blue", cidr="10.0.0.0/24", gateway="10.0.0.1"),
        subnet("blue-1", of="blue", cidr="10.0.1.0/24", gateway="10.0.1.1"),
        vpc("green"),
        subnet("green-0", of="green", cidr="10.0.0.0/24", gateway="10.0.0.1"),
        router("blue-edge", subnets=["blue-0", "blue-1"], outside=("outside", "172.24.0.100")),
        router("green-edge", subnets=["green-0"], outside=("outside", "172.24.0.101")),
        *default_group("default"),
        *default_group("others"),
        group("web"),
        rule("web-open", of="web", direction=Direction.INGRESS, **web),
        *ports(),
        vpc("spare"),
        subnet("spare-0", of="spare", cidr="10.0.0.0/24", gateway=None),
        *(
            port(nic.port, of="spare", mac=nic.mac, at=[("spare-0", nic.addresses[0])], host=SPARE)
            for nic in spare_nics()
        ),
        floating_ip("fip-w", of="outside", address="172.24.0.114", port="w", fixed="10.0.0.14", by="blue-edge"),
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Cloud]:
    async with lab(tmp_path_factory.mktemp("ovn")) as running_lab, running(running_lab.database.remote) as northbound:
        northbound.load(cloud(), gateways=GATEWAYS)
        for name in GATEWAYS:
            await running_lab.hosts[name].network.serve(SERVED, Echo())
        await asyncio.gather(
            *(
                running_lab.add(
                    host,
                    NicSpec(port=name, network=NetworkId(of), mac=mac_of(name), addresses=(address,), mtu=1442),
                )
                for name, (host, of, _, address, _) in PLACES.items()
            )
        )
        await at_work(northbound, *PLACES)
        await asyncio.gather(*(guest.ask_for_address() for guest in running_lab.guests.values()))
        servers = [await name_server(guest.path, name) for name, guest in running_lab.guests.items()]
        servers.append(await name_server(running_lab.path("internet"), "internet"))
        yield Cloud(running_lab, northbound)
        for server in servers:
            server.close()


class Ping:
    """Sends an echo request every 10 ms and counts what comes back."""

    def __init__(self, namespace: str, address: str) -> None:
        self._namespace, self._address = namespace, address
        self._id = id(self) >> 4 & 0xFFFF  # of its own, as ping has: routers tell echoes apart by it
        self.sent = 0
        self.lost: list[int] = []

    @asynccontextmanager
    async def going_on(self) -> AsyncGenerator["Ping"]:
        def made() -> socket.socket:
            echo = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            echo.connect((self._address, 0))
            echo.setblocking(False)
            return echo

        loop = asyncio.get_running_loop()
        back: set[int] = set()
        with await within(self._namespace, made) as echo:

            async def receive() -> None:
                while True:
                    packet = await loop.sock_recv(echo, 200)
                    kind, _, _, _, number = struct.unpack("!BBHHH", packet[20:28])
                    if kind == 0:
                        back.add(number)

            async def send() -> None:
                while True:
                    self.sent += 1
                    head = struct.pack("!BBHHH", 8, 0, 0, self._id, self.sent)
                    await loop.sock_sendall(echo, head[:2] + _checksum(head) + head[4:])
                    await asyncio.sleep(0.01)

            receiving, sending = asyncio.create_task(receive()), asyncio.create_task(send())
            try:
                yield self
                sending.cancel()
                await _quiet(back, self.sent)
            finally:
                receiving.cancel()
                sending.cancel()
                await asyncio.wait((receiving, sending))
        self.lost = sorted(set(range(1, self.sent + 1)) - back)

    def __str__(self) -> str:
        return f"{len(self.lost)} of {self.sent} echo requests lost, one each 10 ms"


async def _quiet(back: set[int], sent: int) -> None:
    """Wait until everything is back, or nothing has come back for a second."""
    come = -1
    while come != len(back) < sent:
        come = len(back)
        await asyncio.sleep(1)


def _checksum(head: bytes) -> bytes:
    total = sum(struct.unpack("!4H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


@pytest.mark.asyncio(loop_scope="module")
class TestOvnHostNetwork(HostNetworkContract):
    """The agent's driver on a host of its own, with guests that ask."""

    wires = tuple(sorted(LINES))

    @pytest_asyncio.fixture(loop_scope="module")
    async def network(self, made: Cloud) -> AsyncGenerator[DistantNetwork]:
        network = made.lab.hosts[SPARE].network
        yield network
        for each in await network.list():
            await network.unplug(each)
        await network.serve({}, Echo())

    @pytest.fixture
    def another(self, network: DistantNetwork) -> Callable[[], Awaitable[DistantNetwork]]:
        async def make() -> DistantNetwork:
            return network  # which was restarted when it was closed

        return make

    @pytest.fixture
    def nics(self) -> list[NicSpec]:
        return spare_nics()

    @pytest.fixture
    def nic(self, nics: list[NicSpec]) -> NicSpec:
        return nics[0]

    @pytest.fixture
    def ask(self, made: Cloud) -> Ask:
        async def get(nic: NicSpec, path: str) -> tuple[int, bytes]:
            guest = await made.lab.add(SPARE, nic)
            try:
                await at_work(made.northbound, nic.port)
                await guest.ask_for_address()
                body = await guest.run("busybox", "wget", "-q", "-O", "-", f"http://169.254.169.254{path}", timeout_s=5)
            finally:
                await guest.remove()
            return HTTPStatus.OK, body.encode()  # wget fails on any other

        return get

    async def test_a_purge_leaves_no_device_and_no_namespace(
        self, made: Cloud, network: DistantNetwork, nic: NicSpec
    ) -> None:
        host = made.lab.hosts[SPARE]
        plug = await network.plug(InstanceId("lab"), nic)
        await network.serve({nic.network: nic.mtu}, Echo())
        assert plug.device in await host.run("ip", "link")
        await host.ask(AgentRequest(purge=True))
        assert plug.device not in await host.run("ip", "link")
        await network.close()


lasting = pytest.mark.asyncio(loop_scope="module")


@lasting
async def test_dhcp_tells_address_routes_mtu_and_names(made: Cloud) -> None:
    lease = made.guest("a").lease
    assert lease["ip"] == "10.0.0.11"
    assert lease["mask"] == "24"
    assert lease["mtu"] == "1442"
    assert lease["domain"] == "internal"
    assert lease["dns"] == "169.254.169.254"
    assert lease["staticroutes"] == "169.254.169.254/32 0.0.0.0 0.0.0.0/0 10.0.0.1"


@lasting
async def test_guests_of_one_group_reach_each_other_across_hosts_and_subnets(made: Cloud) -> None:
    assert await told(made.guest("a").path, "10.0.0.12") == "b sees 10.0.0.11"
    assert await told(made.guest("c").path, "10.0.0.11") == "a sees 10.0.1.13"
    await reached(made.guest("b"), "10.0.1.13")


@lasting
async def test_full_sized_packets_pass_the_tunnel(made: Cloud) -> None:
    await reached(made.guest("a"), "10.0.0.12", size=1442 - 28)


@lasting
async def test_a_group_lets_in_what_is_opened_and_nothing_else(made: Cloud) -> None:
    a, w = made.guest("a"), made.guest("w")
    assert await told(a.path, "10.0.0.14") == "w sees 10.0.0.11"
    assert not await pings(a, "10.0.0.14"), "nothing opens ICMP"
    assert await heard(w.path, "10.0.0.11") is None, "the group web has no rule outwards"
    ping = rule("web-ping", of="web", direction=Direction.INGRESS, protocol="icmp", remote_group_id="default")
    await made.change(ping)
    await reached(a, "10.0.0.14")
    await made.change(gone=(ping,))
    await unreached(a, "10.0.0.14")


@lasting
async def test_networks_with_the_same_addresses_do_not_see_each_other(made: Cloud) -> None:
    other = made.guest("other")
    assert await told(other.path, "10.0.0.11") == "other sees 10.0.0.11", "its own address is its own"
    assert await heard(other.path, "10.0.0.12") is None
    assert not await pings(other, "10.0.1.13")


@lasting
async def test_guests_go_out_with_their_routers_address(made: Cloud) -> None:
    for name, seen in (("a", "172.24.0.100"), ("c", "172.24.0.100"), ("other", "172.24.0.101")):
        guest = made.guest(name)
        assert await told(guest.path, OUTSIDE) == f"internet sees {seen}"


@lasting
async def test_a_floating_ip_leads_to_its_port_and_away_with_it(made: Cloud) -> None:
    internet = made.lab.path("internet")
    assert await told(internet, "172.24.0.114") == f"w sees {OUTSIDE}"
    out = rule("web-out", of="web", direction=Direction.EGRESS)
    await made.change(out)
    await says(made.guest("w").path, OUTSIDE, "internet sees 172.24.0.114")
    await made.change(gone=(out,))
    floating = cloud()[-1]
    await made.change(gone=(floating,))
    await closed(internet, "172.24.0.114")
    await made.change(floating)
    assert await told(internet, "172.24.0.114") == f"w sees {OUTSIDE}"


@lasting
async def test_who_sends_too_much_from_outside_is_told_so(made: Cloud) -> None:
    internet = made.lab.path("internet")
    await told(internet, "172.24.0.114")
    wrapped = ("nsenter", f"--net={internet}", "python3", "-c", _SENDS_TOO_MUCH, "172.24.0.114", str(SERVER))
    await until(lambda: _says(wrapped, "1442"), "the path's MTU is known outside")


_SENDS_TOO_MUCH = """
import socket, sys, time
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    sender.connect((sys.argv[1], int(sys.argv[2])))
    for _ in range(20):
        try:
            sender.send(bytes(1460))
        except OSError:
            break
        time.sleep(0.05)
    print(sender.getsockopt(socket.IPPROTO_IP, IP_MTU))
"""


async def _says(command: tuple[str, ...], what: str) -> bool:
    return (await run(*command)).strip() == what


@lasting
async def test_a_guest_speaks_with_its_own_addresses_only(made: Cloud) -> None:
    a = made.guest("a")
    await reached(a, "10.0.0.12")
    await a.run("ip", "address", "add", "10.0.0.99/24", "dev", "eth0")
    try:
        said = await attempt(a.run("busybox", "ping", "-c1", "-W1", "-I", "10.0.0.99", "10.0.0.12"))
        assert said is None, "another address"
    finally:
        await a.run("ip", "address", "del", "10.0.0.99/24", "dev", "eth0")
    await a.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:77")
    try:
        assert not await pings(a, "10.0.0.12"), "another MAC address"
    finally:
        await a.run("ip", "link", "set", "eth0", "address", mac_of("a"))
    await reached(a, "10.0.0.12")


@lasting
async def test_metadata_isanswered_for_the_guest_that_asks(made: Cloud) -> None:
    for name, (_, network, _, address, _) in PLACES.items():
        said = await made.guest(name).run(
            "busybox", "wget", "-q", "-O", "-", "http://169.254.169.254/latest/meta-data/"
        )
        assert said == f"GET /latest/meta-data/ {network} {address}"


@lasting
async def test_names_areanswered_by_ovn_and_others_by_the_hosts_resolver(made: Cloud) -> None:
    async def asked(name: str) -> set[str]:
        said = await made.guest("a").run("busybox", "nslookup", "-type=a", name, "169.254.169.254")
        return set(re.findall(r"^Address: ([\d.]+)$", said, re.MULTILINE))

    assert await asked("vm-c.internal") == {"10.0.1.13"}
    assert await asked("vm-other.internal") == set(), "names of another network are not known, and not asked elsewhere"
    assert await asked("elsewhere.example") == {"192.0.2.80"}


@lasting
async def test_the_hosts_own_stack_is_not_reached(made: Cloud) -> None:
    a = made.guest("a")
    host = made.lab.hosts["h1"]
    device = tap_of(PortId("a"))
    await host.run("ip", "address", "add", "10.0.0.200/24", "dev", device)
    try:
        await a.run("ip", "neigh", "flush", "dev", "eth0")
        assert not await pings(a, "10.0.0.200")
        assert not await pings(a, host.tunnel)
    finally:
        await host.run("ip", "address", "del", "10.0.0.200/24", "dev", device)
    assert "inet6" not in await host.run("ip", "address", "show", "dev", device)


@lasting
async def test_an_emptied_database_is_filled_and_traffic_goes_on(
    made: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = await read(made.lab.database.remote)
    loop = asyncio.get_running_loop()
    other = await Ovsdb.connect(made.lab.database.remote, "OVN_Northbound")
    tables = {fact.table for fact in wanted.values() if isinstance(fact, Row)}
    across, out = Ping(made.guest("a").path, "10.0.0.12"), Ping(made.guest("c").path, OUTSIDE)
    async with across.going_on(), out.going_on():
        await until(lambda: across.sent > 20, "packets flow")
        began = loop.time()
        await other.transact([{"op": "delete", "table": table, "where": []} for table in tables])
        await until(lambda: _is(made.lab.database, wanted), "everything is back")
        back_s = loop.time() - began
        await at_work(made.northbound)
        sent = across.sent
        await until(lambda: across.sent > sent + 50, "packets flow again")
    await other.close()
    with capsys.disabled():
        print(f"\nnorthbound emptied: back after {back_s * 1000:.0f} ms; across hosts {across}; to the outside {out}")
    assert await told(made.guest("a").path, "10.0.0.12") == "b sees 10.0.0.11"


@lasting
async def test_an_agent_that_is_killed_and_comes_back_finds_everything(made: Cloud) -> None:
    host, guest = made.lab.hosts["h1"], made.guest("a")
    ping = Ping(guest.path, "10.0.0.12")
    async with ping.going_on():
        await host.kill_agent()
        await host.start_agent()
        found = await host.network.list()
        assert set(found) == {"a", "other"}
        again = await host.network.plug(InstanceId("lab"), guest.nic)
        assert again == found[A]
        assert not again.offload, "the userspace datapath passes packets on as they are"
        await host.network.serve(SERVED, Echo())
    assert ping.lost == []
    said = await guest.run("busybox", "wget", "-q", "-O", "-", "http://169.254.169.254/x")
    assert said == "GET /x blue 10.0.0.11"


@lasting
async def test_a_device_that_was_lost_is_made_again(made: Cloud) -> None:
    host, device = made.lab.hosts["h1"], tap_of(PortId("lost"))
    nic = NicSpec(port=PortId("lost"), network=NetworkId("blue"), mac="02:00:00:00:00:bb", addresses=(), mtu=1442)
    first = await host.network.plug(InstanceId("lab"), nic)
    await host.run("ip", "link", "delete", "dev", device)  # as a restart of the machine does
    assert await host.network.plug(InstanceId("lab"), nic) == first
    guard = await host.run("nft", "list", "chain", "netdev", "pileus", device)
    assert f'hook ingress device "{device}"' in guard
    number = await host.vsctl("get", "Interface", device, "ofport")
    assert int(number) > 0
    await host.network.unplug(nic.port)


@lasting
async def test_an_unplugged_port_and_a_network_no_longer_served_leave_nothing(made: Cloud) -> None:
    host = made.lab.hosts["h3"]
    extra = NicSpec(port=PortId("extra"), network=NetworkId("blue"), mac="02:00:00:00:00:aa", addresses=(), mtu=1442)
    await host.network.plug(InstanceId("lab"), extra)
    await host.network.unplug(extra.port)
    assert set(await host.network.list()) == {"c"}
    await host.network.serve({NetworkId("blue"): 1442}, Echo())
    kept, gone = (namespace_of(NetworkId(each)).removeprefix("pileus-md-") for each in ("blue", "green"))
    links, guards = await host.run("ip", "-brief", "link"), await host.run("nft", "list", "ruleset")
    ports = await host.vsctl("list-ports", "br-int")
    for said in (links, guards, ports):
        assert f"pm{kept}" in said
        assert f"pm{gone}" not in said
        assert tap_of(PortId("extra")) not in said
    await host.network.serve(SERVED, Echo())
