"""Users, their roles, signing in, tokens."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from pileus.cloud.identity import passwords
from pileus.cloud.identity.model import TOKENS, USERS
from pileus.kernel.clock import FrozenClock
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import KEY, items, made, refusal, shown

PASSWORD = "correct horse battery"


async def user(cloud: SimulatedCloud, name: str = "ann", role: Role = Role.MEMBER) -> dict[str, Any]:
    """A user with PASSWORD and a role in the first project."""
    answer = await made(cloud.client, "users", name=name, password=PASSWORD)
    project = (await items(cloud.client, "projects"))[0]["id"]
    await made(cloud.client, "grants", user_id=answer["id"], project_id=project, role=role)
    return answer


async def sign_in(cloud: SimulatedCloud, name: str = "ann", password: str = PASSWORD, **more: str) -> httpx2.Response:
    async with client_of(cloud.controller, "") as stranger:
        wish = {"user": name, "password": password, **more}
        return await stranger.post("/v1/tokens/sign-in", json=wish, headers={"authorization": ""})


async def status_with(cloud: SimulatedCloud, token: str, path: str = "/v1/networks") -> int:
    async with client_of(cloud.controller, token) as client:
        return (await client.get(path)).status_code


async def test_a_password_opens_a_session_of_twelve_hours(cloud: SimulatedCloud, clock: FrozenClock) -> None:
    await user(cloud)
    answer = await sign_in(cloud)
    assert answer.status_code == 201
    made = answer.json()
    assert made["role"] == "member"
    clock.advance(timedelta(hours=11, minutes=59))
    assert await status_with(cloud, made["token"]) == 200
    clock.advance(timedelta(minutes=1))
    assert await status_with(cloud, made["token"]) == 401
    await cloud.controller.housekeeping.once()
    assert made["id"] not in cloud.state[TOKENS]


async def test_neither_a_wrong_password_nor_an_unknown_user_gets_in_and_both_are_told_the_same(
    cloud: SimulatedCloud,
) -> None:
    await user(cloud)
    wrong, unknown = await sign_in(cloud, password="wrong"), await sign_in(cloud, "nobody")
    assert refusal(wrong) == refusal(unknown) == (401, "unauthenticated", set())
    assert wrong.json()["detail"] == unknown.json()["detail"]
    assert wrong.headers["www-authenticate"] == "Bearer"


async def test_checking_the_password_of_a_user_who_does_not_exist_is_the_same_work(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: each guess costs one verification of one Argon2 hash of the same parameters."""
    checked: list[str] = []
    verify = passwords._verify  # pyright: ignore[reportPrivateUsage]

    def counted(password: str, hash: str | None) -> bool:
        checked.append((hash or passwords._nobodys()).rsplit("$", 2)[0])  # pyright: ignore[reportPrivateUsage]
        return verify(password, hash)

    monkeypatch.setattr(passwords, "_verify", counted)
    ann = await user(cloud)
    await cloud.client.patch(f"/v1/users/{ann['id']}", json={"enabled": False})
    await user(cloud, "bob")
    for name in ("ann", "bob", "nobody"):
        await sign_in(cloud, name, "wrong")
    assert len(checked) == 3
    assert len(set(checked)) == 1


async def test_after_ten_wrong_guesses_nobody_guesses_on_for_a_minute(
    cloud: SimulatedCloud, clock: FrozenClock
) -> None:
    await user(cloud)
    for _ in range(10):
        assert (await sign_in(cloud, password="wrong")).status_code == 401
    assert refusal(await sign_in(cloud))[:2] == (429, "too-many"), "not even with the right one"
    clock.advance(timedelta(seconds=61))
    assert (await sign_in(cloud)).status_code == 201


async def test_guesses_that_are_made_at_once_are_counted_too(cloud: SimulatedCloud) -> None:
    await user(cloud)
    answers = await asyncio.gather(*(sign_in(cloud, password=f"guess-{n}") for n in range(25)))
    assert [answer.status_code for answer in answers].count(401) == 10
    assert {answer.status_code for answer in answers} == {401, 429}


async def test_right_passwords_are_not_counted(cloud: SimulatedCloud) -> None:
    await user(cloud)
    for _ in range(12):
        assert (await sign_in(cloud)).status_code == 201


