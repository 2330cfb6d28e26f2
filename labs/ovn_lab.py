"""Four hosts with real Open vSwitch and OVN on one machine, for labs: every host is a network namespace.

Everything is in namespaces whose names only this lab sees, and every process dies with the one that began it: nothing
is left, also after a kill. Guests are namespaces too; what QEMU is to a real one, a thread here is: it opens the tap
device that the agent has made, and copies frames between it and the guest's `eth0`.

As a program this is the agent of one host: `ovn_lab.py SWITCH`, with one JSON request a line.
"""

import asyncio
import fcntl
import os
import selectors
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import cache
import msgspec

from pileus.agent.network.ovn import OvnHostNetwork, leftovers, purge
from pileus.agent.network.ovn_dns import Forwarder
from pileus.agent.network.ovn_namespace import compute_checksums, within
from pileus.agent.network.port import MetadataListener, Plug
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import InstanceId, NetworkId, PortId
from pileus.kernel.programs import run
from pileus.link.guests import NicSpec, PortTraffic
from pileus.machine.ovnprefix import OvnPrograms
from pileus.testing.contracts.network import Echo

HOSTS = ("h1", "h2", "h3", "h4")
LINES = {"provider": "ex", "second": "ex2"}
"""Physical networks that lead out, and the bridge of the fabric that each is."""
OUTSIDE = "172.24.0.1"
"""The address of the internet, which is one namespace."""
_PROGRAMS = ("ip", "nft", "nsenter", "setpriv", "unshare", "busybox", "apt-get")
_DNS_PORT = 5300


def missing() -> str | None:
    """What this machine lacks to run the lab, or None."""
    if os.geteuid() != 0:
        return "needs root, to make namespaces and tap devices"
    absent = [each for each in _PROGRAMS if shutil.which(each, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return None if Path("/dev/net/tun").exists() else "there is no /dev/net/tun"


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, *, within_s: float = 120.0) -> None:
    """Wait for a condition, or fail saying what did not come true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        true = condition()
        if true if isinstance(true, bool) else await true:
            return
        assert loop.time() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.05)


class Processes:
    """Programs that end when this process does, at the latest."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            process = subprocess.Popen(
                ("setpriv", "--pdeathsig", "KILL", *command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **(env or {})},
            )
        self._running.append(process)
        return process

    def end(self) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()


class Database:
    """An ovsdb-server with a northbound database."""

    def __init__(self, programs: OvnPrograms, folder: Path, processes: Processes) -> None:
        self.programs, self.folder, self.processes = programs, folder, processes
        self.remote = f"unix:{folder / 'nb.sock'}"
        self.process: subprocess.Popen[bytes] | None = None

    async def make(self, name: str = "nb") -> None:
        """Make the empty database, and serve it."""
        schema = f"{self.programs.schemas}/ovn/ovn-{name}.ovsschema"
        await run(self.programs("ovsdb-tool"), "create", str(self.folder / f"{name}.db"), schema)
        await self.serve(name)

    async def serve(self, name: str = "nb") -> None:
        server = self.programs("ovsdb-server")
        socket_path = self.folder / f"{name}.sock"
        socket_path.unlink(missing_ok=True)
        self.process = self.processes.start(
            server,
            f"--remote=punix:{socket_path}",
            f"--unixctl={self.folder / name}.ctl",
            str(self.folder / f"{name}.db"),
            log=self.folder / f"{name}.log",
        )
        await until(socket_path.exists, f"{name} database listens")


