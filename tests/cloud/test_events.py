"""The event log as people read it: audit trail, feed, and what it keeps to itself."""

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pileus.cloud.events.feed import Feed
from pileus.cloud.flavors.model import FLAVORS, Flavor
from pileus.controller.nouns import KINDS
from pileus.kernel.clock import FrozenClock, SystemClock
from pileus.kernel.ids import new_id
from pileus.operations.caller import Role
from pileus.state.sqlite import SqliteStore
from pileus.state.state import Origin, opened, put
from pileus.state.store import Event, EventFilter
from pileus.testing.asgi import Conversation, conversation
from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import KEY, items, made, refusal, running, shown


def token_of(cloud: SimulatedCloud) -> str:
    return cloud.client.headers["authorization"].removeprefix("Bearer ")


async def sequences(talk: Conversation, wanted: int) -> list[int]:
    """The sequence numbers of the next events of a feed."""
    found: list[int] = []
    body = b""
    while len(found) < wanted:
        body = await talk.until(b"\n\n", body)
        message, _, body = body.partition(b"\n\n")
        fields = dict(line.split(b": ", 1) for line in message.split(b"\n") if b": " in line[1:])
        if b"data" in fields:
            assert json.loads(fields[b"data"])["sequence"] == int(fields[b"id"])
            found.append(int(fields[b"id"]))
    return found


async def test_a_change_tells_who_made_it_by_what_from_where_and_what_was_before(
    cloud: SimulatedCloud, people: People
) -> None:
    member = await people.person(Role.MEMBER, await people.project("one"))
    instance = await running(cloud, member.client)
    renamed = await member.client.patch(f"/v1/instances/{instance['id']}", json={"name": "renamed"})
    event = (await items(member.client, f"events?id={instance['id']}"))[-1]
    assert event["actor"] == f"user:{member.user_id}"
    assert event["operation"] == "instance.change"
    assert event["request"] == renamed.headers["pileus-request"]
    assert event["source"] == "127.0.0.1"
    assert (event["before"]["name"], event["after"]["name"]) == ("hello", "renamed")


