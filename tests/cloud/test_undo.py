"""Undoing what a request did, from the log."""

from typing import Any

import httpx2
import pytest

from pileus.cloud.networks.model import NETWORKS
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import KEY, gone, items, made, over, refusal, running, shown


async def last(client: httpx2.AsyncClient, id: str) -> int:
    """The sequence number of the newest event of a record."""
    found = await items(client, f"events?id={id}&limit=1000")
    return (found or await items(client, f"events?id={id}&limit=1000&all_projects=true"))[-1]["sequence"]


async def undo(client: httpx2.AsyncClient, sequence: int, query: str = "") -> httpx2.Response:
    return await client.post(f"/v1/events/undo{query}", json={"sequence": sequence})


async def undone(client: httpx2.AsyncClient, sequence: int) -> dict[str, Any]:
    answer = await undo(client, sequence)
    assert answer.status_code == 200, answer.text
    return answer.json()


def reasons(answer: httpx2.Response) -> str:
    assert refusal(answer)[:2] == (409, "conflict"), answer.text
    body = answer.json()
    return f"{body['detail']} {body.get('because', '')}"


async def test_a_rename_and_its_labels_are_undone_while_the_instance_lives_on(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client, name="before", labels={"a": "1"})
    path = f"/v1/instances/{instance['id']}"
    await cloud.client.patch(path, json={"name": "after", "labels": {"b": "2"}, "description": "new"})
    renamed = await last(cloud.client, instance["id"])
    stopped = await cloud.client.post(f"{path}/stop")
    assert stopped.status_code == 202
    await over(cloud, stopped.json()["task_id"])
    plan = (await undo(cloud.client, renamed, "?dry_run=true")).json()
    assert plan["changes"][0]["fields"]["name"] == "before"
    assert (await shown(cloud.client, path[4:]))["name"] == "after"
    await undone(cloud.client, renamed)
    now = await shown(cloud.client, path[4:])
    assert (now["name"], now["labels"], now["description"], now["state"]) == ("before", {"a": "1"}, "", "stopped")
    event = (await items(cloud.client, f"events?id={instance['id']}&limit=1000"))[-1]
    assert event["operation"] == "event.undo"
    await undone(cloud.client, event["sequence"])
    assert (await shown(cloud.client, path[4:]))["name"] == "after"


async def test_what_was_changed_again_since_is_not_undone_and_the_later_changes_are_named(
    cloud: SimulatedCloud,
) -> None:
    project = await made(cloud.client, "projects", name="p1")
    path = f"/v1/projects/{project['id']}"
    await cloud.client.patch(path, json={"quota": {"instances": 7}})
    first = await last(cloud.client, project["id"])
    await cloud.client.patch(path, json={"quota": {"instances": 8}})
    second = await last(cloud.client, project["id"])
    refused = reasons(await undo(cloud.client, first))
    assert "quota" in refused
    assert f"event {second}" in refused
    await undone(cloud.client, second)
    assert (await shown(cloud.client, path[4:]))["quota"] == {"instances": 7}
    await undone(cloud.client, first)
    assert (await shown(cloud.client, path[4:]))["quota"] == {}
    assert "another by now" in reasons(await undo(cloud.client, first))


async def test_a_security_group_comes_back_with_its_rules_and_ids(cloud: SimulatedCloud) -> None:
    group = await made(cloud.client, "security-groups", name="web")
    rule = await made(cloud.client, "security-rules", group_id=group["id"], protocol="tcp", port_min=80)
    rules = {each["id"] for each in await items(cloud.client, f"security-rules?group_id={group['id']}")}
    await cloud.client.delete(f"/v1/security-groups/{group['id']}")
    deleted = await last(cloud.client, rule["id"])
    await undone(cloud.client, deleted)
    assert (await shown(cloud.client, f"security-groups/{group['id']}"))["created_at"] == group["created_at"]
    assert {each["id"] for each in await items(cloud.client, f"security-rules?group_id={group['id']}")} == rules
    assert "there again" in reasons(await undo(cloud.client, deleted))
    await undone(cloud.client, await last(cloud.client, group["id"]))
    assert await items(cloud.client, "security-groups?name=web") == []


