"""The audit: who did or tried what, from where, and what came of it."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pileus.kernel.clock import FrozenClock
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud, client_of, simulated_cloud
from pileus.testing.invariants import dangling
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import items, made, refusal, shown


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture(params=["memory", "sqlite"])
async def cloud(tmp_path: Path, clock: FrozenClock, request: pytest.FixtureRequest) -> AsyncIterator[SimulatedCloud]:
    """A cloud without hosts, whose time stands still."""
    store = MemoryStore() if request.param == "memory" else None
    async with simulated_cloud(tmp_path, store=store, hosts=0, clock=clock) as cloud:
        yield cloud
        assert dangling(cloud.state) == []


async def guess(cloud: SimulatedCloud, user: str) -> httpx2.Response:
    async with client_of(cloud.controller, "") as nobody:
        return await nobody.post("/v1/tokens/sign-in", json={"user": user, "password": "wrong"})


async def audit(client: httpx2.AsyncClient, query: str = "") -> list[dict[str, Any]]:
    return await items(client, f"events/audit?{query}")


async def test_an_attempt_to_sign_in_is_in_the_audit_with_who_and_from_where(cloud: SimulatedCloud) -> None:
    await guess(cloud, "ann")
    (entry,) = await audit(cloud.client, "result=refused&all_projects=true&operation=token.sign_in")
    assert (entry["actor"], entry["result"], entry["tried"]) == ("nobody", "unauthenticated", "ann")
    assert entry["source"] == "127.0.0.1"


async def test_what_somebody_may_not_do_is_in_the_audit_of_their_project(cloud: SimulatedCloud, people: People) -> None:
    admin = await people.person(Role.ADMIN, await people.project("one"))
    reader = await people.person(Role.READER, admin.project_id)
    stranger = await people.person(Role.ADMIN, await people.project("two"))
    network = (await items(reader.client, "networks"))[0]["id"]
    await reader.client.delete(f"/v1/networks/{network}")
    (entry,) = await audit(admin.client, "result=refused")
    assert entry["actor"] == f"user:{reader.user_id}"
    assert (entry["operation"], entry["result"]) == ("network.delete", "forbidden")
    assert (entry["kind"], entry["id"]) == ("network", network)
    assert await audit(stranger.client, "result=refused") == []
    assert (await reader.client.get("/v1/events/audit")).status_code == 403
    assert all(event["kind"] != "refusal" for event in await items(reader.client, "events?limit=1000"))


async def test_the_same_attempt_again_and_again_is_counted_and_not_written_each_time(
    cloud: SimulatedCloud, clock: FrozenClock
) -> None:
    for _ in range(30):
        await guess(cloud, "ann")
    before = await audit(cloud.client, "result=refused&all_projects=true")
    assert {(each["result"], each["times"]) for each in before} == {("unauthenticated", 1), ("too-many", 1)}
    clock.advance(timedelta(seconds=61))
    await cloud.controller.housekeeping.once()
    after = await audit(cloud.client, "result=refused&all_projects=true")
    assert sorted(each["times"] for each in after) == [1, 1, 9, 19]


async def test_a_flood_of_different_attempts_does_not_fill_the_log(cloud: SimulatedCloud, clock: FrozenClock) -> None:
    async with client_of(cloud.controller, "no such token") as stranger:
        for n in range(300):
            await stranger.get(f"/v1/networks/{n}")
    clock.advance(timedelta(seconds=61))
    await cloud.controller.housekeeping.once()
    found = await audit(cloud.client, "result=refused&all_projects=true&limit=1000")
    assert len(found) == 101
    assert sum(each["times"] for each in found) == 300


async def test_what_was_done_is_found_by_actor_operation_noun_id_source_and_time(
    cloud: SimulatedCloud, people: People, clock: FrozenClock
) -> None:
    admin = await people.person(Role.ADMIN, await people.project("one"))
    member = await people.person(Role.MEMBER, admin.project_id)
    first = await made(admin.client, "networks", name="first")
    clock.advance(timedelta(hours=1))
    second = await made(member.client, "networks", name="second")
    await member.client.delete(f"/v1/networks/{second['id']}")

    async def ids(query: str) -> list[tuple[str, str]]:
        return [(each["operation"], each["id"]) for each in await audit(admin.client, query)]

    assert await ids(f"id={second['id']}") == [("network.delete", second["id"]), ("network.create", second["id"])]
    assert await ids(f"actor=user:{member.user_id}&operation=network.create") == [("network.create", second["id"])]
    assert {operation for operation, _ in await ids("noun=network")} == {"network.create", "network.delete"}
    assert await ids("noun=networ") == []
    assert await ids("source=192.0.2.1") == []
    since = (clock.now() - timedelta(minutes=1)).isoformat().replace("+00:00", "Z")
    assert first["id"] not in {id for _, id in await ids(f"since={since}")}
    assert {each["result"] for each in await audit(admin.client, "result=done")} == {"done"}


async def test_the_audit_has_what_was_done_and_not_what_is_kept_for_a_repetition(cloud: SimulatedCloud) -> None:
    headers = {"Idempotency-Key": "once"}
    await cloud.client.post("/v1/networks", json={"name": "n"}, headers=headers)
    assert {each["kind"] for each in await audit(cloud.client, "operation=network.create")} == {"network"}


async def test_the_audit_is_read_page_by_page_from_the_newest(cloud: SimulatedCloud) -> None:
    for n in range(7):
        await made(cloud.client, "networks", name=f"net-{n}")
    whole = [each["sequence"] for each in await audit(cloud.client, "noun=network")]
    assert whole == sorted(whole, reverse=True)
    found: list[int] = []
    query = "noun=network&limit=3"
    while True:
        page = await shown(cloud.client, f"events/audit?{query}")
        found += [each["sequence"] for each in page["items"]]
        if page["before"] is None:
            break
        query = f"noun=network&limit=3&before={page['before']}"
    assert found == whole


async def test_events_are_listed_from_either_end(cloud: SimulatedCloud) -> None:
    for n in range(3):
        await made(cloud.client, "networks", name=f"net-{n}")
    forth = [each["sequence"] for each in await items(cloud.client, "events?kind=network")]
    back = await shown(cloud.client, "events?kind=network&newest_first=true&limit=2")
    assert [each["sequence"] for each in back["items"]] == forth[::-1][:2]
    rest = await items(cloud.client, f"events?kind=network&newest_first=true&before={back['next']}")
    assert [each["sequence"] for each in rest] == forth[::-1][2:]
    wrong = await cloud.client.get("/v1/events?newest_first=true&after=3")
    assert refusal(wrong) == (400, "invalid", {"after"})


async def test_the_audit_is_exported_as_lines_of_json(cloud: SimulatedCloud, people: People) -> None:
    admin = await people.person(Role.ADMIN, await people.project("one"))
    await made(admin.client, "networks", name="mine")
    answer = await admin.client.get("/v1/events/export?noun=network")
    assert answer.headers["content-type"] == "application/jsonl"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [(each["operation"], each["result"]) for each in lines] == [("network.create", "done")]
    assert {each["project"] for each in lines} == {admin.project_id}
    wrong = await admin.client.get("/v1/events/export?result=perhaps&since=x&all_projects=true")
    assert refusal(wrong) == (400, "invalid", {"result", "since", "all_projects"})
