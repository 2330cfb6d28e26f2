"""What the link costs: messages per second of CPU time, over mutual TLS on loopback.

    PYTHONPATH=src python benchmarks/link.py [--agents 50] [--seconds 5]

Both ends run in this process; figures are per CPU second of the whole process. The same run measures a bare
`websockets` echo over the same TLS, and prints ours as a ratio of it: that ratio is comparable between machines.
"""

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import structlog
import uvloop
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from pileus.kernel.ids import HostId, new_id
from pileus.link.certificates import CONTROLLER_NAME
from pileus.link.channel import Channel
from pileus.link.handlers import Call, Handlers
from pileus.testing.links import LoopbackCloud, Pair

_IN_TURN = 10
"""Requests that one task makes, as a workflow does."""


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """About what a desired record or a report holds: some 400 bytes of JSON."""

    id: str
    name: str
    vcpus: int
    memory_mib: int
    disks: list[str]
    labels: dict[str, str]


GUEST = Guest(
    id=new_id(),
    name="web-1",
    vcpus=2,
    memory_mib=4096,
    disks=[new_id() for _ in range(4)],
    labels={f"key-{n}": f"value-{n}" for n in range(6)},
)


async def per_cpu_second(act: Callable[[], Awaitable[int]], seconds: float) -> float:
    """How many of its units `act` does in a second of CPU time."""
    await act()
    done, began, ends = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < ends:
        done += await act()
    return done / (time.process_time() - began)


def resident_kib() -> int:
    """What this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * (resource.getpagesize() // 1024)


async def bare_echo(cloud: LoopbackCloud, agents: int, in_flight: int, seconds: float) -> float:
    """Round trips of the same bytes by `websockets` alone, as many in flight."""
    frame = msgspec.json.encode(GUEST)

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message, text=True)

    async with AsyncExitStack() as stack:
        context = cloud.identity.link_context()
        server = await stack.enter_async_context(serve(echo, "127.0.0.1", 0, ssl=context, compression=None))
        port = next(iter(server.sockets)).getsockname()[1]
        identity = cloud.join(HostId(new_id()))
        connections = [
            await stack.enter_async_context(
                connect(
                    f"wss://{CONTROLLER_NAME}/",
                    host="127.0.0.1",
                    port=port,
                    ssl=identity.context(),
                    server_hostname=CONTROLLER_NAME,
                    compression=None,
                    proxy=None,
                )
            )
            for _ in range(agents)
        ]

        async def round_trips() -> int:
            for connection in connections:
                for _ in range(in_flight):
                    await connection.send(frame, text=True)
            for connection in connections:
                for _ in range(in_flight):
                    await connection.recv(decode=False)
            return len(connections) * in_flight

        return await per_cpu_second(round_trips, seconds)


async def requests(pairs: list[Pair], in_flight: int, seconds: float) -> float:
    """Round trips of typed requests from controller to agents."""

    async def ask_in_turn(pair: Pair) -> None:
        for _ in range(_IN_TURN):
            await pair.controller.request("guest.ensure", GUEST, Guest, timeout_s=30)

    async def round_trips() -> int:
        async with asyncio.TaskGroup() as tasks:
            for pair in pairs:
                for _ in range(in_flight):
                    tasks.create_task(ask_in_turn(pair))
        return len(pairs) * in_flight * _IN_TURN

    return await per_cpu_second(round_trips, seconds)


async def reports(pairs: list[Pair], arrived: Callable[[], int], seconds: float) -> float:
    """One-way reports from agents to controller, one from each at a time."""

    async def round_of_reports() -> int:
        wanted = arrived() + len(pairs)
        for pair in pairs:
            await pair.agent.notify("report", GUEST)
        while arrived() < wanted:  # noqa: ASYNC110 - an event per report would be measured with it
            await asyncio.sleep(0)
        return len(pairs)

    return await per_cpu_second(round_of_reports, seconds)


async def main(agents: int, seconds: float) -> None:
    """Measure and print."""
    arrived = 0

    def take(_body: Guest, _channel: Channel) -> None:
        nonlocal arrived
        arrived += 1

    async def ensure(body: Guest, _call: Call) -> Guest:
        return body

    with tempfile.TemporaryDirectory() as folder:
        cloud = LoopbackCloud(Path(folder))
        cloud.server_handlers.add_note("report", Guest, take)
        handlers = Handlers()
        handlers.add("guest.ensure", Guest, ensure)
        async with cloud.server, AsyncExitStack() as stack:
            hosts = [cloud.join(HostId(new_id())).host for _ in range(agents)]
            began, before = time.process_time(), resident_kib()
            pairs = [await stack.enter_async_context(cloud.agent(handlers, host)) for host in hosts]
            spent_ms, grown = (time.process_time() - began) * 1000 / agents, (resident_kib() - before) / agents
            print(f"connecting                  {spent_ms:10.1f} CPU ms and {grown:.0f} KiB per agent, both ends")
            for in_flight in (1, 20):
                bare = await bare_echo(cloud, agents, in_flight, seconds)
                ours = await requests(pairs, in_flight, seconds)
                print(f"in flight per agent: {in_flight}")
                print(f"  bare websockets echo      {bare:10,.0f} round trips per CPU second")
                print(
                    f"  requests                  {ours:10,.0f} round trips per CPU second, {ours / bare:.2f} of bare"
                )
            notes = await reports(pairs, lambda: arrived, seconds)
            print(f"reports                     {notes:10,.0f} per CPU second, both ends")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--agents", type=int, default=50)
    arguments.add_argument("--seconds", type=float, default=5.0)
    given = arguments.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    uvloop.run(main(given.agents, given.seconds))
