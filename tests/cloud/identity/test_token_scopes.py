"""Tokens with a scope: they do what it says, never more than their user, and are no way to more."""

from datetime import timedelta
from typing import Any

import pytest

from pileus.cloud.networks.model import NETWORKS, NetworkKind
from pileus.kernel.clock import FrozenClock
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.people import People, Person
from pileus.testing.requests import KEY, items, made, refusal, shown


async def token(person: Person, **scope: Any) -> str:
    return (await made(person.client, "tokens", name="job", **scope))["token"]


async def test_a_token_does_what_its_scope_says_and_nothing_else(cloud: SimulatedCloud, people: People) -> None:
    member = await people.person(Role.MEMBER, await people.project("one"))
    text = await token(member, permissions=["keypair.*", "*.list"])
    async with client_of(cloud.controller, text) as client:
        assert (await client.get("/v1/networks")).status_code == 200
        assert (await client.post("/v1/keypairs", json={"name": "x", "public_key": KEY})).status_code == 201
        refused = await client.post("/v1/networks", json={"name": "x"})
    assert refusal(refused)[:2] == (403, "forbidden")
    assert "scope" in refused.json()["detail"]


async def test_a_token_never_does_more_than_its_user_may_at_the_time(cloud: SimulatedCloud, people: People) -> None:
    member = await people.person(Role.MEMBER, await people.project("one"))
    text = await token(member, permissions=["host.*", "network.*"])
    async with client_of(cloud.controller, text) as client:
        assert (await client.get("/v1/hosts")).status_code == 403
        assert (await client.post("/v1/networks", json={"name": "x"})).status_code == 201
        wish = {"user_id": member.user_id, "project_id": member.project_id, "role": "reader"}
        await cloud.client.post("/v1/grants", json=wish)
        assert (await client.post("/v1/networks", json={"name": "y"})).status_code == 403
        assert (await client.get("/v1/networks")).status_code == 200


@pytest.mark.parametrize(
    "scope", [{"permissions": ["*.*"]}, {"sources": ["127.0.0.1"]}, {"confined": True, "permissions": ["user.*"]}]
)
async def test_a_token_with_a_scope_is_no_way_to_one_without(
    cloud: SimulatedCloud, people: People, scope: dict[str, Any]
) -> None:
    boss = await people.person(Role.PLATFORM, await people.project("one"))
    other = await people.person(Role.READER, boss.project_id)
    text = await token(boss, **scope)
    me = f"users/{boss.user_id}"
    password = {"password": "a way to everything"}
    async with client_of(cloud.controller, text) as client:
        for method, path, wish in (
            ("POST", "tokens", {"name": "more"}),
            ("PUT", f"{me}/password", password),
            ("PUT", f"users/{other.user_id}/password", password),
            ("POST", f"{me}/enrol-second-factor", None),
            ("PATCH", f"users/{other.user_id}", {"is_platform": True}),
            ("POST", "users", {"name": "me-again", "is_platform": True, **password}),
        ):
            answer = await client.request(method, f"/v1/{path}", json=wish)
            assert answer.status_code in (403, 404), (path, answer.text)


async def test_a_scope_of_nothing_known_is_refused(people: People) -> None:
    member = await people.person(Role.MEMBER, await people.project("one"))
    wish = {"name": "x", "permissions": ["network.list", "netwrok.list", "nonsense"], "sources": ["1.2.3.4/99", "x"]}
    answer = await member.client.post("/v1/tokens", json=wish)
    assert refusal(answer) == (400, "invalid", {"permissions.2", "sources.0", "sources.1"})
    answer = await member.client.post("/v1/tokens", json={"name": "x", "permissions": ["netwrok.list"]})
    assert refusal(answer) == (400, "invalid", {"permissions.0"})


async def test_a_token_is_good_from_its_networks_only(cloud: SimulatedCloud, people: People) -> None:
    member = await people.person(Role.MEMBER, await people.project("one"))
    here = await token(member, sources=["127.0.0.0/8", "2001:db8::/32"])
    elsewhere = await token(member, sources=["192.0.2.0/24"])
    async with client_of(cloud.controller, here) as client:
        assert (await client.get("/v1/networks")).status_code == 200
    async with client_of(cloud.controller, elsewhere) as client:
        assert refusal(await client.get("/v1/networks"))[:2] == (401, "unauthenticated")


async def test_a_confined_token_of_an_administrator_stays_in_its_project(cloud: SimulatedCloud, people: People) -> None:
    boss = await people.person(Role.PLATFORM, await people.project("one"))
    other = await people.project("two")
    text = await token(boss, confined=True)
    async with client_of(cloud.controller, text) as client:
        assert (await shown(client, "tokens/current"))["role"] == "admin"
        assert (await client.get("/v1/hosts")).status_code == 403
        assert {each["project_id"] for each in await items(client, "networks")} <= {boss.project_id, *_outside(cloud)}
        assert [each["id"] for each in await items(client, "projects")] == [boss.project_id]
        assert (await client.get("/v1/networks?all_projects=true")).status_code == 400
        assert (await client.get("/v1/networks", headers={"pileus-project": other})).status_code == 404


def _outside(cloud: SimulatedCloud) -> set[str]:
    return {each.project_id for each in cloud.state[NETWORKS].by("kind", NetworkKind.EXTERNAL)}


async def test_a_token_tells_when_it_was_used_last(cloud: SimulatedCloud, people: People, clock: FrozenClock) -> None:
    member = await people.person(Role.MEMBER, await people.project("one"))
    token = await made(member.client, "tokens", name="job")

    async def last() -> str | None:
        await cloud.controller.housekeeping.once()
        return (await shown(member.client, f"tokens/{token['id']}"))["last_used_at"]

    assert await last() is None
    async with client_of(cloud.controller, token["token"]) as client:
        await client.get("/v1/networks")
        first = await last()
        assert first == clock.now().isoformat().replace("+00:00", "Z")
        clock.advance(timedelta(minutes=5))
        await client.get("/v1/networks")
        assert await last() == first, "not each time"
        clock.advance(timedelta(minutes=5))
        await client.get("/v1/networks")
        assert await last() == clock.now().isoformat().replace("+00:00", "Z")
