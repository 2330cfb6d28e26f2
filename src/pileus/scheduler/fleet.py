"""The view of all hosts that is kept incrementally, and the choice of a host from it.

What may be preferred comes in this order, each only among the equals of the one before:

1. hosts that carry no gateway and no load balancer;
2. for a member of a group, what the group's policy wishes: the fewest members in the failure domain, or the most;
3. the fewest instances of the project (scatter);
4. the lightest load, in steps of 1/256 (`LOAD_STEPS`);
5. the host whose id sorts last, so that the same fleet always gives the same answer.

All of these are sets of hosts held as integers (see `bitsets`), so that a choice costs some twenty operations on
them, not a loop over the hosts. A fleet does no I/O and belongs to one thread.
"""

from collections.abc import Iterable, Sequence
from heapq import nsmallest
from operator import attrgetter, itemgetter

import msgspec

from pileus.kernel.errors import NoCapacity
from pileus.kernel.ids import HostId, PoolId, ProjectId, ServerGroupId
from pileus.scheduler.advice import advise
from pileus.scheduler.bitsets import BitSliced, bitset
from pileus.scheduler.ledger import HostLedger, Tally
from pileus.scheduler.model import (
    Capacity,
    Demand,
    Domain,
    GroupDemand,
    GroupPolicy,
    HostView,
    Load,
    Placement,
    Weights,
)
from pileus.scheduler.verdicts import Hindrance, Kin, Verdict, judge

DEFAULT_WEIGHTS = Weights()
HARD = frozenset({GroupPolicy.AFFINITY, GroupPolicy.ANTI_AFFINITY})
TOGETHER = frozenset({GroupPolicy.AFFINITY, GroupPolicy.SOFT_AFFINITY})

_SHAPES_KEPT = 128
"""How many different demands are remembered with the hosts that have room for them."""
_MISSES_ALLOWED = 16
"""After so many full hosts in a row, all hosts are gone through at once."""
_REASONS_GIVEN = 50
"""A refusal names no more hosts than this; `explain` names all."""
_HOSTS_JUDGED = 200
"""A refusal and its advice look closely at no more hosts than this: it must be cheap in a large and full fleet, too."""


ShapeKey = tuple[PoolId, str | None, frozenset[str], str, int, int, int]


class Shape:
    """The hosts that may have room for demands of one size and kind.

    Which hosts are full is noticed when one is chosen in vain, and forgotten when something leaves it: keeping it exact
    for every size in use would make each promise as dear as there are sizes.
    """

    __slots__ = ("full", "hosts", "size")

    def __init__(self, hosts: int, demand: Demand) -> None:
        self.hosts = hosts
        self.full: set[HostLedger] = set()
        self.size = demand.vcpus, demand.memory_mib, demand.disk_mib, demand.storage_pool

    def leave_out(self, host: HostLedger) -> None:
        self.hosts ^= host.bit
        self.full.add(host)
        host.left_out = True

    def sift(self, hosts: Iterable[HostLedger]) -> None:
        """Leave out all at once that have no room."""
        for host in hosts:
            if self.hosts & host.bit and not host.has_room(*self.size):
                self.leave_out(host)

    def take_back(self, host: HostLedger) -> None:
        """Count on a host again from which something has left, if it has room now."""
        if host in self.full and host.has_room(*self.size):
            self.full.remove(host)
            self.hosts |= host.bit


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """As many placements as there is room for, in the order of the demands."""

    placements: tuple[Placement, ...]
    refusal: NoCapacity | None
    """Why the next one does not fit; None if all do."""


