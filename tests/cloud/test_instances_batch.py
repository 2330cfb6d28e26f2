"""One request for many instances, through the API of a whole controller, on simulated hosts."""

from typing import Any

from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.instances.model import INSTANCES
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import new_id
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.workflow.task import TASKS

from .test_instances_verbs import ended, made


async def asked(cloud: SimulatedCloud, path: str, **wish: Any) -> dict[str, Any]:
    """Ask for it; the result when all tasks have ended."""
    answer = await cloud.client.post(f"/v1/instances/{path}", json=wish)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    for item in result["items"]:
        if item["task_id"]:
            assert (await ended(cloud, item["task_id"]))["state"] == "done"
    return result


async def some(cloud: SimulatedCloud, count: int, **more: Any) -> list[str]:
    return [(await made(cloud, **more)).id for _ in range(count)]


async def test_each_is_done_or_refused_with_its_reason(cloud: SimulatedCloud) -> None:
    stopped, running = await made(cloud), await made(cloud, name="other")
    await stopped.asked("stop")
    missing = new_id()
    result = await asked(cloud, "batch", action="stop", ids=[stopped.id, missing, running.id, running.id])
    assert (result["accepted"], result["refused"]) == (1, 2)
    refused, unknown, done = result["items"]
    assert (refused["name"], refused["problem"]["status"]) == ("hello", 409)
    assert (unknown["id"], unknown["problem"]["status"]) == (missing, 404)
    assert (done["id"], done["name"], done["problem"]) == (running.id, "other", None)
    assert (await running.shown())["state"] == "stopped"


async def test_instances_are_chosen_by_their_labels(cloud: SimulatedCloud) -> None:
    web = await some(cloud, 2, labels={"tier": "web", "stage": "test"})
    await some(cloud, 1, labels={"tier": "db", "stage": "test"})
    result = await asked(cloud, "batch", action="delete", labels={"tier": "web", "stage": "test"})
    assert sorted(item["id"] for item in result["items"]) == sorted(web)
    assert [each.labels["tier"] for each in cloud.state[INSTANCES]] == ["db"]


async def test_a_dry_run_shows_a_plan_for_each_and_changes_nothing(cloud: SimulatedCloud) -> None:
    ids = await some(cloud, 2)
    before = cloud.state.sequence
    result = await asked(cloud, "batch", action="stop", ids=ids, dry_run=True)
    assert [item["plan"]["summary"] for item in result["items"]] == ["stop instance hello"] * 2
    image = cloud.state[INSTANCES].get(ids[0]).image_id
    wish = {"name": "web", "image_id": image, "vcpus": 1, "memory_mib": 256}
    result = await asked(cloud, "create-many", **wish, count=2, dry_run=True)
    assert [item["plan"]["workflow"] for item in result["items"]] == ["instance.create"] * 2
    assert cloud.state.sequence == before


async def test_many_are_created_with_numbered_names(cloud: SimulatedCloud) -> None:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    wish = {"image_id": image, "vcpus": 1, "memory_mib": 256}
    for name, names in (("web", ["web-1", "web-2", "web-3"]), ("n{n}.lan", ["n1.lan", "n2.lan", "n3.lan"])):
        result = await asked(cloud, "create-many", **wish, name=name, count=3)
        assert [item["name"] for item in result["items"]] == names
        assert [cloud.state[INSTANCES].get(item["id"]).name for item in result["items"]] == names
    assert len({address for each in cloud.state[INSTANCES] for address in each.addresses}) == 6


async def test_of_many_those_are_created_for_which_there_is_quota(cloud: SimulatedCloud) -> None:
    project = (await cloud.client.get("/v1/tokens/current")).json()["project_id"]
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"instances": 2}})
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    result = await asked(cloud, "create-many", name="web", image_id=image, vcpus=1, memory_mib=256, count=3)
    assert (result["accepted"], result["refused"]) == (2, 1)
    assert result["items"][2]["problem"]["type"] == "/problems/quota-exceeded"
    assert result["items"][2]["id"] == ""