class Host:
    """One host: its switch, its ovn-controller, and the agent's network driver in a process of its own."""

    def __init__(self, lab: "Lab", name: str, number: int) -> None:
        self.lab, self.name, self.number = lab, name, number
        self.folder = lab.folder / name
        self.switch = f"unix:{self.folder / 'db.sock'}"
        self._env = {"OVS_RUNDIR": str(self.folder), "OVN_RUNDIR": str(self.folder), "OVS_LOGDIR": str(self.folder)}
        self._agent: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self.network = DistantNetwork(self)

    @property
    def namespace(self) -> str:
        return self.lab.path(self.name)

    async def make(self) -> None:
        lab, folder, programs = self.lab, self.folder, self.lab.programs
        folder.mkdir()
        await lab.ip("netns", "add", self.name)
        outwards = {f"{wire}0": f"br-{wire}" for wire in LINES.values()}
        wires = [(f"{wire}0", wire) for wire in ("ul", *LINES.values())]
        await asyncio.gather(*(lab.wire(self.name, nic, wire) for nic, wire in wires))
        await self.run("ip", "link", "set", "lo", "up")
        # What an operator's machine needs as well (its underlay is not for guests), and the agent does not do.
        guards = "add table netdev lab\n" + "".join(
            f'add chain netdev lab {nic} {{ type filter hook ingress device "{nic}" priority -500; policy drop; }}\n'
            for nic in ("ul0", *outwards)
        )
        await self.run("nft", "-f", "-", stdin=guards.encode())
        await within(self.namespace, _quiet_kernel)
        database = folder / "conf.db"
        await run(programs("ovsdb-tool"), "create", str(database), f"{programs.schemas}/openvswitch/vswitch.ovsschema")
        self.start("ovsdb-server", f"--remote=punix:{folder / 'db.sock'}", str(database))
        await until((folder / "db.sock").exists, "the switch's database listens")
        settings = (
            f"external_ids:system-id={self.name}",
            f"external_ids:ovn-remote=unix:{lab.folder / 'sb.sock'}",
            "external_ids:ovn-encap-type=geneve",
            f"external_ids:ovn-encap-ip={self.tunnel}",
            "external_ids:ovn-bridge-datapath-type=netdev",
            f"external_ids:ovn-bridge-mappings={','.join(f'{name}:br-{wire}' for name, wire in LINES.items())}",
            "external_ids:ovn-monitor-all=true",
            "other_config:n-handler-threads=1",
            "other_config:n-revalidator-threads=1",
        )
        await self.vsctl("--no-wait", "init", "--", "set", "Open_vSwitch", ".", *settings)
        self.start("ovs-vswitchd", self.switch, "--pidfile")
        bridges = [
            word
            for name, nic in (("br-ul", "ul0"), *((bridge, nic) for nic, bridge in outwards.items()), ("br-int", None))
            for word in (
                *("--", "add-br", name, "--", "set", "bridge", name, "datapath_type=netdev"),
                *(() if nic is None else ("--", "add-port", name, nic)),
            )
        ]
        await self.vsctl(*bridges, "--", "set", "bridge", "br-int", "fail-mode=secure")
        await self.run("ip", "address", "add", f"{self.tunnel}/24", "dev", "br-ul")
        for bridge in ("br-ul", *outwards.values(), "br-int"):
            await self.run("ip", "link", "set", bridge, "up")
        self.start("ovn-controller", self.switch)

    @property
    def tunnel(self) -> str:
        return f"10.199.0.{self.number}"

    async def know(self, other: "Host") -> None:
        """Learn the address of a peer's tunnel: the first packet to one that is not known is lost."""
        link = await other.run("ip", "-json", "link", "show", "dev", "br-ul")
        mac = msgspec.json.decode(link)[0]["address"]
        command = ("ovs-appctl", "-t", str(self.folder / "ovs-vswitchd.pid"))
        pid = Path(command[-1]).read_text(encoding="ascii").strip()
        control = str(self.folder / f"ovs-vswitchd.{pid}.ctl")
        await run(self.lab.programs("ovs-appctl"), "-t", control, "tnl/neigh/set", "br-ul", other.tunnel, mac)

    def start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = ("nsenter", f"--net={self.namespace}", self.lab.programs(program), *arguments)
        return self.lab.processes.start(*command, log=self.folder / f"{program}.log", env=self._env)

    async def run(self, *command: str, stdin: bytes | None = None) -> str:
        return await run("nsenter", f"--net={self.namespace}", *command, stdin=stdin)

    async def vsctl(self, *arguments: str) -> str:
        return await run(self.lab.programs("ovs-vsctl"), "--timeout=15", f"--db={self.switch}", *arguments)

    async def start_agent(self) -> None:
        self._agent = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL"),
            *("nsenter", f"--mount=/proc/{self.lab.holders[self.name].pid}/ns/mnt", f"--net={self.namespace}"),
            *(sys.executable, __file__, self.switch),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    async def kill_agent(self) -> None:
        if self._agent is not None and self._agent.returncode is None:
            self._agent.kill()
            await self._agent.wait()

    async def ask(self, request: "AgentRequest") -> "AgentAnswer":
        """Have the agent do this."""
        async with self._turn:
            assert self._agent is not None
            assert self._agent.stdin is not None
            assert self._agent.stdout is not None
            self._agent.stdin.write(msgspec.json.encode(request) + b"\n")
            answer = await self._agent.stdout.readline()
        assert answer, f"the agent of {self.name} died"
        return msgspec.json.decode(answer, type=AgentAnswer)


