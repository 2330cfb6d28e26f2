"""Networks, subnets and routers; security groups; floating IPs; server groups."""

from typing import Any

import httpx2
import pytest

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.instances.model import INSTANCES
from pileus.kernel.errors import Conflict
from pileus.kernel.eui64 import slaac_address
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import begun, gone, items, made, over, refusal, running, shown


async def subnet(client: httpx2.AsyncClient, cidr: str, **more: Any) -> httpx2.Response:
    """A subnet of a new network."""
    network = await made(client, "networks", name="lan")
    return await client.post("/v1/subnets", json={"name": "lan", "network_id": network["id"], "cidr": cidr, **more})


async def test_a_subnet_has_its_gateway_first_and_gives_its_addresses_in_turn(cloud: SimulatedCloud) -> None:
    lan = (await subnet(cloud.client, "192.168.7.0/29")).json()
    assert lan["gateway"] == "192.168.7.1"
    for address in ("192.168.7.2", "192.168.7.3"):
        instance = await running(cloud, cloud.client, network_ids=[lan["network_id"]])
        assert instance["addresses"] == [address]
    await gone(cloud, cloud.client, instance["id"])
    another = await running(cloud, cloud.client, network_ids=[lan["network_id"]])
    assert another["addresses"] == ["192.168.7.4"], "an address that was given back rests"


