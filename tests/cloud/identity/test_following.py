"""Users of a directory are what it says, also of those who do not sign in."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pileus.cloud.identity.model import GRANTS, USERS
from pileus.cloud.identity.sealing import Sealer
from pileus.cloud.identityproviders.port import Person as Known
from pileus.cloud.identityproviders.reconcilers import FollowDirectories
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.directories import SimulatedDirectory
from pileus.testing.people import People
from pileus.testing.requests import made

PASSWORD = "correct horse battery"


@pytest.fixture
def directory() -> SimulatedDirectory:
    directory = SimulatedDirectory("searching")
    directory.put(Known(subject="1", name="ann", groups=("operators",)), PASSWORD)
    return directory


@pytest.fixture
async def ann(cloud: SimulatedCloud, people: People) -> dict[str, Any]:
    """Somebody with a session, by what the directory's operators have."""
    wish = {"kind": "ldap", "url": "ldaps://directory.example.com", "base_dn": "dc=example,dc=com"}
    provider = await made(
        cloud.client, "identity-providers", name="staff", secret="searching", makes_users=True, **wish
    )
    gives = {"external_group": "operators", "project_id": await people.project("shop"), "role": "member"}
    await made(cloud.client, "group-mappings", provider_id=provider["id"], **gives)
    async with client_of(cloud.controller, "") as stranger:
        wish = {"user": "ann", "password": PASSWORD, "provider": "staff"}
        return {"provider": provider["id"], **(await stranger.post("/v1/tokens/sign-in", json=wish)).json()}


@pytest.fixture
def follow(cloud: SimulatedCloud, directory: SimulatedDirectory) -> Callable[[], Awaitable[None]]:
    sealer = Sealer.load_or_create(cloud.data / "secrets.key")
    return FollowDirectories(cloud.state, directory, sealer, cloud.clock).once


async def works(cloud: SimulatedCloud, token: str) -> bool:
    async with client_of(cloud.controller, token) as client:
        return (await client.get("/v1/networks")).status_code == 200


async def test_who_is_gone_or_disabled_there_is_out_until_they_are_back(
    cloud: SimulatedCloud,
    ann: dict[str, Any],
    directory: SimulatedDirectory,
    follow: Callable[[], Awaitable[None]],
) -> None:
    await follow()
    assert await works(cloud, ann["token"])
    person, password = directory.people.pop("1")
    await follow()
    assert not await works(cloud, ann["token"])
    assert cloud.state[USERS].get(ann["user_id"]).barred
    assert cloud.state[USERS].get(ann["user_id"]).enabled, "that is for administrators here to say"
    directory.put(person, password)
    await follow()
    assert await works(cloud, ann["token"])
    directory.change("1", enabled=False)
    await follow()
    assert not await works(cloud, ann["token"])


async def test_groups_are_followed_without_signing_in(
    cloud: SimulatedCloud,
    ann: dict[str, Any],
    directory: SimulatedDirectory,
    follow: Callable[[], Awaitable[None]],
) -> None:
    directory.change("1", groups=())
    await follow()
    assert cloud.state[GRANTS].by("user", ann["user_id"]) == []
    before = cloud.state.sequence
    await follow()
    assert cloud.state.sequence == before, "nothing is written where nothing has changed"


async def test_a_directory_that_does_not_answer_or_is_not_in_use_bars_nobody(
    cloud: SimulatedCloud,
    ann: dict[str, Any],
    directory: SimulatedDirectory,
    follow: Callable[[], Awaitable[None]],
) -> None:
    directory.people.clear()
    directory.away = True
    await follow()
    assert await works(cloud, ann["token"])
    directory.away = False
    path = f"/v1/identity-providers/{ann['provider']}"
    await cloud.client.patch(path, json={"enabled": False})
    await follow()
    await cloud.client.patch(path, json={"enabled": True})
    assert await works(cloud, ann["token"])


async def test_a_disabled_user_stays_so_whatever_the_directory_says(
    cloud: SimulatedCloud, ann: dict[str, Any], follow: Callable[[], Awaitable[None]]
) -> None:
    await cloud.client.patch(f"/v1/users/{ann['user_id']}", json={"enabled": False})
    await follow()
    assert not await works(cloud, ann["token"])
    assert not cloud.state[USERS].get(ann["user_id"]).enabled
