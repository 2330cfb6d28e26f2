"""Several external networks, and routers that go out by more than one of them: as the API has them."""

import json
from typing import Any

import pytest

from pileus.testing.cloud import SimulatedCloud
from pileus.testing.requests import items, made, refusal, running

CIDR, CIDR_6 = "203.0.113.0/24", "2001:db8:b::/64"


async def second_line(cloud: SimulatedCloud, *, ipv6: bool = False) -> dict[str, Any]:
    wish = {"name": "line-b", "physical_network": "line-b", "cidr": CIDR, "gateway": "203.0.113.1"}
    line = (await cloud.client.post("/v1/networks/external", json=wish)).json()
    if ipv6:
        await made(cloud.client, "subnets", name="line-b-6", network_id=line["id"], cidr=CIDR_6)
    return line


async def default_router(cloud: SimulatedCloud) -> dict[str, Any]:
    return (await items(cloud.client, "routers"))[0]


async def changed(cloud: SimulatedCloud, router: dict[str, Any], **wish: Any) -> dict[str, Any]:
    answer = await cloud.client.patch(f"/v1/routers/{router['id']}", json=wish)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def with_two_lines(cloud: SimulatedCloud) -> tuple[dict[str, Any], dict[str, Any]]:
    line = await second_line(cloud)
    return line, await changed(cloud, await default_router(cloud), further_network_ids=[line["id"]])


async def test_a_router_has_an_address_in_each_of_its_external_networks(cloud: SimulatedCloud) -> None:
    line, router = await with_two_lines(cloud)
    (further,) = router["further_uplinks"]
    assert (further["network_id"], further["address"]) == (line["id"], "203.0.113.2")
    assert router["external_address"], "what it had it keeps"
    floating = await made(cloud.client, "floating-ips", network_id=line["id"])
    assert floating["address"] == "203.0.113.3", "no address is given twice"


async def test_the_first_line_is_another_when_two_are_named_the_other_way_round(cloud: SimulatedCloud) -> None:
    line, router = await with_two_lines(cloud)
    first = router["external_network_id"]
    wish = {"external_network_id": line["id"], "further_network_ids": [first]}
    plan = (await cloud.client.patch(f"/v1/routers/{router['id']}?dry_run=true", json=wish)).json()
    assert {each["about"] for each in plan["because"]} == {"external network external", "external network line-b"}
    turned = await changed(cloud, router, **wish)
    assert turned["external_address"] == "203.0.113.2"
    assert turned["further_uplinks"][0]["address"] == router["external_address"]


async def test_ipv6_that_came_to_a_line_later_is_taken_when_the_line_is_named_again(cloud: SimulatedCloud) -> None:
    line, router = await with_two_lines(cloud)
    await made(cloud.client, "subnets", name="line-b-6", network_id=line["id"], cidr=CIDR_6)
    again = await changed(cloud, router, further_network_ids=[line["id"]])
    assert again["further_uplinks"] == [{**router["further_uplinks"][0], "ipv6_address": "2001:db8:b::2"}]


async def test_a_way_out_that_is_used_stays(cloud: SimulatedCloud) -> None:
    line, router = await with_two_lines(cloud)
    web = await running(cloud, cloud.client, name="web")
    await made(cloud.client, "floating-ips", network_id=line["id"], instance_id=web["id"])
    path = f"/v1/routers/{router['id']}"
    assert refusal(await cloud.client.patch(path, json={"further_network_ids": []}))[:2] == (409, "conflict")
    assert refusal(await cloud.client.delete(f"/v1/networks/{line['id']}"))[:2] == (409, "conflict")


