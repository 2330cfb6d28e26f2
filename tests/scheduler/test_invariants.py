"""What holds for every fleet and every demand, checked against a loop over plain dictionaries."""

from collections.abc import Sequence
from functools import partial
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pileus.kernel.errors import NoCapacity
from pileus.kernel.ids import HostId, PoolId, ProjectId, ServerGroupId
from pileus.scheduler import (
    Advice,
    Capacity,
    Change,
    Demand,
    Domain,
    Fleet,
    GroupDemand,
    GroupPolicy,
    HostRole,
    HostView,
    Load,
    Verdict,
    advise,
)
from pileus.scheduler.bitsets import BitSliced, bitset

ONE_STEP = 1 / 256
HOSTS = [HostId(f"host-{n}") for n in range(7)]
CLAIMS = [f"instance-{n}" for n in range(12)]
POOLS = st.sampled_from([PoolId("vip"), PoolId("economy")])
ZONES = st.sampled_from(["north", "south"])
TRAITS = st.frozensets(st.sampled_from(["gpu", "ssd"]))
SHARES = st.floats(0, 1)


@st.composite
def views(draw: st.DrawFn, hosts: Sequence[HostId] = HOSTS) -> HostView:
    id, pool = draw(st.sampled_from(hosts)), draw(POOLS)
    return HostView(
        id=id,
        name=id,
        pool=pool,
        pool_name=pool,
        physical=Capacity(
            vcpus=draw(st.integers(1, 8)), memory_mib=draw(st.integers(1, 8)), disk_mib=draw(st.integers(0, 8))
        ),
        cpu_overcommit=draw(st.sampled_from([1.0, 1.5, 2.0])),
        memory_overcommit=draw(st.sampled_from([1.0, 1.5])),
        zone=draw(ZONES),
        rack=draw(st.sampled_from(["", "1"])),
        traits=draw(TRAITS),
        roles=draw(st.frozensets(st.sampled_from(HostRole), max_size=1)),
        out_of_service=draw(st.sampled_from([None, None, None, "in maintenance"])),
    )


groups = st.builds(
    GroupDemand,
    id=st.sampled_from([ServerGroupId("web"), ServerGroupId("db")]),
    name=st.just("a group"),
    policy=st.sampled_from(GroupPolicy),
    domain=st.sampled_from([Domain.HOST, Domain.RACK, Domain.ZONE]),
)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    pool = draw(POOLS)
    return Demand(
        vcpus=draw(st.integers(1, 5)),
        memory_mib=draw(st.integers(1, 4)),
        disk_mib=draw(st.integers(0, 2)),
        project=draw(st.sampled_from([ProjectId("shop"), ProjectId("lab")])),
        pool=pool,
        pool_name=pool,
        zone=draw(st.none() | ZONES),
        traits=draw(st.sampled_from([frozenset[str](), frozenset[str](), frozenset({"gpu"})])),
        group=draw(st.none() | groups),
        only=draw(st.just(frozenset[HostId]()) | st.frozensets(st.sampled_from(HOSTS), max_size=3)),
        excluded=draw(st.just(frozenset[HostId]()) | st.frozensets(st.sampled_from(HOSTS), max_size=2)),
    )


loads = st.builds(Load, cpu=SHARES, memory=SHARES, disk=SHARES, instances=st.frozensets(st.sampled_from(CLAIMS)))


