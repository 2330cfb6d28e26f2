"""New instances that are copies of what others were at a snapshot, on a whole simulated cloud."""

from typing import Any

import pytest

from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.volumes.model import VOLUMES
from pileus.kernel.errors import Conflict
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import at_rest, begun, made, over, refusal, running, shown


async def done(cloud: SimulatedCloud, path: str, **wish: Any) -> dict[str, Any]:
    answer = await cloud.client.post(f"/v1/{path}", json=wish or None)
    assert answer.status_code == 202, answer.text
    assert (await over(cloud, answer.json()["task_id"])).state == "done"
    return answer.json()


@pytest.fixture
async def snapshot(cloud: SimulatedCloud) -> dict[str, Any]:
    """Of an instance with a second volume."""
    instance = await running(cloud, cloud.client, vcpus=2, memory_mib=300, disk_gib=3, template="linux-uefi")
    volume = await made(cloud.client, "volumes", name="data", size_gib=2)
    await done(cloud, f"volumes/{volume['id']}/attach", instance_id=instance["id"])
    return (await done(cloud, "snapshots", name="before", instance_id=instance["id"]))["snapshot"]


async def test_an_instance_from_a_snapshot_is_as_large_as_that_was_and_has_all_its_volumes(
    cloud: SimulatedCloud, snapshot: dict[str, Any]
) -> None:
    answer = await done(cloud, "instances", name="again", snapshot_id=snapshot["id"])
    again = await shown(cloud.client, f"instances/{answer['instance']['id']}")
    assert (again["state"], again["vcpus"], again["memory_mib"], again["disk_gib"]) == ("running", 2, 300, 3)
    assert (again["template"], again["host_id"]) == ("linux-uefi", snapshot["host_id"])
    assert again["image_id"] == cloud.state[INSTANCES].get(snapshot["instance_id"]).image_id
    volumes = sorted(cloud.state[VOLUMES].by("instance", again["id"]), key=lambda each: each.slot or 0)
    assert [(each.name, each.size_gib, each.state) for each in volumes] == [
        ("again", 3, "in-use"),
        ("again-data", 2, "in-use"),
    ]
    assert again["attached_volume_ids"] == [volumes[1].id]
    assert again["addresses"] != cloud.state[INSTANCES].get(snapshot["instance_id"]).addresses
    assert cloud.state[SNAPSHOTS].get(snapshot["id"]).state == "available"


async def test_what_is_said_counts_more_than_what_was(cloud: SimulatedCloud, snapshot: dict[str, Any]) -> None:
    wish = {"vcpus": 1, "disk_gib": 5, "template": "linux"}
    answer = await begun(cloud.client, image_id=None, snapshot_id=snapshot["id"], **wish, name="again")
    again = answer["instance"]
    assert (again["vcpus"], again["memory_mib"], again["disk_gib"], again["template"]) == (1, 256, 5, "linux")
    assert (await over(cloud, answer["task_id"])).state == "done"


async def test_an_instance_is_made_of_a_snapshot_of_a_volume_alone(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    boots = cloud.state[VOLUMES].ids_by("instance", instance["id"])[0]
    of_disk = (await done(cloud, "snapshots", name="disk", volume_id=boots))["snapshot"]
    assert (of_disk["vcpus"], of_disk["memory_mib"], of_disk["image_id"]) == (1, 256, instance["image_id"])
    await done(cloud, "instances", name="again", snapshot_id=of_disk["id"])
    copy = (await done(cloud, f"volumes/{boots}/clone", name="copy"))["volume"]
    of_copy = (await done(cloud, "snapshots", name="copy", volume_id=copy["id"]))["snapshot"]
    wish = {"name": "third", "snapshot_id": of_copy["id"]}
    refused = await cloud.client.post("/v1/instances", json=wish)
    assert refusal(refused) == (400, "invalid", {"vcpus", "memory_mib"})
    third = (await done(cloud, "instances", **wish, vcpus=1, memory_mib=256))["instance"]
    assert third["image_id"] is None
    rebuilt = await cloud.client.post(f"/v1/instances/{third['id']}/rebuild")
    assert refusal(rebuilt) == (400, "invalid", {"image_id"})


async def test_when_the_host_has_no_room_it_is_said_why_no_other_host_will_do(
    cloud: SimulatedCloud, snapshot: dict[str, Any]
) -> None:
    wish = {"name": "again", "snapshot_id": snapshot["id"], "vcpus": 1, "memory_mib": 1_000_000}
    refused = await cloud.client.post("/v1/instances", json=wish)
    assert refusal(refused)[:2] == (507, "no-capacity")
    assert "snapshot before is on host" in refused.json()["detail"]


async def test_one_that_cannot_be_made_leaves_nothing(cloud: SimulatedCloud, snapshot: dict[str, Any]) -> None:
    host = next(host for host in cloud.fleet.hosts if host.id == snapshot["host_id"])
    before = set(cloud.state[VOLUMES].ids)
    host.faults.fail("hypervisor.define", Conflict("no"), times=1)
    answer = await cloud.client.post("/v1/instances", json={"name": "again", "snapshot_id": snapshot["id"]})
    assert (await over(cloud, answer.json()["task_id"])).state == "undone"
    assert set(cloud.state[VOLUMES].ids) == before
    assert cloud.state[SNAPSHOTS].get(snapshot["id"]).state == "available"


async def test_a_snapshot_that_is_nobodys_business_or_one_of_two_origins_is_refused(
    cloud: SimulatedCloud, people: People, snapshot: dict[str, Any]
) -> None:
    stranger = await people.person(Role.MEMBER, await people.project("strangers"))
    wish = {"name": "again", "snapshot_id": snapshot["id"]}
    assert refusal(await stranger.client.post("/v1/instances", json=wish))[:2] == (404, "not-found")
    image = cloud.state[INSTANCES].get(snapshot["instance_id"]).image_id
    assert refusal(await cloud.client.post("/v1/instances", json={**wish, "image_id": image}))[0] == 400
    assert refusal(await cloud.client.post("/v1/instances", json={"name": "again"}))[0] == 400
    answer = await cloud.client.post("/v1/instances", json=wish)
    assert refusal(await cloud.client.delete(f"/v1/snapshots/{snapshot['id']}"))[:2] == (409, "conflict")
    assert (await over(cloud, answer.json()["task_id"])).state == "done"
    await at_rest(cloud)
