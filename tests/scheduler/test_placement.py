"""What the scheduler promises to people, one sentence each."""

import msgspec
import pytest
from msgspec.structs import replace

from pileus.kernel.errors import NoCapacity
from pileus.kernel.ids import HostId, PoolId, ProjectId, ServerGroupId
from pileus.scheduler import (
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
    advise,
)

GIB = 1024
VIP, ECONOMY = PoolId("vip-id"), PoolId("economy-id")


HOST = HostView(
    id=HostId("host-0"),
    name="host-0",
    pool=VIP,
    pool_name="vip",
    physical=Capacity(vcpus=8, memory_mib=32 * GIB, disk_mib=500 * GIB),
)
DEMAND = Demand(vcpus=2, memory_mib=4 * GIB, disk_mib=20 * GIB, project=ProjectId("shop"), pool=VIP, pool_name="vip")


def host(number: int, /, **facts: object) -> HostView:
    name = f"host-{number}"
    return replace(HOST, id=HostId(name), name=name, **facts)


def demand(**wishes: object) -> Demand:
    return replace(DEMAND, **wishes)


def group(policy: GroupPolicy, domain: Domain = Domain.HOST) -> GroupDemand:
    return GroupDemand(id=ServerGroupId("web-id"), name="web", policy=policy, domain=domain)


def fleet(*hosts: HostView) -> Fleet:
    made = Fleet()
    for each in hosts:
        made.put_host(each)
    return made


def chosen(fleet: Fleet, demand: Demand) -> str:
    return fleet.place(demand).name


def run(fleet: Fleet, claim: str, demand: Demand) -> str:
    """Place and promise."""
    placement = fleet.place(demand)
    fleet.promise(claim, placement.host, demand)
    return placement.name


def refusal(fleet: Fleet, demand: Demand) -> NoCapacity:
    with pytest.raises(NoCapacity) as refused:
        fleet.place(demand)
    return refused.value


# The lightest load wins


def test_the_host_with_the_lightest_measured_load_wins() -> None:
    hosts = fleet(host(1), host(2), host(3))
    hosts.report(HostId("host-1"), Load(cpu=0.9, memory=0.2, disk=0.1))
    hosts.report(HostId("host-2"), Load(cpu=0.1, memory=0.2, disk=0.1))
    hosts.report(HostId("host-3"), Load(cpu=0.5, memory=0.2, disk=0.1))
    assert chosen(hosts, demand()) == "host-2"


def test_what_is_promised_counts_before_any_report_shows_it() -> None:
    hosts = fleet(host(1), host(2))
    hosts.promise("one", HostId("host-2"), demand(project=ProjectId("other")))
    assert chosen(hosts, demand()) == "host-1"


def test_of_two_hosts_promised_alike_the_idle_one_wins() -> None:
    hosts = fleet(host(1), host(2))
    for number in (1, 2):
        hosts.promise(f"i{number}", HostId(f"host-{number}"), demand(vcpus=8, project=ProjectId("other")))
    hosts.put_host(host(1, cpu_overcommit=2.0))
    hosts.put_host(host(2, cpu_overcommit=2.0))
    hosts.report(HostId("host-1"), Load(cpu=0.05, memory=0.1, disk=0.1, instances=frozenset({"i1"})))
    hosts.report(HostId("host-2"), Load(cpu=0.45, memory=0.1, disk=0.1, instances=frozenset({"i2"})))
    assert chosen(hosts, demand()) == "host-1"


def test_a_guest_that_a_report_covers_is_not_counted_twice() -> None:
    """Its share, all in use: the load is that share, not the double of it."""
    hosts = fleet(host(1))
    half = demand(vcpus=4, memory_mib=16 * GIB, disk_mib=250 * GIB)
    hosts.promise("one", HostId("host-1"), half)
    assert hosts.place(demand()).load == pytest.approx(0.5)
    hosts.report(HostId("host-1"), Load(cpu=0.5, memory=0.5, disk=0.5, instances=frozenset({"one"})))
    assert hosts.place(demand()).load == pytest.approx(0.5)


def test_a_guest_that_idles_lightens_its_host_with_the_next_report() -> None:
    hosts = fleet(host(1))
    hosts.promise("one", HostId("host-1"), demand(vcpus=4, memory_mib=16 * GIB, disk_mib=250 * GIB))
    hosts.report(HostId("host-1"), Load(cpu=0.1, memory=0.1, disk=0.1, instances=frozenset({"one"})))
    assert hosts.place(demand()).load == pytest.approx((0.5 + 0.1) / 2)


def test_equally_light_hosts_are_chosen_by_their_id() -> None:
    assert chosen(fleet(host(1), host(2), host(3)), demand()) == "host-3"
    assert chosen(fleet(host(3), host(1), host(2)), demand()) == "host-3"