async def test_a_full_subnet_gives_no_address(cloud: SimulatedCloud) -> None:
    lan = (await subnet(cloud.client, "192.168.7.0/29")).json()
    image = (await items(cloud.client, "images"))[0]["id"]
    wish = {"name": "x", "image_id": image, "vcpus": 1, "memory_mib": 64, "network_ids": [lan["network_id"]]}
    answers = [await cloud.client.post("/v1/instances", json=wish) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [*[202] * 5, 409]
    for answer in answers[:5]:
        await over(cloud, answer.json()["task_id"])


@pytest.mark.parametrize(
    ("cidr", "more", "wrong"),
    [
        ("10.1.0.0/30", {}, "cidr"),
        ("10.0.0.0/7", {}, "cidr"),
        ("10.1.0.1/24", {}, "cidr"),
        ("hello", {}, "cidr"),
        ("127.0.0.0/8", {}, "cidr"),
        ("169.0.0.0/8", {}, "cidr"),
        ("224.0.0.0/8", {}, "cidr"),
        ("0.0.0.0/8", {}, "cidr"),
        ("fe80::/64", {}, "cidr"),
        ("fe80::%eth0/64", {}, "cidr"),
        ("2001:db8::/56", {}, "cidr"),
        ("10.1.0.0/24", {"gateway": "10.2.0.1"}, "gateway"),
        ("10.1.0.0/24", {"gateway": "10.1.0.0"}, "gateway"),
        ("10.1.0.0/24", {"gateway": "10.1.0.255"}, "gateway"),
        ("10.1.0.0/24", {"gateway": "2001:db8::1"}, "gateway"),
        ("10.1.0.0/24", {"gateway": "10.1.0.1 "}, "gateway"),
        ("10.1.0.0/24", {"dns_servers": ["fe80::1%$(reboot)"]}, "dns_servers.0"),
        ("10.1.0.0/24", {"dns_servers": ["192.0.2.1", "resolver"]}, "dns_servers.1"),
        ("10.1.0.0/24", {"dns_servers": ["192.0.2.1"] * 5}, "dns_servers"),
        ("10.1.0.0/24", {"dns_servers": ["2001:db8::53"]}, "dns_servers"),
        ("fd00:1::/64", {"dns_servers": ["192.0.2.1"]}, "dns_servers"),
        ("10.1.0.0/24", {"ipv6_mode": "slaac"}, "ipv6_mode"),
        ("fd00:1::/64", {"ipv6_mode": "by magic"}, "ipv6_mode"),
    ],
)
async def test_a_subnet_that_cannot_work_is_refused(
    cloud: SimulatedCloud, cidr: str, more: dict[str, Any], wrong: str
) -> None:
    assert refusal(await subnet(cloud.client, cidr, **more)) == (400, "invalid", {wrong})


async def test_subnets_of_one_network_do_not_overlap(cloud: SimulatedCloud) -> None:
    first = (await subnet(cloud.client, "10.1.0.0/16")).json()
    for cidr in ("10.1.0.0/16", "10.1.7.0/24", "10.0.0.0/8"):
        wish = {"name": "x", "network_id": first["network_id"], "cidr": cidr}
        assert refusal(await cloud.client.post("/v1/subnets", json=wish)) == (409, "conflict", {"cidr"})
    beside = {"name": "x", "network_id": first["network_id"], "cidr": "10.2.0.0/16"}
    assert (await cloud.client.post("/v1/subnets", json=beside)).status_code == 201
    other = await subnet(cloud.client, "10.1.0.0/16")
    assert other.status_code == 201, "of another network they may"


async def test_a_port_has_an_address_of_each_ip_version_that_its_network_has(cloud: SimulatedCloud) -> None:
    lan = (await subnet(cloud.client, "10.1.0.0/24")).json()
    six = {"name": "six", "network_id": lan["network_id"], "cidr": "fd00:1::/64"}
    assert (await made(cloud.client, "subnets", **six))["ipv6_mode"] == "slaac"
    instance = await running(cloud, cloud.client, network_ids=[lan["network_id"]])
    port = (await items(cloud.client, f"ports?instance_id={instance['id']}"))[0]
    assert instance["addresses"] == ["10.1.0.2", slaac_address("fd00:1::/64", port["mac"])]
    assert [each["address"] for each in port["addresses"]] == instance["addresses"]
    second = await cloud.client.post("/v1/subnets", json={**six, "cidr": "fd00:2::/64"})
    assert refusal(second) == (409, "conflict", {"cidr"}), "machines would take addresses of both"


async def test_machines_of_a_stateful_subnet_get_its_addresses_in_turn(cloud: SimulatedCloud) -> None:
    lan = (await subnet(cloud.client, "fd00:1::/64", ipv6_mode="dhcpv6-stateful")).json()
    for address in ("fd00:1::2", "fd00:1::3"):
        instance = await running(cloud, cloud.client, network_ids=[lan["network_id"]])
        assert instance["addresses"] == [address]


async def test_a_network_that_is_used_stays_and_goes_with_its_subnets_when_it_is_not(cloud: SimulatedCloud) -> None:
    lan = (await subnet(cloud.client, "10.1.0.0/24")).json()
    router = await made(cloud.client, "routers", name="r", subnet_ids=[lan["id"]])
    instance = await running(cloud, cloud.client, network_ids=[lan["network_id"]])
    for path in (f"/v1/networks/{lan['network_id']}", f"/v1/subnets/{lan['id']}"):
        assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")
    await gone(cloud, cloud.client, instance["id"])
    assert (await cloud.client.delete(f"/v1/networks/{lan['network_id']}")).status_code == 204
    assert (await cloud.client.get(f"/v1/subnets/{lan['id']}")).status_code == 404
    assert (await shown(cloud.client, f"routers/{router['id']}"))["subnet_ids"] == []


async def test_what_a_router_joins_does_not_overlap_and_no_other_router_joins(cloud: SimulatedCloud) -> None:
    one, same, other = [(await subnet(cloud.client, f"10.{n}.0.0/16")).json()["id"] for n in (1, 1, 2)]
    both = await cloud.client.post("/v1/routers", json={"name": "r", "subnet_ids": [one, same]})
    assert refusal(both) == (409, "conflict", {"subnet_ids"})
    router = await made(cloud.client, "routers", name="r", subnet_ids=[one, other, one])
    assert router["subnet_ids"] == [one, other]
    second = await cloud.client.post("/v1/routers", json={"name": "second", "subnet_ids": [one]})
    assert refusal(second) == (409, "conflict", {"subnet_ids"})
    left = await cloud.client.patch(f"/v1/routers/{router['id']}", json={"subnet_ids": [other]})
    assert left.json()["subnet_ids"] == [other]
    await made(cloud.client, "routers", name="second", subnet_ids=[one])


async def test_a_route_goes_to_a_next_hop_of_its_own_ip_version(cloud: SimulatedCloud) -> None:
    lan = (await subnet(cloud.client, "10.1.0.0/24")).json()
    router = await made(cloud.client, "routers", name="r", subnet_ids=[lan["id"]])
    path = f"/v1/routers/{router['id']}"
    for destination, next_hop, wrong in (
        ("10.9.0.0/16", "2001:db8::1", {"routes.0"}),
        ("10.9.0.1/16", "10.1.0.9", {"routes.0.destination"}),
        ("10.9.0.0/16", "fe80::1%lo", {"routes.0.next_hop"}),
        ("10.9.0.0/16", "10.2.0.9", {"routes.0.next_hop"}),
        ("10.9.0.0/16", "169.254.128.2", {"routes.0.next_hop"}),
    ):
        wish = {"routes": [{"destination": destination, "next_hop": next_hop}]}
        assert refusal(await cloud.client.patch(path, json=wish)) == (400, "invalid", wrong)
    good = {"routes": [{"destination": "10.9.0.0/16", "next_hop": "10.1.0.9"}]}
    assert (await cloud.client.patch(path, json=good)).json()["routes"] == good["routes"]


async def test_to_one_destination_there_is_one_route(cloud: SimulatedCloud) -> None:
    lan = (await subnet(cloud.client, "10.1.0.0/24")).json()
    router = await made(cloud.client, "routers", name="r", subnet_ids=[lan["id"]])
    path, outside = f"/v1/routers/{router['id']}", (await items(cloud.client, "networks?kind=external"))[0]["id"]
    assert (await cloud.client.patch(path, json={"external_network_id": outside})).is_success
    inside = {"destination": "10.9.0.0/16", "next_hop": "10.1.0.9"}
    for next_hop in ("10.1.0.9", "10.1.0.10", "198.51.100.1"):
        again = {"destination": "10.9.0.0/16", "next_hop": next_hop}
        longer = {"destination": "10.9.8.0/24", "next_hop": next_hop}
        answer = await cloud.client.patch(path, json={"routes": [inside, longer, again]})
        assert refusal(answer) == (400, "invalid", {"routes.2.destination"})
        says = answer.json()["fields"]["routes.2.destination"]
        assert says == "10.9.0.0/16 goes by 10.1.0.9 (routes.0) already"
        assert (await cloud.client.patch(path, json={"routes": [inside, longer]})).is_success


EXTERNAL = {"name": "second line", "physical_network": "line-2", "cidr": "203.0.113.0/24", "gateway": "203.0.113.1"}


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"gateway": "198.51.100.1"}, {"gateway"}),
        ({"first": "203.0.113.9"}, {"last"}),
        ({"first": "203.0.113.9", "last": "203.0.113.8"}, {"last"}),
        ({"first": "203.0.113.0", "last": "203.0.113.255"}, {"first", "last"}),
        ({"first": "192.0.2.1", "last": "192.0.2.9"}, {"first", "last"}),
        ({"vlan": 4095}, {"vlan"}),
        ({"physical_network": "Line 2"}, {"physical_network"}),
    ],
)
async def test_an_external_network_that_cannot_work_is_refused(
    cloud: SimulatedCloud, more: dict[str, Any], wrong: set[str]
) -> None:
    answer = await cloud.client.post("/v1/networks/external", json={**EXTERNAL, **more})
    assert refusal(answer) == (400, "invalid", wrong)