async def test_what_was_made_is_taken_away_unless_something_has_come_to_belong_to_it(cloud: SimulatedCloud) -> None:
    group = await made(cloud.client, "security-groups", name="web")
    created = await last(cloud.client, group["id"])
    rule = await made(cloud.client, "security-rules", group_id=group["id"], protocol="tcp", port_min=80)
    assert rule["id"] in reasons(await undo(cloud.client, created))
    await undone(cloud.client, await last(cloud.client, rule["id"]))
    await undone(cloud.client, created)
    assert await items(cloud.client, "security-groups?name=web") == []
    assert "gone already" in reasons(await undo(cloud.client, created))


async def test_a_rule_that_refers_to_a_group_that_is_gone_does_not_come_back(cloud: SimulatedCloud) -> None:
    one, two = [await made(cloud.client, "security-groups", name=name) for name in ("one", "two")]
    rule = await made(
        cloud.client, "security-rules", group_id=one["id"], protocol="tcp", port_min=1, remote_group_id=two["id"]
    )
    await cloud.client.delete(f"/v1/security-rules/{rule['id']}")
    deleted = await last(cloud.client, rule["id"])
    await cloud.client.delete(f"/v1/security-groups/{two['id']}")
    assert refusal(await undo(cloud.client, deleted))[0] == 404


async def test_a_floating_ip_goes_back_to_its_port(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    floating = await made(cloud.client, "floating-ips", instance_id=instance["id"])
    path = f"floating-ips/{floating['id']}"
    await cloud.client.post(f"/v1/{path}/dissociate")
    assert (await shown(cloud.client, f"instances/{instance['id']}"))["floating_addresses"] == []
    await undone(cloud.client, await last(cloud.client, floating["id"]))
    back = await shown(cloud.client, path)
    assert (back["port_id"], back["fixed_address"]) == (floating["port_id"], floating["fixed_address"])
    assert (await shown(cloud.client, f"instances/{instance['id']}"))["floating_addresses"] == [floating["address"]]
    await cloud.client.post(f"/v1/{path}/dissociate")
    dissociated = await last(cloud.client, floating["id"])
    other = await made(cloud.client, "floating-ips", instance_id=instance["id"])
    assert "has a floating IP already" in reasons(await undo(cloud.client, dissociated))
    await cloud.client.delete(f"/v1/floating-ips/{other['id']}")
    await gone(cloud, cloud.client, instance["id"])
    assert refusal(await undo(cloud.client, dissociated))[0] in (404, 409)


async def test_an_address_that_somebody_else_has_by_now_does_not_come_back(cloud: SimulatedCloud) -> None:
    floating = await made(cloud.client, "floating-ips")
    await cloud.client.delete(f"/v1/floating-ips/{floating['id']}")
    deleted = await last(cloud.client, floating["id"])
    plan = (await undo(cloud.client, deleted, "?dry_run=true")).json()
    assert [each["action"] for each in plan["changes"]] == ["create"]
    taken: list[dict[str, Any]] = []
    while not taken or taken[-1]["address"] != floating["address"]:
        taken.append(await made(cloud.client, "floating-ips"))
        if taken[-1]["address"] != floating["address"]:
            await cloud.client.delete(f"/v1/floating-ips/{taken[-1]['id']}")
    assert floating["address"] in reasons(await undo(cloud.client, deleted))


async def test_quota_holds_for_what_comes_back(cloud: SimulatedCloud) -> None:
    group = await made(cloud.client, "server-groups", name="g", policy="affinity")
    await cloud.client.delete(f"/v1/server-groups/{group['id']}")
    deleted = await last(cloud.client, group["id"])
    project = group["project_id"]
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"server_groups": 0}})
    limited = await last(cloud.client, project)
    assert refusal(await undo(cloud.client, deleted))[:2] == (403, "quota-exceeded")
    assert refusal(await undo(cloud.client, deleted, "?dry_run=true"))[:2] == (403, "quota-exceeded")
    await undone(cloud.client, limited)
    await undone(cloud.client, deleted)
    assert [each["id"] for each in await items(cloud.client, "server-groups")] == [group["id"]]