# Scatter, and the hosts to avoid


def test_instances_of_a_project_spread_even_onto_busier_hosts() -> None:
    hosts = fleet(host(1), host(2), host(3))
    hosts.report(HostId("host-1"), Load(cpu=0.9, memory=0.9, disk=0.9))
    assert {run(hosts, f"i{n}", demand()) for n in range(3)} == {"host-1", "host-2", "host-3"}


def test_another_projects_instances_do_not_matter_for_scatter() -> None:
    hosts = fleet(host(1), host(2))
    hosts.promise("theirs", HostId("host-1"), demand(vcpus=1, project=ProjectId("other")))
    hosts.promise("ours", HostId("host-2"), demand(vcpus=1))
    hosts.report(HostId("host-1"), Load(cpu=0.6, memory=0.1, disk=0.1))
    assert chosen(hosts, demand()) == "host-1"


@pytest.mark.parametrize("role", HostRole)
def test_a_host_with_a_network_role_is_taken_only_if_nothing_else_fits(role: HostRole) -> None:
    hosts = fleet(host(1), host(2, roles=frozenset({role})))
    hosts.report(HostId("host-1"), Load(cpu=0.9, memory=0.9, disk=0.9))
    assert [run(hosts, f"i{n}", demand(vcpus=4)) for n in range(3)] == ["host-1", "host-1", "host-2"]


# Groups


def test_members_are_kept_apart_if_possible() -> None:
    hosts = fleet(host(1), host(2))
    web = demand(group=group(GroupPolicy.SOFT_ANTI_AFFINITY))
    assert sorted(run(hosts, f"i{n}", web) for n in range(3)) == ["host-1", "host-2", "host-2"]


def test_being_kept_apart_is_worth_more_than_scatter_by_project() -> None:
    hosts = fleet(host(1), host(2))
    web = demand(group=group(GroupPolicy.SOFT_ANTI_AFFINITY))
    hosts.promise("web", HostId("host-1"), web)
    for n in range(3):
        hosts.promise(f"i{n}", HostId("host-2"), demand(vcpus=1))
    assert chosen(hosts, web) == "host-2"


def test_members_are_refused_rather_than_put_together_if_the_group_is_strict() -> None:
    hosts = fleet(host(1), host(2))
    web = demand(group=group(GroupPolicy.ANTI_AFFINITY))
    assert {run(hosts, f"i{n}", web) for n in range(2)} == {"host-1", "host-2"}
    refused = refusal(hosts, web)
    assert refused.because["host-1"] == "1 of group web, to be kept apart, on it"
    assert "make the anti-affinity of group web soft" in refused.detail


def test_members_are_kept_together() -> None:
    hosts = fleet(host(1), host(2), host(3))
    web = demand(group=group(GroupPolicy.AFFINITY))
    first = run(hosts, "first", web)
    assert [run(hosts, f"i{n}", web) for n in range(3)] == [first] * 3
    assert "; 4 elsewhere" in " ".join(refusal(hosts, web).because.values())


def test_members_wished_together_go_elsewhere_when_their_host_is_full() -> None:
    hosts = fleet(host(1), host(2))
    web = demand(vcpus=4, group=group(GroupPolicy.SOFT_AFFINITY))
    first = run(hosts, "first", web)
    assert run(hosts, "second", web) == first
    assert run(hosts, "third", web) != first


def test_members_may_be_kept_apart_by_rack() -> None:
    racks = [host(1, room="a", rack="1"), host(2, room="a", rack="1"), host(3, room="b", rack="1")]
    hosts = fleet(*racks)
    web = demand(group=group(GroupPolicy.ANTI_AFFINITY, Domain.RACK))
    hosts.promise("first", HostId("host-1"), web)
    assert chosen(hosts, web) == "host-3"
    hosts.promise("second", HostId("host-3"), web)
    assert refusal(hosts, web).because["host-2"] == "1 of group web, to be kept apart, in its rack"
    hosts.put_host(host(2, room="a", rack="2"))
    assert chosen(hosts, web) == "host-2"


# What a host must be


def test_pools_isolate() -> None:
    hosts = fleet(host(1, pool=ECONOMY, pool_name="economy"))
    refused = refusal(hosts, demand())
    assert refused.because == {"host-1": "in pool economy, not vip"}
    assert refused.detail.endswith("add a host to pool vip, with at least 2 vCPUs, 4 GiB of memory and 20 GiB of disk")