class Plain:
    """The same facts in plain dictionaries, with a loop for an answer."""

    def __init__(self) -> None:
        self.views: dict[HostId, HostView] = {}
        self.claims: dict[str, tuple[HostId, Demand]] = {}
        self.reports: dict[HostId, Load] = {}

    def fresh(self, random: Random) -> Fleet:
        """A fleet that is told all this in some other order."""
        fleet = Fleet()
        telling = [partial(fleet.put_host, view) for view in self.views.values()]
        telling += [partial(fleet.promise, claim, host, demand) for claim, (host, demand) in self.claims.items()]
        for tell in random.sample(telling, len(telling)):
            tell()
        for host, load in self.reports.items():
            fleet.report(host, load)
        return fleet

    def promised(self, host: HostId) -> Capacity:
        mine = [demand for at, demand in self.claims.values() if at == host]
        return Capacity(
            vcpus=sum(demand.vcpus for demand in mine),
            memory_mib=sum(demand.memory_mib for demand in mine),
            disk_mib=sum(demand.disk_mib for demand in mine),
        )

    def members_near(self, group: GroupDemand, view: HostView) -> int:
        return sum(
            demand.group is not None
            and demand.group.id == group.id
            and at in self.views
            and self.views[at].domain(group.domain) == view.domain(group.domain)
            for at, demand in self.claims.values()
        )

    def has_members(self, group: GroupDemand) -> bool:
        return any(demand.group is not None and demand.group.id == group.id for _, demand in self.claims.values())

    def fits(self, demand: Demand, view: HostView) -> bool:
        promised, whole, group = self.promised(view.id), view.promisable, demand.group
        return (
            view.out_of_service is None
            and view.pool == demand.pool
            and demand.zone in {None, view.zone}
            and demand.traits <= view.traits
            and (not demand.only or view.id in demand.only)
            and view.id not in demand.excluded
            and demand.vcpus <= min(whole.vcpus - promised.vcpus, view.physical.vcpus)
            and demand.memory_mib <= min(whole.memory_mib - promised.memory_mib, view.physical.memory_mib)
            and (demand.disk_mib <= whole.disk_mib - promised.disk_mib or demand.disk_mib == 0)
            and not (
                group is not None and group.policy is GroupPolicy.ANTI_AFFINITY and self.members_near(group, view) > 0
            )
            and not (
                group is not None
                and group.policy is GroupPolicy.AFFINITY
                and self.has_members(group)
                and self.members_near(group, view) == 0
            )
        )

    def load(self, view: HostView) -> float:
        """The mean of what is promised and what is in use, of the resources as they are weighed."""
        report = self.reports.get(view.id, Load(cpu=0, memory=0, disk=0))
        whole, total = view.promisable, 0.0
        for weight, measured, capacity, resource in (
            (2, report.cpu, whole.vcpus, "vcpus"),
            (2, report.memory, whole.memory_mib, "memory_mib"),
            (1, report.disk, whole.disk_mib, "disk_mib"),
        ):
            promised = unseen = 0
            for claim, (at, demand) in self.claims.items():
                if at == view.id:
                    promised += getattr(demand, resource)
                    unseen += 0 if claim in report.instances else getattr(demand, resource)
            shares = (promised + unseen) / capacity if capacity else 0
            total += weight / 5 * (shares + measured) / 2
        return total

    def preference(self, demand: Demand, view: HostView) -> tuple[bool, int, int]:
        """Everything that goes before load."""
        wish = 0
        if demand.group is not None:
            wish = self.members_near(demand.group, view)
            if demand.group.policy in {GroupPolicy.AFFINITY, GroupPolicy.SOFT_AFFINITY}:
                wish = -wish
        in_project = sum(at == view.id and it.project == demand.project for at, it in self.claims.values())
        return bool(view.roles), wish, in_project


