"""Signing in by an OpenID provider whose certificate is by an authority of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pileus.cloud.identity.model import USERS
from pileus.kernel.clock import FrozenClock, SystemClock
from pileus.link.certificates import Authority, ServerIdentity
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.openid import CLIENT, SECRET, SimulatedOpenIdProvider, openid_provider
from pileus.testing.requests import refusal

BACK = "http://127.0.0.1:4711/callback"


@pytest.fixture
def authority() -> Authority:
    return Authority.create(SystemClock())


@pytest.fixture
async def keycloak(authority: Authority, tmp_path: Path, clock: FrozenClock) -> AsyncIterator[SimulatedOpenIdProvider]:
    identity = ServerIdentity(authority, tmp_path, SystemClock())
    identity.ensure(["localhost"])
    async with openid_provider(clock.now, identity.api_context()) as provider:
        yield provider


async def federated(cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, authority: str) -> str:
    """Its path."""
    wish = {"name": "keycloak", "kind": "oidc", "url": keycloak.issuer, "client": CLIENT, "secret": SECRET}
    answer = await cloud.client.post(
        "/v1/identity-providers", json={"makes_users": True, "authority": authority, **wish}
    )
    assert answer.status_code == 201, answer.text
    return f"/v1/identity-providers/{answer.json()['id']}"


async def refused(cloud: SimulatedCloud, path: str) -> str:
    """Why nobody can sign in, as whoever administers the cloud is told; who would sign in is not told it."""
    async with client_of(cloud.controller, "") as stranger:
        begun = await stranger.post("/v1/tokens/begin-sign-in", json={"provider": "keycloak", "redirect_uri": BACK})
    assert refusal(begun)[:2] == (503, "unavailable")
    assert "certificate" not in begun.text
    tested = (await cloud.client.post(f"{path}/test", json={})).json()
    assert tested["good"] is False
    return tested["findings"][0]["says"]


async def test_a_provider_is_known_by_the_authority_that_was_named(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider, authority: Authority
) -> None:
    path = await federated(cloud, keycloak, authority.pem.decode())
    assert (await cloud.client.post(f"{path}/test", json={})).json()["good"] is True
    async with client_of(cloud.controller, "") as stranger:
        wish = {"provider": "keycloak", "redirect_uri": BACK}
        begun = (await stranger.post("/v1/tokens/begin-sign-in", json=wish)).json()
        assert begun["url"].startswith(f"{keycloak.issuer}/authorize?")
        brought = keycloak.visit(begun["url"])
        wish = {"attempt": begun["attempt"], "state": brought["state"], "authorization_code": brought["code"]}
        await stranger.post("/v1/tokens/finish-sign-in", json={**wish, "issuer": brought["iss"]})
    assert "/token" in keycloak.asked
    assert [user.name for user in cloud.state[USERS] if user.subject] == ["ann"]


async def test_a_provider_of_another_authority_or_of_nobodys_is_told_nothing(
    cloud: SimulatedCloud, keycloak: SimulatedOpenIdProvider
) -> None:
    path = await federated(cloud, keycloak, Authority.create(SystemClock()).pem.decode())
    assert "certificate verify failed" in await refused(cloud, path)
    answer = await cloud.client.patch(path, json={"authority": "", "secret": SECRET})
    assert answer.status_code == 200, answer.text
    assert "certificate verify failed" in await refused(cloud, path)
    assert keycloak.asked == []
