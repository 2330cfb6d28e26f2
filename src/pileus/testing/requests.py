"""Requests that tests make again and again, and how answers are read."""

from typing import Any

import httpx2
import msgspec

from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.tasks.operations import ShownTask
from pileus.kernel.errors import error_class
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.workflow.task import TASKS, UNFINISHED

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@home"

_PROBLEM = {"type", "title", "status", "detail", "fields", "because", "request"}


def refusal(answer: httpx2.Response) -> tuple[int, str, set[str]]:
    """Status, code and wrong fields of a refusal, which must be a problem as RFC 9457 has it."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert set(problem) <= _PROBLEM
    assert problem["status"] == answer.status_code
    assert problem["request"] == answer.headers["pileus-request"]
    assert problem["title"]
    code = problem["type"].removeprefix("/problems/")
    if answer.status_code != 405:
        assert error_class(code).status == answer.status_code
    return answer.status_code, code, set(problem.get("fields", {}))


async def made(client: httpx2.AsyncClient, plural: str, **wish: Any) -> dict[str, Any]:  # noqa: ANN401 - a JSON body
    """A new record, by POST to its collection."""
    answer = await client.post(f"/v1/{plural}", json=wish)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def shown(client: httpx2.AsyncClient, path: str) -> Any:  # noqa: ANN401 - a JSON body
    """What GET answers."""
    answer = await client.get(f"/v1/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def items(client: httpx2.AsyncClient, path: str) -> list[dict[str, Any]]:
    """The first page of a list."""
    return (await shown(client, path))["items"]


async def begun(client: httpx2.AsyncClient, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """A small instance of the public image, accepted: `task_id` and `instance`."""
    image = next(each for each in await items(client, "images") if each["public"])
    wish = {"name": "hello", "image_id": image["id"], "vcpus": 1, "memory_mib": 256, **more}
    answer = await client.post("/v1/instances", json=wish)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def running(cloud: SimulatedCloud, client: httpx2.AsyncClient, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """A small instance that runs."""
    id = (await begun(client, **more))["instance"]["id"]
    await until(lambda: cloud.state[INSTANCES].get(id).state is InstanceState.RUNNING)
    return await shown(client, f"instances/{id}")


async def over(cloud: SimulatedCloud, task_id: str) -> ShownTask:
    """A task when it has ended."""
    await until(lambda: cloud.state[TASKS].get(task_id).state not in UNFINISHED)
    answer = await cloud.client.get(f"/v1/tasks/{task_id}")
    return msgspec.json.decode(answer.content, type=ShownTask)


async def gone(cloud: SimulatedCloud, client: httpx2.AsyncClient, id: str) -> None:
    """Delete an instance and wait until it is no more."""
    answer = await client.delete(f"/v1/instances/{id}")
    assert answer.status_code == 202, answer.text
    await until(lambda: id not in cloud.state[INSTANCES])


async def at_rest(cloud: SimulatedCloud) -> None:
    """Wait until no task is at work."""
    await until(lambda: not any(cloud.state[TASKS].count_by("state", state) for state in UNFINISHED))


async def asked(cloud: SimulatedCloud, method: str, path: str, **wish: Any) -> dict[str, Any]:  # noqa: ANN401
    """What is answered, when the task that was begun has ended."""
    answer = await cloud.client.request(method, f"/v1/{path}", json=wish or None)
    assert answer.status_code == 202, answer.text
    await at_rest(cloud)
    return answer.json()
