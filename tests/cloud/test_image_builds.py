"""Images of what instances, volumes and snapshots hold, on a whole simulated cloud."""

from typing import Any
from unittest.mock import Mock

import pytest

from pileus.cloud.images.model import IMAGES
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.storagepools.model import POOLS_ON_HOSTS
from pileus.cloud.volumes.model import VOLUMES
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.kernel.units import GIB
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fleet import SimulatedAgent
from pileus.testing.links import until
from pileus.testing.people import People
from pileus.testing.requests import made, over, refusal, running, shown
from pileus.workflow.task import TASKS


async def begin(cloud: SimulatedCloud, **wish: Any) -> dict[str, Any]:
    answer = await cloud.client.post("/v1/images/build", json={"name": "golden", **wish})
    assert answer.status_code == 202, answer.text
    return answer.json()


async def built(cloud: SimulatedCloud, **wish: Any) -> dict[str, Any]:
    """The image, when it is there."""
    begun = await begin(cloud, **wish)
    task = await over(cloud, begun["task_id"])
    assert task.state == "done", task.cause
    return await shown(cloud.client, f"images/{begun['image']['id']}")


async def done(cloud: SimulatedCloud, path: str, **wish: Any) -> dict[str, Any]:
    answer = await cloud.client.post(f"/v1/{path}", json=wish or None)
    assert answer.status_code == 202, answer.text
    assert (await over(cloud, answer.json()["task_id"])).state == "done"
    return answer.json()


def host_of(cloud: SimulatedCloud, record: dict[str, Any]) -> SimulatedAgent:
    return next(host for host in cloud.fleet.hosts if host.id == record["host_id"])


def disk_of(cloud: SimulatedCloud, instance: dict[str, Any]) -> str:
    return cloud.state[VOLUMES].ids_by("instance", instance["id"])[0]


async def test_an_image_is_built_from_an_instance_that_runs_on(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client, disk_gib=3, template="linux-uefi")
    image = await built(cloud, instance_id=instance["id"])
    assert (image["state"], image["format"], image["virtual_size_bytes"]) == ("active", "qcow2", 3 * GIB)
    assert (image["template"], image["source"]) == ("linux-uefi", "instance hello")
    assert (image["consistency"], image["packing"]) == ("file-systems", False)
    host = host_of(cloud, instance)
    guest = host.hypervisor.guests[InstanceId(instance["id"])]
    assert (guest.starts, guest.state) == (1, "running")
    assert (host.storage.packing.files, host.storage.layering.of) == ({}, {})
    another = await running(cloud, cloud.client, image_id=image["id"], name="another")
    assert (another["disk_gib"], another["template"]) == (3, "linux-uefi")


async def test_what_the_disk_was_made_from_says_what_its_image_needs(cloud: SimulatedCloud) -> None:
    mini = cloud.state[IMAGES].ids[0]
    needs = {"default_user": "debian", "architecture": "x86_64", "min_memory_mib": 200}
    assert (await cloud.client.patch(f"/v1/images/{mini}", json=needs)).status_code == 200
    instance = await running(cloud, cloud.client)
    image = await built(cloud, instance_id=instance["id"])
    assert {name: image[name] for name in needs} == needs
    said = await built(cloud, volume_id=disk_of(cloud, instance), default_user="", min_memory_mib=0)
    assert (said["default_user"], said["min_memory_mib"], said["architecture"]) == ("", 0, "x86_64")


async def test_disks_and_their_copies_know_what_their_image_said_when_that_was_deleted(cloud: SimulatedCloud) -> None:
    mini = cloud.state[IMAGES].ids[0]
    said = {"default_user": "debian", "architecture": "x86_64", "min_memory_mib": 200}
    assert (await cloud.client.patch(f"/v1/images/{mini}", json={**said, "template": "linux-uefi"})).status_code == 200
    vault = await made(cloud.client, "storage-pools", name="vault", path="/srv/vault", purposes=["backups"])
    there = cloud.state[POOLS_ON_HOSTS]
    await until(lambda: there.count_by("storage_pool", vault["id"]) == len(cloud.fleet.hosts))
    first = await running(cloud, cloud.client)
    snapshot = (await done(cloud, "snapshots", name="then", instance_id=first["id"]))["snapshot"]
    backup = (await done(cloud, "backups", name="kept", instance_id=first["id"]))["backup"]
    clone = (await done(cloud, f"volumes/{disk_of(cloud, first)}/clone", name="clone"))["volume"]
    assert (await cloud.client.delete(f"/v1/images/{mini}")).status_code == 204
    restored = (await done(cloud, "volumes/restore", name="restored", backup_id=backup["id"]))["volume"]
    sources = [{"instance_id": first["id"]}, {"snapshot_id": snapshot["id"]}]
    sources += [{"volume_id": clone["id"]}, {"volume_id": restored["id"]}]
    for number, origin in enumerate(({"snapshot_id": snapshot["id"]}, {"backup_id": backup["id"]})):
        again = (await done(cloud, "instances", name=f"again-{number}", memory_mib=512, vcpus=1, **origin))["instance"]
        sources.append({"instance_id": again["id"]})
    images = [await built(cloud, name=f"golden-{number}", **source) for number, source in enumerate(sources)]
    for image in images:
        assert {key: image[key] for key in said} == said
        assert image["template"] == "linux-uefi"
    golden = images[-1]["id"]
    last = (await done(cloud, "instances", name="last", memory_mib=512, vcpus=1, image_id=golden))["instance"]
    assert (await cloud.client.delete(f"/v1/images/{golden}")).status_code == 204
    asked = await cloud.client.post(f"/v1/instances/{last['id']}/password", json={"dry_run": True})
    assert asked.json()["user"] == "debian"


