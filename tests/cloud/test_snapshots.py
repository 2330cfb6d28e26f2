"""Snapshots and copies of volumes through the API of a whole controller, on simulated hosts."""

from typing import Any

import pytest

from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.volumes.model import VOLUMES
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId, VolumeId
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fleet import SimulatedAgent
from pileus.testing.requests import asked, made, refusal, running


async def with_data(cloud: SimulatedCloud) -> tuple[dict[str, Any], dict[str, Any]]:
    """An instance that runs, and a volume that is attached to it."""
    instance = await running(cloud, cloud.client)
    volume = await made(cloud.client, "volumes", name="data", size_gib=1)
    await asked(cloud, "POST", f"volumes/{volume['id']}/attach", instance_id=instance["id"])
    return instance, volume


async def kept(cloud: SimulatedCloud, **wish: Any) -> dict[str, Any]:
    """A snapshot that was taken."""
    begun = await asked(cloud, "POST", "snapshots", name="before", **wish)
    return (await cloud.client.get(f"/v1/snapshots/{begun['snapshot']['id']}")).json()


def host_of(cloud: SimulatedCloud, record: dict[str, Any]) -> SimulatedAgent:
    return next(host for host in cloud.fleet.hosts if host.id == record["host_id"])


async def test_a_snapshot_of_an_instance_is_of_all_its_volumes_while_it_runs_on(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    snapshot = await kept(cloud, instance_id=instance["id"])
    assert (snapshot["state"], snapshot["consistency"]) == ("available", "file-systems")
    assert snapshot["volume_ids"] == [*cloud.state[VOLUMES].ids_by("instance", instance["id"])]
    guest = host_of(cloud, instance).hypervisor.guests[InstanceId(instance["id"])]
    assert (guest.starts, guest.state) == (1, "running")
    assert guest.written[VolumeId(volume["id"])].endswith(snapshot["id"])
    shown = (await cloud.client.get(f"/v1/instances/{instance['id']}")).json()
    assert (shown["state"], shown["busy_with"]) == ("running", "")


async def test_a_guest_that_does_not_hold_still_is_said_to_be_taken_as_by_a_power_cut(cloud: SimulatedCloud) -> None:
    instance, _ = await with_data(cloud)
    host_of(cloud, instance).hypervisor.deaf.add(InstanceId(instance["id"]))
    assert (await kept(cloud, instance_id=instance["id"]))["consistency"] == "crash"
    assert not host_of(cloud, instance).hypervisor.layers.frozen


async def test_a_volume_that_nobody_uses_is_taken_at_rest(cloud: SimulatedCloud) -> None:
    _, volume = await with_data(cloud)
    await asked(cloud, "POST", f"volumes/{volume['id']}/detach")
    snapshot = await kept(cloud, volume_id=volume["id"])
    assert (snapshot["consistency"], snapshot["instance_id"]) == ("at-rest", None)


async def test_a_running_instance_that_goes_back_is_started_again_and_one_with_memory_goes_on(
    cloud: SimulatedCloud,
) -> None:
    instance = await running(cloud, cloud.client)
    guests = host_of(cloud, instance).hypervisor.guests
    for memory, starts in ((False, 2), (True, 2)):
        snapshot = await kept(cloud, instance_id=instance["id"], memory=memory)
        await asked(cloud, "POST", f"snapshots/{snapshot['id']}/revert")
        shown = (await cloud.client.get(f"/v1/instances/{instance['id']}")).json()
        assert shown["state"] == "running"
        assert guests[InstanceId(instance["id"])].starts == starts


async def test_a_stopped_instance_that_goes_back_stays_stopped(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    snapshot = await kept(cloud, instance_id=instance["id"])
    await asked(cloud, "POST", f"instances/{instance['id']}/stop")
    await asked(cloud, "POST", f"snapshots/{snapshot['id']}/revert")
    assert (await cloud.client.get(f"/v1/instances/{instance['id']}")).json()["state"] == "stopped"


async def test_when_its_last_snapshot_is_deleted_a_volume_is_as_before(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    first = await kept(cloud, instance_id=instance["id"])
    second = await kept(cloud, volume_id=volume["id"])
    for snapshot in (first, second):
        await asked(cloud, "DELETE", f"snapshots/{snapshot['id']}")
    assert not len(cloud.state[SNAPSHOTS])
    assert host_of(cloud, instance).storage.layering.of == {}
    assert cloud.state[VOLUMES].get(volume["id"]).state == "in-use"


async def test_a_volume_is_copied_while_it_is_used_and_as_it_was(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    snapshot = await kept(cloud, volume_id=volume["id"])
    now = await asked(cloud, "POST", f"volumes/{volume['id']}/clone", name="now")
    then = await asked(cloud, "POST", f"volumes/{volume['id']}/clone", name="then", snapshot_id=snapshot["id"])
    for copy in (now, then):
        shown = (await cloud.client.get(f"/v1/volumes/{copy['volume']['id']}")).json()
        assert (shown["state"], shown["host_id"], shown["size_gib"]) == ("available", instance["host_id"], 1)
    layers = await host_of(cloud, instance).storage.layering.layers(VolumeId(volume["id"]))
    assert layers.frozen.keys() == {snapshot["id"]}


async def test_what_a_snapshot_needs_is_not_taken_away(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    snapshot = await kept(cloud, instance_id=instance["id"])
    await asked(cloud, "POST", f"volumes/{volume['id']}/detach")
    for method, path in (
        ("DELETE", f"instances/{instance['id']}"),
        ("POST", f"instances/{instance['id']}/rebuild"),
        ("DELETE", f"volumes/{volume['id']}"),
    ):
        answer = await cloud.client.request(method, f"/v1/{path}", json={} if method == "POST" else None)
        assert refusal(answer)[:2] == (409, "conflict"), path
        assert "before" in answer.json()["detail"]
    answer = await cloud.client.post(f"/v1/snapshots/{snapshot['id']}/revert")
    assert refusal(answer)[:2] == (409, "conflict")
    assert "data is not attached" in answer.json()["detail"]


async def test_data_of_another_time_is_not_mixed_in(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    snapshot = await kept(cloud, instance_id=instance["id"])
    volume = await made(cloud.client, "volumes", name="since", size_gib=1)
    await asked(cloud, "POST", f"volumes/{volume['id']}/attach", instance_id=instance["id"])
    answer = await cloud.client.post(f"/v1/snapshots/{snapshot['id']}/revert")
    assert refusal(answer)[:2] == (409, "conflict")
    assert "since was attached" in answer.json()["detail"]


async def test_a_disk_is_not_exchanged_under_a_running_guest(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    snapshot = await kept(cloud, volume_id=volume["id"])
    assert refusal(await cloud.client.post(f"/v1/snapshots/{snapshot['id']}/revert"))[0] == 409
    await asked(cloud, "POST", f"instances/{instance['id']}/stop")
    await asked(cloud, "POST", f"snapshots/{snapshot['id']}/revert")
    assert cloud.state[VOLUMES].get(volume["id"]).state == "in-use"


@pytest.mark.parametrize(
    ("wish", "fields"),
    [
        ({}, set[str]()),
        ({"instance_id": "me", "volume_id": "me"}, set[str]()),
        ({"volume_id": "me", "memory": True}, set[str]()),
        ({"instance_id": "me", "name": ""}, {"name"}),
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused(
    cloud: SimulatedCloud, wish: dict[str, Any], fields: set[str]
) -> None:
    id = "0" * 8 + "-0000-7000-8000-" + "0" * 12
    wish = {"name": "x", **{name: id if value == "me" else value for name, value in wish.items()}}
    status, code, wrong = refusal(await cloud.client.post("/v1/snapshots", json=wish))
    assert (status, code) == (400, "invalid")
    assert fields <= wrong


async def test_there_is_nothing_to_keep_of_a_volume_that_was_never_used_or_memory_that_is_not_there(
    cloud: SimulatedCloud,
) -> None:
    volume = await made(cloud.client, "volumes", name="new", size_gib=1)
    answer = await cloud.client.post("/v1/snapshots", json={"name": "x", "volume_id": volume["id"]})
    assert refusal(answer) == (409, "conflict", {"volume_id"})
    answer = await cloud.client.post(f"/v1/volumes/{volume['id']}/clone", json={"name": "x"})
    assert refusal(answer)[0] == 409
    instance = await running(cloud, cloud.client)
    await asked(cloud, "POST", f"instances/{instance['id']}/stop")
    wish = {"name": "x", "instance_id": instance["id"], "memory": True}
    assert refusal(await cloud.client.post("/v1/snapshots", json=wish)) == (409, "conflict", {"memory"})


async def test_a_host_without_room_keeps_nothing_and_says_so(cloud: SimulatedCloud) -> None:
    instance, _ = await with_data(cloud)
    host = host_of(cloud, instance)

    host.faults.fail("layering.lay", Conflict("the storage pool has room for 1 GiB more, 10 GiB are needed"))
    begun = await asked(cloud, "POST", "snapshots", name="before", instance_id=instance["id"])
    task = (await cloud.client.get(f"/v1/tasks/{begun['task_id']}")).json()
    assert "room for 1 GiB" in task["cause"]["detail"]
    assert not len(cloud.state[SNAPSHOTS])
    assert host.storage.layering.of == {}
