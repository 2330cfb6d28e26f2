"""The index of a fleet, from which a host is chosen: who is light, who has room, and where each family's instances are.

What may be preferred comes in this order, each only among the equals of the one before:

1. hosts that carry no gateway and no load balancer;
2. for a member of a group, what the group's policy wishes: the fewest members in the failure domain, or the most;
3. the fewest instances of the project (scatter);
4. the lightest load, in steps of 1/256 (`LOAD_STEPS`);
5. the host whose id sorts last, so that the same fleet always gives the same answer.

All of these are sets of hosts held as integers (see `bitsets`), so that a choice costs some twenty operations on
them, not a loop over the hosts.
"""

from collections.abc import Mapping

from pileus.kernel.ids import HostId, ProjectId, ServerGroupId
from pileus.scheduler.bitsets import BitSliced, bitset
from pileus.scheduler.ledger import HostLedger, Tally
from pileus.scheduler.model import Demand, Domain, GroupDemand, GroupPolicy
from pileus.scheduler.shapes import Shapes

TOGETHER = frozenset({GroupPolicy.AFFINITY, GroupPolicy.SOFT_AFFINITY})
_HARD = frozenset({GroupPolicy.AFFINITY, GroupPolicy.ANTI_AFFINITY})
_MISSES_ALLOWED = 16
"""After so many full hosts in a row, all hosts are gone through at once."""


