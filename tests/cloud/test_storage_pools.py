"""Storage pools: served by hosts that have them, told of when they fill, kept from what would lose data."""

from typing import Any

import pytest
from msgspec import structs

from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.storagepools.model import POOLS_ON_HOSTS, STORAGE_BACKINGS, PoolOnHost, named
from pileus.cloud.storagepools.reconcilers import wanted_on
from pileus.cloud.volumes.model import VOLUMES, Volume, VolumeState
from pileus.kernel.clock import FrozenClock
from pileus.kernel.ids import HostId, InstanceId, StoragePoolId, VolumeId, new_id
from pileus.kernel.units import GIB
from pileus.link.guests import DiskLimits
from pileus.link.messages import Method
from pileus.link.storagepools import PoolObserved, PoolUse, StoragePoolsObserved
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.testing.people import People
from pileus.testing.requests import items, made, over, refusal, running, shown


async def a_pool(cloud: SimulatedCloud, name: str = "fast", **more: Any) -> dict[str, Any]:
    """A storage pool that every host serves."""
    pool = await made(cloud.client, "storage-pools", name=name, **{"path": f"/srv/{name}", **more})
    await until(lambda: len(on_hosts(cloud, pool["id"])) == len(cloud.fleet.hosts))
    return pool


def on_hosts(cloud: SimulatedCloud, pool: str) -> list[PoolOnHost]:
    return cloud.state[POOLS_ON_HOSTS].by("storage_pool", pool)


async def test_there_is_a_pool_from_the_start_that_cannot_go(cloud: SimulatedCloud) -> None:
    local = named(cloud.state, "local")
    assert local is not None
    use = await shown(cloud.client, f"storage-pools/{local.id}/use")
    assert [(each["host"], each["reason"]) for each in use["hosts"]] == [("host-1", ""), ("host-2", ""), ("host-3", "")]
    assert use["hosts"][0]["use"]["total_bytes"] == 1024 * GIB
    assert refusal(await cloud.client.delete(f"/v1/storage-pools/{local.id}"))[0] == 409


async def test_a_new_pool_is_served_by_every_host_that_has_it(cloud: SimulatedCloud) -> None:
    cloud.host("host-2").backings.away["fast"] = "there is no folder /srv/fast on this host"
    pool = await a_pool(cloud, storage_class="performance")
    use = await shown(cloud.client, f"storage-pools/{pool['id']}/use")
    assert use["backing"] == {"driver": "directory", "path": "/srv/fast"}
    reasons = {each["host"]: each["reason"] for each in use["hosts"]}
    assert reasons == {"host-1": "", "host-2": "there is no folder /srv/fast on this host", "host-3": ""}


async def test_hosts_of_other_resource_pools_do_not_serve_it(cloud: SimulatedCloud) -> None:
    vip = await made(cloud.client, "pools", name="vip")
    host = cloud.host("host-3")
    assert (await cloud.client.patch(f"/v1/hosts/{host.id}", json={"pool_id": vip["id"]})).is_success
    pool = await made(cloud.client, "storage-pools", name="ssd", path="/srv/ssd", pool_ids=[vip["id"]])
    await until(lambda: [each.host_id for each in on_hosts(cloud, pool["id"])] == [host.id])
    assert not cloud.host("host-1").backings.pools
    assert refusal(await cloud.client.delete(f"/v1/pools/{vip['id']}"))[0] == 409


async def test_a_pool_that_is_deleted_is_let_go_by_hosts(cloud: SimulatedCloud) -> None:
    pool = await a_pool(cloud)
    assert (await cloud.client.delete(f"/v1/storage-pools/{pool['id']}")).status_code == 204
    await until(lambda: not any(host.backings.pools for host in cloud.fleet.hosts))
    assert not on_hosts(cloud, pool["id"])
    assert not len(cloud.state[STORAGE_BACKINGS])
    again = await a_pool(cloud)
    assert {each.reason for each in on_hosts(cloud, again["id"])} == {""}


