"""Flat and external networks that are for some projects, on a whole simulated cloud."""

import re
from typing import Any

import httpx2

from pileus.cloud.networks.model import NETWORK_SHARES
from pileus.kernel.ids import new_id
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People, Person
from pileus.testing.requests import items, made, refusal, running

POOL = {"name": "office", "cidr": "192.168.20.0/24", "gateway": "192.168.20.254"}


async def office(cloud: SimulatedCloud) -> tuple[str, str]:
    """A flat network of the administrators' project, and its address pool."""
    lan = (await made(cloud.client, "networks/flat", name="office", physical_network="lan"))["id"]
    return lan, (await made(cloud.client, "subnets", **POOL, network_id=lan))["id"]


async def shared(cloud: SimulatedCloud, network: str, person: Person) -> str:
    return (await made(cloud.client, "network-shares", network_id=network, to_project_id=person.project_id))["id"]


async def outside(cloud: SimulatedCloud) -> str:
    return next(each["id"] for each in await items(cloud.client, "networks") if each["kind"] == "external")


async def patched(client: httpx2.AsyncClient, network: str, **wish: Any) -> httpx2.Response:
    return await client.patch(f"/v1/networks/{network}", json=wish)


async def sees(person: Person, network: str, subnet: str) -> bool:
    listed = network in [each["id"] for each in await items(person.client, "networks")]
    found = (await person.client.get(f"/v1/networks/{network}")).status_code == 200
    of_subnet = (await person.client.get(f"/v1/subnets/{subnet}")).status_code == 200
    assert listed == found == of_subnet
    return listed


async def test_projects_that_a_flat_network_is_shared_with_are_on_it_and_others_know_nothing(
    cloud: SimulatedCloud, people: People
) -> None:
    lan, pool = await office(cloud)
    shop = await people.person(Role.ADMIN, await people.project("shop"))
    lab = await people.person(Role.ADMIN, await people.project("lab"))
    stranger = await people.person(Role.ADMIN, await people.project("stranger"))
    first, second = await shared(cloud, lan, shop), await shared(cloud, lan, lab)
    assert [await sees(each, lan, pool) for each in (shop, lab, stranger)] == [True, True, False]
    assert (await running(cloud, shop.client, network_ids=[lan]))["addresses"] == ["192.168.20.1"]
    port = await made(lab.client, "ports", name="desk", network_id=lan)
    denied = await stranger.client.post("/v1/ports", json={"name": "x", "network_id": lan})
    assert refusal(denied) == (404, "not-found", {"network_id"})
    assert [each["id"] for each in await items(shop.client, "network-shares")] == [first]
    assert {each["id"] for each in await items(cloud.client, "network-shares")} == {first, second}
    for answer in (
        await shop.client.post("/v1/network-shares", json={"network_id": lan, "to_project_id": stranger.project_id}),
        await shop.client.delete(f"/v1/network-shares/{first}"),
        await patched(shop.client, lan, name="mine"),
    ):
        assert refusal(answer)[:2] == (403, "forbidden")
    forwards = await lab.client.patch(f"/v1/ports/{port['id']}", json={"allowed_prefixes": ["192.168.20.0/24"]})
    assert refusal(forwards) == (409, "conflict", {"allowed_prefixes"})


async def test_a_network_is_not_taken_back_from_who_has_something_on_it(cloud: SimulatedCloud, people: People) -> None:
    lan, pool = await office(cloud)
    shop = await people.person(Role.MEMBER, await people.project("shop"))
    lab = await people.person(Role.MEMBER, await people.project("lab"))
    of_shop, of_lab = await shared(cloud, lan, shop), await shared(cloud, lan, lab)
    ports = [(await made(shop.client, "ports", name=f"desk-{each}", network_id=lan))["id"] for each in range(7)]
    for query in ("", "?dry_run=true"):
        refused = await cloud.client.delete(f"/v1/network-shares/{of_shop}{query}")
        assert refusal(refused)[:2] == (409, "conflict")
        said = refused.json()["detail"]
        assert (said.count("port desk-"), "and 2 more" in said) == (5, True)
    assert (await cloud.client.delete(f"/v1/network-shares/{of_lab}")).status_code == 204
    assert [await sees(each, lan, pool) for each in (shop, lab)] == [True, False]
    for port in ports:
        assert (await shop.client.delete(f"/v1/ports/{port}")).status_code == 204
    assert (await cloud.client.delete(f"/v1/network-shares/{of_shop}?dry_run=true")).status_code == 200
    assert await sees(shop, lan, pool)
    assert (await cloud.client.delete(f"/v1/network-shares/{of_shop}")).status_code == 204
    assert not await sees(shop, lan, pool)


