"""Projects: their beginnings, their quota, their end."""

import asyncio

import pytest

from pileus.cloud.networks.model import NETWORKS
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import KEY, begun, gone, items, made, refusal, running, shown


async def test_a_project_begins_with_a_network_that_leads_out_and_a_security_group(
    cloud: SimulatedCloud, people: People
) -> None:
    project = await people.project("new")
    client = (await people.person(Role.READER, project)).client
    own = {
        plural: [each for each in await items(client, plural) if each["project_id"] == project]
        for plural in ("networks", "subnets", "routers", "security-groups")
    }
    for plural, found in own.items():
        assert [each["name"] for each in found] == ["default"], plural
    assert own["routers"][0]["subnet_ids"] == [own["subnets"][0]["id"]]
    assert own["routers"][0]["external_address"].startswith("198.51.100.")
    rules = await items(client, "security-rules")
    assert sorted((rule["direction"], rule["ip_version"]) for rule in rules) == [
        ("egress", 4),
        ("egress", 6),
        ("ingress", 4),
        ("ingress", 6),
    ]
    group = own["security-groups"][0]["id"]
    assert {rule["remote_group_id"] for rule in rules if rule["direction"] == "ingress"} == {group}


async def test_a_quota_counts_what_is_used_and_says_which_limit_was_met(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("small")
    member = await people.person(Role.MEMBER, project)
    wish = {"quota": {"vcpus": 3, "instances": 2, "memory_mib": -1}}
    assert (await cloud.client.patch(f"/v1/projects/{project}", json=wish)).status_code == 200
    await running(cloud, member.client, vcpus=2)
    usage = (await shown(member.client, f"projects/{project}/quota"))["usage"]
    assert usage["vcpus"] == {"used": 2, "limit": 3}
    assert usage["memory_mib"] == {"used": 256, "limit": -1}
    image = (await items(member.client, "images"))[0]["id"]
    more = {"name": "more", "image_id": image, "vcpus": 2, "memory_mib": 256}
    for query in ("", "?dry_run=true"):
        answer = await member.client.post(f"/v1/instances{query}", json=more)
        assert refusal(answer)[:2] == (403, "quota-exceeded")
        assert list(answer.json()["because"]) == ["vcpus"]
    answer = await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"bananas": 1}})
    assert refusal(answer) == (400, "invalid", {"quota.bananas"})


async def test_what_is_deleted_is_given_back_to_the_quota(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("small")
    member = await people.person(Role.MEMBER, project)
    before = (await shown(member.client, f"projects/{project}/quota"))["usage"]
    instance = await running(cloud, member.client)
    await gone(cloud, member.client, instance["id"])
    keypair = await made(member.client, "keypairs", name="x", public_key=KEY)
    await member.client.delete(f"/v1/keypairs/{keypair['id']}")
    assert (await shown(member.client, f"projects/{project}/quota"))["usage"] == before


async def test_a_lower_quota_takes_nothing_away_and_lets_nothing_more_in(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("small")
    member = await people.person(Role.MEMBER, project)
    instance = await running(cloud, member.client)
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"instances": 0}})
    assert (await member.client.patch(f"/v1/instances/{instance['id']}", json={"name": "still"})).status_code == 200
    assert (await member.client.post(f"/v1/instances/{instance['id']}/stop")).status_code == 202


@pytest.mark.parametrize("asked", [2, 30])
async def test_requests_at_once_do_not_get_around_the_quota(cloud: SimulatedCloud, people: People, asked: int) -> None:
    project = await people.project("small")
    member = await people.person(Role.MEMBER, project)
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"networks": 4, "floating_ips": 3}})
    answers = await asyncio.gather(
        *(member.client.post("/v1/networks", json={"name": f"net-{n}"}) for n in range(asked)),
        *(member.client.post("/v1/floating-ips", json={}) for _ in range(asked)),
    )
    statuses = [answer.status_code for answer in answers]
    assert statuses[:asked].count(201) == min(asked, 3), "one network is there from the beginning"
    assert statuses[asked:].count(201) == min(asked, 3)
    assert set(statuses) <= {201, 403}


async def test_a_project_is_deleted_with_its_networks_and_without_its_instances(
    cloud: SimulatedCloud, people: People
) -> None:
    project = await people.project("old")
    member = await people.person(Role.MEMBER, project)
    await made(member.client, "keypairs", name="x", public_key=KEY)
    instance = await running(cloud, member.client)
    floating = await made(member.client, "floating-ips")
    path = f"/v1/projects/{project}"
    assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")
    await gone(cloud, member.client, instance["id"])
    assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")
    await member.client.delete(f"/v1/floating-ips/{floating['id']}")
    assert (await cloud.client.delete(path)).status_code == 204
    assert cloud.state[NETWORKS].count_by("project", project) == 0
    assert (await member.client.get("/v1/networks")).status_code == 401


async def test_the_project_that_holds_the_way_out_is_not_deleted(cloud: SimulatedCloud, people: People) -> None:
    first = (await items(cloud.client, "projects"))[0]["id"]
    assert refusal(await cloud.client.delete(f"/v1/projects/{first}"))[0] == 409, "one works in it"
    other = await people.project("other")
    for image in await items(cloud.client, "images"):
        await cloud.client.delete(f"/v1/images/{image['id']}")
    answer = await cloud.client.delete(f"/v1/projects/{first}", headers={"pileus-project": other})
    assert refusal(answer)[0] == 409
    assert "external network" in answer.json()["detail"]


async def test_two_projects_do_not_have_one_name(cloud: SimulatedCloud, people: People) -> None:
    await people.project("taken")
    other = await people.project("free")
    for answer in (
        await cloud.client.post("/v1/projects", json={"name": "taken"}),
        await cloud.client.patch(f"/v1/projects/{other}", json={"name": "taken"}),
    ):
        assert refusal(answer) == (409, "conflict", {"name"})


async def test_a_quota_that_is_met_while_an_instance_is_built_is_met_all_the_same(
    cloud: SimulatedCloud, people: People
) -> None:
    project = await people.project("small")
    member = await people.person(Role.MEMBER, project)
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"instances": 1}})
    await begun(member.client)
    image = (await items(member.client, "images"))[0]["id"]
    second = await member.client.post(
        "/v1/instances", json={"name": "second", "image_id": image, "vcpus": 1, "memory_mib": 256}
    )
    assert refusal(second)[:2] == (403, "quota-exceeded")