def test_a_zone_and_traits_are_respected() -> None:
    hosts = fleet(host(1, zone="north", traits=frozenset({"ssd"})), host(2, zone="south", traits=frozenset({"gpu"})))
    assert chosen(hosts, demand(zone="north")) == "host-1"
    assert chosen(hosts, demand(traits=frozenset({"gpu"}))) == "host-2"
    assert refusal(hosts, demand(zone="north", traits=frozenset({"gpu"}))).because == {
        "host-1": "lacks gpu",
        "host-2": "in zone south, not north",
    }


def test_only_the_named_hosts_are_taken_and_never_the_excluded() -> None:
    hosts = fleet(host(1), host(2), host(3))
    assert chosen(hosts, demand(only=frozenset({HostId("host-1")}))) == "host-1"
    assert chosen(hosts, demand(excluded=frozenset({HostId("host-3")}))) == "host-2"
    refused = refusal(hosts, demand(only=frozenset({HostId("host-1")}), excluded=frozenset({HostId("host-1")})))
    assert refused.because["host-1"] == "excluded"


def test_a_host_out_of_service_says_why() -> None:
    hosts = fleet(host(3, out_of_service="in maintenance since 09:30"))
    refused = refusal(hosts, demand())
    assert refused.because == {"host-3": "out of service: in maintenance since 09:30"}
    assert "take host-3 back into service" in refused.detail


# Room


def test_threads_are_promised_up_to_the_ratio_and_memory_only_once() -> None:
    hosts = fleet(host(1, cpu_overcommit=2.0))
    assert len(hosts.place_all([demand(memory_mib=1 * GIB)] * 9).placements) == 8
    assert len(hosts.place_all([demand(vcpus=1, memory_mib=8 * GIB)] * 9).placements) == 4


def test_a_refusal_counts_what_is_free_and_what_is_promised() -> None:
    hosts = fleet(host(1, cpu_overcommit=2.0))
    hosts.promise("one", HostId("host-1"), demand(vcpus=8, memory_mib=30 * GIB))
    hosts.promise("two", HostId("host-1"), demand(vcpus=5, memory_mib=512))
    refused = refusal(hosts, demand(vcpus=4))
    assert refused.because == {
        "host-1": "3 of 4 vCPUs free (2:1 overcommitted, 13 of 16 promised); "
        "1.5 GiB of 4 GiB of memory free (30.5 GiB of 32 GiB promised)"
    }
    assert "free 1 vCPU and 2.5 GiB of memory on host-1" in refused.detail


def test_an_instance_is_never_larger_than_the_host_itself() -> None:
    hosts = fleet(host(1, cpu_overcommit=4.0))
    refused = refusal(hosts, demand(vcpus=9))
    assert refused.because["host-1"].startswith("too small: 8 vCPUs")
    assert "ask for 8 vCPUs, 4 GiB of memory and 20 GiB of disk, which fits on host-1" in refused.detail


def test_an_instance_without_a_local_disk_fits_where_the_disk_is_full() -> None:
    hosts = fleet(host(1))
    hosts.promise("one", HostId("host-1"), demand(disk_mib=500 * GIB))
    hosts.put_host(host(1, physical=Capacity(vcpus=8, memory_mib=32 * GIB, disk_mib=400 * GIB)))
    assert chosen(hosts, demand(disk_mib=0)) == "host-1"


def test_what_leaves_makes_room_again() -> None:
    hosts = fleet(host(1))
    assert run(hosts, "large", demand(vcpus=8)) == "host-1"
    refusal(hosts, demand())
    hosts.release("large")
    hosts.release("large")
    assert chosen(hosts, demand()) == "host-1"


# Several, and what would be if


def test_a_batch_says_how_many_fit_and_why_not_more() -> None:
    hosts = fleet(host(1), host(2))
    batch = hosts.place_all([demand(vcpus=4)] * 40)
    assert len(batch.placements) == 4
    assert batch.refusal is not None
    assert batch.refusal.because.keys() == {"host-1", "host-2"}
    assert hosts.place(demand()).load == 0, "nothing was promised"


def test_a_copy_goes_its_own_way() -> None:
    hosts = fleet(host(1), host(2))
    run(hosts, "one", demand(vcpus=8))
    what_if = hosts.copy()
    what_if.remove_host(HostId("host-1"))
    refusal(what_if, demand())
    what_if.release("one")
    assert chosen(what_if, demand()) == "host-2"
    assert chosen(hosts, demand()) == "host-1"