class DistantNetwork:
    """The network driver of a host's agent, as a HostNetwork here. Whoever is to answer metadata, it is `Echo`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def plug(self, instance: InstanceId, nic: NicSpec) -> Plug:
        del instance
        return (await self._host.ask(AgentRequest(plug=nic))).plugged[nic.port]

    async def unplug(self, port: PortId) -> None:
        await self._host.ask(AgentRequest(unplug=port))

    async def list(self) -> dict[PortId, Plug]:
        return (await self._host.ask(AgentRequest())).plugged

    async def traffic(self, port: PortId) -> PortTraffic:
        answer = await self._host.ask(AgentRequest(traffic=port))
        if answer.traffic is None:
            raise NotFound("there is no such port")
        return answer.traffic

    async def physical_networks(self) -> tuple[str, ...]:
        return (await self._host.ask(AgentRequest())).wires

    async def serve(self, networks: Mapping[NetworkId, int], listener: MetadataListener) -> None:
        del listener
        await self._host.ask(AgentRequest(serve=networks))

    async def close(self) -> None:
        await self._host.ask(AgentRequest(restart=True))


class AgentRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the agent of a host is to do."""

    plug: NicSpec | None = None
    unplug: PortId | None = None
    serve: Mapping[NetworkId, int] | None = None
    traffic: PortId | None = None
    restart: bool = False
    purge: bool = False


class AgentAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the agent of a host says when it has done it."""

    plugged: dict[PortId, Plug]
    wires: tuple[str, ...]
    traffic: PortTraffic | None = None


class Guest:
    """A namespace with an `eth0` that is connected to a tap device of a host."""

    def __init__(self, lab: "Lab", nic: NicSpec, host: Host) -> None:
        self.lab, self.nic, self.host = lab, nic, host
        self.namespace = f"g-{nic.port}"
        self.lease: dict[str, str] = {}
        self.ends: tuple[int, ...] = ()

    @property
    def path(self) -> str:
        return self.lab.path(self.namespace)

    async def make(self) -> None:
        plug = await self.host.network.plug(InstanceId("lab"), self.nic)
        await self.lab.ip("netns", "add", self.namespace)
        inner = await within(self.path, partial(_open_tap, "eth0"))
        outer = await within(self.host.namespace, partial(_open_tap, plug.device))
        await self.run("ip", "link", "set", "lo", "up")
        await self.run("ip", "link", "set", "eth0", "address", self.nic.mac, "mtu", str(self.nic.mtu), "up")
        self.ends = inner, outer
        self.lab.wires.join(inner, outer)

    async def remove(self) -> None:
        """Leave nothing of the guest but what the agent made for it."""
        self.lab.wires.part(*self.ends)
        self.ends = ()
        await self.lab.ip("netns", "delete", self.namespace)

    async def run(self, *command: str, timeout_s: float = 60.0) -> str:
        return await run("nsenter", f"--net={self.path}", *command, timeout_s=timeout_s)

    async def ask_for_address(self) -> dict[str, str]:
        """Get an address by DHCP, with a real client, and configure it as told; the lease is what the client says."""
        told = self.lab.folder / f"{self.nic.port}.lease"
        script = self.lab.folder / f"{self.nic.port}.script"
        script.write_text(f'#!/bin/sh\n[ "$1" = bound ] && env > {told}\nexit 0\n', encoding="ascii")
        script.chmod(0o755)
        options = [word for option in (3, 6, 15, 26, 121) for word in ("-O", str(option))]
        # As a guest does it asks anew for as long as it takes: an answer may be lost, or late.
        client = ("busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-T", "1", "-A", "1", "-s", str(script))
        await self.run(*client, *options, timeout_s=120)
        lines = told.read_text(encoding="utf-8").splitlines()
        self.lease = dict(line.split("=", 1) for line in lines if "=" in line)
        await self.run("ip", "address", "add", f"{self.lease['ip']}/{self.lease['mask']}", "dev", "eth0")
        await self.run("ip", "link", "set", "eth0", "mtu", self.lease["mtu"])
        routes = self.lease["staticroutes"].split()
        for to, by in zip(routes[::2], routes[1::2], strict=True):
            via = () if by == "0.0.0.0" else ("via", by)  # on-link, RFC 3442
            await self.run("ip", "route", "add", to, *via, "dev", "eth0")
        return self.lease


class Wires:
    """Copies frames between pairs of tap devices, as QEMU does between a tap device and a guest's."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wires", daemon=True)
        self._thread.start()

    def join(self, one: int, other: int) -> None:
        with self._lock:
            self._selector.register(one, selectors.EVENT_READ, other)
            self._selector.register(other, selectors.EVENT_READ, one)

    def part(self, *ends: int) -> None:
        with self._lock:
            for file in ends:
                if file in self._selector.get_map():
                    self._selector.unregister(file)
                os.close(file)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self._selector.close()

    def _work(self) -> None:
        while not self._stop.is_set():
            ready = self._selector.select(0.05)
            with self._lock:
                for key, _ in ready:
                    if key.fd in self._selector.get_map():
                        self._copy(key.fd, key.data)

    def _copy(self, source: int, target: int) -> None:
        try:
            while True:
                os.write(target, os.read(source, 1 << 16))
        except BlockingIOError:
            pass
        except OSError:  # one of the two is down, or was deleted
            if not _is_there(source):
                self._selector.unregister(source)