async def test_two_external_networks_on_one_wire_do_not_give_the_same_addresses(cloud: SimulatedCloud) -> None:
    assert (await cloud.client.post("/v1/networks/external", json=EXTERNAL)).status_code == 201
    again = await cloud.client.post("/v1/networks/external", json={**EXTERNAL, "name": "again"})
    assert refusal(again) == (409, "conflict", {"cidr"})
    tagged = await cloud.client.post("/v1/networks/external", json={**EXTERNAL, "name": "tagged", "vlan": 7})
    assert tagged.status_code == 201, "another VLAN is another wire"


async def test_external_networks_are_for_administrators_of_the_cloud_also_within_their_own_project(
    cloud: SimulatedCloud, people: People
) -> None:
    external = next(each for each in await items(cloud.client, "networks") if each["kind"] == "external")
    outside = (await items(cloud.client, f"subnets?network_id={external['id']}"))[0]
    member = await people.person(Role.ADMIN, external["project_id"])
    wish = {"name": "x", "network_id": external["id"], "cidr": "203.0.113.0/24"}
    for answer in (
        await member.client.post("/v1/subnets", json=wish),
        await member.client.delete(f"/v1/subnets/{outside['id']}"),
        await member.client.delete(f"/v1/networks/{external['id']}"),
    ):
        assert refusal(answer)[:2] == (403, "forbidden")
    joined = await member.client.post("/v1/routers", json={"name": "x", "subnet_ids": [outside["id"]]})
    assert refusal(joined) == (409, "conflict", {"subnet_ids"})


