"""Lists: pages, filters, sorting, and what they refuse."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pileus.cloud.flavors.model import FLAVORS, Flavor
from pileus.cloud.flavors.operations import flavors
from pileus.kernel.clock import FrozenClock
from pileus.kernel.ids import ProjectId, UserId, new_id
from pileus.operations.caller import Caller, Role
from pileus.operations.listing import page
from pileus.operations.plan import Ask
from pileus.state.state import Origin, State, put, remove
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.memorystore import MemoryStore
from pileus.testing.requests import KEY, items, made, refusal, running, shown

LIST = next(operation for operation in flavors.declared if operation.verb == "list")
CALLER = Caller(user_id=UserId("u"), user_name="u", project_id=ProjectId("p"), role=Role.READER)
ORIGIN = Origin(actor="system", operation="test")

Deed = tuple[str, int]
"""Make one of this many vCPUs, or remove the n-th."""

deeds = st.lists(st.tuples(st.sampled_from(["make", "remove"]), st.integers(1, 9)), max_size=6)


def flavor(name: str, vcpus: int) -> Flavor:
    return Flavor(id=new_id(), created_at=FrozenClock().now(), name=name, vcpus=vcpus, memory_mib=vcpus, disk_gib=1)


@settings(max_examples=150)
@given(
    at_first=st.lists(st.integers(1, 9), max_size=12),
    between=st.lists(deeds, max_size=12),
    limit=st.integers(1, 5),
    sort=st.sampled_from(["created_at", "-created_at", "name", "-name", "vcpus", "-vcpus"]),
)
def test_pages_show_everything_that_stays_once_while_records_come_and_go(
    at_first: list[int], between: list[list[Deed]], limit: int, sort: str
) -> None:
    async def paging() -> None:
        state = State([FLAVORS], MemoryStore(), FrozenClock())
        ask = Ask(state=state, caller=CALLER, now=FrozenClock().now(), views={})
        state.apply([put(flavor(f"f{n}", vcpus)) for n, vcpus in enumerate(at_first)], ORIGIN)
        stayed = set(state[FLAVORS].ids)
        seen: list[Flavor] = []
        query = {"limit": str(limit), "sort": sort}
        turns = iter(between)
        while True:
            found = page(LIST, flavors, ask, query)
            seen += [record for record in found.items if isinstance(record, Flavor)]
            for deed, number in next(turns, list[Deed]()):
                if deed == "make":
                    state.apply([put(flavor(f"new{state.sequence}", number))], ORIGIN)
                elif ids := state[FLAVORS].ids:
                    gone = state[FLAVORS].get(ids[number % len(ids)])
                    state.apply([remove(gone)], ORIGIN)
                    stayed.discard(gone.id)
            if found.next is None:
                break
            query["after"] = found.next
        ids = [record.id for record in seen]
        assert len(ids) == len(set(ids))
        assert stayed <= set(ids)
        by = sort.removeprefix("-")
        keys = [(getattr(record, by), record.id) if by != "created_at" else record.id for record in seen]
        assert keys == sorted(keys, reverse=sort.startswith("-"))

    asyncio.run(paging())


async def test_every_wrong_parameter_is_named(cloud: SimulatedCloud) -> None:
    wrong = "limit=0&after=x&sort=colour&all_projects=maybe&colour=red&labels=x&name=ok"
    answer = await cloud.client.get(f"/v1/instances?{wrong}")
    assert refusal(answer) == (400, "invalid", {"limit", "after", "sort", "all_projects", "colour", "labels"})


@pytest.mark.parametrize(
    "query",
    ["limit=1001", "limit=-1", "limit=1.5", "limit=" + "9" * 5000, "limit=%D9%A1", "sort=--name", "sort=", "label.a"],
)
async def test_a_parameter_that_makes_no_sense_is_refused(cloud: SimulatedCloud, query: str) -> None:
    assert refusal(await cloud.client.get(f"/v1/instances?{query}"))[:2] == (400, "invalid")


async def test_a_cursor_is_good_for_its_own_order_only(cloud: SimulatedCloud) -> None:
    cursors = {
        sort: (await shown(cloud.client, f"flavors?limit=1&sort={sort}"))["next"]
        for sort in ("created_at", "name", "vcpus")
    }
    for sort in cursors:
        for other, cursor in cursors.items():
            answer = await cloud.client.get(f"/v1/flavors?limit=1&sort={sort}&after={cursor}")
            assert answer.status_code == (200 if sort == other else 400), (sort, other)
    for cursor in ("bnVsbA", "W10", "W1tdXQ", "WzEsMiwzXQ", "!!", "%00", "é", "W" * 3000):
        assert refusal(await cloud.client.get(f"/v1/flavors?after={cursor}"))[0] == 400, cursor


async def test_filters_restrict_together(cloud: SimulatedCloud) -> None:
    for name, tier in (("a", "web"), ("b", "web"), ("c", "db")):
        await running(cloud, cloud.client, name=name, labels={"tier": tier, "app.kubernetes.io/name": name})

    async def names(query: str) -> list[str]:
        return [each["name"] for each in await items(cloud.client, f"instances?{query}")]

    assert await names("label.tier=web") == ["a", "b"]
    assert await names("label.tier=web&label.app.kubernetes.io/name=b") == ["b"]
    assert await names("label.tier=web&name=c") == []
    assert await names("label.nothing=") == []
    assert await names("state=running&sort=-name") == ["c", "b", "a"]
    assert await names("state=stopped") == []
    host = (await items(cloud.client, "instances?name=a"))[0]["host_id"]
    assert "a" in await names(f"host_id={host}")


async def test_booleans_and_nothing_can_be_filtered_for(cloud: SimulatedCloud) -> None:
    floating = await made(cloud.client, "floating-ips")
    assert [each["id"] for each in await items(cloud.client, "floating-ips?port_id=")] == [floating["id"]]
    assert len(await items(cloud.client, "security-groups?is_default=true")) == 1
    assert await items(cloud.client, "security-groups?is_default=false") == []
    assert len(await items(cloud.client, "images?public=true")) == 1


async def test_a_list_is_of_ones_own_project_unless_an_administrator_asks_for_all(cloud: SimulatedCloud) -> None:
    other = (await made(cloud.client, "projects", name="other"))["id"]
    mine: dict[str, Any] = await made(cloud.client, "keypairs", name="mine", public_key=KEY)
    theirs = await cloud.client.post(
        "/v1/keypairs", json={"name": "theirs", "public_key": KEY}, headers={"pileus-project": other}
    )
    assert [each["id"] for each in await items(cloud.client, "keypairs")] == [mine["id"]]
    everything = await items(cloud.client, "keypairs?all_projects=true")
    assert [each["id"] for each in everything] == [mine["id"], theirs.json()["id"]]