def test_what_is_to_have_another_size_takes_only_the_difference() -> None:
    hosts = fleet(host(1), host(2))
    hosts.promise("here", HostId("host-1"), demand(vcpus=7))
    assert hosts.refit("here", demand(vcpus=8)).fits
    hosts.promise("neighbour", HostId("host-1"), demand(vcpus=1))
    with pytest.raises(NoCapacity) as refused:
        hosts.refit("here", demand(vcpus=8))
    assert refused.value.because == {"host-1": "7 of 8 vCPUs free (1 of 8 promised)"}
    assert "free 1 vCPU on host-1, or ask for 7 vCPUs, " in refused.value.detail
    assert "host-2" not in refused.value.detail
    assert chosen(hosts, demand(vcpus=8)) == "host-2", "nothing was promised by asking"


def test_a_promise_made_twice_is_made_once_and_its_last_word_counts() -> None:
    hosts = fleet(host(1), host(2))
    hosts.promise("one", HostId("host-2"), demand(vcpus=8))
    hosts.promise("one", HostId("host-2"), demand(vcpus=8))
    hosts.promise("one", HostId("host-1"), demand(vcpus=6))
    assert {verdict.host.name: verdict.free.vcpus for verdict in hosts.explain(demand())} == {"host-1": 2, "host-2": 8}


def test_promises_outlive_their_hosts_absence() -> None:
    hosts = fleet()
    hosts.promise("one", HostId("host-1"), demand(vcpus=8))
    assert refusal(hosts, demand()).because["host-1"].startswith("out of service: not known")
    hosts.put_host(host(1))
    assert "0 of 2 vCPUs free" in refusal(hosts, demand()).because["host-1"]
    hosts.remove_host(HostId("host-1"))
    hosts.release("one")
    hosts.put_host(host(1))
    assert chosen(hosts, demand()) == "host-1"


def test_a_choice_is_explained_for_the_hosts_that_fit_as_well() -> None:
    hosts = fleet(host(1), host(2, roles=frozenset({HostRole.GATEWAY})))
    hosts.promise("one", HostId("host-1"), demand())
    assert [verdict.words for verdict in hosts.explain(demand())] == [
        "fits: load 16%, 1 of the project's instances",
        "fits: load 0%, 0 of the project's instances, avoided as gateway",
    ]


def test_asking_differently_is_advised_before_moving_guests() -> None:
    hosts = fleet(host(1, zone="north"), host(2, zone="south"))
    hosts.promise("one", HostId("host-1"), demand(vcpus=7))
    wanted = demand(zone="north")
    advice = advise(wanted, hosts.explain(wanted))
    assert [each.change for each in advice] == [Change.ZONE, Change.FREE, Change.SHRINK, Change.ADD_HOST]
    assert [each.words for each in advice[:3]] == [
        "ask for zone south",
        "free 1 vCPU on host-1",
        "ask for 1 vCPU, 4 GiB of memory and 20 GiB of disk, which fits on host-1",
    ]


def test_the_least_room_to_make_is_named() -> None:
    hosts = fleet(host(1), host(2))
    hosts.promise("one", HostId("host-1"), demand(vcpus=8))
    hosts.promise("two", HostId("host-2"), demand(vcpus=7))
    assert "free 1 vCPU on host-2" in refusal(hosts, demand()).detail


def test_verdicts_and_advice_can_be_sent() -> None:
    hosts = fleet(host(1, traits=frozenset({"ssd"})))
    verdicts = hosts.explain(demand(vcpus=9))
    assert msgspec.json.decode(msgspec.json.encode(verdicts))[0]["host"]["name"] == "host-1"
    assert msgspec.json.encode(advise(demand(vcpus=9), verdicts))


def test_a_host_that_nobody_described_is_gone_with_its_last_claim() -> None:
    hosts = fleet()
    hosts.promise("one", HostId("host-1"), demand())
    hosts.report(HostId("host-1"), Load(cpu=1, memory=1, disk=1))
    hosts.release("one")
    assert hosts.explain(demand()) == []


# Many hosts


def test_the_one_host_with_room_is_found_among_hundreds_that_are_full() -> None:
    hosts = fleet(*(host(number) for number in range(300)))
    for number in range(300):
        hosts.promise(f"i{number}", HostId(f"host-{number}"), demand(vcpus=7, project=ProjectId(f"{number}")))
    refused = refusal(hosts, demand())
    assert len(refused.because) == 50
    assert "the nearest 50 of 300 hosts are named" in refused.detail
    hosts.release("i123")
    assert chosen(hosts, demand()) == "host-123"
    assert len(hosts.place_all([demand(vcpus=1)] * 400).placements) == 299 + 8


def test_hosts_that_join_one_by_one_are_used_at_once() -> None:
    hosts = fleet()
    for number in range(200):
        newest = host(1000 + number if number % 3 else 999 - number)
        hosts.put_host(newest)
        assert run(hosts, f"i{number}", demand(vcpus=8)) == newest.name
    assert not hosts.place_all([demand()]).placements