async def test_a_new_password_ends_sessions_and_leaves_lasting_tokens(cloud: SimulatedCloud) -> None:
    ann = await user(cloud)
    first, second = (await sign_in(cloud)).json(), (await sign_in(cloud)).json()
    async with client_of(cloud.controller, first["token"]) as client:
        lasting = await made(client, "tokens", name="backup job")
        wish = {"password": "another one entirely", "current_password": PASSWORD}
        assert (await client.put(f"/v1/users/{ann['id']}/password", json=wish)).status_code == 204
    assert await status_with(cloud, first["token"]) == 200, "the one that did it goes on"
    assert await status_with(cloud, second["token"]) == 401
    assert await status_with(cloud, lasting["token"]) == 200
    assert (await sign_in(cloud)).status_code == 401
    assert (await sign_in(cloud, password="another one entirely")).status_code == 201


async def test_ones_own_password_is_set_by_who_knows_the_one_from_before(cloud: SimulatedCloud) -> None:
    path = f"/v1/users/{(await user(cloud))['id']}/password"
    new = {"password": "another one entirely"}
    async with client_of(cloud.controller, (await sign_in(cloud)).json()["token"]) as client:
        assert refusal(await client.put(path, json=new)) == (400, "invalid", {"current_password"})
        for _ in range(10):
            guess = await client.put(path, json={**new, "current_password": "a guess"})
            assert refusal(guess) == (403, "forbidden", {"current_password"})
        right = {**new, "current_password": PASSWORD}
        assert refusal(await client.put(path, json=right))[:2] == (429, "too-many"), "an open session guesses no more"
    assert (await sign_in(cloud)).status_code == 201


async def test_nobody_sets_another_ones_password(cloud: SimulatedCloud) -> None:
    await user(cloud, "ann", Role.ADMIN)
    bob = await user(cloud, "bob")
    async with client_of(cloud.controller, (await sign_in(cloud)).json()["token"]) as client:
        answer = await client.put(f"/v1/users/{bob['id']}/password", json={"password": "hijacked it all"})
    assert answer.status_code == 404
    boss = await cloud.client.put(f"/v1/users/{bob['id']}/password", json={"password": "set by the boss"})
    assert boss.status_code == 204


@pytest.mark.parametrize("password", ["short", "", "x" * 257])
async def test_a_password_of_the_wrong_length_is_refused(cloud: SimulatedCloud, password: str) -> None:
    answer = await cloud.client.post("/v1/users", json={"name": "ann", "password": password})
    assert refusal(answer) == (400, "invalid", {"password"})
    assert password not in answer.text or not password


async def test_a_disabled_user_is_out_at_once_and_back_when_enabled(cloud: SimulatedCloud) -> None:
    ann = await user(cloud)
    token = (await sign_in(cloud)).json()["token"]
    path = f"/v1/users/{ann['id']}"
    assert (await cloud.client.patch(path, json={"enabled": False})).json()["enabled"] is False
    assert await status_with(cloud, token) == 401
    assert (await sign_in(cloud)).status_code == 401
    await cloud.client.patch(path, json={"enabled": True})
    assert await status_with(cloud, token) == 200


async def test_a_deleted_user_is_nobody_and_leaves_no_rights_behind(cloud: SimulatedCloud) -> None:
    ann = await user(cloud)
    token = (await sign_in(cloud)).json()["token"]
    async with client_of(cloud.controller, token) as client:
        await made(client, "keypairs", name="laptop", public_key=KEY)
    assert (await cloud.client.delete(f"/v1/users/{ann['id']}")).status_code == 204
    assert await status_with(cloud, token) == 401
    assert (await sign_in(cloud)).status_code == 401
    assert ann["id"] not in cloud.state[USERS]
    again = await user(cloud)
    assert again["id"] != ann["id"]
    assert await status_with(cloud, token) == 401, "who comes after with the same name is somebody else"


async def test_nobody_deletes_or_demotes_themselves(cloud: SimulatedCloud) -> None:
    admin = next(each for each in await items(cloud.client, "users") if each["is_platform"])
    path = f"/v1/users/{admin['id']}"
    assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")
    assert refusal(await cloud.client.patch(path, json={"is_platform": False}))[:2] == (409, "conflict")