async def test_a_place_that_is_in_use_and_what_is_no_place_are_refused(cloud: SimulatedCloud) -> None:
    await a_pool(cloud)
    for path in ("/srv/fast", "/srv", "/srv/fast/more"):
        answer = await cloud.client.post("/v1/storage-pools", json={"name": "other", "path": path})
        assert refusal(answer) == (409, "conflict", {"path"}), path
    for path in ("/", "srv/fast", "/srv/../etc", "/srv/fast/", "/srv/a b", "/srv/\n"):
        wish = {"name": "Other one", "path": path, "overcommit": 0.5, "iops": 3}
        answer = await cloud.client.post("/v1/storage-pools", json=wish)
        wrong = refusal(answer)[2]
        assert {"name", "overcommit"} <= wrong, path
        if path != "/srv/../etc":
            assert "path" in wrong, path


async def test_people_see_pools_and_their_classes_but_not_what_is_behind_them(
    cloud: SimulatedCloud, people: People
) -> None:
    pool = await a_pool(cloud, storage_class="performance")
    person = await people.person(Role.ADMIN, await people.project("theirs"))
    seen = await person.client.get(f"/v1/storage-pools/{pool['id']}")
    assert (seen.json()["name"], seen.json()["storage_class"]) == ("fast", "performance")
    assert "/srv" not in seen.text
    assert (await person.client.get(f"/v1/storage-pools/{pool['id']}/use")).status_code == 403
    assert "/srv/fast" not in (await person.client.get("/v1/events?limit=1000")).text


async def test_a_pool_that_fills_is_told_once_and_once_more_when_it_has_room_again(cloud: SimulatedCloud) -> None:
    pool = await a_pool(cloud)
    host = cloud.host("host-1")

    async def told() -> list[tuple[bool, bool]]:
        events = (await cloud.client.get("/v1/events?kind=pool_on_host&all_projects=true&limit=1000")).json()["items"]
        afters = [each["after"] for each in events if "after" in each]
        return [
            (each["filled"], each["promised"])
            for each in afters
            if (each["storage_pool_id"], each["host_id"]) == (pool["id"], host.id)
        ]

    def report(part: float) -> None:
        total = 100 * GIB
        use = PoolUse(total_bytes=total, free_bytes=int(total * (1 - part)))
        found = PoolObserved(name="fast", id=StoragePoolId(pool["id"]), use=use)
        cloud.controller.hosts.supplies.take(HostId(host.id), [found])

    for part in (0.79, 0.80, 0.85, 0.79, 0.76, 0.81, 0.74, 0.79, 0.10):
        report(part)
    await cloud.state.durable()
    assert await told() == [(False, False), (True, False), (False, False)]


@pytest.mark.parametrize(("overcommit", "promised"), [(1.0, True), (2.0, False)])
def test_promises_count_against_what_may_be_promised(overcommit: float, promised: bool) -> None:
    use = PoolUse(total_bytes=100 * GIB, free_bytes=60 * GIB, promised_bytes=80 * GIB, unfilled_bytes=50 * GIB)
    assert use.promisable_bytes(overcommit) == int(90 * GIB * overcommit)
    there = PoolOnHost(
        id=new_id(),
        created_at=(now := FrozenClock().now()),
        storage_pool_id=StoragePoolId(new_id()),
        host_id=HostId(new_id()),
        since=now,
    )
    seen = there.seen(PoolObserved(name="fast", use=use), overcommit, now)
    assert (seen.filled, seen.promised) == (False, promised)


async def volume_of(cloud: SimulatedCloud, instance: str) -> Volume:
    (volume,) = cloud.state[VOLUMES].by("instance", instance)
    return volume


async def test_an_instance_goes_where_the_class_is_that_it_asks_for(cloud: SimulatedCloud) -> None:
    for name in ("host-1", "host-3"):
        cloud.host(name).backings.away["fast"] = "no disk is mounted"
    pool = await a_pool(cloud, storage_class="performance")
    instance = await running(cloud, cloud.client, storage_class="performance")
    volume = await volume_of(cloud, instance["id"])
    assert (volume.storage_pool, volume.host_id) == ("fast", cloud.host("host-2").id)
    host = cloud.host("host-2")
    assert set(host.backings.pools[StoragePoolId(pool["id"])].volumes) == {volume.id}
    assert volume.id not in host.storage.volumes


async def test_a_host_that_reports_after_it_was_removed_is_not_recorded(cloud: SimulatedCloud) -> None:
    pool = await a_pool(cloud)
    host = cloud.host("host-3").id
    assert (await cloud.client.delete(f"/v1/hosts/{host}")).status_code == 204
    late = PoolObserved(name="fast", id=StoragePoolId(pool["id"]), use=PoolUse(total_bytes=GIB, free_bytes=GIB))
    cloud.controller.hosts.supplies.take(HostId(host), [late])
    assert host not in {each.host_id for each in on_hosts(cloud, pool["id"])}


