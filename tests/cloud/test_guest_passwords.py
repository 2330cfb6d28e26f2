"""Passwords of users inside of instances: set through the guest's agent, and kept nowhere."""

import msgspec
import pytest

from pileus.cloud.instances.model import INSTANCES
from pileus.kernel.ids import InstanceId
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import over, refusal, running


def set_in(cloud: SimulatedCloud, instance: str) -> dict[str, str]:
    """The passwords that were set in a guest, by user."""
    return {
        user: password
        for host in cloud.fleet.hosts
        for (guest, user), password in host.hypervisor.passwords.items()
        if guest == instance
    }


async def test_a_password_that_is_made_up_is_shown_once(
    cloud: SimulatedCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    instance = (await running(cloud, cloud.client))["id"]
    path = f"/v1/instances/{instance}/password"
    first, second = [(await cloud.client.post(path, json={})).json() for _ in range(2)]
    assert first["user"] == "root"
    assert len(first["password"]) == 20
    assert first["password"] != second["password"]
    assert set_in(cloud, instance) == {"root": second["password"]}
    events = await cloud.client.get(f"/v1/events?id={instance}&limit=1000")
    assert [each["operation"] for each in events.json()["items"][-2:]] == ["instance.reset_password"] * 2
    record = msgspec.json.encode(cloud.state[INSTANCES].get(instance)).decode()
    for said in (events.text, record, "".join(capsys.readouterr())):
        assert first["password"] not in said
        assert second["password"] not in said


async def test_a_password_that_is_given_does_not_come_back(cloud: SimulatedCloud) -> None:
    instance = (await running(cloud, cloud.client))["id"]
    wish = {"user": "ann", "password": "correct horse"}
    answer = await cloud.client.post(f"/v1/instances/{instance}/password", json=wish)
    assert answer.json() == {"user": "ann"}
    assert set_in(cloud, instance) == {"ann": "correct horse"}


@pytest.mark.parametrize(
    "wish",
    [
        {"user": "root:x"},
        {"user": ""},
        {"user": "a\nb"},
        {"user": "-e"},
        {"user": "x" * 65},
        {"password": "short"},
        {"password": "x" * 129},
        {"password": "line\nroot:taken over"},
        {"password": "nothing\x00after"},
    ],
)
async def test_what_could_mean_something_else_in_the_guest_is_refused(
    cloud: SimulatedCloud, wish: dict[str, str]
) -> None:
    instance = (await running(cloud, cloud.client))["id"]
    answer = await cloud.client.post(f"/v1/instances/{instance}/password", json=wish)
    assert refusal(answer) == (400, "invalid", set(wish))
    assert set_in(cloud, instance) == {}


async def test_without_an_agent_that_answers_nothing_is_set(cloud: SimulatedCloud) -> None:
    instance = (await running(cloud, cloud.client))["id"]
    for host in cloud.fleet.hosts:
        host.hypervisor.deaf.add(InstanceId(instance))
    answer = await cloud.client.post(f"/v1/instances/{instance}/password", json={})
    assert refusal(answer)[:2] == (409, "conflict")
    assert "agent" in answer.json()["detail"]
    for host in cloud.fleet.hosts:
        host.hypervisor.deaf.clear()
    stopped = await cloud.client.post(f"/v1/instances/{instance}/stop")
    await over(cloud, stopped.json()["task_id"])
    answer = await cloud.client.post(f"/v1/instances/{instance}/password", json={})
    assert refusal(answer)[:2] == (409, "conflict")
    assert set_in(cloud, instance) == {}


async def test_it_is_for_members_of_the_instances_project(cloud: SimulatedCloud, people: People) -> None:
    member = await people.person(Role.MEMBER, await people.project("one"))
    reader = await people.person(Role.READER, member.project_id)
    stranger = await people.person(Role.ADMIN, await people.project("two"))
    instance = (await running(cloud, member.client))["id"]
    path = f"/v1/instances/{instance}/password"
    assert [(await each.client.post(path, json={})).status_code for each in (reader, stranger, member)] == [
        403,
        404,
        200,
    ]
