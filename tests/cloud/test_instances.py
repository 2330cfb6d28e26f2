"""Instances through the API of a whole controller, on simulated hosts."""

from typing import Any

from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.workflow.task import TASKS


async def made(cloud: SimulatedCloud, **more: Any) -> dict[str, Any]:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    wish = {"name": "hello", "image_id": image, "vcpus": 1, "memory_mib": 256, **more}
    answer = await cloud.client.post("/v1/instances", json=wish)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def ended(cloud: SimulatedCloud, answer: dict[str, Any]) -> dict[str, Any]:
    shown = await cloud.client.get(f"/v1/tasks/{answer['task_id']}?wait_s=10")
    while shown.json()["state"] == "running":
        seen = shown.headers["pileus-seen"]
        shown = await cloud.client.get(f"/v1/tasks/{answer['task_id']}?wait_s=10&seen={seen}")
    return shown.json()


async def test_a_new_instance_runs_on_its_host_with_an_address(cloud: SimulatedCloud) -> None:
    answer = await made(cloud)
    task = await ended(cloud, answer)
    assert task["state"] == "done", task
    assert [step["name"] for step in task["steps"]] == ["make_disks", "connect", "start_guest"]
    instance = (await cloud.client.get(f"/v1/instances/{answer['instance']['id']}")).json()
    assert instance["state"] == "running"
    assert instance["addresses"] == ["10.0.0.2"]
    host = next(host for host in cloud.fleet.hosts if host.id == instance["host_id"])
    assert instance["id"] in await host.hypervisor.list()


async def test_a_dry_run_shows_the_choice_and_changes_nothing(cloud: SimulatedCloud) -> None:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    before = cloud.state.sequence
    wish = {"name": "hello", "image_id": image, "vcpus": 1, "memory_mib": 256}
    plan = (await cloud.client.post("/v1/instances?dry_run=true", json=wish)).json()
    assert plan["workflow"] == "instance.create"
    assert len(plan["because"]) == 3
    assert [reason["about"] for reason in plan["because"] if reason.get("chosen")] != []
    assert cloud.state.sequence == before


async def test_a_dry_run_shows_no_secret(cloud: SimulatedCloud) -> None:
    wish = {"name": "somebody", "password": "not guessed at once"}
    plan = (await cloud.client.post("/v1/users?dry_run=true", json=wish)).json()
    assert [change["kind"] for change in plan["changes"]] == ["user", "password"]
    assert "argon2" not in str(plan)


async def test_what_fits_nowhere_is_refused_per_host_with_the_smallest_change_that_would_help(
    cloud: SimulatedCloud,
) -> None:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    wish = {"name": "huge", "image_id": image, "vcpus": 64, "memory_mib": 256}
    answer = await cloud.client.post("/v1/instances", json=wish)
    assert answer.status_code == 507
    problem = answer.json()
    assert set(problem["because"]) == {"host-1", "host-2", "host-3"}
    assert "it would fit" in problem["detail"]
    assert len(cloud.state[INSTANCES]) == 0


async def test_a_stopped_instance_keeps_its_address_and_starts_again(cloud: SimulatedCloud) -> None:
    answer = await made(cloud)
    await ended(cloud, answer)
    path = f"/v1/instances/{answer['instance']['id']}"
    for verb, state in (("stop", "stopped"), ("start", "running")):
        task = await ended(cloud, (await cloud.client.post(f"{path}/{verb}")).json())
        assert task["state"] == "done", task
        instance = (await cloud.client.get(path)).json()
        assert (instance["state"], instance["addresses"]) == (state, ["10.0.0.2"])


async def test_a_deleted_instance_leaves_nothing(cloud: SimulatedCloud) -> None:
    answer = await made(cloud)
    await ended(cloud, answer)
    deleted = await cloud.client.delete(f"/v1/instances/{answer['instance']['id']}")
    assert deleted.status_code == 202
    assert (await ended(cloud, deleted.json()))["state"] == "done"
    await nothing_left(cloud)


async def nothing_left(cloud: SimulatedCloud) -> None:
    for path in ("instances", "volumes", "ports"):
        assert (await cloud.client.get(f"/v1/{path}")).json()["items"] == []
    for host in cloud.fleet.hosts:
        assert await host.hypervisor.list() == {}
        assert await host.storage.list() == {}
        assert await host.network.list() == {}


async def test_an_instance_that_cannot_start_is_undone_and_the_task_says_why(cloud: SimulatedCloud) -> None:
    for host in cloud.fleet.hosts:
        host.faults.fail("hypervisor.start", Conflict("the machine is out of order"))
    answer = await made(cloud)
    task = await ended(cloud, answer)
    assert task["state"] in ("undoing", "undone")
    await until(lambda: cloud.state[TASKS].get(answer["task_id"]).state == "undone")
    assert task["cause"]["detail"] == "the machine is out of order"
    await nothing_left(cloud)


async def test_a_guest_that_ends_by_itself_is_seen_to_be_stopped(cloud: SimulatedCloud) -> None:
    answer = await made(cloud)
    await ended(cloud, answer)
    id = answer["instance"]["id"]
    host = next(host for host in cloud.fleet.hosts if host.id == answer["instance"]["host_id"])
    host.hypervisor.shuts_itself_down(InstanceId(id))
    await until(lambda: cloud.state[INSTANCES].get(id).state is InstanceState.STOPPED)
    assert cloud.state[INSTANCES].get(id).state_reason


async def test_the_same_idempotency_key_makes_one_instance(cloud: SimulatedCloud) -> None:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    wish = {"name": "hello", "image_id": image, "vcpus": 1, "memory_mib": 256}
    headers = {"idempotency-key": "once"}
    first = await cloud.client.post("/v1/instances", json=wish, headers=headers)
    second = await cloud.client.post("/v1/instances", json=wish, headers=headers)
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert second.headers["idempotency-replayed"] == "true"
    assert len(cloud.state[INSTANCES]) == 1
    other = await cloud.client.post("/v1/instances", json={**wish, "name": "other"}, headers=headers)
    assert other.status_code == 409


async def test_instances_of_one_project_are_spread_over_the_hosts(cloud: SimulatedCloud) -> None:
    answers = [await made(cloud, name=f"web-{n}") for n in range(4)]
    for answer in answers:
        await ended(cloud, answer)
    hosts = [answer["instance"]["host_id"] for answer in answers]
    assert len(set(hosts[:2])) == 2, "hosts without a gateway first, one each"