async def test_an_external_subnet_stays_as_long_as_somebody_has_an_address_of_it(cloud: SimulatedCloud) -> None:
    external = (await cloud.client.post("/v1/networks/external", json=EXTERNAL)).json()
    outside = (await items(cloud.client, f"subnets?network_id={external['id']}"))[0]["id"]
    floating = await made(cloud.client, "floating-ips", network_id=external["id"])
    assert floating["address"] == "203.0.113.2"
    assert refusal(await cloud.client.delete(f"/v1/subnets/{outside}"))[:2] == (409, "conflict")
    assert refusal(await cloud.client.delete(f"/v1/networks/{external['id']}"))[:2] == (409, "conflict")
    await cloud.client.delete(f"/v1/floating-ips/{floating['id']}")
    router = await made(cloud.client, "routers", name="r", external_network_id=external["id"])
    assert router["external_address"] == "203.0.113.3"
    assert refusal(await cloud.client.delete(f"/v1/subnets/{outside}"))[:2] == (409, "conflict")
    assert refusal(await cloud.client.delete(f"/v1/networks/{external['id']}"))[:2] == (409, "conflict")
    await cloud.client.delete(f"/v1/routers/{router['id']}")
    assert (await cloud.client.delete(f"/v1/networks/{external['id']}")).status_code == 204


async def test_there_is_no_floating_ip_of_an_ipv6_network(cloud: SimulatedCloud) -> None:
    wish = {**EXTERNAL, "cidr": "2001:db8::/64", "gateway": "2001:db8::1"}
    external = (await cloud.client.post("/v1/networks/external", json=wish)).json()
    answer = await cloud.client.post("/v1/floating-ips", json={"network_id": external["id"]})
    assert refusal(answer)[:2] == (409, "conflict")
    nameless = await cloud.client.post("/v1/floating-ips", json={})
    assert refusal(nameless) == (409, "conflict", {"network_id"}), "there are two now"


# Security groups


async def rule(client: httpx2.AsyncClient, group: str, **wish: Any) -> httpx2.Response:
    return await client.post("/v1/security-rules", json={"group_id": group, **wish})


async def test_a_new_group_lets_everything_out_and_nothing_in(cloud: SimulatedCloud) -> None:
    group = await made(cloud.client, "security-groups", name="web")
    rules = await items(cloud.client, f"security-rules?group_id={group['id']}")
    assert sorted((each["direction"], each["ip_version"]) for each in rules) == [("egress", 4), ("egress", 6)]


async def test_a_rule_of_one_port_is_of_that_port_alone_and_is_not_made_twice(cloud: SimulatedCloud) -> None:
    group = (await made(cloud.client, "security-groups", name="web"))["id"]
    ssh = {"protocol": "tcp", "port_min": 22, "remote_cidr": "192.0.2.0/24"}
    first = await rule(cloud.client, group, **ssh)
    assert (first.status_code, first.json()["port_max"]) == (201, 22)
    assert refusal(await rule(cloud.client, group, **ssh))[:2] == (409, "conflict")
    assert (await cloud.client.delete(f"/v1/security-rules/{first.json()['id']}")).status_code == 204


