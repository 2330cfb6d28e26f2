"""Schedules of snapshots through the API of a whole controller, on simulated hosts and by a clock of their own."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.schedules.model import SCHEDULES, RunResult, Schedule
from pileus.cloud.schedules.reconcilers import PATIENCE
from pileus.cloud.snapshots.model import SNAPSHOTS, SnapshotState
from pileus.cloud.volumes.model import VOLUMES
from pileus.kernel.clock import FrozenClock, SystemClock
from pileus.kernel.errors import Conflict
from pileus.operations.caller import Role
from pileus.testing.cloud import KEEPING, SimulatedCloud, simulated_cloud
from pileus.testing.fleet import SimulatedAgent, SimulatedFleet
from pileus.testing.invariants import dangling
from pileus.testing.links import until
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import at_rest, made, refusal, running
from pileus.workflow.task import TASKS

HOUR = timedelta(hours=1)


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
async def cloud(tmp_path: Path, clock: FrozenClock) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=1, store=MemoryStore(), clock=clock) as cloud:
        yield cloud
        assert dangling(cloud.state) == []


async def look(cloud: SimulatedCloud, *, times: int = 1) -> None:
    """Have the controller look at its schedules, as it does every minute, and let come what comes of it."""
    for _ in range(times):
        await cloud.controller.housekeeping.once()
        await at_rest(cloud)


async def scheduled(cloud: SimulatedCloud, **wish: Any) -> Schedule:
    """A schedule, of a running instance unless it is said otherwise."""
    if "volume_id" not in wish and "instance_id" not in wish:
        wish["instance_id"] = (await running(cloud, cloud.client))["id"]
    wish = {"name": "often", "keep_last": 2, **({"every_hours": 1} if "time_utc" not in wish else {}), **wish}
    return cloud.state[SCHEDULES].get((await made(cloud.client, "schedules", **wish))["id"])


def now(cloud: SimulatedCloud, schedule: Schedule) -> Schedule:
    return cloud.state[SCHEDULES].get(schedule.id)


def result(cloud: SimulatedCloud, schedule: Schedule) -> RunResult | None:
    run = now(cloud, schedule).last_run
    return None if run is None else run.result


def names(cloud: SimulatedCloud) -> list[str]:
    return [each.name for each in cloud.state[SNAPSHOTS]]


async def change(cloud: SimulatedCloud, schedule: Schedule, **wish: Any) -> None:
    answer = await cloud.client.patch(f"/v1/schedules/{schedule.id}", json=wish)
    assert answer.status_code == 200, answer.text


async def test_a_snapshot_is_taken_when_it_is_due_and_not_before(cloud: SimulatedCloud, clock: FrozenClock) -> None:
    schedule = await scheduled(cloud, every_hours=6)
    assert schedule.next_run_at == clock.now() + 6 * HOUR
    clock.advance(6 * HOUR - timedelta(seconds=1))
    await look(cloud)
    assert not names(cloud)
    clock.advance(timedelta(seconds=1))
    await look(cloud, times=2)
    (snapshot,) = cloud.state[SNAPSHOTS]
    assert (snapshot.name, snapshot.state) == ("often-20260101T0600Z", SnapshotState.AVAILABLE)
    assert (snapshot.schedule_id, snapshot.instance_id) == (schedule.id, schedule.instance_id)
    shown = (await cloud.client.get(f"/v1/schedules/{schedule.id}")).json()
    assert shown["next_run_at"] == "2026-01-01T12:00:00Z"
    assert (shown["last_run"]["result"], shown["last_run"]["snapshot_id"]) == ("taken", snapshot.id)
    task = cloud.state[TASKS].get(shown["last_run"]["task_id"])
    assert task.actor == f"schedule:{schedule.id}"


async def test_backups_are_made_compared_with_the_last_one_and_kept_as_long_as_they_are_wanted(
    cloud: SimulatedCloud, clock: FrozenClock
) -> None:
    schedule = await scheduled(cloud, makes="backups")
    clock.advance(HOUR)
    await look(cloud)
    refused = now(cloud, schedule).last_run
    assert refused is not None
    assert (refused.result, "no storage pool" in refused.detail) == (RunResult.REFUSED, True)
    await made(cloud.client, "storage-pools", name="vault", path="/srv/vault", purposes=["backups"])
    await until(lambda: bool(cloud.fleet.hosts[0].backings.pools))
    await look(cloud, times=2)
    for _ in range(3):
        clock.advance(HOUR)
        await look(cloud, times=3)
    second, third = cloud.state[BACKUPS]
    assert (second.name, third.name) == ("often-20260101T0300Z", "often-20260101T0400Z")
    assert third.volumes[0].since == second.id
    assert (third.schedule_id, not cloud.state[SNAPSHOTS].ids) == (schedule.id, True)
    run = now(cloud, schedule).last_run
    assert run is not None
    assert (run.result, run.backup_id, run.snapshot_id) == (RunResult.TAKEN, third.id, None)
    assert (await cloud.client.delete(f"/v1/schedules/{schedule.id}")).is_success
    assert [each.schedule_id for each in cloud.state[BACKUPS]] == [None, None]


@pytest.mark.parametrize(
    ("wish", "wrong"),
    [
        ({"makes": "backups", "memory": True}, "memory"),
        ({"storage_pool": "vault"}, "storage_pool"),
        ({"makes": "backups", "storage_pool": "local"}, "storage_pool"),
        ({"makes": "backups", "storage_pool": "nowhere"}, "storage_pool"),
    ],
)
async def test_what_a_schedule_of_backups_cannot_be_is_refused(
    cloud: SimulatedCloud, wish: dict[str, Any], wrong: str
) -> None:
    instance = await running(cloud, cloud.client)
    if wish.get("storage_pool") == "vault":
        await made(cloud.client, "storage-pools", name="vault", path="/srv/vault", purposes=["backups"])
    whole = {"name": "often", "keep_last": 2, "every_hours": 1, "instance_id": instance["id"], **wish}
    assert refusal(await cloud.client.post("/v1/schedules", json=whole))[2] == {wrong}


async def test_what_is_no_longer_to_be_kept_is_deleted_and_nothing_of_anybody_else(
    cloud: SimulatedCloud, clock: FrozenClock
) -> None:
    schedule = await scheduled(cloud)
    wish = {"name": "by hand", "instance_id": schedule.instance_id}
    assert (await cloud.client.post("/v1/snapshots", json=wish)).status_code == 202
    await at_rest(cloud)
    for _ in range(4):
        clock.advance(HOUR)
        await look(cloud, times=3)
    assert names(cloud) == ["by hand", "often-20260101T0300Z", "often-20260101T0400Z"]
    assert cloud.fleet.hosts[0].storage.layering.of.keys() == {
        cloud.state[SNAPSHOTS].by("schedule", schedule.id)[0].volume_ids[0]
    }


async def test_nothing_is_deleted_before_a_new_one_is_there(cloud: SimulatedCloud, clock: FrozenClock) -> None:
    schedule = await scheduled(cloud, keep_last=1)
    clock.advance(HOUR)
    await look(cloud, times=2)
    cloud.fleet.hosts[0].faults.fail("layering.lay", Conflict("the storage pool is full"))
    clock.advance(HOUR)
    await look(cloud, times=3)
    run = now(cloud, schedule).last_run
    assert run is not None
    assert (run.result, run.snapshot_id) == (RunResult.FAILED, None)
    assert "the storage pool is full" in run.detail
    assert names(cloud) == ["often-20260101T0100Z"]
    clock.advance(HOUR)
    await look(cloud, times=3)
    assert names(cloud) == ["often-20260101T0300Z"]


async def test_a_full_quota_is_the_result_and_is_tried_again_for_an_hour(
    cloud: SimulatedCloud, clock: FrozenClock
) -> None:
    schedule = await scheduled(cloud, every_hours=24)
    project = f"/v1/projects/{schedule.project_id}"
    assert (await cloud.client.patch(project, json={"quota": {"snapshots": 0}})).is_success
    clock.advance(24 * HOUR)
    await look(cloud, times=2)
    refused = now(cloud, schedule)
    assert refused.last_run is not None
    assert refused.last_run.result is RunResult.REFUSED
    assert "quota" in refused.last_run.detail
    assert refused.next_run_at == refused.last_run.due_at
    told = [event for event in (await events(cloud, schedule)) if event["actor"] == f"schedule:{schedule.id}"]
    assert len(told) == 1, "what is refused again and again is told once"
    assert (await cloud.client.patch(project, json={"quota": {"snapshots": 9}})).is_success
    await look(cloud, times=2)
    assert result(cloud, schedule) is RunResult.TAKEN
    assert (await cloud.client.patch(project, json={"quota": {"snapshots": 1}})).is_success
    clock.advance(24 * HOUR)
    await look(cloud)
    clock.advance(PATIENCE)
    await look(cloud)
    assert now(cloud, schedule).next_run_at == schedule.created_at + 72 * HOUR


async def events(cloud: SimulatedCloud, schedule: Schedule) -> list[dict[str, Any]]:
    return (await cloud.client.get(f"/v1/events?id={schedule.id}")).json()["items"]


async def test_two_schedules_of_one_instance_at_one_time_both_come_to_theirs(
    cloud: SimulatedCloud, clock: FrozenClock
) -> None:
    one = await scheduled(cloud, name="one")
    other = await scheduled(cloud, name="other", instance_id=one.instance_id)
    clock.advance(HOUR)
    await look(cloud)
    assert result(cloud, other) is RunResult.REFUSED
    await look(cloud, times=2)
    assert [result(cloud, each) for each in (one, other)] == [RunResult.TAKEN, RunResult.TAKEN]


def held(host: SimulatedAgent, call: str, patch: pytest.MonkeyPatch) -> asyncio.Event:
    """Hold what a host does until the event is set."""
    gate, before = asyncio.Event(), host.faults.before

    async def wait(name: str) -> None:
        if name == call:
            await gate.wait()
        await before(name)

    patch.setattr(host.faults, "before", wait)
    return gate


async def test_a_schedule_does_not_overlap_itself_and_says_so(
    cloud: SimulatedCloud, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = await scheduled(cloud)
    gate = held(cloud.fleet.hosts[0], "layering.lay", monkeypatch)
    for _ in range(2):
        clock.advance(HOUR)
        await cloud.controller.housekeeping.once()
    run = now(cloud, schedule).last_run
    assert run is not None
    assert (run.result, run.skipped) == (RunResult.RUNNING, 1)
    gate.set()
    await at_rest(cloud)
    await look(cloud)
    assert result(cloud, schedule) is RunResult.TAKEN
    assert len(names(cloud)) == 1


async def test_what_was_missed_while_no_controller_ran_is_made_up_for_once(tmp_path: Path, clock: FrozenClock) -> None:
    store, fleet = MemoryStore(), SimulatedFleet(1, clock=SystemClock())
    async with simulated_cloud(tmp_path, fleet=fleet, store=store, clock=clock) as cloud:
        schedule = await scheduled(cloud, time_utc="02:30", keep_last=7)
    clock.advance(timedelta(days=3))
    async with simulated_cloud(tmp_path, fleet=fleet, store=MemoryStore(store.disk), clock=clock) as cloud:
        await at_rest(cloud)
        await look(cloud, times=3)
        after = now(cloud, schedule)
        assert after.last_run is not None
        assert after.last_run.result is RunResult.TAKEN
        assert after.last_run.due_at == schedule.next_run_at
        assert f"{after.next_run_at:%m-%d %H:%M}" == "01-04 02:30"
        assert len(names(cloud)) == 1
        assert dangling(cloud.state) == []


async def test_a_run_that_a_controller_began_is_ended_by_the_next(
    tmp_path: Path, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, fleet = MemoryStore(), SimulatedFleet(1, clock=SystemClock())
    async with simulated_cloud(tmp_path, fleet=fleet, store=store, clock=clock) as cloud:
        schedule = await scheduled(cloud)
        gate = held(fleet.hosts[0], "layering.lay", monkeypatch)
        clock.advance(HOUR)
        await cloud.controller.housekeeping.once()
        assert result(cloud, schedule) is RunResult.RUNNING
    gate.set()
    async with simulated_cloud(tmp_path, fleet=fleet, store=MemoryStore(store.disk), clock=clock) as cloud:
        await at_rest(cloud)
        await look(cloud)
        assert result(cloud, schedule) is RunResult.TAKEN
        assert len(names(cloud)) == 1
        assert dangling(cloud.state) == []


async def test_a_schedule_that_is_not_enabled_does_nothing_and_makes_up_for_nothing(
    cloud: SimulatedCloud, clock: FrozenClock
) -> None:
    schedule = await scheduled(cloud, enabled=False)
    assert schedule.next_run_at is None
    clock.advance(5 * HOUR)
    await look(cloud)
    await change(cloud, schedule, enabled=True)
    await look(cloud)
    assert not names(cloud)
    assert now(cloud, schedule).next_run_at == clock.now() + HOUR
    await change(cloud, schedule, time_utc="04:00", weekday="sunday")
    changed = now(cloud, schedule)
    assert (changed.every_hours, f"{changed.next_run_at:%m-%d %H:%M}") == (None, "01-04 04:00")


async def test_a_dry_run_says_which_snapshots_a_change_gives_up(cloud: SimulatedCloud, clock: FrozenClock) -> None:
    schedule = await scheduled(cloud, keep_last=3)
    for _ in range(3):
        clock.advance(HOUR)
        await look(cloud, times=2)
    wish = {"keep_last": 1}
    shown = (await cloud.client.patch(f"/v1/schedules/{schedule.id}?dry_run=true", json=wish)).json()
    assert [each["about"] for each in shown["because"]] == [f"snapshot {name}" for name in names(cloud)[:2]]
    await change(cloud, schedule, **wish)
    await look(cloud, times=2)
    assert names(cloud) == ["often-20260101T0300Z"]


async def test_the_snapshots_of_a_schedule_outlive_it(cloud: SimulatedCloud, clock: FrozenClock) -> None:
    schedule = await scheduled(cloud)
    clock.advance(HOUR)
    await look(cloud)
    assert (await cloud.client.delete(f"/v1/schedules/{schedule.id}")).status_code == 204
    await look(cloud)
    (snapshot,) = cloud.state[SNAPSHOTS]
    assert snapshot.schedule_id is None


async def test_a_schedule_goes_with_its_instance_and_with_its_volume(cloud: SimulatedCloud) -> None:
    schedule = await scheduled(cloud)
    boot = cloud.state[VOLUMES].by("instance", schedule.instance_id)[0]
    data = await made(cloud.client, "volumes", name="data", size_gib=1)
    for volume in (boot.id, data["id"]):
        await scheduled(cloud, volume_id=volume)
    assert len(cloud.state[SCHEDULES]) == 3
    for path in (f"instances/{schedule.instance_id}", f"volumes/{data['id']}"):
        assert (await cloud.client.delete(f"/v1/{path}")).status_code == 202
        await at_rest(cloud)
    assert not len(cloud.state[SCHEDULES])


async def test_an_instance_that_is_deleted_for_a_day_is_told_of_and_taken_again_when_it_is_back(
    tmp_path: Path, clock: FrozenClock
) -> None:
    async with simulated_cloud(tmp_path, hosts=1, store=MemoryStore(), clock=clock, settings=KEEPING) as cloud:
        schedule = await scheduled(cloud)
        path = f"/v1/instances/{schedule.instance_id}"
        assert (await cloud.client.delete(path)).status_code == 202
        await at_rest(cloud)
        clock.advance(HOUR)
        await look(cloud)
        run = now(cloud, schedule).last_run
        assert run is not None
        assert (run.result, "is deleted" in run.detail) == (RunResult.REFUSED, True)
        assert (await cloud.client.post(f"{path}/undelete")).status_code == 202
        await at_rest(cloud)
        await look(cloud, times=2)
        assert result(cloud, schedule) is RunResult.TAKEN
        assert cloud.state[INSTANCES].get(schedule.instance_id or "").busy_with == ""


@pytest.mark.parametrize(
    ("wish", "fields"),
    [
        ({}, {"keep_last", "name"}),
        ({"name": "x", "keep_last": 1}, {"instance_id", "volume_id", "every_hours", "time_utc"}),
        (
            {
                "name": "x",
                "keep_last": 1,
                "instance_id": "me",
                "volume_id": "me",
                "every_hours": 1,
                "time_utc": "02:30",
            },
            {"volume_id", "every_hours"},
        ),
        (
            {"name": "x", "keep_last": 1, "volume_id": "me", "memory": True, "weekday": "sunday"},
            {"memory", "time_utc", "weekday"},
        ),
        (
            {
                "name": "x",
                "keep_last": 0,
                "keep_daily": -1,
                "every_hours": 169,
                "time_utc": "24:00",
                "weekday": "someday",
            },
            {"keep_last", "keep_daily", "every_hours", "time_utc", "weekday"},
        ),
    ],
)
async def test_every_wrong_field_is_named(cloud: SimulatedCloud, wish: dict[str, Any], fields: set[str]) -> None:
    id = "0" * 8 + "-0000-7000-8000-" + "0" * 12
    wish = {name: id if value == "me" else value for name, value in wish.items()}
    assert refusal(await cloud.client.post("/v1/schedules", json=wish)) == (400, "invalid", fields)


async def test_a_wrong_change_is_refused(cloud: SimulatedCloud) -> None:
    volume = await made(cloud.client, "volumes", name="data", size_gib=1)
    schedule = await scheduled(cloud, volume_id=volume["id"])
    wish = {"memory": True, "weekday": "sunday"}
    answer = await cloud.client.patch(f"/v1/schedules/{schedule.id}", json=wish)
    assert refusal(answer) == (400, "invalid", {"memory", "weekday", "time_utc"})


async def test_a_schedule_is_no_way_to_snapshots_for_who_may_not_take_them(
    cloud: SimulatedCloud, people: People
) -> None:
    project = await people.project("ours")
    admin = await people.person(Role.ADMIN, project)
    volume = await made(admin.client, "volumes", name="data", size_gib=1)
    scope = ["schedule.create", "schedule.change", "snapshot.create"]
    token = await made(admin.client, "tokens", name="narrow", permissions=scope)
    wish = {"name": "x", "volume_id": volume["id"], "every_hours": 1, "keep_last": 1}
    headers = {"authorization": f"Bearer {token['token']}"}
    answer = await admin.client.post("/v1/schedules", json=wish, headers=headers)
    assert refusal(answer)[:2] == (403, "forbidden")
    assert "snapshot.delete" in answer.json()["detail"]