async def test_one_request_is_followed_through_task_and_agent(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    first, *_ = created = await items(cloud.client, f"events?id={instance['id']}")
    assert {event["request"] for event in created} == {first["request"]}
    assert {event["task"] for event in created} == {first["task"]}
    steps = [event["operation"] for event in await items(cloud.client, f"events?task={first['task']}&kind=task")]
    assert steps == [
        "instance.create",
        "instance.create: connect",
        "instance.create: finish",
    ]


async def test_pages_of_events_go_on_where_the_last_one_ended(cloud: SimulatedCloud) -> None:
    await running(cloud, cloud.client)
    whole = [event["sequence"] for event in await items(cloud.client, "events?limit=1000&all_projects=1")]
    assert whole == list(range(1, len(whole) + 1))
    found: list[int] = []
    after = 0
    while page := await shown(cloud.client, f"events?limit=7&all_projects=1&after={after}"):
        found += [event["sequence"] for event in page["items"]]
        if not page["items"]:
            break
        after = page["next"]
    assert found[: len(whole)] == whole


async def test_every_wrong_parameter_is_named(cloud: SimulatedCloud, people: People) -> None:
    member = await people.person(Role.MEMBER, await people.project("one"))
    wrong = "after=-1&limit=0&since=yesterday&until=2026-01-01T00:00:00&all_projects=true"
    answer = await member.client.get(f"/v1/events?{wrong}")
    assert refusal(answer) == (400, "invalid", {"after", "limit", "since", "until", "all_projects"})
    assert refusal(await member.client.get("/v1/events?colour=red")) == (400, "invalid", {"colour"})


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00%2B23:59", "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00Z"])
async def test_any_moment_can_be_asked_for(cloud: SimulatedCloud, since: str) -> None:
    answer = await cloud.client.get(f"/v1/events?since={since}")
    assert answer.status_code in (200, 400)


async def test_events_between_two_moments_are_found(tmp_path: Path) -> None:
    clock = FrozenClock()
    async with simulated_cloud(tmp_path, store=MemoryStore(), hosts=0, clock=clock) as cloud:
        for name in ("one", "two", "three"):
            clock.advance(timedelta(hours=1))
            await made(cloud.client, "networks", name=name)
        query = "since=2026-01-01T01:30:00Z&until=2026-01-01T03:00:00Z&kind=network"
        assert [event["after"]["name"] for event in await items(cloud.client, f"events?{query}")] == ["two"]


async def test_old_events_are_forgotten_and_the_records_stay(tmp_path: Path) -> None:
    clock = FrozenClock()
    async with simulated_cloud(tmp_path, hosts=0, clock=clock) as cloud:
        network = await made(cloud.client, "networks", name="old")
        clock.advance(timedelta(days=91))
        await made(cloud.client, "networks", name="new")
        await cloud.controller.housekeeping.once()
        names = [event["after"]["name"] for event in await items(cloud.client, "events?kind=network")]
        assert names == ["new"]
        assert (await shown(cloud.client, f"networks/{network['id']}"))["name"] == "old"


async def test_secrets_are_never_shown(cloud: SimulatedCloud, people: People) -> None:
    member = await people.person(Role.MEMBER, await people.project("one"))
    await made(cloud.client, "users", name="ann", password="hunter2 hunter2")
    token = (await made(member.client, "tokens", name="job"))["token"]
    join = (await cloud.client.post("/v1/hosts/tokens", json={})).json()["token"]
    await running(cloud, member.client, user_data="#!/bin/sh\nset-the-database-password s3cr3t")
    everything = (await cloud.client.get("/v1/events?limit=1000&all_projects=true")).text
    for secret in ("hunter2", "argon2", token, join, "s3cr3t", "czNjcjN0", "secret_hash"):
        assert secret not in everything, secret
    hidden = [event for event in json.loads(everything)["items"] if event["kind"] in SECRET]
    assert {event["kind"] for event in hidden} >= {"password", "token_secret", "invitation", "first_boot"}
    assert all("after" not in event or not event["after"] for event in hidden)
    members = (await member.client.get("/v1/events?limit=1000")).text
    assert token not in members


SECRET = {kind.name for kind in KINDS if kind.secret}


async def test_a_feed_shows_no_event_of_another_project(cloud: SimulatedCloud, people: People) -> None:
    ours = await people.person(Role.READER, await people.project("ours"))
    theirs = await people.person(Role.MEMBER, await people.project("theirs"))
    mine = await people.person(Role.MEMBER, ours.project_id)
    async with conversation(cloud.controller.api, "/v1/events/follow", token=ours.token, query=b"kind=keypair") as feed:
        assert (await feed.answer())["status"] == 200
        await feed.until(b"\n\n")
        await made(theirs.client, "keypairs", name="secret", public_key=KEY)
        await made(mine.client, "keypairs", name="known", public_key=KEY)
        shown = await feed.until(b"data: ")
    assert b"known" in shown
    assert b"secret" not in shown


async def test_a_feed_is_resumed_without_a_gap_and_without_a_repetition(cloud: SimulatedCloud) -> None:
    api, token = cloud.controller.api, token_of(cloud)
    found: list[int] = []
    resume: list[tuple[bytes, bytes]] = []
    query = b"kind=keypair&after=0"
    for at in range(5):
        async with conversation(api, "/v1/events/follow", token=token, query=query, headers=resume) as feed:
            assert (await feed.answer())["status"] == 200
            for n in range(4):
                await made(cloud.client, "keypairs", name=f"key-{at}-{n}", public_key=KEY)
            found += await sequences(feed, 3)
        resume = [(b"last-event-id", str(found[-1]).encode())]
    events = await items(cloud.client, "events?kind=keypair&limit=1000")
    assert found == [event["sequence"] for event in events][: len(found)]


async def test_a_feed_ends_when_its_reader_is_no_longer_let_in(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("one")
    reader, member = await people.person(Role.READER, project), await people.person(Role.MEMBER, project)
    async with conversation(cloud.controller.api, "/v1/events/follow", token=reader.token) as feed:
        assert (await feed.answer())["status"] == 200
        await feed.until(b"\n\n")
        await cloud.client.delete(f"/v1/users/{reader.user_id}")
        await made(member.client, "keypairs", name="after", public_key=KEY)
        rest = b""
        while (message := await feed.answer())["type"] != "ended":
            rest += message.get("body", b"")
    assert b"keypair" not in rest


class _Held(MemoryStore):
    """Writes when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, events: Any) -> None:
        await self.gate.wait()
        batch: list[Event] = list(events)
        await super().append(batch)


async def test_who_comes_while_events_are_being_written_is_told_of_them_when_they_are() -> None:
    store = _Held()
    origin = Origin(actor="system", operation="test")

    def flavor() -> Flavor:
        return Flavor(id=new_id(), created_at=SystemClock().now(), name=new_id(), vcpus=1, memory_mib=1, disk_gib=1)

    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(opened([FLAVORS], store, SystemClock()))
        feed = Feed(state)
        await state.commit([put(flavor())], origin)
        store.gate.clear()
        state.apply([put(flavor())], origin)
        follower = feed.follow(0, EventFilter())
        first = await follower.next()
        assert [event.sequence for event in first] == [1]
        waiting = asyncio.ensure_future(follower.next())
        await asyncio.sleep(0)
        state.apply([put(flavor())], origin)
        store.gate.set()
        found = [event.sequence for event in await waiting]
        while len(found) < 2:
            found += [event.sequence for event in await follower.next()]
        assert found == [2, 3]


async def test_a_follower_that_only_wants_some_misses_none_of_them(tmp_path: Path) -> None:
    origin = Origin(actor="system", operation="test")
    async with opened([FLAVORS], SqliteStore(tmp_path), SystemClock()) as state:
        feed = Feed(state)
        flavors = [
            Flavor(id=new_id(), created_at=SystemClock().now(), name=f"f{n}", vcpus=1, memory_mib=1, disk_gib=1)
            for n in range(50)
        ]
        wanted = flavors[7]
        follower = feed.follow(0, EventFilter(id=wanted.id))
        for flavor in flavors:
            state.apply([put(flavor)], origin)
            await asyncio.sleep(0)
        await state.durable()
        assert [event.id for event in await follower.next()] == [wanted.id]
        await state.commit([put(state[FLAVORS].get(flavors[9].id))], origin)
        await state.commit([put(state[FLAVORS].get(wanted.id))], origin)
        assert [event.revision for event in await follower.next()] == [2]
        follower.close()
