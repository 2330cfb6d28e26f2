"""ISO images in the drives of instances: inserted and ejected, installed from, booted from in order."""

from typing import Any

import pytest

from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.volumes.model import VOLUMES
from pileus.kernel.ids import InstanceId
from pileus.link.guests import BootDevice, GuestSpec
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.diskimages import iso
from pileus.testing.people import People
from pileus.testing.requests import made, over, refusal, running, shown


async def an_iso(cloud: SimulatedCloud, name: str = "rescue", client: Any = None, **more: Any) -> str:
    client = client or cloud.client
    id = (await made(client, "images", name=name, format="iso", **more))["id"]
    answer = await client.put(f"/v1/images/{id}/data", content=iso())
    assert answer.status_code == 200, answer.text
    return str(id)


async def do(cloud: SimulatedCloud, instance: str, verb: str, **wish: Any) -> dict[str, Any]:
    """The instance after this was done to it."""
    answer = await cloud.client.post(f"/v1/instances/{instance}/{verb}", json=wish)
    assert answer.status_code == 202, answer.text
    assert (await over(cloud, answer.json()["task_id"])).state == "done"
    return await shown(cloud.client, f"instances/{instance}")


async def refused(cloud: SimulatedCloud, instance: str, verb: str, **wish: Any) -> tuple[int, str, set[str]]:
    return refusal(await cloud.client.post(f"/v1/instances/{instance}/{verb}", json=wish))


def guest(cloud: SimulatedCloud, instance: str) -> GuestSpec:
    """As its host has it."""
    host = cloud.state[INSTANCES].get(instance).host_id
    hypervisor = next(each for each in cloud.fleet.hosts if each.id == host).hypervisor
    return hypervisor.guests[InstanceId(instance)].spec


def drives(cloud: SimulatedCloud, instance: str) -> dict[int, str]:
    """What is in the drives of the running guest."""
    host = cloud.state[INSTANCES].get(instance).host_id
    hypervisor = next(each for each in cloud.fleet.hosts if each.id == host).hypervisor
    found = hypervisor.guests[InstanceId(instance)].inserted
    return {drive: medium.path.rpartition("/")[2].removesuffix(".iso") for drive, medium in found.items()}


async def test_a_medium_is_inserted_into_a_running_guest_and_ejected(cloud: SimulatedCloud) -> None:
    id, medium, other = (await running(cloud, cloud.client))["id"], await an_iso(cloud), await an_iso(cloud, "tools")
    assert (await do(cloud, id, "insert", image_id=medium))["media"] == [{"image_id": medium, "drive": 0}]
    assert drives(cloud, id) == {0: medium}
    await do(cloud, id, "insert", image_id=other)
    assert drives(cloud, id) == {0: medium, 1: other}
    await do(cloud, id, "eject", drive=0)
    assert drives(cloud, id) == {1: other}
    assert (await do(cloud, id, "eject"))["media"] == []
    assert drives(cloud, id) == {}


async def test_a_stopped_instance_has_its_medium_when_it_starts(cloud: SimulatedCloud) -> None:
    id, medium = (await running(cloud, cloud.client))["id"], await an_iso(cloud)
    await do(cloud, id, "stop")
    await do(cloud, id, "insert", image_id=medium)
    await do(cloud, id, "start")
    assert drives(cloud, id) == {0: medium}


async def test_what_does_not_go_into_a_drive_is_refused_with_the_reason(cloud: SimulatedCloud) -> None:
    instance, medium = await running(cloud, cloud.client), await an_iso(cloud)
    id = instance["id"]
    assert await refused(cloud, id, "insert", image_id=instance["image_id"]) == (409, "conflict", {"image_id"})
    assert (await refused(cloud, id, "insert", image_id=id))[0] == 404
    assert await refused(cloud, id, "insert", image_id=medium, drive=2) == (400, "invalid", {"drive"})
    assert await refused(cloud, id, "eject") == (409, "conflict", set())
    await do(cloud, id, "insert", image_id=medium, drive=1)
    assert await refused(cloud, id, "insert", image_id=medium, drive=1) == (409, "conflict", {"drive"})
    assert await refused(cloud, id, "eject", drive=0) == (409, "conflict", {"drive"})
    await do(cloud, id, "insert", image_id=medium)
    assert await refused(cloud, id, "eject") == (409, "conflict", {"drive"})
    assert await refused(cloud, id, "insert", image_id=medium) == (409, "conflict", set())


