"""Volumes that move to another storage pool: while they are used, with what belongs to them, and what is refused."""

from typing import Any

from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.storagepools.model import POOLS_ON_HOSTS
from pileus.cloud.volumes.model import VOLUMES, Volume, VolumeState
from pileus.kernel.ids import InstanceId
from pileus.link.guests import DiskLimits
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fleet import SimulatedAgent
from pileus.testing.links import until
from pileus.testing.requests import items, made, over, refusal, running, shown
from pileus.workflow.task import TASKS, UNFINISHED


async def a_pool(cloud: SimulatedCloud, name: str = "fast", **more: Any) -> None:
    pool = await made(cloud.client, "storage-pools", name=name, path=f"/srv/{name}", **more)
    there = cloud.state[POOLS_ON_HOSTS]
    await until(lambda: there.count_by("storage_pool", pool["id"]) == len(cloud.fleet.hosts))


async def at_rest(cloud: SimulatedCloud) -> None:
    await until(lambda: not any(cloud.state[TASKS].count_by("state", state) for state in UNFINISHED))


async def done(cloud: SimulatedCloud, path: str, **wish: Any) -> dict[str, Any]:
    """What is answered, when the task that was begun is done."""
    answer = await cloud.client.post(f"/v1/{path}", json=wish)
    assert answer.status_code == 202, answer.text
    ended = await over(cloud, answer.json()["task_id"])
    assert ended.state == "done", ended.cause
    return answer.json()


async def with_data(cloud: SimulatedCloud) -> tuple[dict[str, Any], Volume]:
    """An instance that runs, and a volume that is attached to it."""
    instance = await running(cloud, cloud.client)
    volume = await made(cloud.client, "volumes", name="data", size_gib=1)
    await done(cloud, f"volumes/{volume['id']}/attach", instance_id=instance["id"])
    return instance, cloud.state[VOLUMES].get(volume["id"])


def host_of(cloud: SimulatedCloud, host: str | None) -> SimulatedAgent:
    return next(each for each in cloud.fleet.hosts if each.id == host)


def limits_of(cloud: SimulatedCloud, instance: dict[str, Any], slot: int) -> DiskLimits | None:
    """What the disk of a guest may do, as its host was told."""
    return host_of(cloud, instance["host_id"]).hypervisor.guests[InstanceId(instance["id"])].spec.disks[slot].limits


async def test_a_volume_moves_there_and_back_while_its_instance_runs_and_has_the_limits_of_its_pool(
    cloud: SimulatedCloud,
) -> None:
    await a_pool(cloud, iops=500)
    instance, volume = await with_data(cloud)
    host = host_of(cloud, volume.host_id)
    guest = host.hypervisor.guests[InstanceId(instance["id"])]
    for each in cloud.state[VOLUMES].by("instance", instance["id"]):
        for pool, limits in (("fast", DiskLimits(iops=500)), ("local", DiskLimits())):
            await done(cloud, f"volumes/{each.id}/move", storage_pool=pool)
            now = await shown(cloud.client, f"volumes/{each.id}")
            assert (now["storage_pool"], now["state"], now.get("moving_to", "")) == (pool, "in-use", "")
            assert limits_of(cloud, instance, now["slot"]) == limits
    assert host.hypervisor.guests[guest.spec.id].starts == guest.starts
    assert not cloud.state[INSTANCES].get(instance["id"]).busy_with
    assert all(not pool.volumes for pool in host.backings.pools.values())


async def test_a_class_may_be_named_and_a_volume_that_was_never_attached_moves_at_once(cloud: SimulatedCloud) -> None:
    await a_pool(cloud, storage_class="performance")
    volume = await made(cloud.client, "volumes", name="data", size_gib=1)
    await done(cloud, f"volumes/{volume['id']}/move", storage_class="performance")
    now = cloud.state[VOLUMES].get(volume["id"])
    assert (now.storage_pool, now.storage_class, now.state) == ("", "performance", VolumeState.AVAILABLE)
    instance = await running(cloud, cloud.client)
    await done(cloud, f"volumes/{volume['id']}/attach", instance_id=instance["id"])
    assert volume["id"] in next(iter(host_of(cloud, instance["host_id"]).backings.pools.values())).volumes