def _is_there(tap: int) -> bool:
    """Whether the device of an open tap file still exists."""
    get_flags = 0x800454D2
    try:
        fcntl.ioctl(tap, get_flags, bytes(40))
    except OSError:
        return False
    return True


class Lab:
    """A fabric of wires (the underlay, and lines that lead out), OVN's central daemons, four hosts, and an internet."""

    def __init__(self, programs: OvnPrograms, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.processes = Processes()
        self.holders: dict[str, subprocess.Popen[bytes]] = {}
        self.database = Database(programs, folder, self.processes)
        self.hosts = {name: Host(self, name, number) for number, name in enumerate(HOSTS, 1)}
        self.guests: dict[str, Guest] = {}
        self.wires = Wires()

    def path(self, namespace: str) -> str:
        """Where to open a namespace of the lab, from outside."""
        return f"/proc/{self.holders['lab'].pid}/root/run/netns/{namespace}"

    async def ip(self, *arguments: str) -> str:
        return await run("nsenter", f"--mount=/proc/{self.holders['lab'].pid}/ns/mnt", "ip", *arguments)

    async def wire(self, namespace: str, device: str, bridge: str) -> None:
        """Connect a namespace to a bridge of the fabric."""
        far = f"{bridge}-{namespace}"
        await self.ip("-n", "fabric", "link", "add", far, "type", "veth", "peer", "name", device, "netns", namespace)
        await self.ip("-n", "fabric", "link", "set", far, "master", bridge, "up")
        await self.ip("-n", namespace, "link", "set", device, "up")
        await within(self.path(namespace), partial(compute_checksums, device))

    async def make(self) -> None:
        await asyncio.gather(*(self._hold(name) for name in ("lab", *HOSTS)))
        await self.ip("netns", "add", "fabric")
        await within(self.path("fabric"), _bridges_do_not_filter)
        for bridge in ("ul", *LINES.values()):
            await self.ip("-n", "fabric", "link", "add", bridge, "type", "bridge", "forward_delay", "0")
            await self.ip("-n", "fabric", "link", "set", bridge, "up")
        await asyncio.gather(self._central(), self._internet())
        await asyncio.gather(*(host.make() for host in self.hosts.values()))
        await asyncio.gather(*(host.start_agent() for host in self.hosts.values()))
        await until(self._all_are_chassis, "every host is a chassis")
        pairs = [(one, other) for one in self.hosts.values() for other in self.hosts.values() if one is not other]
        await asyncio.gather(*(one.know(other) for one, other in pairs))

    async def end(self) -> None:
        for host in self.hosts.values():
            await host.kill_agent()
        for guest in self.guests.values():
            self.wires.part(*guest.ends)
        self.wires.end()
        self.processes.end()

    async def add(self, host: str, nic: NicSpec) -> Guest:
        guest = self.guests[nic.port] = Guest(self, nic, self.hosts[host])
        await guest.make()
        return guest

    async def nbctl(self, *arguments: str) -> str:
        return await run(self.programs("ovn-nbctl"), "--timeout=15", f"--db={self.database.remote}", *arguments)

    async def sbctl(self, *arguments: str) -> str:
        database = f"--db=unix:{self.folder / 'sb.sock'}"
        return await run(self.programs("ovn-sbctl"), "--timeout=15", database, *arguments)

    async def _hold(self, name: str) -> None:
        """Keep mounts of our own, so that the names of network namespaces are ours as well."""
        ready = self.folder / f"{name}.ready"
        script = f"mkdir -p /run/netns; mount -t tmpfs none /run/netns; touch {ready}; while :; do sleep 1000; done"
        self.holders[name] = self.processes.start(
            "unshare", "--mount", "--propagation", "private", "sh", "-c", script, log=self.folder / "holders.log"
        )
        await until(ready.exists, "the namespace is held")

    async def _central(self) -> None:
        await asyncio.gather(self.database.make("nb"), self.database.make("sb"))
        self.processes.start(
            self.programs("ovn-northd"),
            f"--ovnnb-db={self.database.remote}",
            f"--ovnsb-db=unix:{self.folder / 'sb.sock'}",
            f"--unixctl={self.folder / 'northd.ctl'}",
            log=self.folder / "northd.log",
        )

    async def _internet(self) -> None:
        await self.ip("netns", "add", "internet")
        await self.wire("internet", "eth0", "ex")
        await self.ip("-n", "internet", "address", "add", f"{OUTSIDE}/24", "dev", "eth0")

    async def _all_are_chassis(self) -> bool:
        return set((await self.sbctl("--bare", "--columns=name", "list", "Chassis")).split()) == set(HOSTS)


@asynccontextmanager
async def lab(folder: Path) -> AsyncGenerator[Lab]:
    """The lab; the logs of its daemons are in the folder."""
    made = Lab(await asyncio.to_thread(cache.programs), folder)
    try:
        await made.make()
        yield made
    finally:
        await made.end()


def _open_tap(name: str) -> int:
    """Open a tap device as QEMU does; it is made if there is none."""
    tun, no_packet_information, setiff = 0x0002, 0x1000, 0x400454CA
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(file, setiff, struct.pack("16sH22x", name.encode(), tun | no_packet_information))
    return file


def _quiet_kernel() -> None:
    for setting, value in (("ipv4/conf/all/arp_ignore", "1"), ("ipv4/conf/all/arp_announce", "2")):
        Path(f"/proc/sys/net/{setting}").write_text(value, encoding="ascii")
    for of in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{of}/disable_ipv6").write_text("1", encoding="ascii")


def _bridges_do_not_filter() -> None:
    for each in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
        each.write_text("0", encoding="ascii")


class _NamesElsewhere(asyncio.DatagramProtocol):
    """A resolver that knows one answer: 192.0.2.80 for whatever it is asked."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(0, 12) + 5
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("192.0.2.80")
        self._transport.sendto(data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + data[12:end] + answer, addr)


async def _agent(switch: str) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(_NamesElsewhere, local_addr=("127.0.0.1", _DNS_PORT))
    forwarder = Forwarder(lambda: ["127.0.0.1"], port=_DNS_PORT)
    network = OvnHostNetwork(switch, forwarder=forwarder)
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        request = msgspec.json.decode(line, type=AgentRequest)
        if request.plug is not None:
            await network.plug(InstanceId("lab"), request.plug)
        if request.unplug is not None:
            await network.unplug(request.unplug)
        if request.serve is not None:
            await network.serve(request.serve, Echo())
        if request.restart:
            await network.close()
            network = OvnHostNetwork(switch, forwarder=forwarder)
        if request.purge:
            await purge()
            assert await leftovers() == []
        answer = AgentAnswer(plugged=await network.list(), wires=await network.physical_networks())
        if request.traffic is not None:
            with suppress(NotFound):
                answer.traffic = await network.traffic(request.traffic)
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(_agent(sys.argv[1]))
