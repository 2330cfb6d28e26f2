"""Signing in by an OpenID provider, that tells the truth, or lies."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from pileus.cloud.identity.model import USERS
from pileus.cloud.identity.totp import code_at, step_at
from pileus.kernel.clock import FrozenClock
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.openid import CLIENT, SECRET, SimulatedOpenIdProvider, openid_provider
from pileus.testing.people import People
from pileus.testing.requests import items, made, refusal

BACK = "http://127.0.0.1:4711/callback"


@pytest.fixture
async def keycloak(clock: FrozenClock) -> AsyncIterator[SimulatedOpenIdProvider]:
    async with openid_provider(clock.now) as provider:
        provider.claims |= {"email": "ann@example.com", "groups": ["/operators"]}
        yield provider


async def federated(cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, **more: Any) -> dict[str, Any]:
    """An identity provider that makes users, members of the first project."""
    wish = {"name": "keycloak", "kind": "oidc", "url": keycloak.issuer, "client": CLIENT, "secret": SECRET}
    answer = await cloud.client.post("/v1/identity-providers", json={"makes_users": True, **wish, **more})
    provider = answer.json()
    project = (await items(cloud.client, "projects"))[0]["id"]
    gives = {"external_group": "/operators", "project_id": project, "role": "member"}
    await made(cloud.client, "group-mappings", provider_id=provider["id"], **gives)
    return provider


async def begin(cloud: SimulatedCloud, **more: str) -> httpx2.Response:
    async with client_of(cloud.controller, "") as stranger:
        wish = {"provider": "keycloak", "redirect_uri": BACK, **more}
        return await stranger.post("/v1/tokens/begin-sign-in", json=wish)


async def finish(cloud: SimulatedCloud, attempt: str, brought: dict[str, str], **more: str) -> httpx2.Response:
    wish = {"attempt": attempt, "state": brought["state"], "authorization_code": brought["code"], **more}
    if "iss" in brought:
        wish["issuer"] = brought["iss"]
    async with client_of(cloud.controller, "") as stranger:
        return await stranger.post("/v1/tokens/finish-sign-in", json=wish)


async def sign_in(cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, **more: str) -> httpx2.Response:
    begun = (await begin(cloud)).json()
    return await finish(cloud, begun["attempt"], keycloak.visit(begun["url"]), **more)


async def why(cloud: SimulatedCloud) -> str:
    """What the audit says of the last refusal."""
    entries = await items(cloud.client, "events/audit?result=refused&all_projects=true&limit=1")
    return entries[0]["why"]


async def test_somebody_comes_back_from_the_provider_with_a_session(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, clock: FrozenClock
) -> None:
    await federated(cloud, keycloak)
    answer = await sign_in(cloud, keycloak)
    assert answer.status_code == 201, answer.text
    assert answer.json()["role"] == "member"
    ann = cloud.state[USERS].get(answer.json()["user_id"])
    assert (ann.name, ann.subject, ann.mail, ann.display_name) == ("ann", "1", "ann@example.com", "Ann Arbor")
    async with client_of(cloud.controller, answer.json()["token"]) as client:
        assert (await client.get("/v1/networks")).status_code == 200
        clock.advance(timedelta(hours=12))
        assert (await client.get("/v1/networks")).status_code == 401
    assert (await sign_in(cloud, keycloak)).json()["user_id"] == ann.id
    assert keycloak.asked.count("/keys") == 2, "they were asked for again after an hour, and not each time"


async def test_an_answer_is_good_once_and_for_whoever_began(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, clock: FrozenClock
) -> None:
    await federated(cloud, keycloak)
    mine, others = (await begin(cloud)).json(), (await begin(cloud)).json()
    brought = keycloak.visit(mine["url"])
    assert refusal(await finish(cloud, "made up", brought))[:2] == (401, "unauthenticated")
    assert (await finish(cloud, others["attempt"], brought)).status_code == 401, "the state is another's"
    assert "no attempt to sign in" in await why(cloud)
    assert (await finish(cloud, mine["attempt"], brought)).status_code == 201
    assert (await finish(cloud, mine["attempt"], brought)).status_code == 401
    late = (await begin(cloud)).json()
    brought = keycloak.visit(late["url"])
    clock.advance(timedelta(minutes=10))
    assert (await finish(cloud, late["attempt"], brought)).status_code == 401


async def test_a_code_that_somebody_else_got_is_redeemed_for_nobody(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider
) -> None:
    """Injected into one's own attempt, with its state: the provider knows that it was another's (PKCE)."""
    await federated(cloud, keycloak)
    mine, others = (await begin(cloud)).json(), (await begin(cloud)).json()
    stolen = {**keycloak.visit(others["url"]), "state": mine["state"]}
    assert (await finish(cloud, mine["attempt"], stolen)).status_code == 401
    assert "does not redeem the code: invalid_grant" in await why(cloud)


@pytest.mark.parametrize("issuer", ["https://evil.example.com", "", None])
async def test_an_answer_by_another_provider_is_none(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, issuer: str | None
) -> None:
    await federated(cloud, keycloak)
    begun = (await begin(cloud)).json()
    brought = keycloak.visit(begun["url"])
    del brought["iss"]
    refused = await finish(cloud, begun["attempt"], brought if issuer is None else {**brought, "iss": issuer})
    assert refusal(refused)[:2] == (401, "unauthenticated")
    assert "/token" not in keycloak.asked, "the code was not told to anybody"


@pytest.mark.parametrize(
    "lie",
    [
        {"nonce": "another's"},
        {"aud": "somebody else"},
        {"exp": 0},
        {"iss": "https://evil.example.com"},
        {"sub": None},
        {"preferred_username": None},
    ],
    ids=str,
)
async def test_a_lie_lets_nobody_in_and_the_audit_tells_of_it(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, lie: dict[str, Any]
) -> None:
    await federated(cloud, keycloak)
    keycloak.lies = lie
    answer = await sign_in(cloud, keycloak)
    assert refusal(answer) == (401, "unauthenticated", set())
    assert "ID token" in await why(cloud)
    assert len(cloud.state[USERS]) == 1


async def test_new_keys_are_fetched_when_they_are_needed_and_not_for_everybody(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, clock: FrozenClock
) -> None:
    await federated(cloud, keycloak)
    assert (await sign_in(cloud, keycloak)).status_code == 201
    keycloak.turn_keys()
    clock.advance(timedelta(minutes=2))
    assert (await sign_in(cloud, keycloak)).status_code == 201
    asked = keycloak.asked.count("/keys")
    for _ in range(3):
        keycloak.turn_keys()
        assert (await sign_in(cloud, keycloak)).status_code == 401, "once a minute is enough"
    assert keycloak.asked.count("/keys") == asked
    clock.advance(timedelta(minutes=1))
    assert (await sign_in(cloud, keycloak)).status_code == 201


async def test_a_second_factor_is_asked_for_and_the_answer_need_not_be_fetched_again(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider
) -> None:
    await federated(cloud, keycloak)
    session = (await sign_in(cloud, keycloak)).json()
    path = f"/v1/users/{session['user_id']}"
    async with client_of(cloud.controller, session["token"]) as client:
        secret = (await client.post(f"{path}/enrol-second-factor")).json()["secret"]
        code = code_at(secret, step_at(cloud.now()))
        assert (await client.post(f"{path}/confirm-second-factor", json={"code": code})).status_code == 200
    begun = (await begin(cloud)).json()
    brought = keycloak.visit(begun["url"])
    assert refusal(await finish(cloud, begun["attempt"], brought))[1] == "second-factor-required"
    assert (await finish(cloud, begun["attempt"], brought, code="000000")).status_code == 401
    later = code_at(secret, step_at(cloud.now()) + 1)
    assert (await finish(cloud, begun["attempt"], {**brought, "state": "x"}, code=later)).status_code == 401
    begun = (await begin(cloud)).json()
    brought = keycloak.visit(begun["url"])
    assert (await finish(cloud, begun["attempt"], brought, code=later)).status_code == 201
    assert (await finish(cloud, begun["attempt"], brought, code=later)).status_code == 401


@pytest.mark.parametrize(
    "redirect",
    [
        "https://evil.example.com/callback",
        "http://127.0.0.1.evil.example.com:80/callback",
        "http://localhost:4711/callback",
        "http://127.0.0.1:4711/callback?to=https://evil.example.com",
        "http://127.0.0.1:4711@evil.example.com/callback",
        "http://127.0.0.1/callback",
        "http://127.0.0.1:4711/callback\n",
    ],
)
async def test_an_answer_is_brought_to_the_persons_own_machine_only(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, redirect: str
) -> None:
    await federated(cloud, keycloak)
    assert refusal(await begin(cloud, redirect_uri=redirect)) == (400, "invalid", {"redirect_uri"})


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://evil.example.com"},
        {"token_endpoint": 1},
        {"jwks_uri": "https://169.254.169.254/keys"},
        {"jwks_uri": "https://localhost/keys"},
        {"jwks_uri": "http://192.0.2.1/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"padding": "x" * 600_000},
    ],
    ids=lambda each: str(each)[:40],
)
async def test_what_a_provider_says_of_itself_is_not_followed_anywhere(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, discovery: dict[str, Any]
) -> None:
    provider = await federated(cloud, keycloak)
    keycloak.discovery = discovery
    answer = await begin(cloud)
    assert refusal(answer)[:2] == (503, "unavailable")
    tested = await cloud.client.post(f"/v1/identity-providers/{provider['id']}/test", json={})
    assert (tested.status_code, tested.json()["good"]) == (200, False)


async def test_testing_a_provider_says_what_it_offers(cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider) -> None:
    path = f"/v1/identity-providers/{(await federated(cloud, keycloak))['id']}/test"
    tested = (await cloud.client.post(path, json={})).json()
    assert tested["good"] is True
    assert {"discovery", "keys", "algorithms", "PKCE", "issuer"} <= {each["about"] for each in tested["findings"]}
    assert refusal(await cloud.client.post(path, json={"user": "ann"})) == (400, "invalid", {"user"})


async def test_a_provider_that_is_switched_off_meanwhile_lets_nobody_in(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider
) -> None:
    provider = await federated(cloud, keycloak)
    begun = (await begin(cloud)).json()
    await cloud.client.patch(f"/v1/identity-providers/{provider['id']}", json={"enabled": False})
    assert (await finish(cloud, begun["attempt"], keycloak.visit(begun["url"]))).status_code == 401
    assert refusal(await begin(cloud))[:2] == (401, "unauthenticated")


async def test_nobody_fills_the_memory_with_attempts(cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider) -> None:
    await federated(cloud, keycloak)
    answers = [await begin(cloud) for _ in range(25)]
    assert [answer.status_code for answer in answers].count(200) == 20
    assert {answer.status_code for answer in answers} == {200, 429}


async def test_an_issuer_does_not_become_another_one_under_its_users(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider
) -> None:
    """Its subjects would be somebody else's there."""
    path = f"/v1/identity-providers/{(await federated(cloud, keycloak))['id']}"
    assert (await sign_in(cloud, keycloak)).status_code == 201
    elsewhere = {"url": "https://evil.example.com", "secret": SECRET}
    assert refusal(await cloud.client.patch(path, json=elsewhere)) == (409, "conflict", {"url"})


async def test_a_wrong_client_secret_is_told_to_the_audit(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, people: People
) -> None:
    await federated(cloud, keycloak, secret="wrong")
    assert (await sign_in(cloud, keycloak)).status_code == 401
    assert "invalid_client" in await why(cloud)


async def test_a_password_is_not_what_an_openid_provider_takes(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider
) -> None:
    await federated(cloud, keycloak)
    async with client_of(cloud.controller, "") as stranger:
        wish = {"user": "ann", "password": "x", "provider": "keycloak"}
        assert (await stranger.post("/v1/tokens/sign-in", json=wish)).status_code == 401
    assert "no ldap provider keycloak" in await why(cloud)
