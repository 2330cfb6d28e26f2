"""What the projection to OVN costs: everything from nothing, and one port more. `python benchmarks/projection.py`.

Prints processor time, and the ratio of the two in the same run; nothing is written to a database, but the JSON of the
transaction is made.
"""

import resource
import sys
import time
import tracemalloc
from collections.abc import Callable

import msgspec

from pileus.cloud.securitygroups.model import Direction
from pileus.kernel.ids import HostId
from pileus.ovn.pending import Pending, joined
from pileus.ovn.projection import project_everything
from pileus.ovn.rows import difference, operations
from pileus.ovn.view import NetworkRecord, View
from pileus.state.state import put
from pileus.testing.networks import group, port, router, rule, subnet, vpc

NETWORKS, GROUPS, ADDED = 10, 20, 500


def cloud(*, ports: int, rules: int) -> list[NetworkRecord]:
    """Networks with a router each, ports spread over them, and rules spread over groups."""
    networks = [vpc(f"net-{at}") for at in range(NETWORKS)]
    subnets = [subnet(f"sub-{at}", of=f"net-{at}", cidr="10.0.0.0/8", gateway="10.0.0.1") for at in range(NETWORKS)]
    routers = [router(f"router-{at}", subnets=[f"sub-{at}"]) for at in range(NETWORKS)]
    groups = [group(f"group-{at}") for at in range(GROUPS)]
    opened = [
        rule(
            f"rule-{at}",
            of=f"group-{at % GROUPS}",
            direction=Direction.INGRESS,
            protocol="tcp",
            port_min=at + 1,
            port_max=at + 1,
            remote_group_id=f"group-{(at + 1) % GROUPS}",
        )
        for at in range(rules)
    ]
    return [*networks, *subnets, *routers, *groups, *opened, *(numbered(at) for at in range(ports))]


def numbered(at: int) -> NetworkRecord:
    return port(
        f"0199aa00-0000-7000-8000-{at:012x}",
        of=f"net-{at % NETWORKS}",
        mac=f"02:00:00:{at >> 16:02x}:{at >> 8 & 255:02x}:{at & 255:02x}",
        at=[(f"sub-{at % NETWORKS}", f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}")],
        groups=[f"group-{at % GROUPS}"],
        host=f"host-{at % 100}",
        hostname=f"vm-{at}",
    )


def spent_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(*, ports: int, rules: int) -> None:
    records = cloud(ports=ports, rules=rules)
    tracemalloc.start()
    view = View(records, gateways=[HostId("host-0")])
    view_mib = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()

    rows = project_everything(view)
    full_s = spent_s(lambda: project_everything(view))
    compare_s = spent_s(lambda: difference(rows, rows))
    write_s = spent_s(lambda: msgspec.json.encode(operations(difference({}, rows))))

    pending = Pending(view)
    more = [numbered(at) for at in range(ports, ports + ADDED)]
    sizes: list[int] = []

    def add_each() -> None:
        for record in more:
            pending.take([put(record)])
            change = joined(pending.pop())
            sizes.append(len(msgspec.json.encode(operations(change))))

    each_s = spent_s(add_each) / ADDED
    print(f"{ports:,} ports, {rules:,} rules: {len(rows):,} rows and elements")
    print(f"  everything projected       {full_s * 1e3:10.1f} ms CPU  ({full_s / len(rows) * 1e6:.1f} us each)")
    print(f"  compared with itself       {compare_s * 1e3:10.1f} ms CPU")
    print(f"  written as one transaction {write_s * 1e3:10.1f} ms CPU")
    print(f"  one port more              {each_s * 1e6:10.1f} us CPU  ({sum(sizes) // ADDED} bytes of JSON)")
    print(f"  everything / one port more {full_s / each_s:10,.0f}")
    print(f"  view and indexes           {view_mib:10.1f} MiB beside the records")


if __name__ == "__main__":
    for count in map(int, sys.argv[1:] or ["1000", "50000"]):
        measure(ports=count, rules=1000)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
