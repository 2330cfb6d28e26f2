"""A whole host on the real engines, in a network namespace of its own."""

import asyncio
import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Generator, Iterator
from ipaddress import IPv4Interface
from pathlib import Path

import cache
import pytest
from patience import WITHIN_S

from pileus.kernel.errors import Conflict, PileusError
from pileus.kernel.ids import new_id
from pileus.kernel.programs import run
from pileus.machine import cgroups, daemons, packages
from pileus.machine.daemons import DaemonStatus
from pileus.machine.engines import EngineAddresses, Engines, EngineSettings
from pileus.machine.external import guard, unguard
from pileus.machine.openvswitch import Datapath
from pileus.machine.processes import identify, processes_below, read_pidfile
from pileus.machine.tunnel import Tunnel

pytestmark = pytest.mark.lab

GUEST = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<serial type='pty'><log file='{log}' append='on'/></serial></devices></domain>
"""

DAEMONS = ("virtlogd", "libvirtd", "ovs-db", "ovn-nb", "ovn-sb", "ovn-northd", "ovs-vswitchd", "ovn-controller")


def lacking() -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    missing = [each.name for each in asyncio.run(packages.missing())]
    return f"needs the Debian packages {', '.join(missing)}" if missing else None


@contextlib.contextmanager
def network_namespace() -> Generator[str]:
    """A network namespace, which this process is in for as long as the context lasts."""
    name = fresh_name()
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open("rb") as home:
        subprocess.run(["ip", "netns", "add", name], check=True)
        try:
            with Path(f"/run/netns/{name}").open("rb") as there:
                assert libc.setns(there.fileno(), 0) == 0
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield name
        finally:
            assert libc.setns(home.fileno(), 0) == 0
            subprocess.run(["ip", "netns", "delete", name], check=True)


@contextlib.contextmanager
def host(settings: EngineSettings | None = None) -> Generator[Engines]:
    """The engines of a host in the present network namespace, purged afterwards."""
    data = Path(tempfile.mkdtemp(prefix="pl"))
    data.chmod(0o711)
    (data / "cache").mkdir()
    (data / "cache/ovn").symlink_to(cache.FOLDER / "ovn")
    engines = Engines(data, say=lambda _: None, settings=settings or EngineSettings())
    try:
        yield engines
    finally:
        asyncio.run(engines.purge())
        left = asyncio.run(engines.leftovers())
        shutil.rmtree(data)
    assert left == []


def fresh_name() -> str:
    return f"pl-{new_id()[-8:]}"


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    reason = lacking()
    if reason is not None:
        pytest.skip(reason)
    cache.programs()
    with network_namespace(), host() as engines:
        asyncio.run(engines.up())
        yield engines


@pytest.fixture
async def at(engines: Engines) -> EngineAddresses:
    return await engines.up()


async def nbctl(at: EngineAddresses, *arguments: str) -> str:
    return await run(at.programs("ovn-nbctl"), f"--db={at.northbound}", "--timeout=60", *arguments, timeout_s=WITHIN_S)


async def vsctl(at: EngineAddresses, *arguments: str) -> str:
    return await run(at.programs("ovs-vsctl"), f"--db={at.switch}", "--timeout=60", *arguments, timeout_s=WITHIN_S)


async def virsh(at: EngineAddresses, *arguments: str) -> str:
    return await run("virsh", "-c", at.libvirt_uri, *arguments, timeout_s=WITHIN_S)


async def status_of(engines: Engines, name: str) -> DaemonStatus:
    return next(each for each in await engines.status() if each.name == name)


async def kill(engines: Engines, name: str) -> int:
    pid = (await status_of(engines, name)).pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    return pid


async def until(holds: Callable[[], Awaitable[bool]]) -> bool:
    """Whether a condition comes true."""
    return await daemons.until(holds, within_s=WITHIN_S)


async def all_works(at: EngineAddresses) -> bool:
    """Whether a change in the northbound database reaches the switch, and libvirt answers."""
    try:
        await nbctl(at, "--wait=hv", "sync")
        await virsh(at, "list")
    except PileusError:
        return False
    return True


async def start_guest(at: EngineAddresses, engines: Engines, name: str) -> int:
    definition = engines.layout.data / f"{name}.xml"
    definition.write_text(GUEST.format(name=name, log=engines.layout.log / f"{name}.console"))
    await virsh(at, "create", str(definition))
    return int((engines.layout.run / "libvirt/qemu" / f"{name}.pid").read_text())


async def test_every_engine_answers_and_the_chassis_is_registered(at: EngineAddresses) -> None:
    assert "QEMU" in await virsh(at, "version")
    assert await until(lambda: all_works(at))
    assert at.chassis in await run(at.programs("ovn-sbctl"), f"--db={at.southbound}", "show", timeout_s=WITHIN_S)


async def test_a_second_up_changes_nothing(engines: Engines, at: EngineAddresses) -> None:
    before = await engines.status()
    assert await engines.up() == at == engines.addresses()
    assert await engines.status() == before


@pytest.mark.parametrize("name", DAEMONS)
async def test_a_daemon_that_is_killed_comes_back_and_works(engines: Engines, at: EngineAddresses, name: str) -> None:
    killed = await kill(engines, name)

    async def back() -> bool:
        return (await status_of(engines, name)).pid not in {None, killed} and await all_works(at)

    assert await until(back)


async def test_the_supervisor_may_be_killed_without_harm(engines: Engines, at: EngineAddresses) -> None:
    before = [each.pid for each in await engines.status()]
    supervisor = read_pidfile(engines.layout.run / "supervisor.pid")
    assert supervisor
    os.kill(supervisor.pid, signal.SIGKILL)
    assert await engines.up() == at
    assert [each.pid for each in await engines.status()] == before


async def test_a_guest_outlives_libvirtd_and_is_found_again(engines: Engines, at: EngineAddresses) -> None:
    pid = await start_guest(at, engines, "outlives")
    guest = identify(pid)
    await kill(engines, "libvirtd")

    async def found() -> bool:
        # Its monitor answers only after libvirtd has taken it up again; listed it is before that.
        with contextlib.suppress(PileusError):
            return "running" in await virsh(at, "qemu-monitor-command", "outlives", "--hmp", "info status")
        return False

    assert await until(found)
    assert identify(pid) == guest
    await virsh(at, "destroy", "outlives")


def kernel_status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


async def test_a_guest_is_a_user_of_its_own_without_rights(engines: Engines, at: EngineAddresses) -> None:
    pid = await start_guest(at, engines, "confined")
    status = kernel_status(pid)
    assert at.guest_user == "libvirt-qemu"
    assert f"Uid:\t{pwd.getpwnam(at.guest_user).pw_uid}\t" in status
    assert "Seccomp:\t2\n" in status
    assert pid in cgroups.processes_in(f"pileus-{engines.layout.tag}")
    await virsh(at, "destroy", "confined")


async def test_the_external_network_reaches_the_world_under_the_machines_address(at: EngineAddresses) -> None:
    inside, outside = fresh_name(), fresh_name()
    for name in (inside, outside):
        await run("ip", "netns", "add", name)
    try:
        # The world: it knows the machine's uplink, and no way back to the external network.
        await run("ip", "link", "add", "uplink", "type", "veth", "peer", "world", "netns", outside)
        await run("ip", "address", "add", "192.0.2.1/24", "dev", "uplink")
        await run("ip", "link", "set", "uplink", "up")
        await run("ip", "-n", outside, "address", "add", "192.0.2.9/24", "dev", "world")
        await run("ip", "-n", outside, "link", "set", "world", "up")
        # An instance on a logical switch that is the external network.
        await run("ip", "link", "add", "port", "type", "veth", "peer", "nic", "netns", inside)
        await run("ip", "link", "set", "port", "up")
        await run("ip", "-n", inside, "link", "set", "nic", "address", "02:00:00:00:00:0a", "up")
        await run("ip", "-n", inside, "address", "add", "172.31.255.10/24", "dev", "nic")
        await run("ip", "-n", inside, "route", "add", "default", "via", at.external_gateway)
        if at.datapath is Datapath.NETDEV:
            await guard("port")
        await nbctl(
            at,
            *("ls-add", "ext", "--", "lsp-add", "ext", "ext-port"),
            *("--", "lsp-set-addresses", "ext-port", "02:00:00:00:00:0a 172.31.255.10"),
            *("--", "lsp-add", "ext", "ext-net", "--", "lsp-set-type", "ext-net", "localnet"),
            *("--", "lsp-set-addresses", "ext-net", "unknown"),
            *("--", "lsp-set-options", "ext-net", f"network_name={at.external_network}"),
        )
        await vsctl(
            at,
            *("add-port", at.integration_bridge, "port"),
            *("--", "set", "Interface", "port", "external_ids:iface-id=ext-port"),
        )
        await nbctl(at, "wait-until", "Logical_Switch_Port", "ext-port", "up=true")

        async def reaches(address: str) -> bool:
            said = await run("ip", "netns", "exec", inside, "ping", "-c1", "-W1", address, accept=(0, 1, 2))
            return " 1 received" in said

        async def world_answers() -> bool:
            return await reaches("192.0.2.9")

        assert await until(world_answers)
        assert await until(lambda: reaches(at.external_gateway))
    finally:
        await nbctl(at, "--if-exists", "ls-del", "ext")
        await vsctl(at, "--if-exists", "del-port", "port")
        await unguard("port")
        for name in (inside, outside):
            await run("ip", "netns", "delete", name)


async def test_a_guard_hides_a_port_from_the_machine_until_it_is_taken_away(engines: Engines) -> None:
    other = fresh_name()
    await run("ip", "netns", "add", other)
    try:
        await run("ip", "link", "add", "pl-port-1", "type", "veth", "peer", "nic", "netns", other)
        await run("ip", "address", "add", "198.51.100.1/24", "dev", "pl-port-1")
        await run("ip", "link", "set", "pl-port-1", "up")
        await run("ip", "-n", other, "address", "add", "198.51.100.2/24", "dev", "nic")
        await run("ip", "-n", other, "link", "set", "nic", "up")

        async def reaches() -> bool:
            ping = ("ping", "-c1", "-W1", "198.51.100.1")
            return " 1 received" in await run("ip", "netns", "exec", other, *ping, accept=(0, 1, 2))

        assert await until(reaches)
        for _ in range(2):
            await guard("pl-port-1")
        assert not await reaches()
        for _ in range(2):
            await unguard("pl-port-1")
        assert await until(reaches)
    finally:
        await run("ip", "netns", "delete", other)


async def test_a_card_and_a_bridge_of_the_machines_own_become_physical_networks_and_the_machine_is_reached_as_before(
    engines: Engines, at: EngineAddresses
) -> None:
    """A card that the machine does not use, and a Linux bridge with its address; beyond each there is a neighbour."""
    neighbour = fresh_name()
    await run("ip", "netns", "add", neighbour)
    links = [
        *("link add nic0 type veth peer name far0", "link add nic1 type veth peer name far1"),
        *("link add br0 type bridge", "link set nic1 master br0", "address add 10.77.1.1/24 dev br0"),
        *(f"link set {each} up" for each in ("br0", "nic1")),
        *(f"link set far{each} netns {neighbour}" for each in (0, 1)),
    ]
    beyond = [f"address add 10.77.{each}.9/24 dev far{each}\nlink set far{each} up" for each in (0, 1)]
    said: list[str] = []

    async def up(**wires: str) -> str:
        settings = EngineSettings(physical_networks=wires)
        await Engines(engines.layout.data, say=said.append, settings=settings).up()
        return (await vsctl(at, "get", "Open_vSwitch", ".", "external_ids:ovn-bridge-mappings")).strip().strip('"')

    async def is_reached(address: str) -> bool:
        try:
            await run("ip", "netns", "exec", neighbour, "busybox", "ping", "-c1", "-W1", address)
        except PileusError:
            return False
        return True

    async def own_address_is_reached() -> bool:
        return await is_reached("10.77.1.1")

    try:
        await run("ip", "-batch", "-", stdin="\n".join(links).encode())
        await run("ip", "-netns", neighbour, "-batch", "-", stdin="\n".join(beyond).encode())
        assert await until(own_address_is_reached)
        await run("ip", "address", "add", "10.77.0.1/24", "dev", "nic0")
        with pytest.raises(Conflict, match="would no longer be"):
            await up(lan="nic0")
        await run("ip", "address", "delete", "10.77.0.1/24", "dev", "nic0")
        assert await up(lan="nic0", office="br0") == "external:br-ex,lan:br-lan,office:br-office"
        assert await until(own_address_is_reached), "it stays where it was"
        for each, bridge in ((0, "br-lan"), (1, "br-office")):
            # What a guest is on the wire, a port of the bridge is as well.
            await run("ip", "address", "add", f"10.77.{each}.5/24", "dev", bridge)
            await run("ip", "link", "set", bridge, "up")
            assert await until(lambda each=each: is_reached(f"10.77.{each}.5"))
        said.clear()
        assert await up() == "external:br-ex,lan:br-lan,office:br-office", "what was asked for once is kept"
        assert said == []
        await engines.down()
        assert await until(own_address_is_reached)
        assert [each for each in await engines.leftovers() if each.startswith("link ")] == []
        assert await up() == "external:br-ex,lan:br-lan,office:br-office"
        assert await up(lan="", office="") == "external:br-ex"
        left = {name for _, name in socket.if_nameindex()}
        assert not left & {"br-lan", "br-office", "pi-office", "po-office"}
        assert await until(own_address_is_reached)
    finally:
        await run("ip", "netns", "delete", neighbour)
        await run("ip", "link", "delete", "br0", accept=(0, 1))


async def test_a_network_that_the_machine_already_has_is_refused(engines: Engines) -> None:
    await run("ip", "route", "add", "10.9.0.0/16", "dev", "lo")
    settings = EngineSettings(external=IPv4Interface("10.9.0.1/24"))
    with pytest.raises(Conflict, match=r"10\.9\.0\.0/16"):
        await Engines(engines.layout.data, say=lambda _: None, settings=settings).up()
    await run("ip", "route", "delete", "10.9.0.0/16", "dev", "lo")


def test_two_hosts_live_side_by_side(engines: Engines) -> None:
    here = engines.addresses()
    assert here
    with network_namespace(), host() as other:
        there = asyncio.run(other.up())
        assert there.chassis != here.chassis
        asyncio.run(start_guest(there, other, "there"))
        assert "there" in asyncio.run(virsh(there, "list", "--name"))
        assert "there" not in asyncio.run(virsh(here, "list", "--name"))
        # It is purged with its guest running.
    assert asyncio.run(until(lambda: all_works(here)))


def test_two_hosts_are_one_network(engines: Engines) -> None:
    wire = fresh_name()
    here, there = (
        EngineSettings(
            tunnel=Tunnel(link=wire, address=IPv4Interface(f"10.198.0.{number}/24")),
            listen="10.198.0.1" if number == 1 else None,
            southbound=None if number == 1 else "tcp:10.198.0.1:6642",
        )
        for number in (1, 2)
    )
    with network_namespace() as first, host(here) as one:
        subprocess.run(["ip", "link", "add", wire, "type", "veth", "peer", f"{wire}-"], check=True)
        subprocess.run(["ip", "link", "set", wire, "up"], check=True)
        # Frames between kernels need their checksums here, as they do not on a wire.
        subprocess.run(["ethtool", "-K", wire, "tx", "off"], check=True, stdout=subprocess.DEVNULL)
        at_one = asyncio.run(one.up())
        with network_namespace() as second, host(there) as two:
            subprocess.run(["ip", "-n", first, "link", "set", f"{wire}-", "netns", second, "name", wire], check=True)
            subprocess.run(["ip", "link", "set", wire, "up"], check=True)
            subprocess.run(["ethtool", "-K", wire, "tx", "off"], check=True, stdout=subprocess.DEVNULL)
            at_two = asyncio.run(two.up())
            assert at_two.northbound is None
            asyncio.run(two_ports_reach_each_other(at_one, at_two, (first, second)))


async def two_ports_reach_each_other(one: EngineAddresses, two: EngineAddresses, namespaces: tuple[str, str]) -> None:
    await nbctl(one, "ls-add", "vpc")
    guests = fresh_name(), fresh_name()
    try:
        for number, (at, namespace, guest) in enumerate(zip((one, two), namespaces, guests, strict=True), start=1):
            port, mac = f"{guest}-", f"02:00:00:00:00:{number:02x}"
            await run("ip", "netns", "add", guest)
            await run("ip", "-n", namespace, "link", "add", port, "type", "veth", "peer", "nic", "netns", guest)
            await run("ip", "-n", namespace, "link", "set", port, "up")
            await run("ip", "-n", guest, "link", "set", "nic", "address", mac, "up")
            await run("ip", "-n", guest, "address", "add", f"10.0.0.{number}/24", "dev", "nic")
            await nbctl(one, "lsp-add", "vpc", guest, "--", "lsp-set-addresses", guest, f"{mac} 10.0.0.{number}")
            await vsctl(
                at,
                *("add-port", at.integration_bridge, port),
                *("--", "set", "Interface", port, f"external_ids:iface-id={guest}"),
            )
            await nbctl(one, "wait-until", "Logical_Switch_Port", guest, "up=true")

        async def reaches() -> bool:
            # A full frame: the guest's MTU less what Geneve adds.
            ping = ("ping", "-c1", "-W1", "-s1372", "10.0.0.2")
            return " 1 received" in await run("ip", "netns", "exec", guests[0], *ping, accept=(0, 1, 2))

        assert await until(reaches)
    finally:
        for guest in guests:
            await run("ip", "netns", "delete", guest)


async def test_down_leaves_no_process_and_up_brings_everything_back(engines: Engines, at: EngineAddresses) -> None:
    await nbctl(at, "ls-add", "kept")
    await engines.down()
    assert processes_below(engines.layout.data) == []
    assert await engines.status() == []
    links = [line.split()[0] for line in (await run("ip", "-brief", "link")).splitlines()]
    assert not {"br-ex", "br-int", "ovs-netdev"} & set(links)
    assert await engines.up() == at
    assert "kept" in await nbctl(at, "show")
    await nbctl(at, "ls-del", "kept")


async def test_a_guest_that_outlives_a_down_is_found_by_the_next_up(engines: Engines, at: EngineAddresses) -> None:
    pid = await start_guest(at, engines, "patient")
    await engines.down()
    assert identify(pid)
    await engines.up()
    assert "patient" in await virsh(at, "list", "--name")
    await virsh(at, "destroy", "patient")
