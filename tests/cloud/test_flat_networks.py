"""Flat networks, and guests' own interfaces on external ones."""

from itertools import zip_longest
from typing import Any

import httpx2
import pytest

from pileus.agent.network.simulated import SimulatedNetwork
from pileus.cloud.hosts.model import HOSTS
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.testing.people import People
from pileus.testing.requests import gone, items, made, refusal, running, shown

POOL = {"name": "office", "cidr": "192.168.20.0/24", "gateway": "192.168.20.254"}


async def flat(client: httpx2.AsyncClient, **more: Any) -> dict[str, Any]:
    answer = await client.post("/v1/networks/flat", json={"name": "office", "physical_network": "lan", **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def external(cloud: SimulatedCloud, *, direct: bool) -> dict[str, Any]:
    network = next(each for each in await items(cloud.client, "networks") if each["kind"] == "external")
    answer = await cloud.client.patch(f"/v1/networks/{network['id']}", json={"direct": direct})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_instance_gets_an_address_of_the_pool_and_gives_it_back(cloud: SimulatedCloud) -> None:
    lan = await flat(cloud.client, vlan=20)
    assert (lan["kind"], lan["mtu"], lan["vlan"]) == ("flat", 1500, 20)
    ranges = [
        {"first": "192.168.20.200", "last": "192.168.20.200"},
        {"first": "192.168.20.100", "last": "192.168.20.100"},
    ]
    pool = await made(cloud.client, "subnets", **POOL, network_id=lan["id"], ranges=ranges)
    assert (pool["gateway"], pool["ranges"]) == ("192.168.20.254", ranges[::-1])
    one = await running(cloud, cloud.client, network_ids=[lan["id"]])
    two = await running(cloud, cloud.client, network_ids=[lan["id"]])
    assert (one["addresses"], two["addresses"]) == (["192.168.20.100"], ["192.168.20.200"])
    image = (await items(cloud.client, "images"))[0]["id"]
    wish = {"name": "x", "image_id": image, "vcpus": 1, "memory_mib": 64, "network_ids": [lan["id"]]}
    assert refusal(await cloud.client.post("/v1/instances", json=wish))[:2] == (409, "conflict"), "both are taken"
    await gone(cloud, cloud.client, one["id"])
    again = await running(cloud, cloud.client, network_ids=[lan["id"]])
    assert again["addresses"] == ["192.168.20.100"]
    more = {"ranges": [*ranges, {"first": "192.168.20.7", "last": "192.168.20.9"}]}
    assert (await cloud.client.patch(f"/v1/subnets/{pool['id']}", json=more)).status_code == 200
    assert (await running(cloud, cloud.client, network_ids=[lan["id"]]))["addresses"] == ["192.168.20.7"]


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"gateway": "192.168.21.1"}, {"gateway"}),
        ({"ranges": [{"first": "192.168.20.0", "last": "192.168.21.9"}]}, {"ranges.0.first", "ranges.0.last"}),
        ({"ranges": [{"first": "192.168.20.9", "last": "192.168.20.8"}]}, {"ranges.0.last"}),
        ({"ranges": [{"first": "192.168.20.9", "last": "192.168.20.9"}] * 2}, {"ranges.1"}),
        ({"ranges": [{"first": "192.168.20.9"}]}, {"ranges.0.last"}),
        ({"dns_servers": ["2001:db8::1"]}, {"dns_servers"}),
    ],
)
async def test_an_address_pool_that_cannot_work_is_refused(
    cloud: SimulatedCloud, more: dict[str, Any], wrong: set[str]
) -> None:
    lan = await flat(cloud.client)
    answer = await cloud.client.post("/v1/subnets", json={**POOL, "network_id": lan["id"], **more})
    assert refusal(answer) == (400, "invalid", wrong)
    if "gateway" not in more:
        pool = await made(cloud.client, "subnets", **POOL, network_id=lan["id"])
        assert refusal(await cloud.client.patch(f"/v1/subnets/{pool['id']}", json=more)) == (400, "invalid", wrong)


async def test_a_lan_has_the_gateway_that_is_named_or_none(cloud: SimulatedCloud) -> None:
    lan = await flat(cloud.client)
    pool = await made(cloud.client, "subnets", name="lan", network_id=lan["id"], cidr="192.168.20.0/24")
    assert pool["gateway"] is None
    joined = await cloud.client.post("/v1/routers", json={"name": "x", "subnet_ids": [pool["id"]]})
    assert refusal(joined) == (409, "conflict", {"subnet_ids"}), "no router of ours takes the place of the LAN's"
    six = {"name": "six", "network_id": lan["id"], "cidr": "fd00:1::/64"}
    assert refusal(await cloud.client.post("/v1/subnets", json=six)) == (409, "conflict", {"cidr"})


