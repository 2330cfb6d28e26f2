"""Port forwardings, SNAT rules, and limits of floating IPs: as the API has them."""

from typing import Any

import pytest

from pileus.cloud.nat.model import PORT_FORWARDINGS, SNAT_RULES
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import gone, items, made, refusal, running


async def forwarded(cloud: SimulatedCloud, floating: dict[str, Any], instance: dict[str, Any], **more: Any) -> Any:
    wish = {"floating_ip_id": floating["id"], "external_port": 2222, "internal_port": 22, **more}
    return await made(cloud.client, "port-forwardings", instance_id=instance["id"], **wish)


async def test_a_forwarded_port_is_reached_from_outside(cloud: SimulatedCloud) -> None:
    web = await running(cloud, cloud.client, name="web")
    group = (await items(cloud.client, "security-groups"))[0]["id"]
    await made(cloud.client, "security-rules", group_id=group, direction="ingress", protocol="tcp", port_min=22)
    floating = await made(cloud.client, "floating-ips")
    question = {"source_address": "192.0.2.80", "destination_instance_id": web["id"], "port": 22}
    assert (await cloud.client.post("/v1/networks/reach", json=question)).json()["verdict"] == "no"
    rule = await forwarded(cloud, floating, web)
    assert (rule["address"], rule["fixed_address"]) == (floating["address"], web["addresses"][0])
    answer = (await cloud.client.post("/v1/networks/reach", json=question)).json()
    assert answer["verdict"] == "yes"
    assert "port 2222" in answer["hops"][0]["says"]
    changed = await cloud.client.patch(f"/v1/port-forwardings/{rule['id']}", json={"internal_port": 2022})
    assert changed.json()["internal_port"] == 2022


async def test_one_external_port_leads_to_one_place(cloud: SimulatedCloud) -> None:
    web = await running(cloud, cloud.client, name="web")
    floating = await made(cloud.client, "floating-ips")
    await forwarded(cloud, floating, web)
    wish = {"floating_ip_id": floating["id"], "external_port": 2222, "instance_id": web["id"]}
    assert refusal(await cloud.client.post("/v1/port-forwardings", json=wish)) == (409, "conflict", {"external_port"})
    await forwarded(cloud, floating, web, protocol="udp")
    await forwarded(cloud, floating, web, external_port=2223)


async def test_an_address_serves_a_port_whole_or_rules_but_not_both(cloud: SimulatedCloud) -> None:
    web = await running(cloud, cloud.client, name="web")
    floating = await made(cloud.client, "floating-ips")
    rule = await forwarded(cloud, floating, web)
    path = f"/v1/floating-ips/{floating['id']}"
    assert refusal(await cloud.client.post(f"{path}/associate", json={"instance_id": web["id"]}))[0] == 409
    assert refusal(await cloud.client.delete(path))[0] == 409
    assert (await cloud.client.delete(f"/v1/port-forwardings/{rule['id']}")).status_code == 204
    assert (await cloud.client.post(f"{path}/associate", json={"instance_id": web["id"]})).is_success
    wish = {"floating_ip_id": floating["id"], "external_port": 80, "instance_id": web["id"]}
    answer = await cloud.client.post("/v1/port-forwardings", json=wish)
    assert refusal(answer) == (409, "conflict", {"floating_ip_id"})


async def test_what_goes_out_is_said_to_go_out_under_the_address_of_the_nearest_rule(cloud: SimulatedCloud) -> None:
    web = await running(cloud, cloud.client, name="web")
    subnet = next(each for each in await items(cloud.client, "subnets") if each["name"] == "default")
    of_subnet, of_web = [await made(cloud.client, "floating-ips") for _ in range(2)]
    await made(cloud.client, "snat-rules", floating_ip_id=of_subnet["id"], subnet_id=subnet["id"])
    question = {"source_instance_id": web["id"], "destination_address": "192.0.2.80", "port": 443}
    hops = (await cloud.client.post("/v1/networks/reach", json=question)).json()["hops"]
    assert any(of_subnet["address"] in hop["says"] for hop in hops)
    rule = await made(cloud.client, "snat-rules", floating_ip_id=of_web["id"], instance_id=web["id"])
    assert rule["source"] == f"{web['addresses'][0]}/32"
    hops = (await cloud.client.post("/v1/networks/reach", json=question)).json()["hops"]
    assert any(of_web["address"] in hop["says"] for hop in hops)