async def test_both_pools_promise_room_while_a_volume_moves_and_it_can_be_cancelled(cloud: SimulatedCloud) -> None:
    await a_pool(cloud)
    instance, volume = await with_data(cloud)
    host = host_of(cloud, volume.host_id)
    host.faults.hold("hypervisor.mirror")
    answer = await cloud.client.post(f"/v1/volumes/{volume.id}/move", json={"storage_pool": "fast"})
    task = answer.json()["task_id"]
    pool = next(iter(host.backings.pools.values()))
    await until(lambda: volume.id in pool.volumes)
    use = await items(cloud.client, "storage-pools")
    fast = next(each["id"] for each in use if each["name"] == "fast")
    assert (await shown(cloud.client, f"storage-pools/{fast}/use"))["promised_gib"] == 1
    assert refusal(await cloud.client.delete(f"/v1/storage-pools/{fast}"))[:2] == (409, "conflict")
    assert "1023 GiB of 1.0 TiB of storage pool fast free" in await says_of_all_of_it(cloud, host)
    for path in (f"volumes/{volume.id}/detach", f"instances/{instance['id']}/stop", f"volumes/{volume.id}/move"):
        wish = {"storage_pool": "fast"} if path.endswith("move") else None
        assert refusal(await cloud.client.post(f"/v1/{path}", json=wish))[:2] == (409, "conflict"), path
    assert (await cloud.client.post(f"/v1/tasks/{task}/cancel")).status_code == 204
    assert (await over(cloud, task)).state == "undone"
    now = cloud.state[VOLUMES].get(volume.id)
    assert (now.storage_pool, now.moving_to, now.state) == ("local", "", VolumeState.IN_USE)
    assert not pool.volumes
    assert not host.hypervisor.mirrors.to
    assert "free" not in await says_of_all_of_it(cloud, host)
    host.faults.mend()
    await done(cloud, f"volumes/{volume.id}/move", storage_pool="fast")


async def says_of_all_of_it(cloud: SimulatedCloud, host: SimulatedAgent) -> str:
    """What is said of a host to an instance whose disk would take all of the pool."""
    image = (await items(cloud.client, "images"))[0]["id"]
    wish = {"name": "x", "image_id": image, "vcpus": 1, "memory_mib": 256, "disk_gib": 1024, "storage_pool": "fast"}
    answer = await cloud.client.post("/v1/instances?dry_run=true", json=wish)
    return next(each["says"] for each in answer.json()["because"] if each["about"] == host.name)


async def test_a_guest_that_ends_meanwhile_keeps_its_volume_where_it_was(cloud: SimulatedCloud) -> None:
    await a_pool(cloud)
    instance, volume = await with_data(cloud)
    host = host_of(cloud, volume.host_id)
    copied = host.faults.hold("hypervisor.mirror")
    answer = await cloud.client.post(f"/v1/volumes/{volume.id}/move", json={"storage_pool": "fast"})
    pool = next(iter(host.backings.pools.values()))
    await until(lambda: volume.id in pool.volumes)
    host.hypervisor.shuts_itself_down(InstanceId(instance["id"]))
    copied.set()
    assert (await over(cloud, answer.json()["task_id"])).state == "undone"
    assert cloud.state[VOLUMES].get(volume.id).storage_pool == "local"
    assert volume.id not in pool.volumes
    await until(lambda: cloud.state[INSTANCES].get(instance["id"]).state is InstanceState.STOPPED)


async def test_its_snapshots_go_with_a_volume_and_can_be_gone_back_to(cloud: SimulatedCloud) -> None:
    await a_pool(cloud)
    instance, volume = await with_data(cloud)
    kept = (await done(cloud, "snapshots", name="kept", instance_id=instance["id"]))["snapshot"]["id"]
    for each in cloud.state[VOLUMES].by("instance", instance["id"]):
        await done(cloud, f"volumes/{each.id}/move", storage_pool="fast")
    await done(cloud, f"snapshots/{kept}/revert")
    await done(cloud, f"volumes/{volume.id}/clone", name="copy", snapshot_id=kept)
    await done(cloud, f"volumes/{volume.id}/move", storage_pool="local")
    answer = await cloud.client.delete(f"/v1/snapshots/{kept}")
    assert (await over(cloud, answer.json()["task_id"])).state == "done"
    assert len(cloud.state[SNAPSHOTS]) == 0


async def test_backups_go_on_from_where_they_were_after_a_move(cloud: SimulatedCloud) -> None:
    await a_pool(cloud)
    await a_pool(cloud, "vault", purposes=["backups"])
    _, volume = await with_data(cloud)
    first = (await done(cloud, "backups", name="first", volume_id=volume.id))["backup"]["id"]
    await done(cloud, f"volumes/{volume.id}/move", storage_pool="fast")
    second = (await done(cloud, "backups", name="second", volume_id=volume.id))["backup"]["id"]
    assert [each["since"] for each in (await shown(cloud.client, f"backups/{second}"))["volumes"]] == [first]