async def test_the_lan_tells_guests_their_addresses_where_there_is_no_pool(cloud: SimulatedCloud) -> None:
    lan = await flat(cloud.client)
    instance = await running(cloud, cloud.client, name="web", network_ids=[lan["id"]])
    assert instance["addresses"] == []
    (port,) = await items(cloud.client, f"ports?instance_id={instance['id']}")
    assert port["addresses"] == []
    wish = {"name": "x", "network_id": lan["id"], "addresses": ["192.168.20.7"]}
    assert refusal(await cloud.client.post("/v1/ports", json=wish)) == (409, "conflict", {"addresses"})
    pool = await cloud.client.post("/v1/subnets", json={**POOL, "network_id": lan["id"]})
    assert refusal(pool)[:2] == (409, "conflict"), "its address would no longer be let through"
    question = {"source_instance_id": instance["id"], "destination_address": "192.0.2.1", "port": 80}
    answer = (await cloud.client.post("/v1/networks/reach", json=question)).json()
    assert answer["verdict"] == "beyond"
    assert answer["summary"].startswith("web is told its address by the LAN")


async def test_one_wire_is_one_flat_network(cloud: SimulatedCloud) -> None:
    first = {"name": "first", "physical_network": "lan", "vlan": 20}
    outside = {"name": "line", "cidr": "203.0.113.0/24", "gateway": "203.0.113.1", "physical_network": "lan"}
    await flat(cloud.client, vlan=20)
    again = await cloud.client.post("/v1/networks/flat", json=first)
    assert refusal(again) == (409, "conflict", {"physical_network"})
    tagged = await cloud.client.post("/v1/networks/external", json={**outside, "vlan": 20})
    assert refusal(tagged) == (409, "conflict", {"physical_network"})
    assert (await cloud.client.post("/v1/networks/external", json=outside)).status_code == 201
    untagged = await cloud.client.post("/v1/networks/flat", json={**first, "vlan": None})
    assert refusal(untagged) == (409, "conflict", {"physical_network"})
    assert (await cloud.client.post("/v1/networks/flat", json={**first, "vlan": 21})).status_code == 201


async def test_flat_networks_are_for_administrators_to_make_and_for_whom_they_say_to_use(
    cloud: SimulatedCloud, people: People
) -> None:
    lan = await flat(cloud.client)
    pool = await made(cloud.client, "subnets", **POOL, network_id=lan["id"])
    member = await people.person(Role.ADMIN, await people.project("shop"))
    wish = {"name": "desk", "network_id": lan["id"]}
    path = f"/v1/networks/{lan['id']}"
    assert refusal(await member.client.post("/v1/ports", json=wish)) == (404, "not-found", {"network_id"})
    assert (await member.client.get(path)).status_code == 404
    assert (await cloud.client.patch(path, json={"shared": True})).json()["shared"] is True
    assert {each["name"] for each in await items(member.client, "networks")} >= {"office"}
    assert (await member.client.get(f"/v1/subnets/{pool['id']}")).status_code == 200
    port = await made(member.client, "ports", **wish)
    assert port["addresses"] == [{"subnet_id": pool["id"], "address": "192.168.20.1"}]
    for answer in (
        await member.client.post("/v1/networks/flat", json={"name": "x", "physical_network": "lan", "vlan": 9}),
        await member.client.patch(path, json={"name": "mine"}),
        await member.client.patch(f"/v1/subnets/{pool['id']}", json={"name": "mine"}),
        await member.client.delete(path),
    ):
        assert refusal(answer)[:2] == (403, "forbidden")
    forwards = await member.client.patch(f"/v1/ports/{port['id']}", json={"allowed_prefixes": ["192.168.20.0/24"]})
    assert refusal(forwards) == (409, "conflict", {"allowed_prefixes"})
    assert refusal(await cloud.client.patch(path, json={"shared": False})) == (409, "conflict", {"shared"})
    assert (await cloud.client.get(f"/v1/ports/{port['id']}")).status_code == 200
    other = await people.person(Role.ADMIN, await people.project("other"))
    assert (await other.client.get(f"/v1/ports/{port['id']}")).status_code == 404
    await member.client.delete(f"/v1/ports/{port['id']}")
    assert (await cloud.client.patch(path, json={"shared": False})).status_code == 200


