"""Controller, hosts and clients as processes of their own, so that the CPU of each is known.

The controller is the daemon itself. Hosts are real agents with simulated engines, all in one process, connected to it
by mutual TLS on loopback; clients reach its API over TLS on loopback.
"""

import asyncio
import json
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog
import uvloop
from filling import SETTINGS, identity

from pileus.agent.host import Machine
from pileus.kernel.clock import SystemClock
from pileus.kernel.ids import HostId
from pileus.link.addresses import Address
from pileus.link.certificates import AgentIdentity, Authority, trusting
from pileus.testing.fleet import SimulatedAgent, SimulatedFleet, over_tls

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_MIB = resource.getpagesize() / 1024**2
_STARTS_WITHIN_S = 120.0

_MACHINE = Machine(name="", vcpus=8192, memory_mib=16 << 20, disk_mib=64 << 20)
"""A host: so large that none is ever full."""

_CONTROLLER = "import sys; from pathlib import Path; from pileus.controller.daemon import main; main(Path(sys.argv[1]))"


class Process:
    """A process that is watched from outside."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @staticmethod
    def this() -> "Process":
        """The one that asks."""
        return Process(os.getpid())

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU it has used, of user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def rss_mib(self) -> float:
        """What it holds in memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_MIB


class Controller(Process):
    """A controller's daemon that listens."""

    def __init__(self, process: "subprocess.Popen[bytes]", api_port: int, link_port: int, started_s: float) -> None:
        super().__init__(process.pid)
        self.process = process
        self.api_port = api_port
        self.link_port = link_port
        self.started_s = started_s
        """From its beginning until it listened."""

    def kill(self) -> None:
        """End it as a loss of power would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def controller(data: Path) -> Generator[Controller]:
    """The daemon over this data folder, until left."""
    signal.signal(signal.SIGTERM, _leave)
    (data / "controller.json").write_bytes(msgspec.json.encode(SETTINGS))
    path = data / "controller.log"
    begun = time.monotonic()
    with path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", _CONTROLLER, str(data)], stdout=log, stderr=log)
    try:
        said = _says(process, path, "controller runs")
        yield Controller(process, said["api_port"], said["link_port"], time.monotonic() - begun)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


def _leave(_signal: int, _frame: object) -> None:
    """End in good order: a benchmark that is broken off leaves no process and no file behind."""
    sys.exit(1)


def _says(process: "subprocess.Popen[bytes]", path: Path, event: str) -> dict[str, Any]:
    """Wait for an event in a log, and return its fields."""
    deadline = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in path.read_text().splitlines():
            if f'"{event}"' in line and line.endswith("}"):
                fields: dict[str, Any] = json.loads(line)
                return fields
        time.sleep(0.01)
    raise RuntimeError(f"the controller does not run:\n{path.read_text()[-4000:]}")


@contextmanager
def fleet(data: Path, hosts: Sequence[HostId], link_port: int) -> Generator[Process]:
    """Simulated hosts in a process of their own, connected or about to be, until left."""
    process = multiprocessing.get_context("spawn").Process(target=_run_fleet, args=(data, hosts, link_port))
    process.start()
    assert process.pid is not None
    try:
        yield Process(process.pid)
    finally:
        process.terminate()
        process.join()


def _run_fleet(data: Path, hosts: Sequence[HostId], link_port: int) -> None:
    quietly()
    clock = SystemClock()
    simulated = SimulatedFleet(len(hosts), clock=clock, machine=_MACHINE)
    for agent, host in zip(simulated.hosts, hosts, strict=True):
        agent.id = host

    def mine(agent: SimulatedAgent) -> AgentIdentity:
        return identity(data, agent.id)

    uvloop.run(simulated.run(over_tls(lambda: [Address("127.0.0.1", link_port)], mine, clock)))


class Answer(NamedTuple):
    """What came back."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> bytes:
        """A header's value, by its name in lower case; empty if there is none."""
        return self.head.lower().partition(b"\r\n%b: " % name)[2].partition(b"\r\n")[0]


class Client:
    """One connection to the API, kept open: no more of HTTP than a measurement needs."""

    def __init__(self, data: Path, port: int) -> None:
        self._context = trusting(Authority.load_or_create(data / "authority", SystemClock()).pem)
        self._port = port

    async def open(self) -> "Client":
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._context, server_hostname="localhost", limit=1 << 22
        )
        return self

    async def ask(self, method: str, path: str, token: str, body: bytes = b"") -> Answer:
        """Send a request and wait for its answer."""
        self._writer.write(
            b"%b %b HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %b\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (method.encode(), path.encode(), token.encode(), len(body), body)
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        answer = Answer(int(head[9:12]), head, b"")
        return answer._replace(body=await self._reader.readexactly(int(answer.header(b"content-length"))))

    def close(self) -> None:
        self._writer.close()


def in_process(work: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Any:  # noqa: ANN401
    """Run a coroutine function in a process of its own, and return what it returns."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    finally:
        process.join()
    return result


@contextmanager
def beside(work: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Generator[None]:
    """Run a coroutine function in a process of its own until left, which breaks it off."""
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(None, work, arguments))
    process.start()
    try:
        yield
        if not process.is_alive():
            raise RuntimeError(f"{work.__name__} has ended before its time")
    finally:
        process.terminate()
        process.join()


def _run(answer: Any, work: Callable[..., Coroutine[Any, Any, Any]], arguments: Sequence[Any]) -> None:  # noqa: ANN401
    quietly()
    result = uvloop.run(work(*arguments))
    if answer is not None:
        answer.send(result)


def quietly() -> None:
    """Log warnings alone, and open as many files as hosts and clients need."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65_536, hard) if hard > 0 else 65_536, hard))


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part (of 1) of the values lies."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def wait_for_hosts(data: Path, port: int, token: str, hosts: int) -> None:
    """Come back when so many hosts are connected."""
    asyncio.run(_wait_for_hosts(data, port, token, hosts))


async def _wait_for_hosts(data: Path, port: int, token: str, hosts: int) -> None:
    client = await Client(data, port).open()
    deadline = time.monotonic() + _STARTS_WITHIN_S
    found = -1
    while found < hosts:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{found} of {hosts} hosts are connected")
        await asyncio.sleep(0.2)
        found, path = 0, "/v1/hosts?limit=1000"
        while path:
            page = msgspec.json.decode((await client.ask("GET", path, token)).body)
            found += sum(host["connected"] for host in page["items"])
            path = f"/v1/hosts?limit=1000&after={page['next']}" if page["next"] else ""
    client.close()
