"""Ports of their own: made, attached, detached and moved while instances run, and what is refused."""

from typing import Any

import httpx2
import pytest

from pileus.cloud.networks.model import PORTS
from pileus.kernel.ids import InstanceId, PortId
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.invariants import dangling
from pileus.testing.people import People
from pileus.testing.requests import gone, items, made, over, refusal, running, shown
from pileus.workflow.task import TaskState


async def lan(client: httpx2.AsyncClient, cidr: str = "10.1.0.0/24", **more: Any) -> str:
    """The id of a new network with one subnet."""
    network = await made(client, "networks", name="lan")
    await made(client, "subnets", name="lan", network_id=network["id"], cidr=cidr, **more)
    return network["id"]


async def port(client: httpx2.AsyncClient, network: str, **more: Any) -> dict[str, Any]:
    return await made(client, "ports", name="second", network_id=network, **more)


async def done(cloud: SimulatedCloud, path: str, **wish: Any) -> None:
    answer = await cloud.client.post(f"/v1/ports/{path}", json=wish or None)
    assert answer.status_code == 202, answer.text
    ended = await over(cloud, answer.json()["task_id"])
    assert ended.state is TaskState.DONE, ended


def connected(cloud: SimulatedCloud, instance: dict[str, Any]) -> set[PortId]:
    """The ports that a running guest has, as its hypervisor knows it."""
    (guest,) = (
        host.hypervisor.guests[InstanceId(instance["id"])]
        for host in cloud.fleet.hosts
        if instance["id"] in host.hypervisor.guests
    )
    return set(guest.connected)


async def test_a_port_comes_and_goes_while_its_instance_runs_and_keeps_its_address(cloud: SimulatedCloud) -> None:
    network, instance = await lan(cloud.client), await running(cloud, cloud.client)
    first = instance["addresses"]
    second = await port(cloud.client, network, addresses=["10.1.0.77"], mac="0A:00:00:00:00:77")
    assert (second["state"], second["mac"]) == ("free", "0a:00:00:00:00:77")
    await done(cloud, f"{second['id']}/attach", instance_id=instance["id"])
    assert (await shown(cloud.client, f"instances/{instance['id']}"))["addresses"] == [*first, "10.1.0.77"]
    assert len(connected(cloud, instance)) == 2
    seen = await shown(cloud.client, f"ports/{second['id']}")
    assert (seen["state"], seen["slot"], seen["hostname"]) == ("attached", 1, "hello")
    await done(cloud, f"{second['id']}/detach")
    assert (await shown(cloud.client, f"instances/{instance['id']}"))["addresses"] == first
    assert len(connected(cloud, instance)) == 1
    seen = await shown(cloud.client, f"ports/{second['id']}")
    assert (seen["state"], seen["hostname"], seen["addresses"][0]["address"]) == ("free", "", "10.1.0.77")
    assert (await cloud.client.delete(f"/v1/ports/{second['id']}")).status_code == 204
    assert dangling(cloud.state) == []


async def test_a_port_moves_with_its_addresses_and_its_floating_ip(cloud: SimulatedCloud) -> None:
    one, other = [await running(cloud, cloud.client) for _ in range(2)]
    (mine,) = await items(cloud.client, f"ports?instance_id={one['id']}")
    floating = await made(cloud.client, "floating-ips", port_id=mine["id"])
    await done(cloud, f"{mine['id']}/move", instance_id=other["id"])
    left, gained = [await shown(cloud.client, f"instances/{each['id']}") for each in (one, other)]
    assert (left["addresses"], left["floating_addresses"]) == ([], [])
    assert gained["addresses"] == [*other["addresses"], *one["addresses"]]
    assert gained["floating_addresses"] == [floating["address"]]
    assert connected(cloud, one) == set()
    assert len(connected(cloud, other)) == 2
    assert cloud.state[PORTS].get(mine["id"]).host_id == gained["host_id"]
    again = await cloud.client.post(f"/v1/ports/{mine['id']}/move", json={"instance_id": other["id"]})
    assert refusal(again)[:2] == (409, "conflict")
    assert dangling(cloud.state) == []


async def test_an_instance_is_made_with_ports_that_outlive_it(cloud: SimulatedCloud) -> None:
    second = await port(cloud.client, await lan(cloud.client))
    instance = await running(cloud, cloud.client, port_ids=[second["id"]])
    assert instance["addresses"] == ["10.1.0.2"], "the default network was not asked for"
    for wish in ({"port_ids": [second["id"]]}, {"port_ids": [instance["id"]]}):
        image = instance["image_id"]
        more = {"name": "x", "image_id": image, "vcpus": 1, "memory_mib": 64, **wish}
        assert refusal(await cloud.client.post("/v1/instances", json=more))[2] == {"port_ids"}
    await gone(cloud, cloud.client, instance["id"])
    assert (await shown(cloud.client, f"ports/{second['id']}"))["state"] == "free"
    (both,) = [await running(cloud, cloud.client, port_ids=[second["id"]], network_ids=[second["network_id"]])]
    assert both["addresses"] == ["10.1.0.3", "10.1.0.2"], "named ports come last"
    assert dangling(cloud.state) == []