class Fleet:
    """All hosts with what is promised on them.

    The answers depend on the facts, the claims and the last reports only, not on the order in which they came.
    """

    def __init__(self, weights: Weights = DEFAULT_WEIGHTS) -> None:
        self._weights = weights
        self._hosts: dict[HostId, HostLedger] = {}
        self._strangers: set[HostId] = set()
        self._claims: dict[str, HostLedger] = {}
        self._projects: dict[ProjectId, Tally] = {}
        self._groups: dict[ServerGroupId, dict[Domain, Tally]] = {}
        self._indexed = False
        self._order: list[HostLedger] = []
        self._room_for_hosts = 0
        self._universe = 0
        self._loads = BitSliced(0)
        self._unburdened = 0
        self._domains: dict[tuple[Domain, str], int] = {}
        self._kinds: dict[tuple[PoolId, str | None, frozenset[str], str], int] = {}
        self._shapes: dict[ShapeKey, Shape] = {}

    def copy(self) -> "Fleet":
        """A fleet of its own, to ask what would be if."""
        twin = Fleet(self._weights)
        twin._hosts = {id: host.copy() for id, host in self._hosts.items()}
        twin._strangers = self._strangers.copy()
        twin._claims = {claim: twin._hosts[host.view.id] for claim, host in self._claims.items()}
        twin._projects = {project: tally.copy() for project, tally in self._projects.items()}
        twin._groups = {group: {Domain.HOST: tallies[Domain.HOST].copy()} for group, tallies in self._groups.items()}
        return twin

    # What is

    def put_host(self, view: HostView) -> None:
        """A new host, or new facts of a known one, whose claims and load stay."""
        host = self._hosts.get(view.id)
        self._strangers.discard(view.id)
        if host is None:
            self._add(HostLedger(view, self._weights))
        elif host.view != view:
            before = host.step
            moved = any(host.view.domain(kind) != view.domain(kind) for kind in Domain)
            host.describe(view)
            if self._indexed:
                self._loads.move(host.bit, before, host.step)
                self._unburdened &= ~host.bit
                self._unburdened |= 0 if view.roles else host.bit
                self._forget_fitting()
                if moved:
                    self._forget_domains()

    def remove_host(self, id: HostId) -> None:
        """Forget a host and its load. What is promised there counts again if it comes back, unless released before."""
        if (host := self._hosts.get(id)) is None:
            return
        self._reported(host, None)
        if host.claims:
            self.put_host(_unknown(id))
            self._strangers.add(id)
        else:
            del self._hosts[id]
            self._strangers.discard(id)
            self._forget_fitting()
            self._forget_domains()

    def report(self, host: HostId, load: Load) -> None:
        """Take a host's measured load. A host that is not known is passed over: its next report comes soon."""
        if (known := self._hosts.get(host)) is not None and host not in self._strangers:
            self._reported(known, load)

    def promise(self, claim: str, host: HostId, demand: Demand) -> None:
        """Count a demand as promised on a host, under the instance's id; of one id only the last promise counts.

        Records what was decided and refuses nothing: not a full host, nor one that is not known yet.
        """
        held = self._claims.get(claim)
        if held is not None:
            if held.id == host and held.claims[claim] == demand:
                return
            self.release(claim)
        ledger = self._hosts.get(host)
        if ledger is None:
            ledger = HostLedger(_unknown(host), self._weights)
            self._add(ledger)
            self._strangers.add(host)
        if not self._indexed:
            self._index()
        self._claims[claim] = ledger
        before = ledger.step
        ledger.take(claim, demand)
        self._count(ledger, before, demand, 1)

    def release(self, claim: str) -> None:
        """Give back what was promised under this id, if anything is."""
        ledger = self._claims.pop(claim, None)
        if ledger is None:
            return
        if not self._indexed:
            self._index()
        before = ledger.step
        demand = ledger.give_back(claim)
        self._count(ledger, before, demand, -1)
        if ledger.id in self._strangers and not ledger.claims:
            self.remove_host(ledger.id)
        if ledger.left_out:
            for shape in self._shapes.values():
                shape.take_back(ledger)
            ledger.left_out = any(ledger in shape.full for shape in self._shapes.values())

    # What would be best

    def place(self, demand: Demand) -> Placement:
        """The host to take. Promises nothing.

        Raises:
            NoCapacity: No host fits; with the reason per host and the smallest changes that would help.
        """
        host = self._choose(demand)
        if host is None:
            raise self._refusal(demand)
        return Placement(host=host.id, name=host.view.name, load=host.load)

    def place_all(self, demands: Iterable[Demand]) -> Batch:
        """Hosts for all these demands together, each chosen as if those before it were promised. Promises nothing."""
        placements: list[Placement] = []
        tried: list[str] = []
        try:
            for demand in demands:
                placement = self.place(demand)
                placements.append(placement)
                tried.append(f"place_all/{len(tried)}")
                self.promise(tried[-1], placement.host, demand)
        except NoCapacity as refusal:
            return Batch(placements=tuple(placements), refusal=refusal)
        finally:
            for claim in tried:
                self.release(claim)
        return Batch(placements=tuple(placements), refusal=None)

    def refit(self, claim: str, demand: Demand) -> Verdict:
        """What the host of a claim says to this demand in the place of what is promised. Promises nothing.

        Raises:
            NoCapacity: It does not fit; with the reason and the smallest changes that would help.
        """
        host = self._claims[claim]
        held = host.claims[claim]
        self.release(claim)
        try:
            (verdict,) = self._judge(demand, [host])
        finally:
            self.promise(claim, host.id, held)
        if not verdict.fits:
            staying = msgspec.structs.replace(demand, only=frozenset({host.id}))
            raise NoCapacity(
                f"host {host.view.name} does not fit {demand.size.words}{_would_help(staying, [verdict])}",
                because={host.view.name: verdict.words},
            )
        return verdict

    def explain(self, demand: Demand) -> list[Verdict]:
        """A verdict for every host: those that fit, in the order in which they would be taken, then the nearest misses.

        `advise` turns them into the smallest changes that would help.
        """
        return self._judge(demand, self._hosts.values())

    def _judge(self, demand: Demand, hosts: Iterable[HostLedger]) -> list[Verdict]:
        group = demand.group
        domain = group.domain if group is not None else Domain.HOST
        tally = self._tally(group) if group is not None else None
        members = tally.members if tally is not None else {}
        anywhere = sum(members.values())
        family = self._projects.get(demand.project)
        judged: list[tuple[tuple[float, ...], Verdict]] = []
        for host in sorted(hosts, key=attrgetter("id"), reverse=True):
            kin = Kin(members.get(host.view.domain(domain), 0), anywhere)
            in_project = family.members.get(host.id, 0) if family is not None else 0
            verdict = judge(demand, host, kin, in_project=in_project)
            judged.append((_rank(demand, verdict, host.step), verdict))
        judged.sort(key=itemgetter(0))
        return [verdict for _, verdict in judged]

    def _choose(self, demand: Demand) -> HostLedger | None:
        if not self._indexed:
            self._index()
        vcpus, memory_mib, disk_mib = demand.vcpus, demand.memory_mib, demand.disk_mib
        key = (demand.pool, demand.zone, demand.traits, demand.storage_pool, vcpus, memory_mib, disk_mib)
        shape = self._shapes.get(key) or self._shape(key, demand)
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
        if group is not None and group.policy in HARD and (tally := self._tally(group)) is not None:
            free_of_it = tally.numbers.none(hosts)
            hosts = free_of_it if group.policy is GroupPolicy.ANTI_AFFINITY else hosts ^ free_of_it
        return hosts

    def _wished(self, hosts: int, group: GroupDemand) -> int:
        """Those of `hosts` that suit the group best."""
        tally = self._tally(group)
        if tally is None:
            return hosts
        return tally.numbers.most(hosts) if group.policy in TOGETHER else tally.numbers.least(hosts)

    def _refusal(self, demand: Demand) -> NoCapacity:
        in_pool = [host for host in self._hosts.values() if host.view.pool == demand.pool]
        hosts = in_pool or list(self._hosts.values())
        verdicts = self._judge(demand, nsmallest(_HOSTS_JUDGED, hosts, key=lambda host: _misses_by(demand, host)))
        named = (
            f" (the nearest {_REASONS_GIVEN} of {len(hosts)} hosts are named)" if len(hosts) > _REASONS_GIVEN else ""
        )
        return NoCapacity(
            f"no host of pool {demand.pool_name} fits {demand.size.words}{_would_help(demand, verdicts)}{named}",
            because={verdict.host.name: verdict.words for verdict in verdicts[:_REASONS_GIVEN]},
        )

    # The index: everything below is derived and can be made anew

    def _index(self) -> None:
        """Give every host a place by the order of ids, and write all sets anew."""
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
        self._forget_fitting()
        self._forget_domains()
        self._indexed = True

    def _add(self, host: HostLedger) -> None:
        id = host.view.id
        self._hosts[id] = host
        if not self._indexed:
            return
        self._forget_fitting()
        self._forget_domains()
        if len(self._order) < self._room_for_hosts and (not self._order or id > self._order[-1].id):
            self._seat(host)
        else:
            self._indexed = False

    def _seat(self, host: HostLedger) -> None:
        host.slot = len(self._order)
        self._order.append(host)
        self._loads.move(host.bit, 0, host.step)
        self._unburdened |= 0 if host.view.roles else host.bit

    def _reported(self, host: HostLedger, load: Load | None) -> None:
        before = host.step
        host.report(load)
        if self._indexed and host.step != before:
            self._loads.move(host.bit, before, host.step)

    def _count(self, host: HostLedger, before: int, demand: Demand, number: int) -> None:
        """Count an instance in (or out of) its host's load, which was `before`, its project and its group."""
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

    def _tally(self, group: GroupDemand) -> Tally | None:
        """Where the group's members are, by the domain that it asks for; None if it has none."""
        if not self._indexed:
            self._index()
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

    def _named(self, hosts: frozenset[HostId]) -> int:
        return bitset((self._hosts[id].slot for id in hosts if id in self._hosts), self._room_for_hosts)

    def _shape(self, key: ShapeKey, demand: Demand) -> Shape:
        if len(self._shapes) >= _SHAPES_KEPT:
            del self._shapes[next(iter(self._shapes))]
        kind = demand.pool, demand.zone, demand.traits, demand.storage_pool
        if kind not in self._kinds:
            if len(self._kinds) >= _SHAPES_KEPT:
                del self._kinds[next(iter(self._kinds))]
            suitable = (host.slot for host in self._hosts.values() if _suits(host.view, demand))
            self._kinds[kind] = bitset(suitable, self._room_for_hosts)
        shape = self._shapes[key] = Shape(self._kinds[kind], demand)
        return shape

    def _forget_fitting(self) -> None:
        self._kinds.clear()
        self._shapes.clear()

    def _forget_domains(self) -> None:
        if self._domains:
            self._domains.clear()
            for tallies in self._groups.values():
                for domain in tallies.keys() - {Domain.HOST}:
                    del tallies[domain]


