"""What 1,000 ports and 1,000 rules of security groups cost OVN: written, and taken in by ovn-northd.

Run it by `PYTHONPATH=src:labs:benchmarks python benchmarks/northbound.py [PORTS RULES]`.

Real ovsdb-servers and a real ovn-northd, no hosts; needs no root. Prints the time until it is written and until northd
has made logical flows of it, each with the CPU of this process (the projection and its writer), of the northbound
database and of northd; then the same for a rule more, and for a port more.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cache
from ovn_cloud import running
from ovn_lab import Database, Processes
from processes import Process
from projection import GROUPS, cloud, numbered

from pileus.cloud.securitygroups.model import Direction
from pileus.kernel.ids import HostId
from pileus.kernel.programs import run
from pileus.ovn.northbound import OvnNorthbound
from pileus.ovn.view import NetworkRecord
from pileus.state.state import put
from pileus.testing.networks import rule

_WITHIN_S = 300.0
_MORE = 20


class Bench:
    """The central daemons of OVN, and our writer."""

    def __init__(self, database: Database, daemons: Sequence[Process], northbound: OvnNorthbound) -> None:
        self._database = database
        self._daemons = daemons
        self._northbound = northbound

    async def measured(self, what: str, changes: Sequence[NetworkRecord], *, at_first: bool = False) -> None:
        """Write these records, and print what that took."""
        before = [each.cpu_s for each in self._daemons]
        began = time.monotonic()
        if at_first:
            self._northbound.load(changes, gateways=[HostId("host-0")])
        else:
            self._northbound.changed([put(record) for record in changes])
        await self._northbound.settled(timeout_s=_WITHIN_S)
        written_s = time.monotonic() - began
        ours_s = self._daemons[0].cpu_s - before[0]
        nbctl = self._database.programs("ovn-nbctl")
        await run(nbctl, f"--db={self._database.remote}", "--wait=sb", "sync", timeout_s=_WITHIN_S)
        taken_in_s = time.monotonic() - began
        spent = [each.cpu_s - was for each, was in zip(self._daemons, before, strict=True)]
        count = 1 if at_first else len(changes)
        print(
            f"{what:26} written after {written_s / count * 1e3:8.1f} ms, flows after {taken_in_s / count * 1e3:8.1f};"
            f" CPU: ours {ours_s / count * 1e3:7.1f} ms, database {spent[1] / count * 1e3:7.1f} ms,"
            f" northd {spent[2] / count * 1e3:7.1f} ms",
            flush=True,
        )


async def measure(folder: Path, ports: int, rules: int) -> None:
    processes = Processes()
    try:
        database = Database(await asyncio.to_thread(cache.programs), folder, processes)
        await database.make("nb")
        assert database.process is not None
        daemons = [Process.this(), Process(database.process.pid)]
        await database.make("sb")
        northd = processes.start(
            database.programs("ovn-northd"),
            f"--ovnnb-db={database.remote}",
            f"--ovnsb-db=unix:{folder / 'sb.sock'}",
            f"--unixctl={folder / 'northd.ctl'}",
            log=folder / "northd.log",
        )
        async with running(database.remote) as northbound:
            bench = Bench(database, [*daemons, Process(northd.pid)], northbound)
            await bench.measured(f"{ports:,} ports, {rules:,} rules", cloud(ports=ports, rules=rules), at_first=True)
            await bench.measured("each of 20 ports more", [numbered(at) for at in range(ports, ports + _MORE)])
            await bench.measured("each of 20 rules more", [opened(rules + at) for at in range(_MORE)])
    finally:
        processes.end()


def opened(at: int) -> NetworkRecord:
    group, other = f"group-{at % GROUPS}", f"group-{(at + 1) % GROUPS}"
    port = {"protocol": "tcp", "port_min": at + 1, "port_max": at + 1}
    return rule(f"rule-{at}", of=group, direction=Direction.INGRESS, remote_group_id=other, **port)


def main(ports: int, rules: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), ports, rules))


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (1000, 1000)))