async def test_the_places_of_other_ports_do_not_change(cloud: SimulatedCloud) -> None:
    network, instance = await lan(cloud.client), await running(cloud, cloud.client)
    second, third = [await port(cloud.client, network) for _ in range(2)]
    for each in (second, third):
        await done(cloud, f"{each['id']}/attach", instance_id=instance["id"])
    await done(cloud, f"{second['id']}/detach")
    slots = {each["id"]: each["slot"] for each in await items(cloud.client, f"ports?instance_id={instance['id']}")}
    assert slots[third["id"]] == 2
    await done(cloud, f"{second['id']}/attach", instance_id=instance["id"])
    assert (await shown(cloud.client, f"ports/{second['id']}"))["slot"] == 1
    for _ in range(5):
        await done(cloud, f"{(await port(cloud.client, network))['id']}/attach", instance_id=instance["id"])
    ninth = await port(cloud.client, network)
    full = await cloud.client.post(f"/v1/ports/{ninth['id']}/attach", json={"instance_id": instance["id"]})
    assert refusal(full)[:2] == (409, "conflict")


async def test_groups_of_a_port_change_while_its_instance_runs(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    (mine,) = await items(cloud.client, f"ports?instance_id={instance['id']}")
    web = await made(cloud.client, "security-groups", name="web")
    answer = await cloud.client.patch(f"/v1/ports/{mine['id']}", json={"security_group_ids": [web["id"]]})
    assert answer.json()["security_group_ids"] == [web["id"]]
    assert refusal(await cloud.client.patch(f"/v1/ports/{mine['id']}", json={"security_group_ids": []}))[0] == 400


async def test_an_instance_that_is_being_changed_is_left_alone(cloud: SimulatedCloud) -> None:
    network, instance = await lan(cloud.client), await running(cloud, cloud.client)
    one, other = [await port(cloud.client, network) for _ in range(2)]
    wish = {"instance_id": instance["id"]}
    first = await cloud.client.post(f"/v1/ports/{one['id']}/attach", json=wish)
    for path in (f"ports/{other['id']}/attach", f"ports/{one['id']}/attach", f"instances/{instance['id']}/stop"):
        body = wish if "ports" in path else None
        assert refusal(await cloud.client.post(f"/v1/{path}", json=body))[:2] == (409, "conflict"), path
    await over(cloud, first.json()["task_id"])
    assert dangling(cloud.state) == []


@pytest.mark.parametrize(
    ("wish", "answer"),
    [
        ({"addresses": ["10.2.0.5"]}, (400, "invalid", {"addresses"})),
        ({"addresses": ["10.1.0.255"]}, (400, "invalid", {"addresses"})),
        ({"addresses": ["10.1.0.5", "10.1.0.6"]}, (400, "invalid", {"addresses"})),
        ({"addresses": ["10.1.0.1"]}, (409, "conflict", {"addresses"})),
        ({"addresses": ["10.1.0.2"]}, (409, "conflict", {"addresses"})),
        ({"addresses": ["fd00:1::7"]}, (400, "invalid", {"addresses"})),
        ({"mac": "0a:00:00:00:00:01"}, (409, "conflict", {"mac"})),
        ({"mac": "01:00:5e:00:00:01"}, (400, "invalid", {"mac"})),
        ({"mac": "00:00:00:00:00:00"}, (400, "invalid", {"mac"})),
        ({"mac": "0e:00:00:00:00:01"}, (400, "invalid", {"mac"})),
        ({"mac": "0a-00-00-00-00-01"}, (400, "invalid", {"mac"})),
        ({"allowed_prefixes": ["10.9.0.1/16"]}, (400, "invalid", {"allowed_prefixes.0"})),
    ],
)
async def test_a_port_that_cannot_be_had_is_refused(
    cloud: SimulatedCloud, wish: dict[str, Any], answer: tuple[int, str, set[str]]
) -> None:
    network = await lan(cloud.client)
    six = {"name": "six", "network_id": network, "cidr": "fd00:1::/64"}
    await made(cloud.client, "subnets", **six)
    await port(cloud.client, network, mac="0a:00:00:00:00:01")
    refused = await cloud.client.post("/v1/ports", json={"name": "x", "network_id": network, **wish})
    assert refusal(refused) == answer


async def test_a_port_of_a_network_without_subnets_or_of_somebody_else_is_refused(
    cloud: SimulatedCloud, people: People
) -> None:
    empty = await made(cloud.client, "networks", name="empty")
    refused = await cloud.client.post("/v1/ports", json={"name": "x", "network_id": empty["id"]})
    assert refusal(refused) == (409, "conflict", {"network_id"})
    stranger = await people.person(Role.ADMIN, await people.project("theirs"))
    network, instance = await lan(cloud.client), await running(cloud, cloud.client)
    mine = await port(cloud.client, network)
    assert refusal(await stranger.client.post("/v1/ports", json={"name": "x", "network_id": network}))[0] == 404
    for verb, wish in (("attach", {"instance_id": instance["id"]}), ("detach", None)):
        assert (await stranger.client.post(f"/v1/ports/{mine['id']}/{verb}", json=wish)).status_code == 404
    theirs = await port(stranger.client, await lan(stranger.client))
    for client in (stranger.client, cloud.client):
        crossed = await client.post(f"/v1/ports/{theirs['id']}/attach", json={"instance_id": instance["id"]})
        assert refusal(crossed)[0] == 404, "not even an administrator of the cloud joins two projects"
