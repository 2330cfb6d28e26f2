"""Volumes through the API of a whole controller, on simulated hosts."""

from typing import Any

import pytest

from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.volumes.model import ALLOWED, Volume, VolumeState
from pileus.kernel.clock import FrozenClock
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import HostId, InstanceId, ProjectId, VolumeId, new_id
from pileus.kernel.units import GIB
from pileus.link.guests import DISK_SLOTS
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fleet import SimulatedAgent
from pileus.testing.links import until
from pileus.testing.requests import at_rest

NOW = FrozenClock().now()


async def an_instance(cloud: SimulatedCloud, name: str = "web") -> dict[str, Any]:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    answer = await cloud.client.post(
        "/v1/instances", json={"name": name, "image_id": image, "vcpus": 1, "memory_mib": 256}
    )
    assert answer.status_code == 202, answer.text
    await at_rest(cloud)
    return await shown(cloud, "instances", answer.json()["instance"]["id"])


async def a_volume(cloud: SimulatedCloud, **wish: Any) -> dict[str, Any]:
    answer = await cloud.client.post("/v1/volumes", json={"name": "data", "size_gib": 1, **wish})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def shown(cloud: SimulatedCloud, nouns: str, id: str) -> dict[str, Any]:
    return (await cloud.client.get(f"/v1/{nouns}/{id}")).json()


async def done(cloud: SimulatedCloud, volume: dict[str, Any], verb: str, **wish: Any) -> dict[str, Any]:
    """The volume after it was attached, detached or grown, and the task has ended."""
    answer = await cloud.client.post(f"/v1/volumes/{volume['id']}/{verb}", json=wish or None)
    assert answer.status_code == 202, answer.text
    await at_rest(cloud)
    return await shown(cloud, "volumes", volume["id"])


async def refusal(cloud: SimulatedCloud, volume: dict[str, Any], verb: str, **wish: Any) -> dict[str, Any]:
    answer = await cloud.client.post(f"/v1/volumes/{volume['id']}/{verb}", json=wish or None)
    assert answer.status_code in (400, 404, 409, 507), answer.text
    return answer.json()


def host_of(cloud: SimulatedCloud, record: dict[str, Any]) -> SimulatedAgent:
    return next(host for host in cloud.fleet.hosts if host.id == record["host_id"])


def seen_by(cloud: SimulatedCloud, instance: dict[str, Any]) -> dict[VolumeId, int]:
    """The disks that a running guest sees, with their sizes in bytes."""
    return host_of(cloud, instance).hypervisor.guests[InstanceId(instance["id"])].plugged


async def test_a_new_volume_is_available_and_takes_no_room_on_any_host(cloud: SimulatedCloud) -> None:
    volume = await a_volume(cloud)
    assert (volume["state"], volume["host_id"]) == ("available", None)
    assert [await host.storage.list() for host in cloud.fleet.hosts] == [{}, {}, {}]


async def test_a_volume_attached_to_a_running_instance_is_seen_by_its_guest_and_on_both_records(
    cloud: SimulatedCloud,
) -> None:
    instance = await an_instance(cloud)
    volume = await done(cloud, await a_volume(cloud), "attach", instance_id=instance["id"])
    assert (volume["state"], volume["instance_id"], volume["slot"]) == ("in-use", instance["id"], 1)
    assert volume["host_id"] == instance["host_id"]
    assert (await shown(cloud, "instances", instance["id"]))["attached_volume_ids"] == [volume["id"]]
    assert seen_by(cloud, instance)[VolumeId(volume["id"])] == GIB