class HostIndex:
    """Sets of hosts, derived from their ledgers. The fleet whose they are tells of every change.

    All but the numbers of instances of each family can be made anew, and is before its next use when a host has come
    that has no place in the order (`refresh`).
    """

    def __init__(self, hosts: Mapping[HostId, HostLedger]) -> None:
        self._hosts = hosts
        self._projects: dict[ProjectId, Tally] = {}
        self._groups: dict[ServerGroupId, dict[Domain, Tally]] = {}
        self._made = False
        self._order: list[HostLedger] = []
        self._room_for_hosts = 0
        self._universe = 0
        self._loads = BitSliced(0)
        self._unburdened = 0
        self._domains: dict[tuple[Domain, str], int] = {}
        self._shapes = Shapes(hosts)

    def copy(self, hosts: Mapping[HostId, HostLedger]) -> "HostIndex":
        """An index of its own for copies of the same hosts."""
        twin = HostIndex(hosts)
        twin._projects = {project: tally.copy() for project, tally in self._projects.items()}
        twin._groups = {group: {Domain.HOST: tallies[Domain.HOST].copy()} for group, tallies in self._groups.items()}
        return twin

    def add(self, host: HostLedger) -> None:
        """Take in a new host, on which nothing is promised."""
        if not self._made:
            return
        self._shapes.forget()
        self._forget_domains()
        if len(self._order) < self._room_for_hosts and (not self._order or host.id > self._order[-1].id):
            self._seat(host)
        else:
            self._made = False

    def describe(self, host: HostLedger, before: int, *, moved: bool) -> None:
        """Take new facts of a host, whose step of load was `before`; `moved`: it is in other failure domains now."""
        if not self._made:
            return
        self._loads.move(host.bit, before, host.step)
        self._unburdened &= ~host.bit
        self._unburdened |= 0 if host.view.roles else host.bit
        self._shapes.forget()
        if moved:
            self._forget_domains()

    def remove(self) -> None:
        """Forget a host on which nothing is promised, and that is without load."""
        self._shapes.forget()
        self._forget_domains()

    def weigh(self, host: HostLedger, before: int) -> None:
        """Take a host's step of load, which was `before`."""
        if self._made and host.step != before:
            self._loads.move(host.bit, before, host.step)

    def count(self, host: HostLedger, before: int, demand: Demand, number: int) -> None:
        """Count an instance in (or out of) its host's load, whose step was `before`, its project and its group."""
        bit = 1 << host.slot
        if host.step != before:
            self._loads.move(bit, before, host.step)
        family = self._projects.get(demand.project)
        if family is None:
            family = self._projects[demand.project] = Tally(self._universe)
        family.add(host.id, bit, number)
        if not family.members:
            del self._projects[demand.project]
        if demand.group is None:
            return
        tallies = self._groups.get(demand.group.id)
        if tallies is None:
            tallies = self._groups[demand.group.id] = {Domain.HOST: Tally(self._universe)}
        for domain, tally in tallies.items():
            tally.add(host.view.domain(domain), self._hosts_of(domain, host), number)
        if not tallies[Domain.HOST].members:
            del self._groups[demand.group.id]

    def take_back(self, host: HostLedger) -> None:
        """Count on a host again from which something has left, if it was left out for want of room."""
        if host.left_out:
            self._shapes.take_back(host)

    def refresh(self) -> None:
        """Give every host a place by the order of ids, and write all sets anew, if that is due."""
        if self._made:
            return
        size = len(self._hosts) + max(64, len(self._hosts) // 8)
        self._room_for_hosts, self._universe = size, (1 << size) - 1
        self._order.clear()
        self._loads, self._unburdened = BitSliced(self._universe), 0
        for id in sorted(self._hosts):
            self._seat(self._hosts[id])
        for tally in self._projects.values():
            tally.renumber(self._universe, self._hosts)
        for tallies in self._groups.values():
            tallies[Domain.HOST].renumber(self._universe, self._hosts)
        self._shapes.forget()
        self._forget_domains()
        self._made = True

    def in_project(self, project: ProjectId) -> Mapping[str, int]:
        """How many instances of a project each host has."""
        family = self._projects.get(project)
        return family.members if family is not None else {}

    def in_group(self, group: GroupDemand | None) -> Mapping[str, int]:
        """How many members of a group each failure domain has, of the kind that the demand names."""
        tally = self._tally(group) if group is not None else None
        return tally.members if tally is not None else {}

    def choose(self, demand: Demand) -> HostLedger | None:
        """The best of the hosts that fit; None if none does."""
        self.refresh()
        vcpus, memory_mib, disk_mib = demand.vcpus, demand.memory_mib, demand.disk_mib
        shape = self._shapes.of(demand, self._room_for_hosts)
        family = self._projects.get(demand.project)
        group = demand.group
        named = demand.only or demand.excluded or group is not None
        misses = 0
        while allowed := self._allowed(shape.hosts, demand) if named else shape.hosts:
            best = allowed & self._unburdened or allowed
            if group is not None:
                best = self._wished(best, group)
            if family is not None:
                best = family.numbers.least(best)
            best = self._loads.least(best)
            host = self._order[best.bit_length() - 1]
            if host.has_room(vcpus, memory_mib, disk_mib, demand.storage_pool):
                return host
            shape.leave_out(host)
            misses += 1
            if misses == _MISSES_ALLOWED:
                shape.sift(self._hosts.values())
        return None

    def _allowed(self, hosts: int, demand: Demand) -> int:
        """Those of `hosts` that the demand names and its group insists on."""
        if demand.only:
            hosts &= self._named(demand.only)
        if demand.excluded:
            hosts ^= hosts & self._named(demand.excluded)
        group = demand.group
        if group is not None and group.policy in _HARD and (tally := self._tally(group)) is not None:
            free_of_it = tally.numbers.none(hosts)
            hosts = free_of_it if group.policy is GroupPolicy.ANTI_AFFINITY else hosts ^ free_of_it
        return hosts

    def _named(self, hosts: frozenset[HostId]) -> int:
        return bitset((self._hosts[id].slot for id in hosts if id in self._hosts), self._room_for_hosts)

    def _wished(self, hosts: int, group: GroupDemand) -> int:
        """Those of `hosts` that suit the group best."""
        tally = self._tally(group)
        if tally is None:
            return hosts
        return tally.numbers.most(hosts) if group.policy in TOGETHER else tally.numbers.least(hosts)

    def _tally(self, group: GroupDemand) -> Tally | None:
        """Where the group's members are, by the domain that it asks for; None if it has none."""
        self.refresh()
        tallies = self._groups.get(group.id)
        if tallies is None:
            return None
        tally = tallies.get(group.domain)
        if tally is None:
            tally = tallies[group.domain] = Tally(self._universe)
            for id, number in tallies[Domain.HOST].members.items():
                host = self._hosts[HostId(id)]
                tally.add(host.view.domain(group.domain), self._hosts_of(group.domain, host), number)
        return tally

    def _hosts_of(self, domain: Domain, host: HostLedger) -> int:
        """All hosts in the same failure domain."""
        if domain is Domain.HOST:
            return host.bit
        key = domain, host.view.domain(domain)
        found = self._domains.get(key)
        if found is None:
            alike = (other.slot for other in self._hosts.values() if other.view.domain(domain) == key[1])
            found = self._domains[key] = bitset(alike, self._room_for_hosts)
        return found

    def _seat(self, host: HostLedger) -> None:
        host.slot = len(self._order)
        self._order.append(host)
        self._loads.move(host.bit, 0, host.step)
        self._unburdened |= 0 if host.view.roles else host.bit

    def _forget_domains(self) -> None:
        if self._domains:
            self._domains.clear()
            for tallies in self._groups.values():
                for domain in tallies.keys() - {Domain.HOST}:
                    del tallies[domain]