def _would_help(demand: Demand, verdicts: Sequence[Verdict]) -> str:
    advice = advise(demand, verdicts)
    return "; it would fit: " + ", or ".join(each.words for each in advice) if advice else ""


def _suits(view: HostView, demand: Demand) -> bool:
    """What decides apart from room, names and groups."""
    return (
        view.pool == demand.pool
        and view.out_of_service is None
        and (demand.zone is None or view.zone == demand.zone)
        and demand.traits <= view.traits
        and (not demand.storage_pool or demand.storage_pool in view.storage)
    )


def _misses_by(demand: Demand, host: HostLedger) -> float:
    """About how far a host is from fitting; cheap, to choose whom to judge."""
    view, whole = host.view, host.promisable
    vcpus = host.promised_vcpus + demand.vcpus - whole.vcpus
    memory_mib = host.promised_memory_mib + demand.memory_mib - whole.memory_mib
    disk_mib = demand.disk_mib - host.free(demand.storage_pool).disk_mib
    return (
        (view.out_of_service is not None)
        + (demand.zone is not None and view.zone != demand.zone)
        + len(demand.traits - view.traits)
        + (vcpus / demand.vcpus if vcpus > 0 and demand.vcpus else 0)
        + (memory_mib / demand.memory_mib if memory_mib > 0 and demand.memory_mib else 0)
        + (disk_mib / demand.disk_mib if disk_mib > 0 and demand.disk_mib else 0)
    )


def _rank(demand: Demand, verdict: Verdict, step: int) -> tuple[float, ...]:
    """The lower, the better: the order of preference of this module, below it the misses by how near they are."""
    if not verdict.fits:
        lacking = max(demand.vcpus - verdict.free.vcpus, 0) / max(demand.vcpus, 1)
        lacking += max(demand.memory_mib - verdict.free.memory_mib, 0) / max(demand.memory_mib, 1)
        return 1, Hindrance.POOL in verdict.hindrances, len(verdict.obstacles), lacking
    wish = 0
    if demand.group is not None:
        wish = -verdict.in_group if demand.group.policy in TOGETHER else verdict.in_group
    return 0, bool(verdict.host.roles), wish, verdict.in_project, step


def _unknown(id: HostId) -> HostView:
    """Stands for a host on which something is promised, but of which nothing is known."""
    nothing = Capacity()
    return HostView(id=id, name=id, pool=PoolId(""), pool_name="(none)", physical=nothing, out_of_service="not known")