async def test_rules_of_an_instance_go_with_it(cloud: SimulatedCloud) -> None:
    web = await running(cloud, cloud.client, name="web")
    floating, other = [await made(cloud.client, "floating-ips") for _ in range(2)]
    await forwarded(cloud, floating, web)
    await made(cloud.client, "snat-rules", floating_ip_id=other["id"], instance_id=web["id"])
    await gone(cloud, cloud.client, web["id"])
    assert not list(cloud.state[PORT_FORWARDINGS])
    assert not list(cloud.state[SNAT_RULES])
    assert (await cloud.client.delete(f"/v1/floating-ips/{floating['id']}")).status_code == 204


async def test_a_router_that_translates_by_rules_stays(cloud: SimulatedCloud) -> None:
    web = await running(cloud, cloud.client, name="web")
    floating = await made(cloud.client, "floating-ips")
    rule = await forwarded(cloud, floating, web)
    path = f"/v1/routers/{rule['router_id']}"
    assert refusal(await cloud.client.delete(path))[0] == 409
    assert refusal(await cloud.client.patch(path, json={"subnet_ids": []}))[0] == 409


@pytest.mark.parametrize(
    ("wish", "wrong"),
    [
        ({"cidr": "10.99.0.0/24"}, "cidr"),
        ({"cidr": "fd00::/64"}, "cidr"),
        ({"cidr": "10.0.0.1/24"}, "cidr"),
        ({}, "body"),
        ({"cidr": "10.0.0.0/24", "subnet_id": "00000000-0000-7000-8000-000000000000"}, "body"),
        ({"subnet_id": "00000000-0000-7000-8000-000000000000"}, "subnet_id"),
    ],
)
async def test_a_source_that_cannot_be_is_refused(cloud: SimulatedCloud, wish: dict[str, Any], wrong: str) -> None:
    floating = await made(cloud.client, "floating-ips")
    answer = await cloud.client.post("/v1/snat-rules", json={"floating_ip_id": floating["id"], **wish})
    assert refusal(answer)[2] == {wrong}


async def test_nobody_forwards_what_is_another_projects(cloud: SimulatedCloud, people: People) -> None:
    web = await running(cloud, cloud.client, name="web")
    floating = await made(cloud.client, "floating-ips")
    stranger = (await people.person(Role.ADMIN, await people.project("elsewhere"))).client
    wish = {"floating_ip_id": floating["id"], "external_port": 80, "instance_id": web["id"]}
    assert refusal(await stranger.post("/v1/port-forwardings", json=wish)) == (
        404,
        "not-found",
        {"floating_ip_id", "instance_id"},
    )
    theirs = await made(stranger, "floating-ips")
    wish |= {"floating_ip_id": theirs["id"]}
    assert refusal(await stranger.post("/v1/port-forwardings", json=wish)) == (404, "not-found", {"instance_id"})


async def test_a_floating_ip_is_limited_and_freed_again(cloud: SimulatedCloud) -> None:
    floating = await made(cloud.client, "floating-ips", bandwidth_mbit=100)
    assert floating["bandwidth_mbit"] == 100
    path = f"/v1/floating-ips/{floating['id']}"
    assert (await cloud.client.patch(path, json={"bandwidth_mbit": 5})).json()["bandwidth_mbit"] == 5
    assert (await cloud.client.patch(path, json={"bandwidth_mbit": None})).json()["bandwidth_mbit"] is None
    assert refusal(await cloud.client.patch(path, json={"bandwidth_mbit": 0}))[2] == {"bandwidth_mbit"}


async def test_a_port_is_limited_and_freed_again(cloud: SimulatedCloud) -> None:
    network = (await items(cloud.client, "networks?name=default"))[0]
    port = await made(cloud.client, "ports", name="eth1", network_id=network["id"], bandwidth_mbit=100)
    assert port["bandwidth_mbit"] == 100
    path = f"/v1/ports/{port['id']}"
    assert (await cloud.client.patch(path, json={"name": "eth2"})).json()["bandwidth_mbit"] == 100
    assert (await cloud.client.patch(path, json={"bandwidth_mbit": None})).json()["bandwidth_mbit"] is None