async def test_the_medium_of_a_stranger_does_not_exist_for_others(cloud: SimulatedCloud, people: People) -> None:
    stranger = await people.person(Role.ADMIN, await people.project("other"))
    secret = await an_iso(cloud, "secret", stranger.client)
    id = (await running(cloud, cloud.client))["id"]
    public = await an_iso(cloud, "public", public=True)
    # The administrator of the cloud sees everything; a tenant does not.
    assert (await stranger.client.post(f"/v1/instances/{id}/insert", json={"image_id": secret})).status_code == 404
    mine = await an_iso(cloud, "mine")
    wish = {"name": "x", "image_id": mine, "vcpus": 1, "memory_mib": 64, "disk_gib": 1}
    assert (await stranger.client.post("/v1/instances", json=wish)).status_code == 404
    wish |= {"image_id": public, "media_ids": [mine]}
    assert refusal(await stranger.client.post("/v1/instances", json=wish)) == (404, "not-found", {"media_ids"})


async def test_a_medium_outlives_its_image_in_the_drives_that_have_it(cloud: SimulatedCloud) -> None:
    id, medium = (await running(cloud, cloud.client))["id"], await an_iso(cloud)
    await do(cloud, id, "insert", image_id=medium)
    assert (await cloud.client.delete(f"/v1/images/{medium}")).status_code == 204
    await do(cloud, id, "stop")
    await do(cloud, id, "start")
    assert drives(cloud, id) == {0: medium}
    await do(cloud, id, "eject")
    assert drives(cloud, id) == {}


async def test_an_instance_is_installed_from_an_iso_on_an_empty_disk(cloud: SimulatedCloud) -> None:
    installer, drivers = await an_iso(cloud, template="windows"), await an_iso(cloud, "virtio-win")
    wish = {"name": "win", "image_id": installer, "vcpus": 1, "memory_mib": 256}
    assert refusal(await cloud.client.post("/v1/instances", json=wish)) == (400, "invalid", {"disk_gib"})
    instance = await running(cloud, cloud.client, image_id=installer, media_ids=[drivers], disk_gib=3)
    assert instance["template"] == "windows"
    assert drives(cloud, instance["id"]) == {0: installer, 1: drivers}
    assert guest(cloud, instance["id"]).boot == (BootDevice.DISK, BootDevice.CDROM)
    (root,) = cloud.state[VOLUMES].by("instance", instance["id"])
    assert (root.image_id, root.size_gib) == (None, 3)


async def test_more_media_than_drives_are_refused(cloud: SimulatedCloud) -> None:
    media = [await an_iso(cloud, str(number)) for number in range(2)]
    wish = {"name": "old", "image_id": media[0], "media_ids": media[1:], "vcpus": 1, "memory_mib": 64, "disk_gib": 1}
    answer = await cloud.client.post("/v1/instances", json={**wish, "template": "legacy"})
    assert refusal(answer) == (400, "invalid", {"media_ids"})


async def test_one_start_from_a_medium_leaves_the_order_as_it_was(cloud: SimulatedCloud) -> None:
    id = (await running(cloud, cloud.client))["id"]
    for wish, order in (({"boot_from": "cdrom"}, ["cdrom", "disk"]), ({}, ["disk", "cdrom"])):
        await do(cloud, id, "stop")
        instance = await do(cloud, id, "start", **wish)
        assert guest(cloud, id).boot == tuple(order)
        assert instance["boot_order"] == ["disk", "cdrom"]


@pytest.mark.parametrize("order", [["network", "disk"], ["cdrom"]])
async def test_firmware_tries_what_it_was_told_from_the_next_start(cloud: SimulatedCloud, order: list[str]) -> None:
    id = (await running(cloud, cloud.client))["id"]
    answer = await cloud.client.patch(f"/v1/instances/{id}", json={"boot_order": order})
    assert answer.json()["boot_order"] == order
    await do(cloud, id, "stop")
    await do(cloud, id, "start")
    assert guest(cloud, id).boot == tuple(order)


@pytest.mark.parametrize("order", [[], ["disk", "disk"], ["floppy"]])
async def test_an_order_that_is_none_is_refused(cloud: SimulatedCloud, order: list[str]) -> None:
    id = (await running(cloud, cloud.client))["id"]
    answer = await cloud.client.patch(f"/v1/instances/{id}", json={"boot_order": order})
    assert answer.status_code == 400
