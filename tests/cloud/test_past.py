"""The cloud as it was: what lists and records answer with `at`, and what they refuse."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pileus.cloud.flavors.model import FLAVORS, Flavor
from pileus.cloud.images.model import IMAGES
from pileus.kernel.clock import FrozenClock
from pileus.kernel.errors import Invalid
from pileus.kernel.ids import new_id
from pileus.operations.caller import Role
from pileus.state.history import History
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.sqlite import SqliteStore
from pileus.state.state import Change, Origin, opened, put, remove
from pileus.state.store import EventFilter, Store
from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import KEY, gone, items, made, over, refusal, running, shown

ORIGIN = Origin(actor="system", operation="test")


class TickingClock(FrozenClock):
    """A clock whose every moment is a later one, so that no two changes share theirs."""

    def now(self) -> datetime:
        self.advance(timedelta(milliseconds=1))
        return super().now()


@pytest.fixture
async def ticking(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, store=MemoryStore(), clock=TickingClock()) as cloud:
        yield cloud


def at(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def flavor(name: str) -> Flavor:
    return Flavor(
        id=new_id(), created_at=datetime(2030, 1, 1, tzinfo=UTC), name=name, vcpus=1, memory_mib=1, disk_gib=1
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_records_of_every_moment_are_as_they_were_then(tmp_path: Path, engine: str, seed: int) -> None:
    chance = random.Random(seed)
    store: Store = MemoryStore() if engine == "memory" else SqliteStore(tmp_path)
    clock = TickingClock()
    async with opened([FLAVORS], store, clock) as state:
        table = state[FLAVORS]
        was: dict[datetime, dict[str, Flavor]] = {}
        everyone: set[str] = set()
        for _ in range(60):
            changes: list[Change] = []
            for each in chance.sample(list(table), min(len(table), chance.randint(0, 3))):
                renamed = msgspec.structs.replace(each, name=new_id())
                changes.append(remove(each) if chance.random() < 0.3 else put(renamed))
            changes += [put(flavor(new_id())) for _ in range(chance.randint(0, 2))]
            await state.commit(changes, ORIGIN)
            if len(await store.events(0, 1, EventFilter())):
                was[clock.now()] = {each.id: each for each in table}
                everyone |= set(table.ids)
        history = History(state, clock)
        for moment, records in was.items():
            past = await history.at(moment)
            then = await past.table(FLAVORS)
            assert {each.id: each for each in then} == records
            assert list(then.ids) == sorted(records)
        for moment in chance.sample(list(was), 5):
            past = await history.at(moment)
            assert {id: await past.find(FLAVORS, id) for id in everyone} == {id: was[moment].get(id) for id in everyone}


async def test_an_instance_is_shown_and_found_as_it_was(ticking: SimulatedCloud) -> None:
    instance = await running(ticking, ticking.client, name="first")
    before = at(ticking.now())
    await ticking.client.patch(f"/v1/instances/{instance['id']}", json={"name": "second"})
    between = at(ticking.now())
    await gone(ticking, ticking.client, instance["id"])
    assert (await shown(ticking.client, f"instances/{instance['id']}?at={before}"))["name"] == "first"
    assert (await shown(ticking.client, f"instances/{instance['id']}?at={between}"))["name"] == "second"
    assert refusal(await ticking.client.get(f"/v1/instances/{instance['id']}"))[0] == 404
    assert [each["name"] for each in await items(ticking.client, f"instances?at={before}&state=running")] == ["first"]
    assert await items(ticking.client, f"instances?at={before}&name=second") == []
    assert len(await items(ticking.client, f"instances?at={between}&name=second")) == 1
    assert len(await items(ticking.client, f"ports?at={between}&instance_id={instance['id']}")) == 1
    assert await items(ticking.client, "instances") == []


async def test_pages_and_sorting_are_of_the_same_moment(ticking: SimulatedCloud) -> None:
    for number in range(5):
        await made(ticking.client, "security-groups", name=f"g{number}")
    then = at(ticking.now())
    for each in (await items(ticking.client, "security-groups"))[1:]:
        await ticking.client.delete(f"/v1/security-groups/{each['id']}")
    seen: list[str] = []
    query = f"sort=-name&limit=2&at={then}"
    cursor: str | None = ""
    while cursor is not None:
        page = await shown(ticking.client, f"security-groups?{query}" + (f"&after={cursor}" if cursor else ""))
        seen += [each["name"] for each in page["items"]]
        cursor = page["next"]
    assert seen == ["g4", "g3", "g2", "g1", "g0", "default"]


async def test_a_task_is_shown_as_far_as_it_had_come(ticking: SimulatedCloud) -> None:
    answer = await ticking.client.post("/v1/instances", json=await _wish(ticking))
    id = answer.json()["task_id"]
    await over(ticking, id)
    earlier = (await items(ticking.client, f"events?id={id}"))[0]["at"]
    task = await shown(ticking.client, f"tasks/{id}?at={earlier}")
    assert (task["state"], task["steps"]) == ("running", [])
    assert [each["state"] for each in await items(ticking.client, f"tasks?at={earlier}")] == ["running"]
    assert (await shown(ticking.client, f"tasks/{id}?at={at(ticking.now())}"))["state"] == "done"


async def test_todays_rights_hold_for_the_past_too(ticking: SimulatedCloud) -> None:
    async with People(ticking) as people:
        one, two = await people.project("one"), await people.project("two")
        member, stranger = await people.person(Role.MEMBER, one), await people.person(Role.MEMBER, two)
        keypair = await made(member.client, "keypairs", name="k", public_key=KEY)
        instance = await running(ticking, member.client)
        then = at(ticking.now())
        late = await people.person(Role.READER, one)
        path = f"/v1/instances/{instance['id']}?at={then}"
        assert (await late.client.get(path)).status_code == 200
        assert len(await items(late.client, f"instances?at={then}")) == 1
        assert refusal(await stranger.client.get(path))[0] == 404
        assert await items(stranger.client, f"instances?at={then}") == []
        assert refusal(await stranger.client.get(f"/v1/instances?at={then}&all_projects=true"))[0] == 400
        assert refusal(await late.client.get(f"/v1/keypairs/{keypair['id']}?at={then}"))[0] == 404
        await gone(ticking, member.client, instance["id"])
        assert refusal(await stranger.client.get(path))[0] == 404
        assert (await member.client.get(path)).status_code == 200
        everything = await items(ticking.client, f"instances?at={then}&all_projects=true")
        assert [each["id"] for each in everything] == [instance["id"]]


async def test_an_image_that_is_no_longer_public_is_no_longer_seen_in_the_past(ticking: SimulatedCloud) -> None:
    async with People(ticking) as people:
        stranger = await people.person(Role.MEMBER, await people.project("two"))
        image = next(iter(ticking.state[IMAGES]))
        then = at(ticking.now())
        assert len(await items(stranger.client, f"images?at={then}")) == 1
        hidden = msgspec.structs.replace(image, public=False)
        await ticking.state.commit([put(hidden)], ORIGIN)
        assert await items(stranger.client, f"images?at={then}") == []
        assert (await shown(ticking.client, f"images/{image.id}?at={then}"))["public"]


async def test_a_moment_that_is_not_kept_is_refused_with_the_oldest_that_is(ticking: SimulatedCloud) -> None:
    first = (await items(ticking.client, "events?all_projects=true&limit=1"))[0]["at"]
    for moment, why in {
        "2001-01-01T00:00:00Z": "goes back to",
        "2999-01-01T00:00:00Z": "in the future",
        "2030-01-01T00:00:00": "a time such as",
        "yesterday": "a time such as",
        "": "a time such as",
    }.items():
        for path in ("instances", f"images/{ticking.state[IMAGES].ids[0]}"):
            answer = await ticking.client.get(f"/v1/{path}?at={moment}")
            assert refusal(answer) == (400, "invalid", {"at"})
            assert why in answer.json()["fields"]["at"]
    too_old = await ticking.client.get("/v1/instances?at=2001-01-01T00:00:00Z")
    assert datetime.fromisoformat(first).isoformat(timespec="seconds")[:19] in too_old.json()["detail"]


async def test_an_event_of_before_its_version_was_noted_is_read_all_the_same() -> None:
    class Old(Record, frozen=True, kw_only=True):
        name: str

    class New(Record, frozen=True, kw_only=True):
        name: str
        colour: str

    disk = MemoryStore()
    clock = TickingClock()
    async with opened([Kind("thing", Old)], disk, clock) as state:
        thing = Old(id=new_id(), created_at=clock.now(), name="a")
        await state.commit([put(thing)], ORIGIN)
        then = clock.now()
        await state.commit([put(msgspec.structs.replace(thing, revision=1, name="b"))], ORIGIN)
    disk.disk.events = [msgspec.structs.replace(each, version=0) for each in disk.disk.events]
    kind: Kind[Any] = Kind("thing", New, upgrades=(lambda body: {**body, "colour": "red"},))
    async with opened([kind], disk, clock) as state:
        past = await History(state, clock).at(then)
        assert await past.find(kind, thing.id) == New(
            id=thing.id, created_at=thing.created_at, name="a", colour="red", revision=1
        )


async def test_the_past_of_a_log_that_keeps_nothing_is_refused() -> None:
    clock = TickingClock()
    async with opened([FLAVORS], MemoryStore(), clock) as state:
        with pytest.raises(Invalid, match="log is empty"):
            await History(state, clock).at(clock.now())


async def _wish(cloud: SimulatedCloud) -> dict[str, Any]:
    image = (await items(cloud.client, "images"))[0]
    return {"name": "hello", "image_id": image["id"], "vcpus": 1, "memory_mib": 256}
