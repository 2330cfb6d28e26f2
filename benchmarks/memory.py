"""What a controller holds in memory: with nothing, and with hosts and instances.

    PYTHONPATH=src python benchmarks/memory.py [--hosts 200] [--instances 10000] [--folder /var/tmp]

The controller is the daemon in a process of its own; the figure is its resident memory, its programs included, some
seconds after its start. Hosts are connected by mutual TLS from another process. An instance comes with its volume, its
port and what it is told at its first boot, as a create leaves them, and is told together with these. The ratio is to
the text of the same records, as the store keeps it.

The full size is `--hosts 1000 --instances 50000`.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from filling import Filled, fill
from processes import Controller, controller, fleet, wait_for_hosts

from pileus.state.sqlite import SqliteStore

_SETTLES_S = 3.0


def settled_mib(running: Controller) -> float:
    """Resident memory once it has come to rest."""
    time.sleep(_SETTLES_S)
    return running.rss_mib


def filled_mib(data: Path, filled: Filled) -> tuple[float, float]:
    """Resident memory without hosts, and with these connected."""
    with controller(data) as running:
        alone = settled_mib(running)
        with fleet(data, filled.hosts, running.link_port):
            wait_for_hosts(data, running.api_port, filled.platform_token, len(filled.hosts))
            return alone, settled_mib(running)


async def text_mib(data: Path) -> float:
    """All records as they are kept."""
    store = SqliteStore(data)
    await store.open()
    total = sum([sum(len(record.body) for record in batch) async for batch in store.load()])
    await store.close()
    return total / 1024**2


def main(hosts: int, instances: int, folder: Path) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        data = Path(name)
        with controller(data) as running:
            empty = settled_mib(running)
        print(f"empty                {empty:7.1f} MiB", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        data = Path(name)
        filled = asyncio.run(fill(data, hosts=hosts, instances=instances))
        alone, with_hosts = filled_mib(data, filled)
        text = asyncio.run(text_mib(data))
        print(
            f"{instances:,} instances {alone:10.1f} MiB: {1024 * (alone - empty) / instances:.1f} KiB each, "
            f"{(alone - empty) / text:.1f} times the text of their records\n"
            f"{hosts:,} hosts as well  {with_hosts:10.1f} MiB: {1024 * (with_hosts - alone) / hosts:.1f} KiB each"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    main(given.hosts, given.instances, given.folder)