async def test_a_disk_of_another_image_needs_what_that_says(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    other = await built(cloud, instance_id=instance["id"], default_user="ann")
    await done(cloud, f"instances/{instance['id']}/rebuild", image_id=other["id"])
    assert (await cloud.client.delete(f"/v1/images/{other['id']}")).status_code == 204
    assert (await built(cloud, name="again", instance_id=instance["id"]))["default_user"] == "ann"


NEEDS = {"template": "windows", "default_user": "ann", "architecture": "x86_64", "min_memory_mib": 300}


async def told_and_made(cloud: SimulatedCloud, image: dict[str, Any], name: str) -> dict[str, Any]:
    """An instance of an image that says what it needs, and that gets what it says."""
    assert {key: image[key] for key in NEEDS} == NEEDS
    wish = {"name": name, "image_id": image["id"], "vcpus": 1}
    for little in ({"memory_mib": 256}, {"memory_mib": 512, "disk_gib": 2}):
        assert refusal(await cloud.client.post("/v1/instances", json={**wish, **little}))[0] == 400
    instance = await running(cloud, cloud.client, image_id=image["id"], name=name, memory_mib=512)
    assert (instance["template"], instance["disk_gib"]) == ("windows", 3)
    spec = host_of(cloud, instance).hypervisor.guests[InstanceId(instance["id"])].spec
    assert spec.template == "windows"
    return instance


async def test_what_guests_need_goes_with_the_image_from_instance_to_image_and_back(cloud: SimulatedCloud) -> None:
    mini = cloud.state[IMAGES].ids[0]
    assert (await cloud.client.patch(f"/v1/images/{mini}", json={**NEEDS, "min_disk_gib": 3})).status_code == 200
    first = await told_and_made(cloud, await shown(cloud.client, f"images/{mini}"), "first")
    second = await told_and_made(cloud, await built(cloud, instance_id=first["id"]), "second")
    snapshot = (await done(cloud, "snapshots", name="before", instance_id=second["id"]))["snapshot"]
    again = (await done(cloud, "instances", name="again", snapshot_id=snapshot["id"]))["instance"]
    await told_and_made(cloud, await built(cloud, snapshot_id=snapshot["id"]), "third")
    await told_and_made(cloud, await built(cloud, instance_id=again["id"]), "fourth")


async def test_an_image_that_comes_back_is_the_same_disk_and_needs_what_is_said_of_it(cloud: SimulatedCloud) -> None:
    built_one = await built(cloud, instance_id=(await running(cloud, cloud.client, disk_gib=3))["id"])
    data = (await cloud.client.get(f"/v1/images/{built_one['id']}/data")).content
    back = await made(cloud.client, "images", name="back", format=built_one["format"], **NEEDS)
    answer = await cloud.client.put(f"/v1/images/{back['id']}/data", content=data)
    assert answer.status_code == 200, answer.text
    same = ("format", "size_bytes", "virtual_size_bytes", "sha256")
    assert {key: answer.json()[key] for key in same} == {key: built_one[key] for key in same}
    await told_and_made(cloud, answer.json(), "back")


async def test_an_image_cannot_have_the_devices_of_a_guest_that_was_taken_over(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    wish = {"name": "golden", "instance_id": instance["id"], "template": "as-found"}
    assert refusal(await cloud.client.post("/v1/images/build", json=wish)) == (400, "invalid", {"template"})


async def test_an_image_of_a_snapshot_leaves_the_snapshot_as_it_was(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    snapshot = (await done(cloud, "snapshots", name="before", instance_id=instance["id"]))["snapshot"]
    image = await built(cloud, snapshot_id=snapshot["id"])
    assert (image["source"], image["consistency"]) == ("snapshot before", "file-systems")
    assert cloud.state[SNAPSHOTS].get(snapshot["id"]).state == "available"
    assert (await cloud.client.delete(f"/v1/snapshots/{snapshot['id']}")).status_code == 202


async def test_the_instance_is_free_again_while_its_image_is_still_on_its_way(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    packed = host_of(cloud, instance).faults.hold("packing.pack")
    arrived = cloud.fleet.disk_tools.faults.hold("disk_tools.inspect")
    begun = await begin(cloud, instance_id=instance["id"])
    assert (await shown(cloud.client, f"instances/{instance['id']}"))["busy_with"]
    packed.set()
    await until(lambda: not cloud.state[IMAGES].get(begun["image"]["id"]).packing)
    stopped = await done(cloud, f"instances/{instance['id']}/stop")
    assert stopped["instance"]["id"] == instance["id"]
    arrived.set()
    assert (await over(cloud, begun["task_id"])).state == "done"


async def test_an_image_that_is_cancelled_leaves_nothing(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    host = host_of(cloud, instance)
    host.faults.hold("packing.pack")
    begun = await begin(cloud, instance_id=instance["id"])
    await until(lambda: any(step.name == "take_for_copy" for step in _steps(cloud, begun)))
    answer = await cloud.client.post(f"/v1/tasks/{begun['task_id']}/cancel")
    assert answer.status_code < 300, answer.text
    assert (await over(cloud, begun["task_id"])).state == "undone"
    assert begun["image"]["id"] not in cloud.state[IMAGES]
    assert (host.storage.packing.files, host.storage.layering.of) == ({}, {})
    assert not (await shown(cloud.client, f"instances/{instance['id']}"))["busy_with"]


async def test_what_is_larger_than_the_quota_is_refused_before_it_is_sent(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = await running(cloud, cloud.client)
    monkeypatch.setattr("pileus.cloud.images.workflows.building.room", Mock(return_value=1000))
    begun = await begin(cloud, instance_id=instance["id"])
    task = await over(cloud, begun["task_id"])
    assert task.cause is not None
    assert (task.state, task.cause.code) == ("undone", "quota-exceeded")
    assert begun["image"]["id"] not in cloud.state[IMAGES]


async def test_what_has_no_data_or_is_busy_or_nobodys_is_refused(cloud: SimulatedCloud, people: People) -> None:
    volume = await made(cloud.client, "volumes", name="empty", size_gib=1)
    wish = {"name": "golden", "volume_id": volume["id"]}
    assert refusal(await cloud.client.post("/v1/images/build", json=wish))[:2] == (409, "conflict")
    instance = await running(cloud, cloud.client)
    two = {"name": "golden", "volume_id": volume["id"], "instance_id": instance["id"]}
    assert refusal(await cloud.client.post("/v1/images/build", json=two))[0] == 400
    stranger = await people.person(Role.MEMBER, await people.project("strangers"))
    theirs = {"name": "golden", "instance_id": instance["id"]}
    assert refusal(await stranger.client.post("/v1/images/build", json=theirs)) == (404, "not-found", {"instance_id"})
    packed = host_of(cloud, instance).faults.hold("packing.pack")
    begun = await begin(cloud, instance_id=instance["id"])
    again = await cloud.client.post("/v1/images/build", json={"name": "golden", "instance_id": instance["id"]})
    assert refusal(again)[:2] == (409, "conflict")
    assert refusal(await cloud.client.delete(f"/v1/images/{begun['image']['id']}"))[:2] == (409, "conflict")
    packed.set()
    assert (await over(cloud, begun["task_id"])).state == "done"


async def test_a_host_that_has_no_room_says_so_and_nothing_is_left(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    host_of(cloud, instance).faults.fail("packing.pack", Conflict("the storage pool is full"))
    begun = await begin(cloud, instance_id=instance["id"])
    task = await over(cloud, begun["task_id"])
    assert task.cause is not None
    assert (task.state, task.cause.detail) == ("undone", "the storage pool is full")
    assert cloud.state[VOLUMES].get(disk_of(cloud, instance)).state == "in-use"


async def test_only_who_has_a_ticket_for_an_image_delivers_it(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    image = await built(cloud, instance_id=instance["id"])
    path = f"/v1/images/{image['id']}/arrival"
    for query in ("", "?ticket=a.b&host=c"):
        refused = await cloud.client.patch(path + query, content=b"x", headers={"upload-offset": "0"})
        assert refusal(refused)[:2] == (403, "forbidden")
        assert refusal(await cloud.client.get(path + query))[:2] == (403, "forbidden")


def _steps(cloud: SimulatedCloud, begun: dict[str, Any]) -> tuple[Any, ...]:
    return cloud.state[TASKS].get(begun["task_id"]).steps