async def test_the_default_of_a_resource_pool_is_where_its_disks_go(cloud: SimulatedCloud) -> None:
    pool = await a_pool(cloud)
    (default,) = await items(cloud.client, "pools")
    path = f"/v1/pools/{default['id']}"
    assert refusal(await cloud.client.patch(path, json={"storage_pool": "fats"})) == (
        404,
        "not-found",
        {"storage_pool"},
    )
    assert (await cloud.client.patch(path, json={"storage_pool": "fast"})).is_success
    assert (await volume_of(cloud, (await running(cloud, cloud.client))["id"])).storage_pool == "fast"
    assert refusal(await cloud.client.delete(f"/v1/storage-pools/{pool['id']}"))[0] == 409
    assert (await cloud.client.patch(path, json={"storage_pool": "local"})).is_success
    assert refusal(await cloud.client.delete(f"/v1/storage-pools/{pool['id']}"))[0] == 409


async def test_a_refusal_says_for_each_host_what_it_has_of_the_pool(cloud: SimulatedCloud) -> None:
    cloud.host("host-1").backings.away["fast"] = "no disk is mounted"
    pool = await a_pool(cloud, overcommit=1.5)
    full = cloud.host("host-2").backings.pools[StoragePoolId(pool["id"])]
    full.filled_bytes = 1000 * GIB
    await reported(cloud)
    image = (await items(cloud.client, "images"))[0]["id"]
    wish = {"name": "x", "image_id": image, "vcpus": 1, "memory_mib": 256, "disk_gib": 1600, "storage_pool": "fast"}
    answer = await cloud.client.post("/v1/instances", json=wish)
    assert refusal(answer)[:2] == (507, "no-capacity")
    because = answer.json()["because"]
    assert because["host-1"] == "storage pool fast: no disk is mounted"
    assert because["host-2"] == "storage pool fast: only 24 GiB of 1.0 TiB really free"
    assert because["host-3"] == "too small: 32 vCPUs, 127.5 GiB of memory and 1.5 TiB of disk in all, " + (
        "1 vCPU, 256 MiB of memory and 1.6 TiB of disk asked"
    )
    assert "in storage pool fast" in answer.json()["detail"]
    assert (await cloud.client.post("/v1/instances?dry_run=true", json={**wish, "disk_gib": 1500})).is_success


async def test_a_volume_of_a_class_finds_its_pool_where_it_is_first_attached(cloud: SimulatedCloud) -> None:
    for name in ("host-1", "host-2", "host-3"):
        cloud.host(name).backings.away["ssd-1" if name == "host-3" else "ssd-2"] = "not here"
    for name in ("ssd-1", "ssd-2"):
        await a_pool(cloud, name, storage_class="performance")
    volume = await made(cloud.client, "volumes", name="data", size_gib=1, storage_class="performance")
    assert (volume["storage_pool"], volume["storage_class"]) == ("", "performance")
    instance = await running(cloud, cloud.client)
    answer = await cloud.client.post(f"/v1/volumes/{volume['id']}/attach", json={"instance_id": instance["id"]})
    assert answer.status_code == 202, answer.text
    await until(lambda: cloud.state[VOLUMES].get(volume["id"]).state is VolumeState.IN_USE)
    there = "ssd-2" if instance["host_id"] == cloud.host("host-3").id else "ssd-1"
    assert cloud.state[VOLUMES].get(volume["id"]).storage_pool == there


async def test_what_is_no_place_for_a_volume_is_refused_with_what_there_is(cloud: SimulatedCloud) -> None:
    await a_pool(cloud, "vault", purposes=["backups"])
    for wish, expected in (
        ({"storage_pool": "fast"}, (404, {"storage_pool"})),
        ({"storage_class": "gold"}, (404, {"storage_class"})),
        ({"storage_pool": "vault"}, (409, {"storage_pool"})),
        ({"storage_pool": "local", "storage_class": "standard"}, (400, {"storage_class"})),
    ):
        answer = await cloud.client.post("/v1/volumes", json={"name": "x", "size_gib": 1, **wish})
        status, _, fields = refusal(answer)
        assert (status, fields) == expected, wish