async def test_what_is_for_all_becomes_for_some_when_the_others_have_left(
    cloud: SimulatedCloud, people: People
) -> None:
    lan, pool = await office(cloud)
    assert (await patched(cloud.client, lan, shared=True)).status_code == 200
    shop = await people.person(Role.MEMBER, await people.project("shop"))
    other = await people.person(Role.MEMBER, await people.project("other"))
    await made(shop.client, "ports", name="till", network_id=lan)
    theirs = (await made(other.client, "ports", name="desk", network_id=lan))["id"]
    share = await shared(cloud, lan, shop)
    assert (await cloud.client.delete(f"/v1/network-shares/{share}")).status_code == 204, "it is for all anyway"
    await shared(cloud, lan, shop)
    refused = await patched(cloud.client, lan, shared=False)
    assert refusal(refused) == (409, "conflict", {"shared"})
    assert "port desk" in refused.json()["detail"]
    assert "till" not in refused.json()["detail"], "that project keeps it"
    assert (await other.client.delete(f"/v1/ports/{theirs}")).status_code == 204
    assert (await patched(cloud.client, lan, shared=False)).status_code == 200
    assert [await sees(each, lan, pool) for each in (shop, other)] == [True, False]


async def test_an_external_network_for_some_gives_others_no_floating_ip_and_no_way_out(
    cloud: SimulatedCloud, people: People
) -> None:
    network = await outside(cloud)
    early = await people.person(Role.ADMIN, await people.project("early"))
    refused = await patched(cloud.client, network, shared=False)
    assert refusal(refused) == (409, "conflict", {"shared"})
    assert re.search(r"router default \(.*\) of project early", refused.json()["detail"]), (
        "a project begins with a router that leads out"
    )
    await shared(cloud, network, early)
    assert (await patched(cloud.client, network, shared=False)).status_code == 200
    late = await people.person(Role.ADMIN, await people.project("late"))
    (router,) = await items(late.client, "routers")
    assert router["external_network_id"] is None
    assert refusal(await late.client.post("/v1/floating-ips", json={"network_id": network}))[:2] == (404, "not-found")
    assert refusal(await late.client.post("/v1/floating-ips", json={}))[:2] == (409, "conflict")
    leads_out = {"external_network_id": network}
    denied = await late.client.patch(f"/v1/routers/{router['id']}", json=leads_out)
    assert refusal(denied) == (404, "not-found", {"external_network_id"})
    floating = await made(early.client, "floating-ips")
    (share,) = await items(early.client, "network-shares")
    refused = await cloud.client.delete(f"/v1/network-shares/{share['id']}")
    assert refusal(refused)[:2] == (409, "conflict")
    assert f"floating IP {floating['address']}" in refused.json()["detail"]
    await shared(cloud, network, late)
    changed = await late.client.patch(f"/v1/routers/{router['id']}", json=leads_out)
    assert changed.json()["external_network_id"] == network


async def test_shares_that_make_no_sense_are_refused(cloud: SimulatedCloud, people: People) -> None:
    lan, _ = await office(cloud)
    project = await people.project("shop")
    own = await made(cloud.client, "networks", name="own")
    for network, to, refused in (
        (own["id"], project, (409, "conflict", {"network_id"})),
        (lan, own["project_id"], (409, "conflict", {"to_project_id"})),
        (lan, new_id(), (404, "not-found", {"to_project_id"})),
        (new_id(), project, (404, "not-found", {"network_id"})),
    ):
        wish = {"network_id": network, "to_project_id": to}
        assert refusal(await cloud.client.post("/v1/network-shares", json=wish)) == refused
    wish = {"network_id": lan, "to_project_id": project}
    assert (await cloud.client.post("/v1/network-shares?dry_run=true", json=wish)).status_code == 200
    assert len(cloud.state[NETWORK_SHARES]) == 0
    router = await made(cloud.client, "ports", name="vpn", network_id=lan, allowed_prefixes=["10.9.0.0/16"])
    assert "vpn" in (await cloud.client.post("/v1/network-shares", json=wish)).json()["detail"]
    assert refusal(await patched(cloud.client, lan, shared=True))[:2] == (409, "conflict")
    assert (await cloud.client.delete(f"/v1/ports/{router['id']}")).status_code == 204
    assert (await cloud.client.post("/v1/network-shares", json=wish)).status_code == 201
    assert refusal(await cloud.client.post("/v1/network-shares", json=wish))[:2] == (409, "conflict")


async def test_shares_go_with_their_network_and_with_their_project(cloud: SimulatedCloud, people: People) -> None:
    lan, _ = await office(cloud)
    shop, lab = await people.project("shop"), await people.project("lab")
    for project in (shop, lab):
        await made(cloud.client, "network-shares", network_id=lan, to_project_id=project)
    assert (await cloud.client.delete(f"/v1/projects/{shop}")).status_code == 204
    assert [each.to_project_id for each in cloud.state[NETWORK_SHARES]] == [lab]
    assert (await cloud.client.delete(f"/v1/networks/{lan}")).status_code == 204
    assert len(cloud.state[NETWORK_SHARES]) == 0


async def test_a_share_that_was_taken_back_comes_back_by_an_undo(cloud: SimulatedCloud, people: People) -> None:
    lan, _ = await office(cloud)
    project = await people.project("shop")
    share = await made(cloud.client, "network-shares", network_id=lan, to_project_id=project)
    deleted = await cloud.client.delete(f"/v1/network-shares/{share['id']}")
    undone = await cloud.client.post("/v1/events/undo", json={"id": deleted.headers["pileus-request"]})
    assert undone.is_success, undone.text
    assert [(each.id, each.to_project_id) for each in cloud.state[NETWORK_SHARES]] == [(share["id"], project)]