@st.composite
def histories(draw: st.DrawFn, *, forced: bool = True) -> tuple[Fleet, Plain]:
    """A fleet that has been through some things, and the same in plain dictionaries.

    Unless `forced`, promises are only made where the fleet said so, and hosts do not change.
    """
    fleet, plain = Fleet(), Plain()
    kinds = ["take"] * 4 + ["release", "report"] + (["put", "put", "force", "remove"] if forced else [])
    for view in draw(st.lists(views(), min_size=1, max_size=7, unique_by=lambda view: view.id)):
        fleet.put_host(view)
        plain.views[view.id] = view
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=25)):
        host, claim = draw(st.sampled_from(HOSTS)), draw(st.sampled_from(CLAIMS))
        match kind:
            case "put":
                view = draw(views())
                fleet.put_host(view)
                plain.views[view.id] = view
            case "remove":
                fleet.remove_host(host)
                plain.views.pop(host, None)
                plain.reports.pop(host, None)
            case "report":
                load = draw(loads)
                fleet.report(host, load)
                if host in plain.views:
                    plain.reports[host] = load
            case "release":
                fleet.release(claim)
                plain.claims.pop(claim, None)
            case "force":
                demand = draw(demands())
                fleet.promise(claim, host, demand)
                plain.claims[claim] = host, demand
            case _:
                fleet.release(claim)
                plain.claims.pop(claim, None)
                if (chosen := placed(fleet, demand := draw(demands()))) is not None:
                    fleet.promise(claim, chosen, demand)
                    plain.claims[claim] = chosen, demand
    return fleet, plain


def placed(fleet: Fleet, demand: Demand) -> HostId | None:
    try:
        return fleet.place(demand).host
    except NoCapacity:
        return None


def known(verdicts: Sequence[Verdict], plain: Plain) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.host.id in plain.views]


@given(histories(), demands())
@settings(max_examples=40)
def test_the_choice_is_the_best_that_fits(history: tuple[Fleet, Plain], demand: Demand) -> None:
    fleet, plain = history
    fitting = [view for view in plain.views.values() if plain.fits(demand, view)]
    chosen = placed(fleet, demand)
    assert (chosen is None) == (not fitting)
    if chosen is None:
        return
    view = plain.views[chosen]
    assert view in fitting
    best = min(plain.preference(demand, other) for other in fitting)
    assert plain.preference(demand, view) == best
    lightest = min(plain.load(other) for other in fitting if plain.preference(demand, other) == best)
    assert min(plain.load(view), 1) <= min(lightest, 1) + ONE_STEP


@given(histories(), demands())
@settings(max_examples=40)
def test_the_explanation_agrees_with_the_choice(history: tuple[Fleet, Plain], demand: Demand) -> None:
    fleet, plain = history
    verdicts = fleet.explain(demand)
    chosen = placed(fleet, demand)
    assert (verdicts[0].host.id if verdicts and verdicts[0].fits else None) == chosen
    for verdict in known(verdicts, plain):
        assert verdict.fits == plain.fits(demand, verdict.host)
        assert abs(verdict.load - plain.load(verdict.host)) < 1e-9
    assert {verdict.host.id for verdict in known(verdicts, plain)} == plain.views.keys()


@given(histories(forced=False))
@settings(max_examples=40)
def test_no_more_is_promised_than_there_is(history: tuple[Fleet, Plain]) -> None:
    _, plain = history
    for view in plain.views.values():
        promised, whole = plain.promised(view.id), view.promisable
        assert promised.vcpus <= whole.vcpus
        assert promised.memory_mib <= whole.memory_mib
        assert promised.disk_mib <= whole.disk_mib


@given(histories(), st.lists(demands(), min_size=1, max_size=5))
@settings(max_examples=40)
def test_giving_back_restores_everything(history: tuple[Fleet, Plain], wanted: list[Demand]) -> None:
    fleet, _ = history
    before = [fleet.explain(demand) for demand in wanted], [placed(fleet, demand) for demand in wanted]
    for number, demand in enumerate(wanted):
        if (chosen := placed(fleet, demand)) is not None:
            fleet.promise(f"passing-{number}", chosen, demand)
    for number in range(len(wanted)):
        fleet.release(f"passing-{number}")
    assert ([fleet.explain(demand) for demand in wanted], [placed(fleet, demand) for demand in wanted]) == before