async def test_what_went_to_hosts_by_a_task_is_refused_with_what_helps(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    for event in await items(cloud.client, f"events?id={instance['id']}"):
        if event.get("task"):
            assert "went to hosts by a task" in reasons(await undo(cloud.client, event["sequence"]))
    host = instance["host_id"]
    said_hello = next(
        each for each in await items(cloud.client, f"events?id={host}&all_projects=true") if not each.get("request")
    )
    assert "nobody's request" in reasons(await undo(cloud.client, said_hello["sequence"]))
    assert refusal(await undo(cloud.client, 1 << 40))[0] == 404
    assert refusal(await undo(cloud.client, 0))[:2] == (400, "invalid")


async def test_a_network_with_its_subnets_comes_back(cloud: SimulatedCloud) -> None:
    network = await made(cloud.client, "networks", name="n1")
    subnet = await made(cloud.client, "subnets", network_id=network["id"], name="s1", cidr="10.77.0.0/24")
    router = await made(cloud.client, "routers", name="r1", subnet_ids=[subnet["id"]])
    await cloud.client.delete(f"/v1/routers/{router['id']}")
    without_router = await last(cloud.client, router["id"])
    await cloud.client.delete(f"/v1/subnets/{subnet['id']}")
    without_subnet = await last(cloud.client, subnet["id"])
    assert refusal(await undo(cloud.client, without_router))[0] == 404
    await undone(cloud.client, without_subnet)
    await undone(cloud.client, without_router)
    back = await shown(cloud.client, f"routers/{router['id']}")
    assert {**back, "revision": 0} == {**router, "revision": 0}


async def test_a_project_that_was_deleted_comes_back_without_its_tokens(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("lost")
    member = await people.person(Role.MEMBER, project)
    keypair = await made(member.client, "keypairs", name="k", public_key=KEY)
    assert (await cloud.client.delete(f"/v1/projects/{project}")).status_code == 204
    deleted = (await items(cloud.client, f"events?id={project}&all_projects=true"))[-1]["sequence"]
    plan = (await undo(cloud.client, deleted, "?dry_run=true")).json()
    assert {each["about"] for each in plan["because"]} == {"token", "token secret"}
    await undone(cloud.client, deleted)
    assert cloud.state.table(next(kind for kind in cloud.state.kinds if kind.name == "keypair")).find(keypair["id"])
    assert (await member.client.get("/v1/keypairs")).status_code == 401
    assert len(await items(cloud.client, f"grants?project_id={project}&all_projects=true")) == 1


async def test_rights_are_those_of_the_operation_itself(cloud: SimulatedCloud, people: People) -> None:
    one, two = await people.project("one"), await people.project("two")
    admin, member = await people.person(Role.ADMIN, one), await people.person(Role.MEMBER, one)
    reader, stranger = await people.person(Role.READER, one), await people.person(Role.ADMIN, two)
    group = await made(member.client, "server-groups", name="g", policy="affinity")
    created = await last(member.client, group["id"])
    assert refusal(await undo(reader.client, created))[0] == 403
    assert refusal(await undo(stranger.client, created))[0] == 404
    keypair = await made(member.client, "keypairs", name="k", public_key=KEY)
    await member.client.delete(f"/v1/keypairs/{keypair['id']}")
    deleted = await last(member.client, keypair["id"])
    assert refusal(await undo(admin.client, deleted))[0] == 404
    await undone(member.client, deleted)
    raised = await cloud.client.patch(f"/v1/projects/{one}", json={"quota": {"instances": 1}})
    assert raised.status_code == 200
    limited = (await items(cloud.client, f"events?id={one}&all_projects=true"))[-1]["sequence"]
    assert refusal(await undo(admin.client, limited))[0] in (403, 404)
    grant = next(
        each for each in await items(admin.client, f"grants?project_id={one}") if each["user_id"] == reader.user_id
    )
    await admin.client.delete(f"/v1/grants/{grant['id']}")
    taken = await last(admin.client, grant["id"])
    assert refusal(await undo(member.client, taken))[0] == 403
    await undone(admin.client, taken)
    assert (await reader.client.get("/v1/instances")).status_code == 401  # its tokens ended for good


async def test_passwords_and_images_do_not_come_back(cloud: SimulatedCloud) -> None:
    user = await made(cloud.client, "users", name="ann", password="correct horse battery")
    await cloud.client.put(f"/v1/users/{user['id']}/password", json={"password": "another one of them"})
    changed = (await items(cloud.client, f"events?kind=password&id={user['id']}&all_projects=true"))[-1]["sequence"]
    assert "secret" in reasons(await undo(cloud.client, changed))
    image = next(iter(await items(cloud.client, "images")))
    await cloud.client.delete(f"/v1/images/{image['id']}")
    assert "more than its record" in reasons(await undo(cloud.client, await last(cloud.client, image["id"])))


@pytest.mark.parametrize("key", ["", "the same"])
async def test_two_who_undo_the_same_undo_it_once(cloud: SimulatedCloud, key: str) -> None:
    group = await made(cloud.client, "server-groups", name="g", policy="affinity")
    created = await last(cloud.client, group["id"])
    headers = {"idempotency-key": key} if key else {}
    answers = [
        await cloud.client.post("/v1/events/undo", json={"sequence": created}, headers=headers) for _ in range(2)
    ]
    assert [each.status_code for each in answers] == ([200, 200] if key else [200, 409])


async def test_a_request_is_undone_by_its_own_id(cloud: SimulatedCloud) -> None:
    network = (await items(cloud.client, "networks"))[0]
    answer = await cloud.client.patch(f"/v1/networks/{network['id']}", json={"name": "other"})
    done = await cloud.client.post("/v1/events/undo", json={"id": answer.headers["pileus-request"]})
    assert done.status_code == 200, done.text
    assert (await shown(cloud.client, f"networks/{network['id']}"))["name"] == network["name"]


async def test_a_task_is_not_undone_and_it_is_told_why_of_each_record(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    task = next(each for each in await items(cloud.client, "tasks") if each["workflow"] == "instance.create")
    answer = await cloud.client.post("/v1/events/undo", json={"id": task["id"]})
    assert f"pileus task show {task['id']}" in reasons(answer)
    assert answer.json()["because"][f"instance {instance['id']}"] == "was made on a host"


async def test_what_is_in_the_way_is_told_of_each_record(cloud: SimulatedCloud) -> None:
    project = await made(cloud.client, "projects", name="p1")
    request = (await items(cloud.client, "events?kind=project&all_projects=true"))[-1]["request"]
    grown = await cloud.client.patch(f"/v1/projects/{project['id']}", json={"description": "in use"})
    assert grown.status_code == 200
    [network] = cloud.state[NETWORKS].by("project", project["id"])
    assert (await cloud.client.patch(f"/v1/networks/{network.id}", json={"name": "x"})).status_code == 200
    answer = await cloud.client.post("/v1/events/undo?dry_run=true", json={"id": request})
    assert refusal(answer)[:2] == (409, "conflict")
    assert len(answer.json()["because"]) >= 2


@pytest.mark.parametrize("id", ["ffffffff-ffff-ffff-ffff-ffffffffffff", "00000000-0000-0000-0000-000000000000"])
async def test_what_nobody_asked_for_is_not_found(cloud: SimulatedCloud, id: str) -> None:
    assert refusal(await cloud.client.post("/v1/events/undo", json={"id": id}))[0] == 404
    assert refusal(await cloud.client.post("/v1/events/undo", json={}))[0] == 400
