"""Hosts: how they join, what maintenance means, how they leave."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from pileus.cloud.hosts.model import HOSTS, INVITATIONS
from pileus.kernel.clock import FrozenClock
from pileus.link.certificates import AgentKey
from pileus.link.join import Joined, JoinRequest
from pileus.link.tokens import read_token
from pileus.testing.cloud import SimulatedCloud, client_of, simulated_cloud
from pileus.testing.links import until
from pileus.testing.memorystore import MemoryStore
from pileus.testing.requests import gone, items, made, refusal, running, shown


async def invitation(cloud: SimulatedCloud, **wish: Any) -> str:
    """The secret of a new join token."""
    answer = await cloud.client.post("/v1/hosts/tokens", json=wish)
    assert answer.status_code == 201, answer.text
    token = read_token(answer.json()["token"])
    assert token.authority == answer.json()["authority"] == cloud.controller.authority.fingerprint
    return token.secret


async def join(
    cloud: SimulatedCloud, secret: str, *, key: AgentKey | None = None, name: str = "new"
) -> httpx2.Response:
    facts = msgspec.structs.replace(await cloud.fleet.hosts[0].facts(), name=name)
    request = JoinRequest(secret=secret, csr=(key or AgentKey()).signing_request(), facts=facts)
    async with client_of(cloud.controller, "") as stranger:
        return await stranger.post("/v1/hosts/join", content=msgspec.json.encode(request))


async def test_a_token_lets_one_host_in(cloud: SimulatedCloud) -> None:
    secret, key = await invitation(cloud, roles=["gateway"]), AgentKey()
    answer = await join(cloud, secret, key=key)
    assert answer.status_code == 200, answer.text
    joined = msgspec.json.decode(answer.content, type=Joined)
    host = await shown(cloud.client, f"hosts/{joined.host}")
    assert (host["name"], host["roles"], host["connected"]) == ("new", ["gateway"], False)
    assert refusal(await join(cloud, secret))[:2] == (401, "unauthenticated"), "another host is not let in"
    again = await join(cloud, secret, key=key)
    assert msgspec.json.decode(again.content, type=Joined).host == joined.host, "a lost answer may be asked for again"
    assert len(cloud.state[HOSTS]) == 4


async def test_of_many_that_show_one_token_at_once_one_gets_in(cloud: SimulatedCloud) -> None:
    secret = await invitation(cloud)
    answers = await asyncio.gather(*(join(cloud, secret, name=f"host-{n}") for n in range(10, 20)))
    assert sorted(answer.status_code for answer in answers) == [200, *[401] * 9]
    assert len(cloud.state[HOSTS]) == 4


async def test_a_removed_host_does_not_come_back_by_its_old_token(cloud: SimulatedCloud) -> None:
    secret, key = await invitation(cloud), AgentKey()
    joined = msgspec.json.decode((await join(cloud, secret, key=key)).content, type=Joined)
    assert (await cloud.client.delete(f"/v1/hosts/{joined.host}")).status_code == 204
    assert refusal(await join(cloud, secret, key=key))[:2] == (404, "not-found")
    assert cloud.controller.hosts.admit(joined.host, 1) is not None


async def test_a_token_is_good_until_its_time_is_over(tmp_path: Path) -> None:
    clock = FrozenClock()
    async with simulated_cloud(tmp_path, store=MemoryStore(), hosts=1, clock=clock) as cloud:
        secret = await invitation(cloud, expires_in_s=60)
        clock.advance(timedelta(seconds=61))
        assert refusal(await join(cloud, secret))[:2] == (401, "unauthenticated")
        await cloud.controller.housekeeping.once()
        assert secret not in str(list(cloud.state[INVITATIONS]))
        assert refusal(await join(cloud, secret))[:2] == (401, "unauthenticated")


async def test_a_host_with_a_name_that_is_taken_gets_another(cloud: SimulatedCloud) -> None:
    names: list[str] = []
    for wanted in ("host-1", "host-1", "", "", "\x00\x1b[31m../../etc", "x" * 300):
        joined = msgspec.json.decode((await join(cloud, await invitation(cloud), name=wanted)).content, type=Joined)
        names.append(cloud.state[HOSTS].get(joined.host).name)
    assert names == ["host-1-2", "host-1-3", "host", "host-4", "31m-etc", "x" * 56]


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"null", b"\xff\xfe", b"[" * 60_000, b'{"secret": 1}', b'{"secret": "x", "csr": "x", "facts": {}}'],
)
async def test_what_is_no_request_to_join_is_refused(cloud: SimulatedCloud, body: bytes) -> None:
    assert refusal(await cloud.client.post("/v1/hosts/join", content=body))[:2] == (400, "invalid")


async def test_a_good_token_with_a_bad_signing_request_is_not_used_up(cloud: SimulatedCloud) -> None:
    secret = await invitation(cloud)
    facts = await cloud.fleet.hosts[0].facts()
    for csr in ("", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"):
        request = JoinRequest(secret=secret, csr=csr, facts=facts)
        answer = await cloud.client.post("/v1/hosts/join", content=msgspec.json.encode(request))
        assert refusal(answer)[:2] == (400, "invalid")
    assert (await join(cloud, secret)).status_code == 200


async def test_a_host_in_maintenance_gets_no_new_instances_and_keeps_those_it_has(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    for host in cloud.fleet.hosts:
        await cloud.client.patch(f"/v1/hosts/{host.id}", json={"state": "maintenance"})
    image = (await items(cloud.client, "images"))[0]["id"]
    wish = {"name": "x", "image_id": image, "vcpus": 1, "memory_mib": 64}
    refused = await cloud.client.post("/v1/instances", json=wish)
    assert refusal(refused)[:2] == (507, "no-capacity")
    assert all("maintenance" in reason for reason in refused.json()["because"].values())
    assert (await shown(cloud.client, f"instances/{instance['id']}"))["state"] == "running"
    await cloud.client.patch(f"/v1/hosts/{cloud.fleet.hosts[1].id}", json={"state": "in-service"})
    assert (await running(cloud, cloud.client))["host_id"] == cloud.fleet.hosts[1].id


async def test_a_pool_gets_its_instances_on_its_own_hosts(cloud: SimulatedCloud) -> None:
    pool = (await made(cloud.client, "pools", name="fast"))["id"]
    host = cloud.fleet.hosts[2].id
    assert (await cloud.client.patch(f"/v1/hosts/{host}", json={"pool_id": pool})).status_code == 200
    inside = await running(cloud, cloud.client, pool_id=pool)
    assert inside["host_id"] == host
    for _ in range(4):
        assert (await running(cloud, cloud.client))["host_id"] != host
    default = next(each["id"] for each in await items(cloud.client, "pools") if each["is_default"])
    moved = await cloud.client.patch(f"/v1/hosts/{host}", json={"pool_id": default})
    assert refusal(moved)[:2] == (409, "conflict"), "its instances belong to its pool"
    await gone(cloud, cloud.client, inside["id"])
    assert (await cloud.client.patch(f"/v1/hosts/{host}", json={"pool_id": default})).status_code == 200


async def test_a_host_with_instances_is_not_removed(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    path = f"/v1/hosts/{instance['host_id']}"
    assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")
    await gone(cloud, cloud.client, instance["id"])
    assert (await cloud.client.delete(path)).status_code == 204


async def test_a_host_shows_what_is_measured_and_what_is_promised(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client, vcpus=3, memory_mib=512, max_memory_mib=1024)
    host = instance["host_id"]
    await until(lambda: cloud.controller.hosts.load(host) is not None)
    load = await shown(cloud.client, f"hosts/{host}/load")
    assert (load["instances"], load["promised_vcpus"], load["promised_memory_mib"]) == (1, 3, 1024)
    assert 0 <= load["measured"]["cpu"] <= 1


@pytest.mark.parametrize(
    "wish", [{"name": "a b"}, {"name": ""}, {"name": "-x"}, {"zone": "a/b"}, {"roles": ["king"]}, {"state": "dead"}]
)
async def test_what_a_host_cannot_be_is_refused(cloud: SimulatedCloud, wish: dict[str, Any]) -> None:
    answer = await cloud.client.patch(f"/v1/hosts/{cloud.fleet.hosts[0].id}", json=wish)
    assert refusal(answer)[:2] == (400, "invalid")