async def test_nothing_is_kept_in_a_pool_that_is_really_full(cloud: SimulatedCloud) -> None:
    pool = await a_pool(cloud, overcommit=2.0)
    instance = await running(cloud, cloud.client, storage_pool="fast")
    volume = await volume_of(cloud, instance["id"])
    host = next(each for each in cloud.fleet.hosts if each.id == instance["host_id"])
    host.backings.pools[StoragePoolId(pool["id"])].filled_bytes = 1000 * GIB
    await reported(cloud)
    snapshot = await cloud.client.post("/v1/snapshots", json={"name": "x", "volume_id": volume.id})
    growth = await cloud.client.post(f"/v1/volumes/{volume.id}/grow", json={"size_gib": 20})
    for answer, status in ((snapshot, 409), (growth, 507)):
        assert answer.status_code == status
        assert "only 24 GiB of 1.0 TiB really free" in answer.text


async def reported(cloud: SimulatedCloud) -> None:
    """Have every host look at its pools, and tell."""
    for host in cloud.fleet.hosts:
        wanted = wanted_on(cloud.state, HostId(host.id))
        found = await cloud.controller.hosts.ask(
            HostId(host.id), Method.STORAGE_POOLS, wanted, StoragePoolsObserved, timeout_s=60
        )
        cloud.controller.hosts.supplies.take(HostId(host.id), found.pools)


async def test_of_the_limits_of_a_volume_and_its_storage_pool_the_lower_counts(cloud: SimulatedCloud) -> None:
    pool = await made(cloud.client, "storage-pools", name="slow", path="/srv/slow", iops=500, bytes_per_s=10_000_000)
    await until(lambda: len(cloud.state[POOLS_ON_HOSTS].by("storage_pool", pool["id"])) == 3)
    instance = await running(cloud, cloud.client, storage_pool="slow")
    (volume,) = cloud.state[VOLUMES].by("instance", instance["id"])
    host = next(each for each in cloud.fleet.hosts if each.id == instance["host_id"])

    def told() -> DiskLimits | None:
        return host.hypervisor.guests[InstanceId(instance["id"])].spec.disks[0].limits

    assert told() == DiskLimits(iops=500, bytes_per_s=10_000_000)
    for wish, expected in (
        ({"iops": 100}, DiskLimits(iops=100, bytes_per_s=10_000_000)),
        ({"iops": 1000, "bytes_per_s": 1_000_000}, DiskLimits(iops=500, bytes_per_s=1_000_000)),
        ({}, DiskLimits(iops=500, bytes_per_s=10_000_000)),
    ):
        answer = await cloud.client.put(f"/v1/volumes/{volume.id}/limits", json=wish)
        assert answer.status_code == 202, answer.text
        await over(cloud, answer.json()["task_id"])
        assert told() == expected
        assert not cloud.state[INSTANCES].get(instance["id"]).busy_with
    answer = await cloud.client.put(f"/v1/volumes/{volume.id}/limits", json={"iops": 3, "bytes_per_s": 3})
    assert refusal(answer) == (400, "invalid", {"iops", "bytes_per_s"})


async def test_what_a_volume_and_its_snapshots_really_take_is_asked_of_its_host(cloud: SimulatedCloud) -> None:
    unused = await made(cloud.client, "volumes", name="data", size_gib=2)
    space = await shown(cloud.client, f"volumes/{unused['id']}/space")
    assert space == {"volume_id": unused["id"], "promised_bytes": 2 * GIB, "allocated_bytes": 0, "snapshots": {}}
    instance = await running(cloud, cloud.client)
    volume = await volume_of(cloud, instance["id"])
    taken = await cloud.client.post("/v1/snapshots", json={"name": "before", "volume_id": volume.id})
    await over(cloud, taken.json()["task_id"])
    host = next(each for each in cloud.fleet.hosts if each.id == instance["host_id"])
    observed = host.storage.volumes[VolumeId(volume.id)]
    host.storage.volumes[VolumeId(volume.id)] = structs.replace(observed, allocated_bytes=12_345)
    space = await shown(cloud.client, f"volumes/{volume.id}/space")
    assert (space["allocated_bytes"], space["snapshots"]) == (12_345, {taken.json()["snapshot"]["id"]: 0})