@pytest.mark.parametrize(
    ("wish", "wrong"),
    [
        ({"external_network_id": None, "further_network_ids": ["line"]}, {"further_network_ids"}),
        ({"further_network_ids": ["line", "line"]}, {"further_network_ids"}),
        ({"source_routes": [{"source": "10.0.0.0/24", "network_id": "vpc"}]}, {"source_routes.0.network_id"}),
        ({"source_routes": [{"source": "fd00::/64", "network_id": "line"}]}, {"source_routes.0.network_id"}),
        (
            {"source_routes": [{"source": "10.0.0.0/24", "network_id": "line"}] * 2},
            {"source_routes.1.source"},
        ),
        ({"routes": [{"destination": "192.0.2.0/24", "next_hop": "203.0.114.1"}]}, {"routes.0.next_hop"}),
    ],
)
async def test_ways_out_that_cannot_be_are_refused(
    cloud: SimulatedCloud, wish: dict[str, Any], wrong: set[str]
) -> None:
    line, router = await with_two_lines(cloud)
    vpc = next(each for each in await items(cloud.client, "networks") if each["kind"] == "vpc")
    named = json.dumps(wish).replace('"line"', f'"{line["id"]}"').replace('"vpc"', f'"{vpc["id"]}"')
    answer = await cloud.client.patch(f"/v1/routers/{router['id']}", json=json.loads(named))
    assert refusal(answer) == (400, "invalid", wrong)


async def test_a_network_that_does_not_lead_out_is_no_way_out(cloud: SimulatedCloud) -> None:
    router = await default_router(cloud)
    vpc = next(each for each in await items(cloud.client, "networks") if each["kind"] == "vpc")
    wish = {"further_network_ids": [vpc["id"]]}
    answer = await cloud.client.patch(f"/v1/routers/{router['id']}", json=wish)
    assert refusal(answer) == (404, "not-found", {"further_network_ids"})
    assert refusal(await cloud.client.post(f"/v1/networks/{vpc['id']}/disable"))[:2] == (409, "conflict")


async def test_what_could_be_answered_by_one_of_two_lines_only_is_refused(cloud: SimulatedCloud) -> None:
    line, router = await with_two_lines(cloud)
    web = await running(cloud, cloud.client, name="web")
    first, second = [
        await made(cloud.client, "floating-ips", network_id=id) for id in (router["external_network_id"], line["id"])
    ]
    to_web = {"instance_id": web["id"], "external_port": 8022, "internal_port": 22}
    await made(cloud.client, "port-forwardings", floating_ip_id=first["id"], **to_web)
    both = await cloud.client.post("/v1/port-forwardings", json={"floating_ip_id": second["id"], **to_web})
    assert refusal(both) == (409, "conflict", {"internal_port"})
    other = {**to_web, "internal_port": 23, "external_port": 8023}
    rule = await made(cloud.client, "port-forwardings", floating_ip_id=second["id"], **other)
    moved = await cloud.client.patch(f"/v1/port-forwardings/{rule['id']}", json={"internal_port": 22})
    assert refusal(moved) == (409, "conflict", {"internal_port"})
    third = await made(cloud.client, "floating-ips", network_id=line["id"])
    whole = await cloud.client.post(f"/v1/floating-ips/{third['id']}/associate", json={"instance_id": web["id"]})
    assert refusal(whole)[:2] == (409, "conflict")


async def test_a_line_is_taken_out_of_service_and_put_in_again(cloud: SimulatedCloud) -> None:
    _, router = await with_two_lines(cloud)
    path = f"/v1/networks/{router['external_network_id']}"
    await made(cloud.client, "floating-ips", network_id=router["external_network_id"])
    plan = (await cloud.client.post(f"{path}/disable?dry_run=true")).json()
    assert [each["about"] for each in plan["because"]] == ["routers", "floating IPs"]
    assert (await cloud.client.get(path)).json()["in_service"]
    assert (await cloud.client.post(f"{path}/disable")).json()["in_service"] is False
    assert (await cloud.client.post(f"{path}/enable")).json()["in_service"] is True


# IPv6 prefixes


async def delegating(cloud: SimulatedCloud, *prefixes: str) -> dict[str, Any]:
    line = await second_line(cloud, ipv6=True)
    path = f"/v1/networks/{line['id']}"
    return (await cloud.client.patch(path, json={"ipv6_prefixes": list(prefixes)})).json()