@pytest.mark.parametrize(
    "wish",
    [
        {"protocol": "tcp", "port_min": 9, "port_max": 8},
        {"protocol": "tcp", "port_min": 5, "port_max": 0},
        {"protocol": "tcp", "port_max": 8},
        {"protocol": "tcp", "port_min": 65_536},
        {"protocol": "tcp", "port_min": -1},
        {"port_min": 8},
        {"protocol": "sctp"},
        {"protocol": "icmp", "port_min": 256},
        {"protocol": "icmp", "port_min": 8, "port_max": 256},
        {"ip_version": 5},
        {"ip_version": "4"},
        {"ip_version": 6, "remote_cidr": "192.0.2.0/24"},
        {"remote_cidr": "192.0.2.1/24"},
        {"remote_cidr": "192.0.2.0/24 || 1"},
        {"direction": "sideways"},
    ],
)
async def test_a_rule_that_makes_no_sense_is_refused(cloud: SimulatedCloud, wish: dict[str, Any]) -> None:
    group = (await made(cloud.client, "security-groups", name="web"))["id"]
    assert refusal(await rule(cloud.client, group, **wish))[:2] == (400, "invalid")


async def test_a_group_that_is_used_or_named_stays(cloud: SimulatedCloud) -> None:
    web, db = [(await made(cloud.client, "security-groups", name=name))["id"] for name in ("web", "db")]
    named = (await rule(cloud.client, db, protocol="tcp", port_min=5432, remote_group_id=web)).json()["id"]
    instance = await running(cloud, cloud.client, security_group_ids=[web, web])
    port = (await items(cloud.client, f"ports?instance_id={instance['id']}"))[0]
    assert port["security_group_ids"] == [web]
    assert refusal(await cloud.client.delete(f"/v1/security-groups/{web}"))[:2] == (409, "conflict")
    await gone(cloud, cloud.client, instance["id"])
    assert refusal(await cloud.client.delete(f"/v1/security-groups/{web}"))[:2] == (409, "conflict")
    await cloud.client.delete(f"/v1/security-rules/{named}")
    assert (await cloud.client.delete(f"/v1/security-groups/{web}")).status_code == 204
    default = next(each for each in await items(cloud.client, "security-groups") if each["is_default"])
    assert refusal(await cloud.client.delete(f"/v1/security-groups/{default['id']}"))[:2] == (409, "conflict")


# Floating IPs


async def test_a_floating_ip_moves_and_each_instance_shows_what_it_has(cloud: SimulatedCloud) -> None:
    one, two = await running(cloud, cloud.client), await running(cloud, cloud.client)
    floating = await made(cloud.client, "floating-ips", instance_id=one["id"])
    assert floating["fixed_address"] == one["addresses"][0]

    async def have() -> list[list[str]]:
        return [(await shown(cloud.client, f"instances/{each['id']}"))["floating_addresses"] for each in (one, two)]

    path = f"/v1/floating-ips/{floating['id']}"
    assert await have() == [[floating["address"]], []]
    assert (await cloud.client.post(f"{path}/associate", json={"instance_id": two["id"]})).status_code == 200
    assert await have() == [[], [floating["address"]]]
    assert (await cloud.client.post(f"{path}/associate", json={"instance_id": two["id"]})).status_code == 200
    assert await have() == [[], [floating["address"]]]
    assert (await cloud.client.post(f"{path}/dissociate")).json()["port_id"] is None
    assert await have() == [[], []]
    assert refusal(await cloud.client.post(f"{path}/associate", json={})) == (400, "invalid", {"instance_id"})


