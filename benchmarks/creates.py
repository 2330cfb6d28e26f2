"""Instances created per second, and what one costs a controller: the whole way, with simulated hosts.

    PYTHONPATH=src python benchmarks/creates.py [--hosts 100] [--creates 3000] [--clients 64] [--folder /var/tmp]

A create is a POST over TLS with a bearer token, until its task is done: validation, quota, placement, addresses, event
log on SQLite with synchronous=FULL, two requests to the host's agent over mutual TLS. The controller is the daemon, the
hosts are one process and the clients another, each with its own CPU time; on a machine with few cores they take turns,
so that the controller's CPU per create says more than the rate. Some creates are made first one after the other, each
waited for: what is faster with many at once is so by group commit and shared wakeups.

The full size is `--hosts 1000 --creates 20000 --clients 256`.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from filling import Filled, fill
from processes import Client, Controller, Process, controller, fleet, in_process, percentile, wait_for_hosts

_ONE_BY_ONE = 200
_IDLE_S = 4.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What clients saw."""

    elapsed_s: float
    """Until the last task was done."""
    answered_s: float
    """Until the last POST was answered."""
    latencies_s: Sequence[float]
    """Of each POST."""


async def create(data: Path, port: int, filled: Filled, first: int, count: int, clients: int) -> Figures:
    """Create so many instances by so many clients; a single one waits for the end of each task before its next."""
    connections = [await Client(data, port).open() for _ in range(clients)]
    numbers = iter(range(first, first + count))
    latencies: list[float] = []
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for connection in connections:
            tasks.create_task(_create_some(connection, filled, numbers, latencies, wait=clients == 1))
    answered = time.perf_counter() - begun
    await _until_all_is_done(connections[0], filled)
    elapsed = time.perf_counter() - begun
    for connection in connections:
        connection.close()
    return Figures(elapsed_s=elapsed, answered_s=answered, latencies_s=latencies)


async def _create_some(
    client: Client, filled: Filled, numbers: Iterator[int], latencies: list[float], *, wait: bool
) -> None:
    for number in numbers:
        tenant = filled.tenants[number % len(filled.tenants)]
        wish = {"name": f"new-{number}", "image_id": filled.image, "flavor_id": filled.flavor}
        begun = time.perf_counter()
        answer = await client.ask("POST", "/v1/instances", tenant.token, msgspec.json.encode(wish))
        latencies.append(time.perf_counter() - begun)
        assert answer.status == 202, answer.body
        if wait:
            await _until_done(client, msgspec.json.decode(answer.body)["task_id"], tenant.token)


async def _until_done(client: Client, task: str, token: str) -> None:
    state, seen = "running", ""
    while state == "running":
        answer = await client.ask("GET", f"/v1/tasks/{task}?wait_s=60&seen={seen}", token)
        state, seen = msgspec.json.decode(answer.body)["state"], answer.header(b"pileus-seen").decode()
    assert state == "done", state


async def _until_all_is_done(client: Client, filled: Filled) -> None:
    token = filled.platform_token
    for state in ("running", "undoing", "stuck"):
        path = f"/v1/tasks?state={state}&all_projects=true&limit=1"
        while msgspec.json.decode((await client.ask("GET", path, token)).body)["items"]:  # noqa: ASYNC110 - it is afar
            await asyncio.sleep(0.02)
    undone = await client.ask("GET", "/v1/tasks?state=undone&all_projects=true&limit=1", token)
    assert not msgspec.json.decode(undone.body)["items"], undone.body


def report(what: str, figures: Figures, count: int, spent: Sequence[float]) -> float:
    """Print, and return the rate."""
    rate = count / figures.elapsed_s
    ours, hosts = (1e3 * each / count for each in spent)
    post = [1e3 * percentile(figures.latencies_s, part) for part in (0.5, 0.99)]
    print(
        f"{what:12} {rate:7,.0f} creates/s   controller {ours:6.3f} ms CPU each = {1e3 / ours:7,.0f} per CPU second"
        f"   hosts {hosts:6.3f} ms CPU each   POST p50 {post[0]:6.1f} ms, p99 {post[1]:6.1f} ms",
        flush=True,
    )
    return rate


def measure(
    data: Path, filled: Filled, running: Controller, hosts: Process, first: int, count: int, clients: int
) -> tuple[Figures, Sequence[float]]:
    """Create, and say also what CPU seconds the controller and the hosts spent on it."""
    before = running.cpu_s, hosts.cpu_s
    figures: Figures = in_process(create, data, running.api_port, filled, first, count, clients)
    return figures, (running.cpu_s - before[0], hosts.cpu_s - before[1])


def main(hosts: int, creates: int, clients: int, folder: Path) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        data = Path(name)
        filled = asyncio.run(fill(data, hosts=hosts, room=creates + _ONE_BY_ONE))
        with controller(data) as running, fleet(data, filled.hosts, running.link_port) as agents:
            began = time.monotonic(), running.cpu_s
            wait_for_hosts(data, running.api_port, filled.platform_token, hosts)
            took = time.monotonic() - began[0]
            print(
                f"{hosts} hosts connected in {took:.1f} s, {1e3 * (running.cpu_s - began[1]) / hosts:.1f} ms CPU each"
            )
            before = running.cpu_s
            time.sleep(_IDLE_S)
            print(f"idle: {100 * (running.cpu_s - before) / _IDLE_S:.1f} % of a core, {running.rss_mib:.0f} MiB")
            figures, spent = measure(data, filled, running, agents, 0, _ONE_BY_ONE, 1)
            one = report("one by one", figures, _ONE_BY_ONE, spent)
            figures, spent = measure(data, filled, running, agents, _ONE_BY_ONE, creates, clients)
            many = report("at once", figures, creates, spent)
            print(f"{many / one:.1f} times one by one; {running.rss_mib:.0f} MiB at the end")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--creates", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    main(given.hosts, given.creates, given.clients, given.folder)
