"""Placements per CPU second, against a loop over the hosts, and how far the choices are from the best.

    PYTHONPATH=src python benchmarks/placement.py [hosts, 10000 unless said]

All hosts are in one pool, which is the hardest case. A tenth of the instances is in a group; hosts have live loads.
"""

import gc
import random
import sys
import time
from collections.abc import Callable, Iterable

from pileus.kernel.errors import NoCapacity
from pileus.kernel.ids import HostId, PoolId, ProjectId, ServerGroupId
from pileus.scheduler import Capacity, Demand, Fleet, GroupDemand, HostRole, HostView, Load, Verdict

GIB = 1024
POOL = PoolId("standard")
FLAVORS = [(1, 1, 10), (1, 2, 20), (2, 4, 40), (4, 8, 40), (4, 16, 40), (8, 16, 80)]
CHUNK = 5_000
Hosts = dict[HostId, HostView]


def hosts_with_loads(number: int, dice: random.Random) -> tuple[Hosts, Fleet]:
    fleet, hosts = Fleet(), Hosts()
    for n in range(number):
        host = HostView(
            id=HostId(f"host-{n:06}"),
            name=f"host-{n}",
            pool=POOL,
            pool_name="standard",
            physical=Capacity(vcpus=64, memory_mib=256 * GIB, disk_mib=4096 * GIB),
            cpu_overcommit=2.0,
            rack=f"rack-{n // 40}",
            roles=frozenset({HostRole.GATEWAY}) if n % 100 == 0 else frozenset(),
        )
        hosts[host.id] = host
        fleet.put_host(host)
        load = Load(cpu=dice.uniform(0, 0.6), memory=dice.uniform(0, 0.5), disk=dice.uniform(0, 0.3))
        fleet.report(host.id, load)
    return hosts, fleet


def demands(number: int, dice: random.Random) -> list[Demand]:
    made: list[Demand] = []
    for _ in range(number):
        vcpus, memory_gib, disk_gib = dice.choice(FLAVORS)
        project = dice.randrange(200)
        group = f"group-{project}-{dice.randrange(5)}"
        made.append(
            Demand(
                vcpus=vcpus,
                memory_mib=memory_gib * GIB,
                disk_mib=disk_gib * GIB,
                project=ProjectId(f"project-{project}"),
                pool=POOL,
                pool_name="standard",
                group=GroupDemand(id=ServerGroupId(group), name=group) if dice.random() < 0.1 else None,
            )
        )
    return made


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


class Loop:
    """The same choice by looking at every host."""

    def __init__(self, verdicts: list[Verdict], placed: Iterable[tuple[HostId, Demand]]) -> None:
        self.facts: dict[HostId, tuple[int, int, int, bool, float]] = {}
        for verdict in verdicts:
            host, free = verdict.host, verdict.free
            self.facts[host.id] = free.vcpus, free.memory_mib, free.disk_mib, bool(host.roles), verdict.load
        self.families: dict[str, dict[HostId, int]] = {}
        for host, demand in placed:
            for family in (demand.project, demand.group.id if demand.group is not None else None):
                if family is not None:
                    members = self.families.setdefault(family, {})
                    members[host] = members.get(host, 0) + 1

    def ranks(self, demand: Demand) -> dict[HostId, tuple[bool, int, int, float]]:
        """What the preference goes by, for every host that has room."""
        vcpus, memory_mib, disk_mib = demand.vcpus, demand.memory_mib, demand.disk_mib
        in_group = self.families.get(demand.group.id, {}) if demand.group is not None else {}
        in_project = self.families.get(demand.project, {})
        return {
            id: (avoided, in_group.get(id, 0), in_project.get(id, 0), load)
            for id, (free_vcpus, free_memory, free_disk, avoided, load) in self.facts.items()
            if vcpus <= free_vcpus and memory_mib <= free_memory and disk_mib <= free_disk
        }

    def best(self, demand: Demand) -> tuple[bool, int, int, float]:
        return min(self.ranks(demand).values())


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    dice = random.Random(2)
    hosts, fleet = hosts_with_loads(number, dice)
    wanted = [(f"instance-{n}", demand) for n, demand in enumerate(demands(12 * number, dice))]
    placed: list[HostId] = []
    gc.collect()
    gc.freeze()

    def fill(part: list[tuple[str, Demand]]) -> None:
        for name, demand in part:
            host = fleet.place(demand).host
            fleet.promise(name, host, demand)
            placed.append(host)

    def churn(part: list[tuple[str, Demand]]) -> None:
        gone = len(placed) - 6 * number
        fill(part)
        for name, _ in wanted[gone : gone + len(part)]:
            fleet.release(name)

    print(f"{number:,} hosts in one pool, {6 * number:,} instances of 200 projects, a tenth of them in groups")
    for title, work, first in (("place and promise", fill, 0), ("the same and release another", churn, 6 * number)):
        these = wanted[first : first + 6 * number]
        parts = [these[at : at + CHUNK] for at in range(0, len(these), CHUNK)]
        took = [cpu_seconds(lambda work=work, part=part: work(part)) / len(part) for part in parts]
        average, least = sum(took) / len(took), min(took)
        print(f"{title:34} {1 / average:>9,.0f} /CPU s on average, {1 / least:,.0f} in the best part")
    some = [demand for _, demand in wanted[:CHUNK]]
    alone = cpu_seconds(lambda: [fleet.place(demand) for demand in some]) / len(some)
    print(f"{'place only':34} {1 / alone:>9,.0f} /CPU s")

    alive = zip(placed[-6 * number :], (demand for _, demand in wanted[-6 * number :]), strict=True)
    loop, sample = Loop(fleet.explain(some[0]), alive), some[: max(20, 400_000 // number)]
    looped = cpu_seconds(lambda: [loop.best(demand) for demand in sample]) / len(sample)
    print(f"{'a loop over the hosts, choice only':34} {1 / looped:>9,.0f} /CPU s: {looped / alone:,.0f} times slower")

    ranks = [(loop.ranks(demand)[fleet.place(demand).host], loop.best(demand)) for demand in sample]
    same = sum(chosen[:3] == best[:3] for chosen, best in ranks)
    off = [chosen[3] - best[3] for chosen, best in ranks]
    print(f"choices as good as the loop's in role, group and project: {same} of {len(sample)}")
    print(
        f"their load above the lightest: {sum(off) / len(off):.5f} on average, {max(off):.5f} at most (1/256 = 0.0039)"
    )

    huge = Demand(vcpus=65, memory_mib=GIB, project=ProjectId("project-0"), pool=POOL, pool_name="standard")

    def refuse() -> None:
        try:
            fleet.place(huge)
        except NoCapacity:
            return

    print(f"a refusal with its reasons         {cpu_seconds(refuse) * 1e3:9.1f} ms")
    print(f"the verdict on every host          {cpu_seconds(lambda: fleet.explain(huge)) * 1e3:9.1f} ms")
    print(f"a copy, and its first placement    {cpu_seconds(lambda: fleet.copy().place(some[0])) * 1e3:9.1f} ms")
    reports = [(id, Load(cpu=dice.random(), memory=dice.random(), disk=dice.random())) for id in hosts]
    reporting = cpu_seconds(lambda: [fleet.report(id, load) for id, load in reports]) / number
    print(f"a report                           {reporting * 1e6:9.1f} us")


if __name__ == "__main__":
    main()