async def test_a_request_that_is_sent_again_creates_no_more(cloud: SimulatedCloud) -> None:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    wish = {"name": "web", "image_id": image, "vcpus": 1, "memory_mib": 256, "count": 3}
    headers = {"idempotency-key": "once"}
    first, second = [
        (await cloud.client.post("/v1/instances/create-many", json=wish, headers=headers)).json() for _ in range(2)
    ]
    assert first == second
    assert len(cloud.state[INSTANCES]) == 3
    for item in first["items"]:
        await ended(cloud, item["task_id"])


async def test_too_many_or_none_or_nonsense_is_refused_by_name(cloud: SimulatedCloud) -> None:
    for wish, field in (
        ({"action": "stop"}, "body"),
        ({"action": "stop", "ids": [new_id()], "labels": {"a": "b"}}, "body"),
        ({"action": "explode", "ids": [new_id()]}, "action"),
        ({"action": "stop", "ids": [new_id() for _ in range(101)]}, "ids"),
    ):
        answer = await cloud.client.post("/v1/instances/batch", json=wish)
        assert (answer.status_code, set(answer.json()["fields"])) == (400, {field})
    answer = await cloud.client.post("/v1/instances/create-many", json={"count": 101})
    assert (answer.status_code, "count" in answer.json()["fields"]) == (400, True)
    assert len(cloud.state[TASKS]) == 0


async def test_what_one_may_not_do_alone_one_may_not_do_to_many(cloud: SimulatedCloud, people: People) -> None:
    instance = await made(cloud)
    project = await people.project("other")
    stranger = await people.person(Role.MEMBER, project)
    answer = await stranger.client.post("/v1/instances/batch", json={"action": "delete", "ids": [instance.id]})
    [item] = answer.json()["items"]
    assert (item["name"], item["problem"]["status"]) == ("", 404)
    reader = await people.person(Role.READER, project)
    assert (await reader.client.post("/v1/instances/batch", json={"action": "stop", "ids": []})).status_code == 403


async def test_sixty_are_stopped_by_one_request(cloud: SimulatedCloud) -> None:
    project = (await cloud.client.get("/v1/tokens/current")).json()["project_id"]
    await cloud.client.patch(
        f"/v1/projects/{project}", json={"quota": {"instances": 100, "vcpus": 100, "volumes": 100}}
    )
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    created = await asked(cloud, "create-many", name="n", image_id=image, vcpus=1, memory_mib=64, disk_gib=1, count=60)
    assert created["refused"] == 0, next(each["problem"] for each in created["items"] if each["problem"])
    stopped = await asked(cloud, "batch", action="stop", ids=[item["id"] for item in created["items"]])
    assert stopped["accepted"] == 60


async def refused(cloud: SimulatedCloud, path: str, **wish: Any) -> dict[str, Any]:
    """The problem, when all or nothing was nothing; and nothing has changed."""
    before = [*cloud.state[INSTANCES], *cloud.state[TASKS]]
    answer = await cloud.client.post(f"/v1/instances/{path}", json={**wish, "atomic": True})
    assert answer.is_client_error or answer.status_code == 507, answer.text
    assert [*cloud.state[INSTANCES], *cloud.state[TASKS]] == before
    return answer.json()


async def test_all_are_done_by_one_task(cloud: SimulatedCloud) -> None:
    ids = await some(cloud, 3)
    result = await asked(cloud, "batch", action="stop", ids=ids, atomic=True)
    assert ([item["id"] for item in result["items"]], result["accepted"]) == (ids, 3)
    (task,) = {item["task_id"] for item in result["items"]}
    assert cloud.state[TASKS].get(task).workflow == "instance.batch"
    assert {each.state for each in cloud.state[INSTANCES]} == {"stopped"}


async def test_nothing_is_done_if_one_of_them_cannot_and_each_of_those_is_named(cloud: SimulatedCloud) -> None:
    one, other, third = await made(cloud), await made(cloud, name="other"), await made(cloud, name="third")
    for each in (other, third):
        await each.asked("pause")
    problem = await refused(cloud, "batch", action="pause", ids=[one.id, other.id, third.id])
    assert (problem["status"], set(problem["because"])) == (409, {"other", "third"})


