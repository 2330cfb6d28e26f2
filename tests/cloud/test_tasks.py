"""Tasks: shown, waited for, cancelled, listed."""

import asyncio

from pileus.cloud.instances.model import INSTANCES
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import TaskId
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.testing.people import People
from pileus.testing.requests import begun, items, over, refusal, running, shown


def nobody_can_start(cloud: SimulatedCloud) -> None:
    for host in cloud.fleet.hosts:
        host.faults.fail("hypervisor.start", Unavailable("the machine does not answer"), times=1000)


async def starting(cloud: SimulatedCloud, task: str) -> None:
    """Wait until the guest is being started."""
    engine = cloud.controller.engine
    await until(lambda: (live := engine.live(TaskId(task))) is not None and live.step == "start_guest")


async def test_a_cancelled_creation_is_undone_with_all_it_had_made(cloud: SimulatedCloud) -> None:
    nobody_can_start(cloud)
    task = await begun(cloud.client)
    path = f"tasks/{task['task_id']}"
    await starting(cloud, task["task_id"])
    waiting = (await shown(cloud.client, path))["running"]
    assert waiting["step"] == "start_guest"
    assert (await cloud.client.post(f"/v1/{path}/cancel")).status_code == 204
    ended = await over(cloud, task["task_id"])
    assert (ended.state, ended.cancelled) == ("undone", True)
    assert ended.cause is not None
    assert ended.cause.code == "cancelled"
    assert all(step.undone_at for step in ended.steps)
    assert len(cloud.state[INSTANCES]) == 0
    for host in cloud.fleet.hosts:
        assert await host.storage.list() == {}
    assert refusal(await cloud.client.post(f"/v1/{path}/cancel"))[:2] == (409, "conflict")


async def test_a_reader_watches_and_cancels_nothing(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("one")
    member, reader = await people.person(Role.MEMBER, project), await people.person(Role.READER, project)
    nobody_can_start(cloud)
    task = await begun(member.client)
    assert (await shown(reader.client, f"tasks/{task['task_id']}"))["state"] == "running"
    assert refusal(await reader.client.post(f"/v1/tasks/{task['task_id']}/cancel"))[:2] == (403, "forbidden")
    await member.client.post(f"/v1/tasks/{task['task_id']}/cancel")
    await over(cloud, task["task_id"])


async def test_waiting_answers_at_once_when_there_is_news_and_with_the_end(cloud: SimulatedCloud) -> None:
    nobody_can_start(cloud)
    task = await begun(cloud.client)
    path = f"/v1/tasks/{task['task_id']}"
    await starting(cloud, task["task_id"])
    stale = await cloud.client.get(f"{path}?wait_s=60&seen=1.0")
    assert stale.json()["state"] == "running", "what has changed since is told without waiting"
    seen = (await cloud.client.get(path)).headers["pileus-seen"]
    waiting = asyncio.gather(*(cloud.client.get(f"{path}?wait_s=60&seen={seen}") for _ in range(3)))
    await asyncio.sleep(0)
    await cloud.client.post(f"{path}/cancel")
    for answer in await waiting:
        assert answer.headers["pileus-seen"] != seen
    await over(cloud, task["task_id"])
    ended = await cloud.client.get(f"{path}?wait_s=60&seen={seen}")
    assert ended.json()["state"] == "undone", "what has ended is not waited for"


async def test_waiting_ends_when_its_time_is_over(cloud: SimulatedCloud) -> None:
    nobody_can_start(cloud)
    task = await begun(cloud.client)
    await starting(cloud, task["task_id"])
    for wrong in ("-1", "61", "nan", "inf", "soon"):
        answer = await cloud.client.get(f"/v1/tasks/{task['task_id']}?wait_s={wrong}")
        assert refusal(answer) == (400, "invalid", {"wait_s"})
    path = f"/v1/tasks/{task['task_id']}"
    seen = (await cloud.client.get(path)).headers["pileus-seen"]
    assert (await cloud.client.get(f"{path}?wait_s=0.01&seen={seen}")).status_code == 200
    await cloud.client.post(f"{path}/cancel")
    await over(cloud, task["task_id"])


async def test_tasks_are_found_by_state_workflow_and_subject(cloud: SimulatedCloud) -> None:
    one, two = await running(cloud, cloud.client), await running(cloud, cloud.client)
    stopped = await cloud.client.post(f"/v1/instances/{one['id']}/stop")
    await over(cloud, stopped.json()["task_id"])

    async def found(query: str) -> list[tuple[str, str]]:
        return sorted((each["workflow"], each["subject_id"]) for each in await items(cloud.client, f"tasks?{query}"))

    assert await found(f"subject_id={one['id']}") == [("instance.create", one["id"]), ("instance.stop", one["id"])]
    assert await found("workflow=instance.create") == sorted(("instance.create", each["id"]) for each in (one, two))
    assert await found("state=done&workflow=instance.stop") == [("instance.stop", one["id"])]
    assert await found("state=running") == []


async def test_the_newest_task_is_listed_first(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    stopped = await cloud.client.post(f"/v1/instances/{instance['id']}/stop")
    await over(cloud, stopped.json()["task_id"])

    async def listed(query: str = "") -> list[str]:
        found = await items(cloud.client, f"tasks?subject_id={instance['id']}{query}")
        return [each["workflow"] for each in found]

    assert await listed() == ["instance.stop", "instance.create"]
    assert await listed("&sort=created_at") == ["instance.create", "instance.stop"]


async def test_a_task_shows_neither_its_arguments_nor_what_its_steps_gave(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    (listed,) = await items(cloud.client, f"tasks?subject_id={instance['id']}")
    task = await shown(cloud.client, f"tasks/{listed['id']}")
    assert not {"arguments", "output"} & {*task, *(field for step in task["steps"] for field in step)}