async def test_a_port_has_one_floating_ip(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    await made(cloud.client, "floating-ips", instance_id=instance["id"])
    second = await cloud.client.post("/v1/floating-ips", json={"instance_id": instance["id"]})
    assert refusal(second)[:2] == (409, "conflict")
    assert len(cloud.state[FLOATING_IPS]) == 1, "and no address was taken in vain"


async def test_an_instance_that_goes_sets_its_floating_ip_free(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    floating = await made(cloud.client, "floating-ips", instance_id=instance["id"])
    await gone(cloud, cloud.client, instance["id"])
    left = await shown(cloud.client, f"floating-ips/{floating['id']}")
    assert (left["address"], left["port_id"], left["router_id"]) == (floating["address"], None, None)


async def test_an_instance_that_fails_to_come_up_sets_its_floating_ip_free(cloud: SimulatedCloud) -> None:
    for host in cloud.fleet.hosts:
        host.faults.fail("hypervisor.start", Conflict("out of order"))
    task = await begun(cloud.client)
    floating = await made(cloud.client, "floating-ips", instance_id=task["instance"]["id"])
    assert (await over(cloud, task["task_id"])).state == "undone"
    assert (await shown(cloud.client, f"floating-ips/{floating['id']}"))["port_id"] is None


async def test_a_floating_ip_that_is_given_to_an_instance_on_its_way_out_is_free_again_when_it_is_gone(
    cloud: SimulatedCloud,
) -> None:
    instance = await running(cloud, cloud.client)
    floating = await made(cloud.client, "floating-ips")
    deleted = await cloud.client.delete(f"/v1/instances/{instance['id']}")
    await cloud.client.post(f"/v1/floating-ips/{floating['id']}/associate", json={"instance_id": instance["id"]})
    await over(cloud, deleted.json()["task_id"])
    assert (await shown(cloud.client, f"floating-ips/{floating['id']}"))["port_id"] is None


async def test_a_floating_ip_needs_a_router_that_leads_to_its_network(cloud: SimulatedCloud) -> None:
    lan = (await subnet(cloud.client, "10.1.0.0/24")).json()
    instance = await running(cloud, cloud.client, network_ids=[lan["network_id"]])
    wish = {"instance_id": instance["id"]}
    assert refusal(await cloud.client.post("/v1/floating-ips", json=wish))[:2] == (409, "conflict")
    external = next(each["id"] for each in await items(cloud.client, "networks") if each["kind"] == "external")
    router = await made(cloud.client, "routers", name="r", subnet_ids=[lan["id"]], external_network_id=external)
    floating = await made(cloud.client, "floating-ips", **wish)
    path = f"/v1/routers/{router['id']}"
    assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")
    assert refusal(await cloud.client.patch(path, json={"subnet_ids": []}))[:2] == (409, "conflict")
    await cloud.client.delete(f"/v1/floating-ips/{floating['id']}")
    assert (await cloud.client.delete(path)).status_code == 204


# Server groups


async def test_a_member_that_must_be_apart_and_cannot_is_refused_per_host(cloud: SimulatedCloud) -> None:
    group = (await made(cloud.client, "server-groups", name="db", policy="anti-affinity"))["id"]
    hosts = {(await running(cloud, cloud.client, server_group_id=group))["host_id"] for _ in range(3)}
    assert len(hosts) == 3
    image = (await items(cloud.client, "images"))[0]["id"]
    wish = {"name": "x", "image_id": image, "vcpus": 1, "memory_mib": 64, "server_group_id": group}
    refused = await cloud.client.post("/v1/instances", json=wish)
    assert refusal(refused)[:2] == (507, "no-capacity")
    assert set(refused.json()["because"]) == {"host-1", "host-2", "host-3"}
    assert all("db" in reason for reason in refused.json()["because"].values())
    assert len(cloud.state[INSTANCES]) == 3


async def test_members_with_affinity_are_on_one_host(cloud: SimulatedCloud) -> None:
    group = (await made(cloud.client, "server-groups", name="pair", policy="affinity"))["id"]
    hosts = {(await running(cloud, cloud.client, server_group_id=group))["host_id"] for _ in range(3)}
    assert len(hosts) == 1
    assert refusal(await cloud.client.delete(f"/v1/server-groups/{group}"))[:2] == (409, "conflict")
    for instance in list(cloud.state[INSTANCES].ids):
        await gone(cloud, cloud.client, instance)
    assert (await cloud.client.delete(f"/v1/server-groups/{group}")).status_code == 204
