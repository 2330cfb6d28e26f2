"""Peerings: who has to agree, and what is refused."""

from typing import Any

import httpx2

from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.invariants import dangling
from pileus.testing.people import People
from pileus.testing.requests import items, made, refusal, shown


async def vpc(client: httpx2.AsyncClient, *cidrs: str) -> dict[str, Any]:
    """A router that joins subnets of a new network."""
    network = await made(client, "networks", name="vpc")
    subnets = [await made(client, "subnets", name=cidr, network_id=network["id"], cidr=cidr) for cidr in cidrs]
    return await made(client, "routers", name=cidrs[0], subnet_ids=[subnet["id"] for subnet in subnets])


async def peer(client: httpx2.AsyncClient, one: dict[str, Any], other: dict[str, Any]) -> httpx2.Response:
    wish = {"name": "both", "router_id": one["id"], "peer_router_id": other["id"]}
    return await client.post("/v1/peerings", json=wish)


async def test_routers_of_one_project_are_joined_at_once(cloud: SimulatedCloud) -> None:
    one, other = await vpc(cloud.client, "10.1.0.0/24"), await vpc(cloud.client, "10.2.0.0/24", "fd00:2::/64")
    peering = (await peer(cloud.client, one, other)).json()
    assert peering["state"] == "active"
    assert refusal(await peer(cloud.client, other, one)) == (409, "conflict", {"peer_router_id"})
    assert refusal(await peer(cloud.client, one, one)) == (400, "invalid", {"peer_router_id"})
    assert refusal(await cloud.client.delete(f"/v1/routers/{one['id']}"))[:2] == (409, "conflict")
    assert (await cloud.client.delete(f"/v1/peerings/{peering['id']}")).status_code == 204
    assert (await cloud.client.delete(f"/v1/routers/{one['id']}")).status_code == 204


async def test_overlapping_plans_are_refused_with_every_pair_of_ranges(cloud: SimulatedCloud) -> None:
    one = await vpc(cloud.client, "10.1.0.0/16", "10.3.0.0/24", "fd00:1::/64")
    other = await vpc(cloud.client, "10.1.7.0/24", "10.3.0.0/25", "fd00:2::/64")
    refused = await peer(cloud.client, one, other)
    assert refusal(refused)[:2] == (409, "conflict")
    for named in ("10.1.0.0/16", "10.1.7.0/24", "10.3.0.0/24", "10.3.0.0/25"):
        assert named in refused.json()["detail"]
    assert "fd00" not in refused.json()["detail"]


async def test_a_router_does_not_come_to_overlap_with_its_peers_later(cloud: SimulatedCloud) -> None:
    one, other, third = [await vpc(cloud.client, f"10.{at}.0.0/24") for at in (1, 2, 3)]
    twin = await vpc(cloud.client, "10.3.0.0/16")
    for pair in ((one, other), (other, third)):
        assert (await peer(cloud.client, *pair)).status_code == 201
    assert refusal(await peer(cloud.client, other, twin))[:2] == (409, "conflict"), "it reaches 10.3.0.0 already"
    network = await made(cloud.client, "networks", name="more")
    same = await made(cloud.client, "subnets", name="same", network_id=network["id"], cidr="10.2.0.0/25")
    change = {"subnet_ids": [*one["subnet_ids"], same["id"]]}
    assert refusal(await cloud.client.patch(f"/v1/routers/{one['id']}", json=change))[:2] == (409, "conflict")
    route = {"routes": [{"destination": "10.2.0.0/24", "next_hop": "10.1.0.9"}]}
    assert refusal(await cloud.client.patch(f"/v1/routers/{one['id']}", json=route))[:2] == (409, "conflict")


async def test_two_projects_are_joined_when_both_agree(cloud: SimulatedCloud, people: People) -> None:
    ours, theirs = [await people.person(Role.MEMBER, await people.project(name)) for name in ("ours", "theirs")]
    stranger = await people.person(Role.MEMBER, await people.project("nobody"))
    one, other = await vpc(ours.client, "10.1.0.0/24"), await vpc(theirs.client, "10.2.0.0/24")
    peering = (await peer(ours.client, one, other)).json()
    assert peering["state"] == "pending"
    path = f"/v1/peerings/{peering['id']}"
    assert refusal(await ours.client.post(f"{path}/accept"))[:2] == (409, "conflict")
    assert refusal(await stranger.client.post(f"{path}/accept"))[0] == 404
    assert [each["id"] for each in await items(theirs.client, "peerings")] == [peering["id"]]
    assert await items(stranger.client, "peerings") == []
    assert (await theirs.client.post(f"{path}/accept")).json()["state"] == "active"
    assert (await shown(ours.client, f"peerings/{peering['id']}"))["state"] == "active"
    assert dangling(cloud.state) == []
    assert (await theirs.client.delete(path)).status_code == 204


async def test_of_another_projects_plan_nothing_is_told_before_it_agrees(cloud: SimulatedCloud, people: People) -> None:
    ours, theirs = [await people.person(Role.MEMBER, await people.project(name)) for name in ("ours", "theirs")]
    one, other = await vpc(ours.client, "10.1.0.0/16"), await vpc(theirs.client, "10.1.7.0/24")
    asked = await peer(ours.client, one, other)
    assert asked.json()["state"] == "pending"
    accepted = await theirs.client.post(f"/v1/peerings/{asked.json()['id']}/accept")
    assert refusal(accepted)[:2] == (409, "conflict")
    assert "10.1.0.0/16" in accepted.json()["detail"]
