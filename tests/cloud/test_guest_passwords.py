"""Passwords of users inside of instances: set through the guest's agent, and kept nowhere."""

import httpx2
import msgspec
import pytest

from pileus.cloud.instances.model import INSTANCES, PASSWORD_CHANGES
from pileus.cloud.instances.shadow import sha512_crypt
from pileus.cloud.instances.specs import root_volume
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
    paused = await cloud.client.post(f"/v1/instances/{instance}/pause")
    await over(cloud, paused.json()["task_id"])
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


async def stopped(cloud: SimulatedCloud, client: httpx2.AsyncClient) -> str:
    id = (await running(cloud, client))["id"]
    answer = await client.post(f"/v1/instances/{id}/stop")
    assert (await over(cloud, answer.json()["task_id"])).state == "done"
    return id


def on_disk(cloud: SimulatedCloud, instance: str) -> dict[str, str]:
    """The hashes that were set in the disk that a guest boots from, by user."""
    root = root_volume(cloud.state, cloud.state[INSTANCES].get(instance)).id
    return {
        user: hash
        for host in cloud.fleet.hosts
        for (path, user), hash in host.hypervisor.appliance.hashes.items()
        if root in path
    }


async def test_the_password_of_a_stopped_instance_is_set_in_its_disk_and_only_its_hash_leaves_the_controller(
    cloud: SimulatedCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    id = await stopped(cloud, cloud.client)
    answer = await cloud.client.post(f"/v1/instances/{id}/password", json={})
    assert answer.status_code == 202
    made_up = answer.json()["password"]
    assert (answer.json()["user"], len(made_up)) == ("root", 20)
    task = await over(cloud, answer.json()["task_id"])
    assert (task.state, task.workflow) == ("done", "instance.set_password")
    (hash,) = on_disk(cloud, id).values()
    _, _, rounds, salt, _ = hash.split("$")
    assert hash == sha512_crypt(made_up, salt, rounds=int(rounds.removeprefix("rounds=")))
    assert (set_in(cloud, id), list(cloud.state[PASSWORD_CHANGES])) == ({}, [])
    assert cloud.state[INSTANCES].get(id).busy_with == ""
    events = await cloud.client.get("/v1/events?limit=1000")
    shown = await cloud.client.get(f"/v1/tasks/{task.id}")
    for said in (events.text, shown.text, "".join(capsys.readouterr())):
        assert made_up not in said
        assert hash not in said


async def test_a_password_that_was_given_is_not_told_again_with_the_task(cloud: SimulatedCloud) -> None:
    id = await stopped(cloud, cloud.client)
    answer = await cloud.client.post(f"/v1/instances/{id}/password", json={"user": "ann", "password": "correct horse"})
    assert set(answer.json()) == {"user", "task_id"}


async def test_what_a_disk_does_not_have_undoes_the_task_with_the_reason(cloud: SimulatedCloud) -> None:
    id = await stopped(cloud, cloud.client)
    for host in cloud.fleet.hosts:
        host.hypervisor.appliance.users[InstanceId(id)] = frozenset({"root"})
    answer = await cloud.client.post(f"/v1/instances/{id}/password", json={"user": "ann"})
    task = await over(cloud, answer.json()["task_id"])
    assert task.state == "undone"
    assert task.cause is not None
    assert "no such user" in task.cause.detail
    assert (on_disk(cloud, id), list(cloud.state[PASSWORD_CHANGES])) == ({}, [])
    started = await cloud.client.post(f"/v1/instances/{id}/start", json={})
    assert (await over(cloud, started.json()["task_id"])).state == "done"


async def test_nothing_else_is_done_with_an_instance_while_its_disk_is_looked_into(cloud: SimulatedCloud) -> None:
    id = await stopped(cloud, cloud.client)
    path = f"/v1/instances/{id}"
    for host in cloud.fleet.hosts:
        host.faults.hold("hypervisor.set_password_in_disk")
    assert (await cloud.client.post(f"{path}/password", json={})).status_code == 202
    for verb, wish in (("start", {}), ("password", {}), ("resize", {"vcpus": 2, "memory_mib": 512})):
        assert refusal(await cloud.client.post(f"{path}/{verb}", json=wish))[:2] == (409, "conflict")
    assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")


@pytest.mark.parametrize(
    ("password", "salt", "rounds", "hash"),
    [
        (
            "Hello world!",
            "saltstringsaltst",
            10_000,
            "OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.",
        ),
        (
            "a very much longer text to encrypt.  This one even stretches over morethan one line.",
            "anotherlongsalts",
            1400,
            "POfYwTEok97VWcjxIiSOjiykti.o/pQs.wPvMxQ6Fm7I6IoYN3CmLs66x9t0oSwbtEW7o7UmJEiDwGqd8p4ur1",
        ),
        (
            "we have a short salt string but not a short password",
            "short",
            77_777,
            "WuQyW2YR.hBNpjjRhpYD/ifIw05xdfeEyQoMxIXbkvr0gge1a1x3yRULJ5CCaUeOxFmtlcGZelFl5CxtgfiAc0",
        ),
    ],
)
def test_a_hash_is_that_of_the_specification(password: str, salt: str, rounds: int, hash: str) -> None:
    assert sha512_crypt(password, salt, rounds=rounds) == f"$6$rounds={rounds}${salt}${hash}"


async def test_a_dry_run_says_where_it_would_be_set_and_sets_nothing(cloud: SimulatedCloud) -> None:
    running_one, stopped_one = (
        (await running(cloud, cloud.client, name="web"))["id"],
        await stopped(cloud, cloud.client),
    )
    for host in cloud.fleet.hosts:
        host.hypervisor.deaf.add(InstanceId(running_one))
    before = [*cloud.state[INSTANCES], *cloud.state[PASSWORD_CHANGES]]
    for id, would in (
        (running_one, "set the password of root in instance web, if its guest agent answers"),
        (stopped_one, "set the password of root in the disk of instance hello"),
    ):
        answer = await cloud.client.post(f"/v1/instances/{id}/password", json={"dry_run": True})
        assert (answer.status_code, answer.json()) == (200, {"user": "root", "would": would})
    assert [*cloud.state[INSTANCES], *cloud.state[PASSWORD_CHANGES]] == before
    assert (set_in(cloud, running_one), on_disk(cloud, stopped_one)) == ({}, {})
    paused = await cloud.client.post(f"/v1/instances/{running_one}/pause")
    await over(cloud, paused.json()["task_id"])
    answer = await cloud.client.post(f"/v1/instances/{running_one}/password", json={"dry_run": True})
    assert refusal(answer)[:2] == (409, "conflict")
