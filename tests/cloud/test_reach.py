"""Who reaches whom, and why: as the API tells it."""

from typing import Any

import pytest

from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import items, made, over, refusal, running


async def reach(cloud: SimulatedCloud, **question: Any) -> dict[str, Any]:
    answer = await cloud.client.post("/v1/networks/reach", json=question)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def a_group(cloud: SimulatedCloud, *rules: dict[str, Any]) -> str:
    group = await made(cloud.client, "security-groups", name="web")
    for rule in rules:
        await made(cloud.client, "security-rules", group_id=group["id"], **rule)
    return str(group["id"])


async def test_members_of_one_group_reach_each_other_and_the_rule_is_named(cloud: SimulatedCloud) -> None:
    web, db = await running(cloud, cloud.client, name="web"), await running(cloud, cloud.client, name="db")
    answer = await reach(cloud, source_instance_id=web["id"], destination_instance_id=db["id"], port=5432)
    assert answer["verdict"] == "yes"
    assert answer["summary"] == "web reaches db by tcp 5432"
    assert [hop["kind"] for hop in answer["hops"]] == ["port", "port"]
    rules = {rule["id"] for rule in await items(cloud.client, "security-rules")}
    assert all(hop["says"].rpartition(" ")[2] in rules for hop in answer["hops"])


async def test_what_no_rule_lets_in_is_said_with_the_rule_that_would_and_that_rule_does(cloud: SimulatedCloud) -> None:
    group = await a_group(cloud)
    web = await running(cloud, cloud.client, name="web")
    db = await running(cloud, cloud.client, name="db", security_group_ids=[group])
    question = {"source_instance_id": web["id"], "destination_instance_id": db["id"], "port": 5432}
    answer = await reach(cloud, **question)
    (peer,) = web["addresses"]
    assert answer["verdict"] == "no"
    assert answer["hops"][-1]["passes"] is False
    assert answer["advice"] == f"add a rule to security group web: ingress, tcp 5432, from {peer}/32"
    rule = {"direction": "ingress", "protocol": "tcp", "port_min": 5432, "port_max": 5432, "remote_cidr": f"{peer}/32"}
    await made(cloud.client, "security-rules", group_id=group, **rule)
    assert (await reach(cloud, **question))["verdict"] == "yes"
    assert (await reach(cloud, **question | {"port": 5433}))["verdict"] == "no"


async def test_the_way_out_is_told_with_its_translation(cloud: SimulatedCloud) -> None:
    web = await running(cloud, cloud.client, name="web")
    answer = await reach(cloud, source_instance_id=web["id"], destination_address="192.0.2.80", port=443)
    assert answer["verdict"] == "beyond"
    assert [hop["kind"] for hop in answer["hops"]] == ["port", "network", "router", "router", "network"]
    assert "translates" in answer["hops"][3]["says"]


async def test_from_outside_an_instance_is_reached_by_a_floating_ip_only(cloud: SimulatedCloud) -> None:
    group = await a_group(cloud, {"direction": "ingress", "protocol": "tcp", "port_min": 443, "port_max": 443})
    web = await running(cloud, cloud.client, name="web", security_group_ids=[group])
    question = {"source_address": "192.0.2.80", "destination_instance_id": web["id"], "port": 443}
    answer = await reach(cloud, **question)
    assert (answer["verdict"], answer["advice"]) == ("no", "associate a floating IP with web")
    floating = await made(cloud.client, "floating-ips")
    associated = await cloud.client.post(
        f"/v1/floating-ips/{floating['id']}/associate", json={"instance_id": web["id"]}
    )
    assert associated.is_success, associated.text
    answer = await reach(cloud, **question)
    assert answer["verdict"] == "yes"
    assert [hop["kind"] for hop in answer["hops"]] == ["floating_ip", "router", "port"]


async def test_a_network_without_a_router_leads_nowhere(cloud: SimulatedCloud) -> None:
    lan = await made(cloud.client, "networks", name="lan")
    await made(cloud.client, "subnets", name="lan", network_id=lan["id"], cidr="192.168.7.0/24")
    web = await running(cloud, cloud.client, name="web", network_ids=[lan["id"]])
    answer = await reach(cloud, source_instance_id=web["id"], destination_address="192.0.2.80", port=443)
    assert (answer["verdict"], answer["advice"]) == ("no", "join subnet lan to a router")


async def test_an_instance_that_is_stopped_is_remarked(cloud: SimulatedCloud) -> None:
    web, db = await running(cloud, cloud.client, name="web"), await running(cloud, cloud.client, name="db")
    stopping = await cloud.client.post(f"/v1/instances/{db['id']}/stop")
    await over(cloud, stopping.json()["task_id"])
    answer = await reach(cloud, source_instance_id=web["id"], destination_instance_id=db["id"], protocol="icmp")
    assert answer["verdict"] == "yes", "the network lets it through"
    assert answer["remarks"] == ["instance db is stopped"]


async def test_nothing_is_told_of_what_is_another_projects(cloud: SimulatedCloud, people: People) -> None:
    theirs = await running(cloud, cloud.client, name="theirs")
    floating = await made(cloud.client, "floating-ips")
    await cloud.client.post(f"/v1/floating-ips/{floating['id']}/associate", json={"instance_id": theirs["id"]})
    stranger = (await people.person(Role.MEMBER, await people.project("elsewhere"))).client
    mine = await running(cloud, stranger, name="mine")
    by_id = {"source_instance_id": mine["id"], "destination_instance_id": theirs["id"], "port": 443}
    assert refusal(await stranger.post("/v1/networks/reach", json=by_id))[0] == 404
    by_address = {"source_instance_id": mine["id"], "destination_address": floating["address"], "port": 443}
    answer = (await stranger.post("/v1/networks/reach", json=by_address)).json()
    assert answer["verdict"] == "beyond"
    assert answer["hops"][-1] == {
        "kind": "floating_ip",
        "id": "",
        "name": floating["address"],
        "says": "is of another project",
        "passes": True,
    }


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"source_address": "192.0.2.80", "destination_address": "192.0.2.81", "port": 80},
        {"source_address": "192.0.2.80", "source_instance_id": "x", "destination_address": "192.0.2.81", "port": 80},
        {"source_address": "fe80::1%eth0", "destination_address": "192.0.2.81", "port": 80},
    ],
)
async def test_what_is_no_question_is_refused(cloud: SimulatedCloud, question: dict[str, Any]) -> None:
    answer = await cloud.client.post("/v1/networks/reach", json=question)
    assert refusal(answer)[:2] == (400, "invalid")


async def test_tcp_needs_a_port_and_icmp_has_none(cloud: SimulatedCloud) -> None:
    web = await running(cloud, cloud.client, name="web")
    question = {"source_instance_id": web["id"], "destination_address": "192.0.2.80"}
    for more in ({}, {"protocol": "icmp", "port": 80}, {"protocol": "tcp", "port": 0}, {"protocol": "sctp"}):
        assert refusal(await cloud.client.post("/v1/networks/reach", json=question | more))[0] == 400