async def test_what_cannot_be_undone_is_not_done_together(cloud: SimulatedCloud) -> None:
    one, other = await made(cloud), await made(cloud, name="other")
    for action in ("delete", "purge", "reboot", "reset"):
        problem = await refused(cloud, "batch", action=action, ids=[one.id, other.id])
        assert set(problem["because"]) == {"hello", "other"}
        assert "cannot be undone" in problem["because"]["other"]
    await other.asked("suspend")
    problem = await refused(cloud, "batch", action="stop", ids=[one.id, other.id])
    assert set(problem["because"]) == {"other"}, "what it has in memory would be lost"


async def test_none_is_created_if_there_is_quota_for_some_only(cloud: SimulatedCloud) -> None:
    project = (await cloud.client.get("/v1/tokens/current")).json()["project_id"]
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"instances": 2}})
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    wish = {"name": "web", "image_id": image, "vcpus": 1, "memory_mib": 256}
    problem = await refused(cloud, "create-many", **wish, count=4)
    assert (problem["type"], set(problem["because"])) == ("/problems/quota-exceeded", {"web-3", "web-4"})
    assert (await asked(cloud, "create-many", **wish, count=2, atomic=True))["accepted"] == 2
    assert len({address for each in cloud.state[INSTANCES] for address in each.addresses}) == 2


async def test_none_is_created_if_hosts_have_room_for_some_only_and_what_was_planned_is_free_again(
    cloud: SimulatedCloud,
) -> None:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    host = cloud.state[HOSTS].get(cloud.state[HOSTS].ids[0])
    assert host.facts is not None
    half = {"name": "big", "image_id": image, "vcpus": 1, "memory_mib": host.facts.memory_mib // 2 - 512}
    hosts = len(cloud.state[HOSTS])
    problem = await refused(cloud, "create-many", **half, count=2 * hosts + 1)
    assert (problem["status"], set(problem["because"])) == (507, {f"big-{2 * hosts + 1}"})
    wish = {**half, "count": 2 * hosts, "atomic": True, "dry_run": True}
    planned = await asked(cloud, "create-many", **wish)
    assert planned["accepted"] == 2 * hosts
    reasons = [reason for item in planned["items"] for reason in item["plan"]["because"]]
    chosen = [reason["about"] for reason in reasons if reason.get("chosen")]
    assert sorted(chosen) == sorted(2 * [host.name for host in cloud.state[HOSTS]])
    assert not cloud.state[INSTANCES]


async def test_if_one_of_them_fails_on_its_host_the_others_are_as_they_were(cloud: SimulatedCloud) -> None:
    one, other = await made(cloud), await made(cloud, name="other")
    for each in (one, other):
        await each.asked("stop")
    other.host.faults.fail("hypervisor.start", Conflict("it will not"), times=1)
    wish = {"action": "start", "ids": [one.id, other.id], "atomic": True}
    answer = await cloud.client.post("/v1/instances/batch", json=wish)
    task = await ended(cloud, answer.json()["items"][0]["task_id"])
    assert task["state"] == "undone"
    assert len(task["cause"]["because"]) == 1
    assert {each.state for each in cloud.state[INSTANCES]} == {"stopped"}


async def test_a_request_for_all_or_none_that_is_sent_again_is_done_once(cloud: SimulatedCloud) -> None:
    ids = await some(cloud, 2)
    wish = {"action": "stop", "ids": ids, "atomic": True}
    headers = {"idempotency-key": "once"}
    first, second = [await cloud.client.post("/v1/instances/batch", json=wish, headers=headers) for _ in range(2)]
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"
    other = await cloud.client.post("/v1/instances/batch", json={**wish, "action": "start"}, headers=headers)
    assert other.status_code == 409
    await ended(cloud, first.json()["items"][0]["task_id"])
    assert sum(task.workflow == "instance.batch" for task in cloud.state[TASKS]) == 1