async def test_an_attached_volume_stays_in_its_slot_over_a_stop_and_start(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    first, second = [
        await done(cloud, await a_volume(cloud, name=name), "attach", instance_id=instance["id"]) for name in "ab"
    ]
    await done(cloud, first, "detach")
    for verb in ("stop", "start"):
        await cloud.client.post(f"/v1/instances/{instance['id']}/{verb}")
        await at_rest(cloud)
    spec = host_of(cloud, instance).hypervisor.guests[InstanceId(instance["id"])].spec
    assert [(disk.slot, disk.serial) for disk in spec.disks][1:] == [(2, second["id"][:20])]
    assert VolumeId(second["id"]) in seen_by(cloud, instance)


async def test_a_volume_attached_to_a_stopped_instance_is_there_at_its_next_start(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    await cloud.client.post(f"/v1/instances/{instance['id']}/stop")
    await at_rest(cloud)
    volume = await done(cloud, await a_volume(cloud), "attach", instance_id=instance["id"])
    assert (await shown(cloud, "instances", instance["id"]))["state"] == "stopped"
    await cloud.client.post(f"/v1/instances/{instance['id']}/start")
    await at_rest(cloud)
    assert VolumeId(volume["id"]) in seen_by(cloud, instance)


async def test_a_detached_volume_keeps_its_disk_and_can_be_attached_again_on_its_host_only(
    cloud: SimulatedCloud,
) -> None:
    here, there = await an_instance(cloud, "here"), await an_instance(cloud, "there")
    assert here["host_id"] != there["host_id"]
    volume = await done(cloud, await a_volume(cloud), "attach", instance_id=here["id"])
    volume = await done(cloud, volume, "detach")
    assert (volume["state"], volume["instance_id"], volume["slot"]) == ("available", None, None)
    assert VolumeId(volume["id"]) not in seen_by(cloud, here)
    assert volume["id"] in await host_of(cloud, here).storage.list()
    refused = await refusal(cloud, volume, "attach", instance_id=there["id"])
    assert host_of(cloud, here).name in refused["detail"]
    assert host_of(cloud, there).name in refused["detail"]
    assert (await done(cloud, volume, "attach", instance_id=here["id"]))["state"] == "in-use"


async def test_a_guest_that_does_not_let_go_of_a_volume_keeps_it(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    volume = await done(cloud, await a_volume(cloud), "attach", instance_id=instance["id"])
    host_of(cloud, instance).hypervisor.deaf.add(InstanceId(instance["id"]))
    volume = await done(cloud, volume, "detach")
    assert volume["state"] == "in-use"
    assert VolumeId(volume["id"]) in seen_by(cloud, instance)
    assert (await shown(cloud, "instances", instance["id"]))["busy_with"] == ""


async def test_a_running_guest_sees_its_volumes_grow(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    volume = await done(cloud, await a_volume(cloud), "attach", instance_id=instance["id"])
    assert (await done(cloud, volume, "grow", size_gib=5))["size_gib"] == 5
    assert seen_by(cloud, instance)[VolumeId(volume["id"])] == 5 * GIB
    root = next(
        each
        for each in (await cloud.client.get(f"/v1/volumes?instance_id={instance['id']}")).json()["items"]
        if each["slot"] == 0
    )
    await done(cloud, root, "grow", size_gib=7)
    assert seen_by(cloud, instance)[VolumeId(root["id"])] == 7 * GIB
    assert (await shown(cloud, "instances", instance["id"]))["disk_gib"] == 7


async def test_a_volume_grows_before_it_was_ever_attached(cloud: SimulatedCloud) -> None:
    volume = await done(cloud, await a_volume(cloud), "grow", size_gib=2)
    assert (volume["state"], volume["size_gib"], volume["host_id"]) == ("available", 2, None)


async def test_a_growth_that_the_storage_refuses_is_taken_back(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    volume = await done(cloud, await a_volume(cloud), "attach", instance_id=instance["id"])
    host_of(cloud, instance).faults.fail("storage.ensure", Conflict("the storage pool is full"))
    volume = await done(cloud, volume, "grow", size_gib=2)
    assert (volume["state"], volume["size_gib"]) == ("in-use", 1)


async def test_a_volume_does_not_become_smaller(cloud: SimulatedCloud) -> None:
    volume = await a_volume(cloud, size_gib=2)
    assert "size_gib" in (await refusal(cloud, volume, "grow", size_gib=2))["fields"]


async def test_what_an_instance_boots_from_stays_with_it(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    [root] = (await cloud.client.get(f"/v1/volumes?instance_id={instance['id']}")).json()["items"]
    await refusal(cloud, root, "detach")
    assert (await cloud.client.delete(f"/v1/volumes/{root['id']}")).status_code == 409
    await cloud.client.patch(f"/v1/volumes/{root['id']}", json={"protected": True})
    assert (await cloud.client.delete(f"/v1/instances/{instance['id']}")).status_code == 409


async def test_a_deleted_instance_leaves_its_attached_volumes(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    volume = await done(cloud, await a_volume(cloud), "attach", instance_id=instance["id"])
    await cloud.client.delete(f"/v1/instances/{instance['id']}")
    await at_rest(cloud)
    assert [each["id"] for each in (await cloud.client.get("/v1/volumes")).json()["items"]] == [volume["id"]]
    assert (await shown(cloud, "volumes", volume["id"]))["state"] == "available"
    assert set(await host_of(cloud, volume).storage.list()) == {volume["id"]}


async def test_a_deleted_volume_leaves_nothing(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    volume = await done(cloud, await a_volume(cloud), "attach", instance_id=instance["id"])
    assert (await cloud.client.delete(f"/v1/volumes/{volume['id']}")).status_code == 409, "it is attached"
    volume = await done(cloud, volume, "detach")
    await cloud.client.patch(f"/v1/volumes/{volume['id']}", json={"protected": True})
    assert (await cloud.client.delete(f"/v1/volumes/{volume['id']}")).status_code == 409, "it is protected"
    await cloud.client.patch(f"/v1/volumes/{volume['id']}", json={"protected": False})
    assert (await cloud.client.delete(f"/v1/volumes/{volume['id']}")).status_code == 202
    await at_rest(cloud)
    assert (await cloud.client.get(f"/v1/volumes/{volume['id']}")).status_code == 404
    assert volume["id"] not in await host_of(cloud, instance).storage.list()


async def test_a_volume_is_renamed_and_labelled(cloud: SimulatedCloud) -> None:
    volume = await a_volume(cloud)
    answer = await cloud.client.patch(f"/v1/volumes/{volume['id']}", json={"name": "logs", "labels": {"tier": "db"}})
    assert (answer.json()["name"], answer.json()["labels"]) == ("logs", {"tier": "db"})
    await a_volume(cloud)
    [labelled] = (await cloud.client.get("/v1/volumes?label.tier=db")).json()["items"]
    assert labelled["id"] == volume["id"]
    wish: dict[str, Any] = {"labels": {}, "description": ""}
    answer = await cloud.client.patch(f"/v1/volumes/{volume['id']}", json=wish)
    assert (answer.json()["name"], answer.json()["labels"], answer.json()["description"]) == ("logs", {}, "")
    assert (await cloud.client.get("/v1/volumes?label.tier=db")).json()["items"] == []


async def test_an_instance_is_changed_by_one_task_at_a_time(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    first, second = await a_volume(cloud), await a_volume(cloud)
    wish = {"instance_id": instance["id"]}
    assert (await cloud.client.post(f"/v1/volumes/{first['id']}/attach", json=wish)).status_code == 202
    refused = await refusal(cloud, second, "attach", **wish)
    assert "volume data is being attached" in refused["detail"]
    for verb in ("stop", "reboot"):
        assert (await cloud.client.post(f"/v1/instances/{instance['id']}/{verb}", json={})).status_code in (400, 409)
    assert (await cloud.client.delete(f"/v1/instances/{instance['id']}")).status_code == 409
    await at_rest(cloud)
    assert cloud.state[INSTANCES].get(instance["id"]).busy_with == ""


async def test_an_instance_has_room_for_so_many_volumes(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    for _ in range(DISK_SLOTS - 1):
        await done(cloud, await a_volume(cloud), "attach", instance_id=instance["id"])
    assert "no more" in (await refusal(cloud, await a_volume(cloud), "attach", instance_id=instance["id"]))["detail"]


async def test_a_volume_that_its_host_has_no_room_for_is_refused_with_the_reason(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    volume = await a_volume(cloud, size_gib=2000)
    refused = await refusal(cloud, volume, "attach", instance_id=instance["id"])
    assert refused["status"] == 507
    assert (await shown(cloud, "volumes", volume["id"]))["state"] == "available"


async def test_what_volumes_take_of_a_host_is_promised_and_given_back(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    for _ in range(2):  # 1 TiB is on each host
        volume = await done(cloud, await a_volume(cloud, size_gib=900), "attach", instance_id=instance["id"])
        assert volume["state"] == "in-use"
        assert (await refusal(cloud, await a_volume(cloud, size_gib=900), "attach", instance_id=instance["id"]))[
            "status"
        ] == 507
        await done(cloud, volume, "detach")
        await cloud.client.delete(f"/v1/volumes/{volume['id']}")
        await at_rest(cloud)


async def test_a_volume_takes_quota(cloud: SimulatedCloud) -> None:
    answer = await cloud.client.post("/v1/volumes", json={"name": "huge", "size_gib": 10_001})
    assert (answer.status_code, set(answer.json()["because"])) == (403, {"volume_gib"})


async def test_a_volume_is_made_as_a_copy_of_an_image_which_stays_until_then(cloud: SimulatedCloud) -> None:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    instance = await an_instance(cloud)
    volume = await a_volume(cloud, size_gib=None, image_id=image)
    assert volume["size_gib"] == 1
    assert (await cloud.client.delete(f"/v1/images/{image}")).status_code == 409
    await done(cloud, volume, "attach", instance_id=instance["id"])
    assert (await cloud.client.delete(f"/v1/images/{image}")).status_code == 204


async def test_a_volume_of_no_size_is_refused(cloud: SimulatedCloud) -> None:
    answer = await cloud.client.post("/v1/volumes", json={"name": "data"})
    assert (answer.status_code, set(answer.json()["fields"])) == (400, {"size_gib"})


async def test_a_host_that_has_volumes_is_not_removed(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    volume = await done(cloud, await a_volume(cloud), "attach", instance_id=instance["id"])
    await cloud.client.delete(f"/v1/instances/{instance['id']}")
    await at_rest(cloud)
    answer = await cloud.client.delete(f"/v1/hosts/{volume['host_id']}")
    assert (answer.status_code, "volumes" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize("state", VolumeState)
def test_a_volume_becomes_what_the_table_says_and_nothing_else(state: VolumeState) -> None:
    volume = Volume(id=new_id(), created_at=NOW, project_id=ProjectId(new_id()), name="data", size_gib=1, state=state)
    for other in VolumeState:
        if other in ALLOWED[state]:
            assert volume.to(other).state is other
        else:
            with pytest.raises(Conflict):
                volume.to(other)


def test_a_released_volume_keeps_its_host() -> None:
    volume = Volume(
        id=new_id(),
        created_at=NOW,
        project_id=ProjectId(new_id()),
        name="data",
        size_gib=1,
        state=VolumeState.IN_USE,
        instance_id=InstanceId(new_id()),
        slot=3,
        host_id=HostId(new_id()),
    )
    released = volume.released()
    assert (released.instance_id, released.slot, released.host_id) == (None, None, volume.host_id)


async def test_a_deleted_volume_is_overwritten_if_its_record_says_so_by_then(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    storage = host_of(cloud, instance).storage
    wishes = ((True, None), (False, True), (True, False), (False, None))
    volumes = [await a_volume(cloud, name=f"v{n}", secure_delete=wish[0]) for n, wish in enumerate(wishes)]
    for volume, (_, change) in zip(volumes, wishes, strict=True):
        await done(cloud, volume, "attach", instance_id=instance["id"])
        if change is not None:
            answer = await cloud.client.patch(f"/v1/volumes/{volume['id']}", json={"secure_delete": change})
            assert answer.json()["secure_delete"] is change
        await done(cloud, volume, "detach")
        await cloud.client.delete(f"/v1/volumes/{volume['id']}")
        await at_rest(cloud)
    assert storage.wiped == {volumes[0]["id"], volumes[1]["id"]}
    assert len(storage.volumes) == 1


async def test_the_disk_that_an_instance_boots_from_is_overwritten_when_it_is_rebuilt_and_when_it_is_gone(
    cloud: SimulatedCloud,
) -> None:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    wish = {"name": "web", "image_id": image, "vcpus": 1, "memory_mib": 256, "secure_delete": True}
    instance = (await cloud.client.post("/v1/instances", json=wish)).json()["instance"]
    await at_rest(cloud)
    storage = host_of(cloud, instance).storage
    (first,) = storage.volumes
    answer = await cloud.client.post(f"/v1/instances/{instance['id']}/rebuild", json={"image_id": image})
    assert answer.status_code == 202, answer.text
    await at_rest(cloud)
    (second,) = storage.volumes
    assert storage.wiped == {first}
    await cloud.client.delete(f"/v1/instances/{instance['id']}")
    await at_rest(cloud)
    assert storage.wiped == {first, second}


async def test_a_copy_is_overwritten_as_its_original_unless_somebody_says_otherwise(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    volume = await done(cloud, await a_volume(cloud, secure_delete=True), "attach", instance_id=instance["id"])
    for wish, secure in (({}, True), ({"secure_delete": False}, False)):
        copy = await cloud.client.post(f"/v1/volumes/{volume['id']}/clone", json={"name": "copy", **wish})
        await at_rest(cloud)
        assert (await shown(cloud, "volumes", copy.json()["volume"]["id"]))["secure_delete"] is secure


async def test_disks_that_are_being_overwritten_keep_their_host_from_nothing_else(cloud: SimulatedCloud) -> None:
    instance = await an_instance(cloud)
    volumes = [await a_volume(cloud, name=f"v{number}", secure_delete=True) for number in range(18)]
    for volume in volumes:
        await done(cloud, volume, "attach", instance_id=instance["id"])
        await done(cloud, volume, "detach")
    host_of(cloud, instance).faults.hold("storage.wipe")
    for volume in volumes:
        assert (await cloud.client.delete(f"/v1/volumes/{volume['id']}")).status_code == 202
    assert (await cloud.client.post(f"/v1/instances/{instance['id']}/stop")).status_code == 202
    await until(lambda: cloud.state[INSTANCES].get(instance["id"]).state == "stopped")
    assert [(await shown(cloud, "volumes", volume["id"]))["state"] for volume in volumes] == ["deleting"] * 18
