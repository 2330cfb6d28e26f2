"""How long reads take with many instances in memory: alone, and while instances are created.

    PYTHONPATH=src python benchmarks/reads.py [--instances 100000] [--reads 200] [--hosts 50] [--folder /var/tmp]

Over HTTP and TLS on loopback, one client that waits for each answer; the controller is the daemon in a process of its
own. Latencies are the client's, from sending until the last byte; CPU is the controller's. A page has up to 1,000
instances: of the whole cloud, of a project and of a host (by an index), with a label and by name (without one:
everything is looked at). The ratio is to the encoding of the same records by msgspec and nothing else.

In the storm, clients in another process create instances as fast as they can on simulated hosts in a third. With few
cores they take their CPU from what is measured.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from creates import create
from filling import Filled, fill
from processes import Client, Controller, Process, beside, controller, fleet, in_process, percentile, wait_for_hosts

from pileus.cloud.instances.model import Instance

_PAGE = 1000
_CLIENTS = 32
_STORM = 1_000_000
"""Creates: more than there is time for."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one kind of read."""

    latencies_s: Sequence[float]
    cpu_s: float
    """Of the controller, each."""
    items: float
    """Instances, each."""
    body: bytes
    """Of the last."""


class Reader:
    """A client that reads."""

    def __init__(self, client: Client, filled: Filled, watched: Process, reads: int) -> None:
        self._client = client
        self._filled = filled
        self._watched = watched
        self._reads = reads
        self._dice = random.Random(1)

    async def all_kinds(self) -> dict[str, Figures]:
        """Every kind of read, so many times."""
        everything = f"/v1/instances?limit={_PAGE}&all_projects=true"
        platform = self._filled.platform_token
        return {
            "one": await self._one(),
            "page of all": await self._pages(everything, [platform]),
            "page of a project": await self._pages(
                f"/v1/instances?limit={_PAGE}", [tenant.token for tenant in self._filled.tenants]
            ),
            "page of a host": await self._pages(f"{everything}&host_id={self._filled.hosts[0]}", [platform]),
            "page with a label": await self._pages(f"{everything}&label.tier=tier-7", [platform]),
            "page by name": await self._pages(f"{everything}&sort=name", [platform], fewer=10),
        }

    async def _one(self) -> Figures:
        asked: list[tuple[str, str]] = []
        for _ in range(self._reads * 5):
            instance, tenant = self._dice.choice(self._filled.instances)
            asked.append((f"/v1/instances/{instance}", self._filled.tenants[tenant].token))
        return await self._measure(asked)

    async def _pages(self, path: str, tokens: Sequence[str], *, fewer: int = 1) -> Figures:
        return await self._measure(
            [(path, self._dice.choice(tokens)) for _ in range(self._reads // fewer)], follows=True
        )

    async def _measure(self, asked: Sequence[tuple[str, str]], *, follows: bool = False) -> Figures:
        """Ask these; pages that follow go on where the one before ended, unless it was the last."""
        latencies: list[float] = []
        before, items, after, body = self._watched.cpu_s, 0, "", b""
        for path, token in asked:
            begun = time.perf_counter()
            answer = await self._client.ask("GET", path + after, token)
            latencies.append(time.perf_counter() - begun)
            assert answer.status == 200, answer.body
            body = answer.body
            if follows:
                page = msgspec.json.decode(body, type=_Page)
                items += len(page.items)
                after = f"&after={page.next}" if page.next and len({token for _, token in asked}) == 1 else ""
        spent = self._watched.cpu_s - before
        return Figures(latencies_s=latencies, cpu_s=spent / len(asked), items=items / len(asked), body=body)


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    next: str | None


async def read(data: Path, port: int, pid: int, filled: Filled, reads: int) -> dict[str, Figures]:
    """Read from the controller that is this process."""
    client = await Client(data, port).open()
    figures = await Reader(client, filled, Process(pid), reads).all_kinds()
    client.close()
    return figures


def report(figures: dict[str, Figures]) -> None:
    """Print, in milliseconds."""
    for what, each in figures.items():
        p50, p99, worst = (1e3 * percentile(each.latencies_s, part) for part in (0.5, 0.99, 1.0))
        print(
            f"  {what:18} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   worst {worst:7.2f} ms"
            f"   {1e3 * each.cpu_s:7.2f} ms CPU each" + (f"   {each.items:,.0f} instances" if each.items else ""),
            flush=True,
        )


def bare_encoding_s(page: bytes) -> float:
    """CPU seconds that msgspec needs for the records of a page."""
    records = msgspec.json.decode(page, type=_Instances).items
    begun = time.process_time()
    for _ in range(100):
        msgspec.json.encode(records)
    return (time.process_time() - begun) / 100


class _Instances(msgspec.Struct):
    items: list[Instance]


def measure(data: Path, filled: Filled, running: Controller, reads: int) -> dict[str, Figures]:
    """Read from a process of its own, and print."""
    figures: dict[str, Figures] = in_process(read, data, running.api_port, running.pid, filled, reads)
    report(figures)
    return figures


def main(instances: int, reads: int, hosts: int, folder: Path) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        data = Path(name)
        filled = asyncio.run(fill(data, hosts=hosts, instances=instances))
        with controller(data) as running, fleet(data, filled.hosts, running.link_port):
            wait_for_hosts(data, running.api_port, filled.platform_token, hosts)
            print(f"{instances:,} instances, {running.rss_mib:.0f} MiB, loaded in {running.started_s:.1f} s")
            alone = measure(data, filled, running, reads)
            page = alone["page of all"]
            print(f"  a page costs {page.cpu_s / bare_encoding_s(page.body):.1f} times what its encoding costs")
            print("while instances are created:", flush=True)
            with beside(create, data, running.api_port, filled, 0, _STORM, _CLIENTS):
                storm = measure(data, filled, running, reads)
            ratio = percentile(storm["page of all"].latencies_s, 0.5) / percentile(page.latencies_s, 0.5)
            print(f"  a page takes {ratio:.1f} times as long as alone")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--reads", type=int, default=200)
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    main(given.instances, given.reads, given.hosts, given.folder)