async def test_a_dry_run_says_from_where_to_where_and_moves_nothing(cloud: SimulatedCloud) -> None:
    await a_pool(cloud)
    _, volume = await with_data(cloud)
    answer = await cloud.client.post(f"/v1/volumes/{volume.id}/move?dry_run=true", json={"storage_pool": "fast"})
    assert answer.status_code == 200, answer.text
    host = host_of(cloud, volume.host_id)
    says = f"from storage pool local to fast on host {host.name}, while instance hello is running"
    assert says in answer.json()["summary"]
    assert cloud.state[VOLUMES].get(volume.id) == volume


async def test_what_cannot_be_is_refused_with_the_reason(cloud: SimulatedCloud) -> None:
    await a_pool(cloud, "vault", purposes=["backups"])
    instance, volume = await with_data(cloud)
    host = host_of(cloud, volume.host_id)
    host.backings.away["fast"] = "no disk is mounted"
    await a_pool(cloud, storage_class="performance")
    path = f"/v1/volumes/{volume.id}/move"
    for wish, status, says in (
        ({}, 400, "storage_pool"),
        ({"storage_pool": "fast", "storage_class": "performance"}, 400, "storage_class"),
        ({"storage_pool": "nowhere"}, 404, "there is no storage pool nowhere"),
        ({"storage_pool": "local"}, 409, "in storage pool local already"),
        ({"storage_class": "standard"}, 409, "in storage pool local already, which is of class standard"),
        ({"storage_pool": "vault"}, 409, "is for backups, not for volumes"),
        ({"storage_pool": "fast"}, 507, "cannot have it there: storage pool fast: no disk is mounted"),
        ({"storage_class": "performance"}, 507, "cannot have it there: storage pool fast: no disk is mounted"),
    ):
        answer = await cloud.client.post(path, json=wish)
        assert refusal(answer)[0] == status, answer.text
        assert says in answer.text
    await done(cloud, "snapshots", name="kept", instance_id=instance["id"], memory=True)
    (root,) = (each for each in cloud.state[VOLUMES].by("instance", instance["id"]) if each.id != volume.id)
    del host.backings.away["fast"]
    answer = await cloud.client.post(f"/v1/volumes/{root.id}/move", json={"storage_pool": "fast"})
    assert "snapshot kept keeps what its instance had in memory" in answer.json()["detail"]
    await done(cloud, f"instances/{instance['id']}/suspend")
    answer = await cloud.client.post(path, json={"storage_pool": "fast"})
    assert refusal(answer)[:2] in {(409, "conflict"), (507, "no-capacity")}


async def test_volumes_of_a_paused_instance_move_and_it_stays_paused(cloud: SimulatedCloud) -> None:
    await a_pool(cloud)
    instance, _ = await with_data(cloud)
    await done(cloud, f"instances/{instance['id']}/pause")
    host = host_of(cloud, instance["host_id"])
    guest = host.hypervisor.guests[InstanceId(instance["id"])]
    for each in cloud.state[VOLUMES].by("instance", instance["id"]):
        await done(cloud, f"volumes/{each.id}/move", storage_pool="fast")
        moved = cloud.state[VOLUMES].get(each.id)
        assert (moved.storage_pool, moved.state) == ("fast", VolumeState.IN_USE)
        now = host.hypervisor.guests[guest.spec.id]
        assert (now.state, now.starts) == ("paused", guest.starts)
    kept = cloud.state[INSTANCES].get(instance["id"])
    assert (kept.state, kept.busy_with) == (InstanceState.PAUSED, "")
    await done(cloud, f"instances/{instance['id']}/resume")
    assert host.hypervisor.guests[guest.spec.id].state == "running"


async def test_what_does_not_fit_is_refused_with_what_is_missing(cloud: SimulatedCloud) -> None:
    await a_pool(cloud)
    _, volume = await with_data(cloud)
    big = await made(cloud.client, "volumes", name="big", size_gib=1000, storage_pool="fast")
    instance = cloud.state[VOLUMES].get(volume.id).instance_id
    await done(cloud, f"volumes/{big['id']}/attach", instance_id=instance)
    await done(cloud, f"volumes/{volume.id}/grow", size_gib=100)
    answer = await cloud.client.post(f"/v1/volumes/{volume.id}/move", json={"storage_pool": "fast"})
    assert refusal(answer)[:2] == (507, "no-capacity")
    assert "cannot have it there: 24 GiB of 100 GiB of storage pool fast free" in answer.json()["detail"]