async def test_a_flat_network_is_made_for_one_project(cloud: SimulatedCloud, people: People) -> None:
    member = await people.person(Role.ADMIN, await people.project("shop"))
    other = await people.person(Role.ADMIN, await people.project("other"))
    wish = {"name": "cellar", "physical_network": "lan"}
    answer = await cloud.client.post("/v1/networks/flat", json=wish, headers={"pileus-project": "shop"})
    assert answer.status_code == 201, answer.text
    lan = answer.json()
    assert lan["project_id"] == member.project_id
    await made(cloud.client, "subnets", **POOL, network_id=lan["id"])
    assert (await running(cloud, member.client, network_ids=[lan["id"]]))["addresses"] == ["192.168.20.1"]
    denied = await other.client.post("/v1/ports", json={"name": "x", "network_id": lan["id"]})
    assert refusal(denied) == (404, "not-found", {"network_id"})
    mine = await member.client.post("/v1/subnets", json={**POOL, "network_id": lan["id"], "cidr": "192.168.21.0/24"})
    assert refusal(mine)[:2] == (403, "forbidden"), "the wire is the administrators'"


async def test_an_external_address_is_for_a_guests_own_interface_only_if_administrators_say_so(
    cloud: SimulatedCloud, people: People
) -> None:
    member = await people.person(Role.ADMIN, await people.project("shop"))
    network = await external(cloud, direct=False)
    wish = {"name": "web", "network_id": network["id"]}
    assert refusal(await member.client.post("/v1/ports", json=wish)) == (409, "conflict", {"network_id"})
    denied = await member.client.patch(f"/v1/networks/{network['id']}", json={"direct": True})
    assert refusal(denied)[:2] == (403, "forbidden")
    await external(cloud, direct=True)
    (outside,) = await items(cloud.client, f"subnets?network_id={network['id']}")
    assert outside["dhcp"] is True
    instance = await running(cloud, member.client, name="web", network_ids=[network["id"]])
    (port,) = await items(member.client, f"ports?instance_id={instance['id']}")
    assert [each["address"] for each in port["addresses"]] == instance["addresses"]
    floating = await made(member.client, "floating-ips")
    assert floating["address"] not in instance["addresses"]
    quota = (await shown(cloud.client, f"projects/{member.project_id}/quota"))["usage"]
    assert quota["floating_ips"]["used"] == 2, "each is an external address"
    assert refusal(await cloud.client.patch(f"/v1/networks/{network['id']}", json={"direct": False})) == (
        409,
        "conflict",
        {"direct"},
    )
    limited = await cloud.client.patch(f"/v1/projects/{member.project_id}", json={"quota": {"floating_ips": 2}})
    assert limited.status_code == 200
    assert refusal(await member.client.post("/v1/ports", json=wish))[:2] == (403, "quota-exceeded")
    question = {"source_address": "192.0.2.1", "destination_instance_id": instance["id"], "protocol": "icmp"}
    answer = (await member.client.post("/v1/networks/reach", json=question)).json()
    assert answer["verdict"] == "no"
    assert answer["advice"].startswith("add a rule to security group default")
    back = {"source_instance_id": instance["id"], "destination_address": "192.0.2.1", "protocol": "icmp"}
    answer = (await member.client.post("/v1/networks/reach", json=back)).json()
    assert (answer["verdict"], [hop["kind"] for hop in answer["hops"]]) == ("beyond", ["port", "network", "network"])


async def test_what_one_kind_of_network_can_be_another_cannot(cloud: SimulatedCloud) -> None:
    lan, own = await flat(cloud.client), await made(cloud.client, "networks", name="own")
    for network, change in ((lan, "direct"), (own, "direct"), (own, "shared")):
        answer = await cloud.client.patch(f"/v1/networks/{network['id']}", json={change: True})
        assert refusal(answer) == (409, "conflict", {change})
    renamed = await cloud.client.patch(f"/v1/networks/{own['id']}", json={"name": "lab"})
    assert renamed.json()["name"] == "lab"


async def rewired(cloud: SimulatedCloud, *wires: tuple[str, ...]) -> None:
    """The first hosts are on these wires, the others on the external one alone, and the controller knows."""
    for host, on in zip_longest(cloud.fleet.hosts, wires, fillvalue=("external",)):
        assert not isinstance(host, tuple)
        host.network.wires = on
        host.kill_agent()

    def known() -> bool:
        hosts = [cloud.state[HOSTS].get(host.id) for host in cloud.fleet.hosts]
        facts = [host.facts for host in hosts if host.connected and host.facts is not None]
        return [each.physical_networks for each in facts] == [host.network.wires for host in cloud.fleet.hosts]

    await until(known)


async def test_a_network_is_made_only_on_a_wire_that_a_host_is_on(cloud: SimulatedCloud) -> None:
    await rewired(cloud, ("external", "lan"))
    wish = {"name": "office", "physical_network": "attic"}
    outside = {"cidr": "203.0.113.0/24", "gateway": "203.0.113.1"}
    for path, more in (("flat", {}), ("external", outside)):
        answer = await cloud.client.post(f"/v1/networks/{path}", json={**wish, **more})
        assert refusal(answer) == (409, "conflict", {"physical_network"})
        assert answer.json()["detail"] == "no host is on physical network attic; there are external, lan"
    assert (await flat(cloud.client))["physical_network"] == "lan"