async def with_a_prefix(cloud: SimulatedCloud, line: dict[str, Any], name: str) -> dict[str, Any]:
    network = await made(cloud.client, "networks", name=name)
    return await made(cloud.client, "subnets", name=name, network_id=network["id"], prefix_network_id=line["id"])


async def test_subnets_are_given_prefixes_of_an_external_network_until_it_has_none_left(cloud: SimulatedCloud) -> None:
    line = await delegating(cloud, "2001:db8:7::/63")
    first, second = [await with_a_prefix(cloud, line, name) for name in ("one", "two")]
    assert (first["cidr"], second["cidr"]) == ("2001:db8:7::/64", "2001:db8:7:1::/64")
    assert (first["delegated_by"], first["gateway"]) == (line["id"], "2001:db8:7::1")
    third = await made(cloud.client, "networks", name="three")
    wish = {"name": "three", "network_id": third["id"], "prefix_network_id": line["id"]}
    answer = await cloud.client.post("/v1/subnets", json=wish)
    assert refusal(answer) == (409, "conflict", {"prefix_network_id"})
    await cloud.client.delete(f"/v1/subnets/{first['id']}")
    assert (await cloud.client.post("/v1/subnets", json=wish)).json()["cidr"] == first["cidr"], "it was given back"


async def test_a_prefix_that_another_subnet_has_by_now_does_not_come_back(cloud: SimulatedCloud) -> None:
    line = await delegating(cloud, "2001:db8:7::/60")
    subnet = await with_a_prefix(cloud, line, "one")
    await cloud.client.delete(f"/v1/subnets/{subnet['id']}")
    deleted = (await items(cloud.client, f"events?id={subnet['id']}&limit=1000"))[-1]["sequence"]
    other = await with_a_prefix(cloud, line, "two")
    assert other["cidr"] == subnet["cidr"]
    answer = await cloud.client.post("/v1/events/undo", json={"sequence": deleted})
    assert refusal(answer)[:2] == (409, "conflict")
    assert (await cloud.client.delete(f"/v1/subnets/{other['id']}")).status_code == 204
    assert (await cloud.client.post("/v1/events/undo", json={"sequence": deleted})).status_code == 200


async def test_an_external_network_keeps_the_prefixes_that_subnets_have(cloud: SimulatedCloud) -> None:
    line = await delegating(cloud, "2001:db8:7::/60")
    subnet = await with_a_prefix(cloud, line, "one")
    path = f"/v1/networks/{line['id']}"
    assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")
    kept = await cloud.client.patch(path, json={"ipv6_prefixes": []})
    assert refusal(kept) == (409, "conflict", {"ipv6_prefixes"})
    await cloud.client.delete(f"/v1/subnets/{subnet['id']}")
    assert (await cloud.client.patch(path, json={"ipv6_prefixes": []})).json()["ipv6_prefixes"] == []


@pytest.mark.parametrize(
    ("prefixes", "expected"),
    [
        (["192.0.2.0/24"], (400, "invalid", {"ipv6_prefixes.0"})),
        (["2001:db8:7::/60", "2001:db8:8::/80"], (400, "invalid", {"ipv6_prefixes.1"})),
        (["2001:db8:7::/60", "2001:db8:7::/61"], (409, "conflict", {"ipv6_prefixes"})),
        (["2001:db8::/32"], (409, "conflict", {"ipv6_prefixes"})),
    ],
)
async def test_prefixes_that_cannot_be_delegated_are_refused(
    cloud: SimulatedCloud, prefixes: list[str], expected: tuple[int, str, set[str]]
) -> None:
    line = await second_line(cloud, ipv6=True)
    answer = await cloud.client.patch(f"/v1/networks/{line['id']}", json={"ipv6_prefixes": prefixes})
    assert refusal(answer) == expected