@given(histories(), st.lists(demands(), min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_only_the_facts_matter_not_how_they_came(
    history: tuple[Fleet, Plain], wanted: list[Demand], random: Random
) -> None:
    fleet, plain = history
    fresh, twin = plain.fresh(random), fleet.copy()
    for demand in wanted:
        assert fresh.explain(demand) == fleet.explain(demand) == twin.explain(demand)
        assert placed(fresh, demand) == placed(fleet, demand) == placed(twin, demand)


@given(histories(), demands(), st.integers(0, 6))
@settings(max_examples=40)
def test_a_batch_is_as_if_placed_one_by_one(history: tuple[Fleet, Plain], demand: Demand, number: int) -> None:
    fleet, _ = history
    batch = fleet.place_all([demand] * number)
    one_by_one: list[HostId] = []
    while len(one_by_one) < number and (chosen := placed(fleet, demand)) is not None:
        fleet.promise(f"of-batch-{len(one_by_one)}", chosen, demand)
        one_by_one.append(chosen)
    assert [placement.host for placement in batch.placements] == one_by_one
    assert (batch.refusal is None) == (len(one_by_one) == number)


def taken(fleet: Fleet, plain: Plain, demand: Demand, advice: Advice) -> Demand:
    """The demand as advised, after the fleet has been changed as advised."""
    view = plain.views[advice.host] if advice.host is not None else None
    size = advice.capacity or demand.size
    match advice.change:
        case Change.SOFTEN:
            assert demand.group is not None
            soft = GroupPolicy(f"soft-{demand.group.policy}")
            return replace(demand, group=replace(demand.group, policy=soft))
        case Change.WIDEN:
            assert view is not None
            return replace(demand, only=demand.only | {view.id})
        case Change.ZONE:
            assert view is not None
            return replace(demand, zone=view.zone)
        case Change.TRAITS:
            assert view is not None
            return replace(demand, traits=demand.traits & view.traits)
        case Change.SHRINK:
            return replace(demand, vcpus=size.vcpus, memory_mib=size.memory_mib, disk_mib=size.disk_mib)
        case Change.RESTORE:
            assert view is not None
            fleet.put_host(replace(view, out_of_service=None))
        case Change.FREE:
            assert view is not None
            plain_room = view.promisable
            larger = Capacity(
                vcpus=plain_room.vcpus + size.vcpus,
                memory_mib=plain_room.memory_mib + size.memory_mib,
                disk_mib=plain_room.disk_mib + size.disk_mib,
            )
            fleet.put_host(replace(view, physical=larger, cpu_overcommit=1.0, memory_overcommit=1.0))
        case Change.ADD_HOST:
            new = HostView(
                id=HostId("new"),
                name="new",
                pool=demand.pool,
                pool_name=demand.pool_name,
                physical=size,
                zone=demand.zone or "a zone of its own",
                rack="a rack of its own",
                traits=demand.traits,
            )
            fleet.put_host(new)
    return demand


@given(histories(), demands())
@settings(max_examples=40)
def test_advice_that_is_taken_makes_it_fit(history: tuple[Fleet, Plain], demand: Demand) -> None:
    fleet, plain = history
    if placed(fleet, demand) is not None:
        return
    advice = advise(demand, fleet.explain(demand))
    for each in advice:
        changed = fleet.copy()
        wanted = taken(changed, plain, demand, each)
        where = each.host or "new"
        assert [verdict.fits for verdict in changed.explain(wanted) if verdict.host.id == where] == [True], each.words
        assert placed(changed, wanted) is not None, each.words


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 300)), max_size=30), st.integers(1, 2**10 - 1))
def test_sliced_numbers_find_the_least_and_the_most(moves: list[tuple[int, int]], among: int) -> None:
    sliced, numbers = BitSliced(2**10 - 1), [0] * 10
    for position, number in moves:
        sliced.move(1 << position, numbers[position], number)
        numbers[position] = number
    chosen = {position: numbers[position] for position in range(10) if among >> position & 1}
    least, most = min(chosen.values()), max(chosen.values())
    assert sliced.least(among) == bitset((n for n in chosen if chosen[n] == least), 10)
    assert sliced.most(among) == bitset((n for n in chosen if chosen[n] == most), 10)
    assert sliced.none(among) == bitset((n for n in chosen if chosen[n] == 0), 10)