async def test_an_instance_goes_where_its_wires_are_and_a_refusal_says_who_lacks_them(cloud: SimulatedCloud) -> None:
    await rewired(cloud, ("external", "lan"))
    lan = await flat(cloud.client)
    own = await running(cloud, cloud.client, name="elsewhere")
    assert own["host_id"] != cloud.fleet.hosts[0].id
    for _ in range(3):
        instance = await running(cloud, cloud.client, network_ids=[lan["id"]])
        assert instance["host_id"] == cloud.fleet.hosts[0].id
    port = await made(cloud.client, "ports", name="desk", network_id=lan["id"])
    by_port = await running(cloud, cloud.client, port_ids=[port["id"]])
    assert by_port["host_id"] == cloud.fleet.hosts[0].id
    second = await made(cloud.client, "ports", name="second", network_id=lan["id"])
    attached = await cloud.client.post(f"/v1/ports/{second['id']}/attach", json={"instance_id": own["id"]})
    assert refusal(attached) == (409, "conflict", {"instance_id"})
    moved = await cloud.client.post(f"/v1/ports/{port['id']}/move", json={"instance_id": own["id"]})
    assert refusal(moved) == (409, "conflict", {"instance_id"})
    await rewired(cloud)
    image = (await items(cloud.client, "images"))[0]["id"]
    wish = {"name": "x", "image_id": image, "vcpus": 1, "memory_mib": 64, "network_ids": [lan["id"]]}
    answer = await cloud.client.post("/v1/instances", json=wish)
    assert refusal(answer)[:2] == (507, "no-capacity")
    assert "lacks physical network lan" in answer.text


class Rewired(SimulatedNetwork):
    """A switch that is given another bridge between its host's first words and its first report."""

    async def physical_networks(self) -> tuple[str, ...]:
        before = await super().physical_networks()
        self.wires = ("attic", "external")
        return before


async def test_a_host_that_is_rewired_while_it_runs_says_so(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    host.network = Rewired(host.faults)
    host.kill_agent()

    def known() -> tuple[str, ...]:
        facts = cloud.state[HOSTS].get(host.id).facts
        return facts.physical_networks if facts is not None else ()

    await until(lambda: known() == ("attic", "external"))
    host.network.lose()
    host.kill_agent()
    await until(lambda: known() == ())
    assert cloud.state[HOSTS].get(host.id).connected, "a host whose switch is away is there all the same"


async def test_a_pool_has_a_network_for_instances_that_name_none(cloud: SimulatedCloud, people: People) -> None:
    lan = await flat(cloud.client)
    pool = (await items(cloud.client, "pools"))[0]["id"]
    own = await made(cloud.client, "networks", name="own")
    for network in (own["id"], (await external(cloud, direct=False))["id"]):
        answer = await cloud.client.patch(f"/v1/pools/{pool}", json={"default_network_id": network})
        assert refusal(answer) == (409, "conflict", {"default_network_id"})
    changed = await cloud.client.patch(f"/v1/pools/{pool}", json={"default_network_id": lan["id"]})
    assert changed.json()["default_network_id"] == lan["id"]
    subnet = await made(cloud.client, "subnets", **POOL, network_id=lan["id"])
    first = await running(cloud, cloud.client)
    assert first["addresses"] == ["192.168.20.1"]
    named = (await items(cloud.client, "networks?name=default"))[0]["id"]
    assert (await running(cloud, cloud.client, network_ids=[named]))["addresses"] == ["10.0.0.2"]
    member = await people.person(Role.ADMIN, await people.project("shop"))
    elsewhere = await running(cloud, member.client)
    assert elsewhere["addresses"] == ["10.0.0.2"], "their project may not use the pool's"
    assert (await cloud.client.patch(f"/v1/networks/{lan['id']}", json={"shared": True})).status_code == 200
    second = await running(cloud, member.client)
    assert second["addresses"] == ["192.168.20.2"]
    for instance in (first, second):
        await gone(cloud, cloud.client, instance["id"])
    assert refusal(await cloud.client.delete(f"/v1/networks/{lan['id']}"))[:2] == (409, "conflict")
    changed = await cloud.client.patch(f"/v1/pools/{pool}", json={"default_network_id": None})
    assert changed.json()["default_network_id"] is None
    answer = await cloud.client.delete(f"/v1/networks/{lan['id']}")
    assert answer.status_code == 204, answer.text
    assert (await cloud.client.get(f"/v1/subnets/{subnet['id']}")).status_code == 404
