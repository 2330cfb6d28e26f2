"""What holds for every request: idempotency, conditions, limits, problems."""

import asyncio
import json
from typing import Any

import pytest

from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.keypairs.model import KEYPAIRS
from pileus.kernel.ids import new_id
from pileus.operations.caller import Role
from pileus.testing.asgi import conversation, status_of
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.people import People
from pileus.testing.requests import KEY, items, made, over, refusal, running, shown

WISH = {"name": "laptop", "public_key": KEY}


async def test_one_key_at_once_does_one_thing(cloud: SimulatedCloud) -> None:
    headers = {"idempotency-key": "once"}
    answers = await asyncio.gather(*(cloud.client.post("/v1/keypairs", json=WISH, headers=headers) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert len(cloud.state[KEYPAIRS]) == 1


async def test_all_that_a_request_names_and_nobody_has_is_named(cloud: SimulatedCloud, people: People) -> None:
    theirs = await people.person(Role.ADMIN, await people.project("theirs"))
    group = (await made(theirs.client, "security-groups", name="hidden"))["id"]
    ours = await people.person(Role.ADMIN, await people.project("ours"))
    mine = (await items(ours.client, "networks"))[0]["id"]
    wish = {
        "name": "x",
        "image_id": new_id(),
        "flavor_id": new_id(),
        "network_ids": [mine],
        "security_group_ids": [group],
    }
    refused = await ours.client.post("/v1/instances", json=wish)
    assert refusal(refused)[:2] == (404, "not-found")
    assert refused.json()["fields"] == dict.fromkeys(["image_id", "flavor_id", "security_group_ids"], "not found")
    assert f"there is no security group {group}" in refused.json()["detail"]


async def test_a_deletion_that_is_sent_again_gets_its_first_answer(cloud: SimulatedCloud) -> None:
    keypair = await made(cloud.client, "keypairs", **WISH)
    headers = {"idempotency-key": "gone"}
    path = f"/v1/keypairs/{keypair['id']}"
    assert (await cloud.client.delete(path, headers=headers)).status_code == 204
    again = await cloud.client.delete(path, headers=headers)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (204, "true")
    assert (await cloud.client.delete(path)).status_code == 404


async def test_a_start_that_is_sent_again_gets_the_task_that_it_began(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    headers = {"idempotency-key": "stop", "if-match": f'"{instance["revision"]}"'}
    path = f"/v1/instances/{instance['id']}/stop"
    first = await cloud.client.post(path, headers=headers)
    await over(cloud, first.json()["task_id"])
    again = await cloud.client.post(path, headers=headers)
    assert (again.status_code, again.json()["task_id"]) == (202, first.json()["task_id"])


async def test_a_key_is_its_callers_own_and_for_one_request(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("one")
    ann, bob = await people.person(Role.MEMBER, project), await people.person(Role.MEMBER, project)
    headers = {"idempotency-key": "1"}
    first = await ann.client.post("/v1/keypairs", json=WISH, headers=headers)
    other = await bob.client.post("/v1/keypairs", json=WISH, headers=headers)
    assert first.json()["id"] != other.json()["id"]
    changed = await ann.client.post("/v1/keypairs", json={**WISH, "name": "x"}, headers=headers)
    assert refusal(changed)[:2] == (409, "conflict")
    elsewhere = await ann.client.post("/v1/networks", json={"name": "x"}, headers=headers)
    assert refusal(elsewhere)[:2] == (409, "conflict")


async def test_a_preview_uses_up_no_key(cloud: SimulatedCloud) -> None:
    headers = {"idempotency-key": "1"}
    plan = await cloud.client.post("/v1/keypairs?dry_run=true", json=WISH, headers=headers)
    assert plan.json()["changes"][0]["action"] == "create"
    assert (await cloud.client.post("/v1/keypairs", json=WISH, headers=headers)).status_code == 201
    after = await cloud.client.post("/v1/keypairs?dry_run=true", json={**WISH, "name": "b"}, headers=headers)
    assert after.json()["changes"][0]["action"] == "create"


async def test_what_was_refused_may_be_tried_again_with_the_same_key(cloud: SimulatedCloud) -> None:
    await made(cloud.client, "keypairs", **WISH)
    headers = {"idempotency-key": "1"}
    assert (await cloud.client.post("/v1/keypairs", json=WISH, headers=headers)).status_code == 409
    await cloud.client.delete(f"/v1/keypairs/{(await items(cloud.client, 'keypairs'))[0]['id']}")
    assert (await cloud.client.post("/v1/keypairs", json=WISH, headers=headers)).status_code == 201


@pytest.mark.parametrize("key", ["x" * 256, "a\x01b"])
async def test_a_key_that_is_no_key_is_refused(cloud: SimulatedCloud, key: str) -> None:
    status = await status_of(
        cloud.controller.api,
        "/v1/keypairs",
        method="POST",
        token=cloud.client.headers["authorization"].removeprefix("Bearer "),
        headers=[(b"idempotency-key", key.encode())],
        body=json.dumps(WISH).encode(),
    )
    assert status == 400


async def test_a_change_is_made_only_to_the_revision_that_was_read(cloud: SimulatedCloud) -> None:
    pool = await made(cloud.client, "pools", name="one")
    path = f"/v1/pools/{pool['id']}"
    read = await cloud.client.get(path)
    assert read.headers["etag"] == f'"{read.json()["revision"]}"'
    condition = {"if-match": read.headers["etag"]}
    changed = await cloud.client.patch(path, json={"name": "two"}, headers=condition)
    assert changed.headers["etag"] == f'"{changed.json()["revision"]}"' != read.headers["etag"]
    assert (await cloud.client.get(path)).headers["etag"] == changed.headers["etag"]
    for method in ("PATCH", "DELETE"):
        stale = await cloud.client.request(method, path, content=b"{}", headers=condition)
        assert refusal(stale)[:2] == (412, "stale")
    for good in ("*", f'"0", {changed.headers["etag"]}'):
        assert (await cloud.client.patch(path, json={}, headers={"if-match": good})).status_code in (200, 412)
    assert (await shown(cloud.client, f"pools/{pool['id']}"))["name"] == "two"


async def test_of_two_changes_of_one_revision_one_is_made(cloud: SimulatedCloud) -> None:
    pool = await made(cloud.client, "pools", name="one")
    condition = {"if-match": f'"{pool["revision"]}"'}
    answers = await asyncio.gather(
        *(cloud.client.patch(f"/v1/pools/{pool['id']}", json={"name": f"n{n}"}, headers=condition) for n in range(10))
    )
    assert sorted(answer.status_code for answer in answers) == [200, *[412] * 9]


async def test_a_preview_of_every_kind_of_change_changes_nothing(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    floating = await made(cloud.client, "floating-ips", instance_id=instance["id"])
    before = cloud.state.sequence
    for method, path, wish in (
        ("POST", "keypairs", WISH),
        ("POST", "floating-ips", {}),
        ("POST", f"floating-ips/{floating['id']}/dissociate", None),
        ("PATCH", f"instances/{instance['id']}", {"name": "x"}),
        ("DELETE", f"instances/{instance['id']}", None),
        ("POST", f"instances/{instance['id']}/stop", None),
        ("POST", "projects", {"name": "x"}),
    ):
        plan = (
            await cloud.client.request(method, f"/v1/{path}?dry_run=1", json=wish)
            if wish is not None
            else (await cloud.client.request(method, f"/v1/{path}?dry_run=1"))
        )
        assert plan.status_code == 200, plan.text
        assert {"summary", "changes", "because", "workflow", "undo"} <= set(plan.json())
        assert plan.json()["changes"], path
        assert plan.json()["undo"], path
    assert cloud.state.sequence == before


async def test_refusals_are_problems_whatever_they_are_about(cloud: SimulatedCloud, people: People) -> None:
    reader = await people.person(Role.READER, await people.project("one"))
    client, missing = cloud.client, new_id()
    async with client_of(cloud.controller, "") as nobody:
        assert refusal(await nobody.get("/v1/instances"))[:2] == (401, "unauthenticated")
    assert refusal(await client.post("/v1/networks", json={}))[:2] == (400, "invalid")
    assert refusal(await reader.client.post("/v1/networks", json={"name": "x"}))[:2] == (403, "forbidden")
    assert refusal(await client.get(f"/v1/instances/{missing}"))[:2] == (404, "not-found")
    assert refusal(await client.get("/v1/bananas"))[:2] == (404, "not-found")
    assert refusal(await client.put("/v1/instances"))[:2] == (405, "method-not-allowed")
    assert (await client.put("/v1/instances")).headers["allow"] == "GET, POST"
    assert refusal(await client.get(f"/v1/instances/{missing}/console"))[:2] == (405, "method-not-allowed")
    assert refusal(
        await client.post("/v1/flavors", json={"name": "tiny", "vcpus": 1, "memory_mib": 64, "disk_gib": 1})
    )[:2] == (409, "conflict")
    assert refusal(await client.post("/v1/networks", content=b" " * 70_000))[:2] == (413, "too-large")
    image = (await items(client, "images"))[0]["id"]
    big = {"name": "x", "image_id": image, "vcpus": 100, "memory_mib": 64}
    assert refusal(await client.post("/v1/instances", json=big))[:2] == (507, "no-capacity")
    assert len(cloud.state[INSTANCES]) == 0


async def test_every_wrong_field_is_named_at_once(cloud: SimulatedCloud) -> None:
    wish: dict[str, Any] = {
        "name": "",
        "image_id": "x",
        "vcpus": 0,
        "memory_mib": "256",
        "network_ids": ["y"],
        "labels": {"bad key!": "v"},
        "colour": "red",
    }
    status, _, fields = refusal(await cloud.client.post("/v1/instances", json=wish))
    assert status == 400
    assert {"name", "image_id", "vcpus", "memory_mib", "network_ids.0", "colour"} <= fields
    assert any(field.startswith("labels") for field in fields)


@pytest.mark.parametrize("declared", [None, b"70000", b"9" * 5000, b"-1", b"ten"])
async def test_a_body_that_is_too_large_is_refused_however_it_is_announced(
    cloud: SimulatedCloud, declared: bytes | None
) -> None:
    token = cloud.client.headers["authorization"].removeprefix("Bearer ")
    headers = [(b"content-length", declared)] if declared else []
    async with conversation(
        cloud.controller.api, "/v1/networks", method="POST", token=token, headers=headers, body=None
    ) as talk:
        for _ in range(20):
            talk.tell({"type": "http.request", "body": b" " * 4000, "more_body": True})
        talk.tell({"type": "http.request", "body": b"{}"})
        assert (await talk.answer())["status"] == 413


async def test_a_body_that_ends_too_early_does_nothing(cloud: SimulatedCloud) -> None:
    token = cloud.client.headers["authorization"].removeprefix("Bearer ")
    before = cloud.state.sequence
    async with conversation(cloud.controller.api, "/v1/networks", method="POST", token=token, body=None) as talk:
        talk.tell({"type": "http.request", "body": b'{"name": "x"}', "more_body": True})
        talk.tell({"type": "http.disconnect"})
        assert (await talk.answer())["status"] == 400
    assert cloud.state.sequence == before