async def test_an_external_network_with_ipv6_is_for_routers_alone(cloud: SimulatedCloud) -> None:
    line = await second_line(cloud, ipv6=True)
    answer = await cloud.client.patch(f"/v1/networks/{line['id']}", json={"direct": True})
    assert refusal(answer) == (409, "conflict", {"direct"})


async def test_a_router_tells_what_goes_by_which_uplink_and_what_the_world_has_to_route(cloud: SimulatedCloud) -> None:
    line = await delegating(cloud, "2001:db8:7::/56")
    subnet = await with_a_prefix(cloud, line, "one")
    joined = (await default_router(cloud))["subnet_ids"]
    source = {"source": "10.0.0.0/24", "network_id": line["id"]}
    router = await changed(
        cloud,
        await default_router(cloud),
        subnet_ids=[*joined, subnet["id"]],
        further_network_ids=[line["id"]],
        source_routes=[source],
    )
    path = f"/v1/routers/{router['id']}/uplinks"
    first, second = (await cloud.client.get(path)).json()["uplinks"]
    assert (first["network"], first["carries"], first["bound"]) == ("external", ["ipv4"], [])
    assert (second["network"], second["carries"]) == ("line-b", ["ipv6"])
    assert second["bound"] == ["from 10.0.0.0/24: source route", "from 2001:db8:7::/64: its own prefix"]
    assert second["routed"] == [{"prefix": "2001:db8:7::/64", "next_hop": "2001:db8:b::2"}]
    assert (second["physical_network"], second["vlan"]) == ("line-b", None)
    await cloud.client.post(f"/v1/networks/{router['external_network_id']}/disable")
    first, second = (await cloud.client.get(path)).json()["uplinks"]
    assert (first["in_service"], first["carries"], second["carries"]) == (False, [], ["ipv4", "ipv6"])


async def test_a_router_tells_on_which_vlan_a_line_is_and_what_is_limited_on_it(cloud: SimulatedCloud) -> None:
    wish = {"physical_network": "line-b", "vlan": 20, "cidr": CIDR, "gateway": "203.0.113.1"}
    line = (await cloud.client.post("/v1/networks/external", json={"name": "line-b", **wish})).json()
    router = await changed(cloud, await default_router(cloud), further_network_ids=[line["id"]])
    web = await running(cloud, cloud.client, name="web")
    (port,) = await items(cloud.client, f"ports?instance_id={web['id']}")
    floating = await made(cloud.client, "floating-ips", network_id=line["id"], port_id=port["id"], bandwidth_mbit=20)
    _, second = (await cloud.client.get(f"/v1/routers/{router['id']}/uplinks")).json()["uplinks"]
    assert (second["physical_network"], second["vlan"]) == ("line-b", 20)
    inside = port["addresses"][0]["address"]
    assert second["bound"] == [f"{inside}: floating IP {floating['address']}, 20 Mbit/s in each direction"]


async def test_reach_tells_by_which_line_and_why(cloud: SimulatedCloud) -> None:
    line, router = await with_two_lines(cloud)
    web = await running(cloud, cloud.client, name="web")
    question = {"source_instance_id": web["id"], "destination_address": "192.0.2.80", "port": 443}

    async def says() -> str:
        answer = (await cloud.client.post("/v1/networks/reach", json=question)).json()
        return next(hop["says"] for hop in answer["hops"] if hop["kind"] == "router")

    assert "network external" in await says()
    source = {"source": "10.0.0.0/22", "network_id": line["id"]}
    await changed(cloud, router, source_routes=[source])
    assert await says() == (
        "sends it to network line-b, as its route for what 10.0.0.0/22 sends says by way of 203.0.113.1"
    )
    await cloud.client.post(f"/v1/networks/{line['id']}/disable")
    assert "network external" in await says()
    await cloud.client.post(f"/v1/networks/{router['external_network_id']}/disable")
    assert await says() == "has no route to 192.0.2.80"
