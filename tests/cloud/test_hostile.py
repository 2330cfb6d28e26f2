"""What people with bad intentions send."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pileus.cloud.instances.operations.creation import hostname_of
from pileus.controller.nouns import KINDS
from pileus.kernel.ids import new_id
from pileus.operations.caller import Role
from pileus.testing.asgi import conversation, status_of
from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.invariants import dangling
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import KEY, items, made, refusal, running, shown


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, store=MemoryStore(), hosts=1) as cloud:
        yield cloud
        assert dangling(cloud.state) == []


def token_of(cloud: SimulatedCloud) -> str:
    return cloud.client.headers["authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\x00",
        "a\nb",
        "a\x1b[31mb",
        "\u202egnp.exe",
        "\u2028",
        "x" * 256,
        "\ud800",
        "\ufeff",
        None,
        7,
        ["a"],
        {},
    ],
)
async def test_a_name_that_is_none_is_refused(cloud: SimulatedCloud, name: object) -> None:
    answer = await cloud.client.post("/v1/networks", content=json.dumps({"name": name}).encode())
    status, code, fields = refusal(answer)
    assert (status, code) == (400, "invalid")
    assert fields <= {"name", "body"}


@pytest.mark.parametrize(
    "name", ["日本語", "🦄", "é" * 255, "../../etc/passwd", "'; DROP TABLE records;--", "<b>x</b>", "%s%n", "${x}"]
)
async def test_a_name_of_any_language_is_kept_as_it_is(cloud: SimulatedCloud, name: str) -> None:
    network = await made(cloud.client, "networks", name=name)
    assert (await shown(cloud.client, f"networks/{network['id']}"))["name"] == name
    assert [each["id"] for each in (await cloud.client.get("/v1/networks", params={"name": name})).json()["items"]] == [
        network["id"]
    ]
    instance = await running(cloud, cloud.client, name=name, network_ids=[(await default(cloud))])
    assert instance["name"] == name
    label = hostname_of(name)
    assert label.isascii()
    assert label.replace("-", "").isalnum()


async def default(cloud: SimulatedCloud) -> str:
    return next(each["id"] for each in await items(cloud.client, "networks") if each["name"] == "default")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe{}",
        b'{"name": "x"}{"name": "y"}',
        b"[" * 30_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"name": "x", "name\\u0000": 1}',
        b'{"name": "\\ud800"}',
        b'{"name": "x", "__proto__": {}}',
        b"name=x",
        b"<xml/>",
        b"{'name': 'x'}",
    ],
)
async def test_a_body_that_is_no_wish_is_refused(cloud: SimulatedCloud, body: bytes) -> None:
    before = cloud.state.sequence
    for path in ("networks", "instances", "tokens/sign-in", "tokens"):
        answer = await cloud.client.post(f"/v1/{path}", content=body)
        assert refusal(answer)[:2] == (400, "invalid"), path
    assert cloud.state.sequence == before


@pytest.mark.parametrize(
    "number", ["0", "-1", "1.5", "1e3", "1e400", "NaN", "Infinity", "true", '"4"', "9" * 5000, "1" + "0" * 400, "null"]
)
async def test_a_number_that_makes_no_sense_is_refused(cloud: SimulatedCloud, number: str) -> None:
    body = f'{{"name": "x", "vcpus": {number}, "memory_mib": 64, "disk_gib": 1}}'
    answer = await cloud.client.post("/v1/flavors", content=body.encode())
    if number == "1e3":  # a whole number however it is written
        assert answer.status_code in (201, 400)
    else:
        assert refusal(answer)[:2] == (400, "invalid")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/instances/../users",
        "/v1/instances/..%2fusers",
        "/v1//instances",
        "/v1/instances/%00",
        "/v1/instances/\x00",
        "/v1/images/../../ticket.key/data",
        "/v1/images/..%2f..%2fticket.key/data",
        "/v1/images//data",
        "/v1/images/\u202e/data",
        "/v2/instances",
        "/",
        "",
        "/v1/" + "a/" * 900,
        "/v1/instances/" + "x" * 5000,
        "/openapi.json/../v1",
    ],
)
async def test_a_path_that_leads_nowhere_leads_nowhere(cloud: SimulatedCloud, path: str) -> None:
    assert await status_of(cloud.controller.api, path, token=token_of(cloud)) == 404


@pytest.mark.parametrize(
    "query",
    [
        b"limit=1&limit=2",
        b"name=a&name=a",
        b"name=%00",
        b"name=a%0d%0aSet-Cookie:x",
        b"\xff\xfe",
        b"&".join(b"a%d=1" % n for n in range(60)),
        b"novalue",
    ],
)
async def test_a_query_that_cannot_be_meant_is_refused(cloud: SimulatedCloud, query: bytes) -> None:
    for path in ("/v1/networks", "/v1/events"):
        assert await status_of(cloud.controller.api, path, query=query, token=token_of(cloud)) == 400


async def test_nothing_that_was_sent_comes_back_in_a_header(cloud: SimulatedCloud) -> None:
    evil = "x\r\nset-cookie: a=b"
    async with conversation(
        cloud.controller.api,
        f"/v1/instances/{evil}",
        token=token_of(cloud),
        headers=[(b"if-match", evil.encode()), (b"pileus-project", evil.encode()), (b"idempotency-key", evil.encode())],
    ) as talk:
        start = await talk.answer()
    assert start["status"] == 404
    assert all(b"\n" not in name + value and b"cookie" not in value for name, value in start["headers"])


async def test_many_strangers_at_once_take_nothing_from_the_state(cloud: SimulatedCloud) -> None:
    def records() -> dict[str, int]:
        return {record.id: record.revision for kind in KINDS for record in cloud.state.table(kind)}

    before = records()
    statuses = await asyncio.gather(
        *(
            status_of(cloud.controller.api, f"/v1/{path}", method=method, token="pileus_" + "x" * 43, body=b"{}")
            for path in ("instances", "users", "hosts/tokens", f"images/{new_id()}/data", "events/follow")
            for method in ("GET", "POST", "PUT", "DELETE")
        )
    )
    assert set(statuses) == {401, 405}
    assert records() == before, "only the log says that they were there"


@pytest.mark.parametrize(
    "wish",
    [
        {"user_data": "x" * 65_537},
        {"user_data": "é" * 40_000},
        {"labels": {f"k{n}": "v" for n in range(65)}},
        {"labels": {"k": "a\nb"}},
        {"labels": {"": "v"}},
        {"labels": {"k" * 64: "v"}},
        {"description": "x" * 2001},
        {"network_ids": [new_id()] * 9},
        {"zone": "x" * 64},
        {"image_id": "../../etc/passwd"},
        {"image_id": new_id().upper() + "0"},
        {"vcpus": 1, "flavor_id": new_id()},
        {"host_id": new_id()},
        {"project_id": new_id()},
        {"id": new_id()},
        {"state": "running"},
    ],
)
async def test_a_wish_beyond_all_measure_is_refused(cloud: SimulatedCloud, wish: dict[str, Any]) -> None:
    image = (await items(cloud.client, "images"))[0]["id"]
    body = {"name": "x", "image_id": image, "vcpus": 1, "memory_mib": 64, **wish}
    assert refusal(await cloud.client.post("/v1/instances", json=body))[:2] == (400, "invalid")


async def test_what_a_record_belongs_to_is_not_a_callers_to_change(cloud: SimulatedCloud, people: People) -> None:
    member = await people.person(Role.ADMIN, await people.project("one"))
    other = await people.project("two")
    instance = await running(cloud, member.client)
    image = await made(member.client, "images", name="mine", format="raw")
    for path in (f"instances/{instance['id']}", f"images/{image['id']}"):
        for field, value in (("project_id", other), ("id", new_id()), ("revision", 0), ("state", "x")):
            answer = await member.client.patch(f"/v1/{path}", json={field: value})
            assert refusal(answer) == (400, "invalid", {field})


async def test_a_request_with_another_type_of_content_is_read_as_what_it_must_be(cloud: SimulatedCloud) -> None:
    for media_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "",
        "\xff",
    ):
        headers = [(b"content-type", media_type.encode("latin-1"))]
        answer = await cloud.client.post("/v1/keypairs", content=b"name=x&public_key=y", headers=headers)
        assert refusal(answer)[:2] == (400, "invalid")
    good = json.dumps({"name": "x", "public_key": KEY}).encode()
    answer = await cloud.client.post("/v1/keypairs", content=good, headers={"content-type": "text/plain"})
    assert answer.status_code == 201


async def test_an_internal_error_tells_nothing_of_its_cause(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the password is s3cr3t")

    monkeypatch.setattr(cloud.state, "apply", broken)
    answer = await cloud.client.post("/v1/networks", json={"name": "x"})
    assert refusal(answer)[:2] == (500, "internal")
    assert "s3cr3t" not in answer.text
    monkeypatch.undo()
    assert (await cloud.client.post("/v1/networks", json={"name": "x"})).status_code == 201
