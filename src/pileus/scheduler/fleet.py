"""All hosts with what is promised on them, kept in step with the records; who is to have the next instance, and why.

A fleet does no I/O and belongs to one thread.
"""

from collections.abc import Iterable, Sequence
from heapq import nsmallest
from operator import attrgetter, itemgetter

import msgspec

from pileus.kernel.errors import NoCapacity
from pileus.kernel.ids import HostId, PoolId
from pileus.scheduler.advice import advise
from pileus.scheduler.index import TOGETHER, HostIndex
from pileus.scheduler.ledger import HostLedger
from pileus.scheduler.model import Capacity, Demand, Domain, HostView, Load, Placement, Weights
from pileus.scheduler.verdicts import Hindrance, Kin, Verdict, judge

DEFAULT_WEIGHTS = Weights()

_REASONS_GIVEN = 50
"""A refusal names no more hosts than this; `explain` names all."""
_HOSTS_JUDGED = 200
"""A refusal and its advice look closely at no more hosts than this: it must be cheap in a large and full fleet, too."""


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
        self._index = HostIndex(self._hosts)

    def copy(self) -> "Fleet":
        """A fleet of its own, to ask what would be if."""
        twin = Fleet(self._weights)
        twin._hosts.update((id, host.copy()) for id, host in self._hosts.items())
        twin._strangers = self._strangers.copy()
        twin._claims = {claim: twin._hosts[host.view.id] for claim, host in self._claims.items()}
        twin._index = self._index.copy(twin._hosts)
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
            self._index.describe(host, before, moved=moved)

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
            self._index.remove()

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
        self._index.refresh()
        self._claims[claim] = ledger
        before = ledger.step
        ledger.take(claim, demand)
        self._index.count(ledger, before, demand, 1)

    def release(self, claim: str) -> None:
        """Give back what was promised under this id, if anything is."""
        ledger = self._claims.pop(claim, None)
        if ledger is None:
            return
        self._index.refresh()
        before = ledger.step
        demand = ledger.give_back(claim)
        self._index.count(ledger, before, demand, -1)
        if ledger.id in self._strangers and not ledger.claims:
            self.remove_host(ledger.id)
        self._index.take_back(ledger)

    # What would be best

    def place(self, demand: Demand) -> Placement:
        """The host to take. Promises nothing.

        Raises:
            NoCapacity: No host fits; with the reason per host and the smallest changes that would help.
        """
        host = self._index.choose(demand)
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
        members = self._index.in_group(group)
        anywhere = sum(members.values())
        family = self._index.in_project(demand.project)
        judged: list[tuple[tuple[float, ...], Verdict]] = []
        for host in sorted(hosts, key=attrgetter("id"), reverse=True):
            kin = Kin(members.get(host.view.domain(domain), 0), anywhere)
            verdict = judge(demand, host, kin, in_project=family.get(host.id, 0))
            judged.append((_rank(demand, verdict, host.step), verdict))
        judged.sort(key=itemgetter(0))
        return [verdict for _, verdict in judged]

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

    def _add(self, host: HostLedger) -> None:
        self._hosts[host.id] = host
        self._index.add(host)

    def _reported(self, host: HostLedger, load: Load | None) -> None:
        before = host.step
        host.report(load)
        self._index.weigh(host, before)


def _would_help(demand: Demand, verdicts: Sequence[Verdict]) -> str:
    advice = advise(demand, verdicts)
    return "; it would fit: " + ", or ".join(each.words for each in advice) if advice else ""


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
    """The lower, the better: the order of preference of `index`, below it the misses by how near they are."""
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