async def test_a_deleted_token_is_good_for_nothing(cloud: SimulatedCloud) -> None:
    await user(cloud)
    session = (await sign_in(cloud)).json()
    async with client_of(cloud.controller, session["token"]) as client:
        assert (await client.delete(f"/v1/tokens/{session['id']}")).status_code == 204
        assert (await client.get("/v1/networks")).status_code == 401


async def test_a_token_is_shown_once_and_kept_as_a_hash(cloud: SimulatedCloud) -> None:
    token = await made(cloud.client, "tokens", name="job", expires_in_s=60)
    assert token["token"].startswith("pileus_")
    for path in ("tokens", f"tokens/{token['id']}", "events?all_projects=true&limit=1000"):
        assert token["token"] not in (await cloud.client.get(f"/v1/{path}")).text
    await cloud.state.durable()
    assert token["token"].encode() not in everything_kept(cloud)


async def test_a_password_is_kept_as_a_hash(cloud: SimulatedCloud) -> None:
    await user(cloud)
    await cloud.state.durable()
    assert PASSWORD.encode() not in everything_kept(cloud)
    assert b"$argon2id$" in everything_kept(cloud)


def everything_kept(cloud: SimulatedCloud) -> bytes:
    store = cloud.state.store
    assert isinstance(store, MemoryStore)
    events = b"".join(bytes(event.before) + bytes(event.after) for event in store.disk.events)
    return events + b"".join(record.body for record in store.disk.records.values())


async def test_a_role_that_is_taken_away_ends_the_tokens_for_that_project_alone(
    cloud: SimulatedCloud, people: People
) -> None:
    ann = await user(cloud)
    other = await people.project("other")
    await made(cloud.client, "grants", user_id=ann["id"], project_id=other, role="reader")
    first, second = (await sign_in(cloud, project="default")).json(), (await sign_in(cloud, project=other)).json()
    assert (first["role"], second["role"]) == ("member", "reader")
    grants = await items(cloud.client, f"grants?user_id={ann['id']}")
    assert (await cloud.client.delete(f"/v1/grants/{grants[0]['id']}")).status_code == 204
    assert await status_with(cloud, first["token"]) == 401
    assert await status_with(cloud, second["token"]) == 200


async def test_a_role_that_is_given_again_replaces_the_one_before_at_once(cloud: SimulatedCloud) -> None:
    ann = await user(cloud)
    project = (await items(cloud.client, "projects"))[0]["id"]
    token = (await sign_in(cloud)).json()["token"]
    await made(cloud.client, "grants", user_id=ann["id"], project_id=project, role="reader")
    assert len(await items(cloud.client, f"grants?user_id={ann['id']}")) == 1
    async with client_of(cloud.controller, token) as client:
        assert refusal(await client.post("/v1/networks", json={"name": "x"}))[:2] == (403, "forbidden")
        assert (await client.get("/v1/networks")).status_code == 200


async def test_signing_in_for_a_project_in_which_one_is_nobody_does_not_tell_that_it_exists(
    cloud: SimulatedCloud, people: People
) -> None:
    await user(cloud)
    await people.project("secret")
    there, not_there = await sign_in(cloud, project="secret"), await sign_in(cloud, project="no such")
    assert refusal(there) == refusal(not_there) == (404, "not-found", {"project"})


async def test_a_user_without_a_role_gets_no_token(cloud: SimulatedCloud) -> None:
    await made(cloud.client, "users", name="ann", password=PASSWORD)
    assert refusal(await sign_in(cloud))[:2] == (403, "forbidden")


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer pileus_x", "Basic YTpi", "bearer \xff", "x"]
)
async def test_whoever_does_not_show_a_good_token_is_nobody(cloud: SimulatedCloud, authorization: str) -> None:
    headers = [(b"authorization", authorization.encode("latin-1"))]
    async with client_of(cloud.controller, "") as client:
        del client.headers["authorization"]
        answer = await client.get("/v1/networks", headers=headers)
    assert refusal(answer) == (401, "unauthenticated", set())


async def test_the_first_administrator_is_there_from_the_beginning_with_a_generated_password(
    cloud: SimulatedCloud,
) -> None:
    first = cloud.controller.first
    assert first is not None
    answer = await sign_in(cloud, "admin", first.password)
    assert answer.json()["role"] == "platform"
    assert (await shown(cloud.client, f"users/{answer.json()['user_id']}"))["name"] == "admin"
