"""Where what is made of a backup goes: to where it was, to another pool of its class, or to where somebody says."""

from typing import Any

import pytest

from pileus.cloud.storagepools.model import POOLS_ON_HOSTS, named
from pileus.cloud.volumes.model import VOLUMES
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.testing.requests import asked, gone, made, refusal, running, shown


async def a_pool(cloud: SimulatedCloud, name: str, storage_class: str = "standard", *purposes: str) -> None:
    """A storage pool that every host serves."""
    wish = {"storage_class": storage_class, "purposes": purposes or ("volumes",)}
    pool = await made(cloud.client, "storage-pools", name=name, path=f"/srv/{name}", **wish)
    await until(lambda: cloud.state[POOLS_ON_HOSTS].count_by("storage_pool", pool["id"]) == len(cloud.fleet.hosts))


async def without_pool(cloud: SimulatedCloud, name: str) -> None:
    pool = named(cloud.state, name)
    assert pool is not None
    assert (await cloud.client.delete(f"/v1/storage-pools/{pool.id}")).status_code == 204


@pytest.fixture
async def backup(cloud: SimulatedCloud) -> dict[str, Any]:
    """Of an instance that boots from pool `local` and had the volume `data` in pool `fast`; both are gone."""
    await a_pool(cloud, "fast", "performance")
    await a_pool(cloud, "vault", "standard", "backups")
    instance = await running(cloud, cloud.client, name="web")
    volume = await made(cloud.client, "volumes", name="data", size_gib=2, storage_pool="fast")
    await asked(cloud, "POST", f"volumes/{volume['id']}/attach", instance_id=instance["id"])
    made_of = await asked(cloud, "POST", "backups", name="sunday", instance_id=instance["id"])
    await asked(cloud, "POST", f"volumes/{volume['id']}/detach")
    await asked(cloud, "DELETE", f"volumes/{volume['id']}")
    await gone(cloud, cloud.client, instance["id"])
    return await shown(cloud.client, f"backups/{made_of['backup']['id']}")


def data_of(backup: dict[str, Any]) -> dict[str, str]:
    """What names the volume `data` in it."""
    volume = next(each["id"] for each in backup["volumes"] if each["name"] == "data")
    return {"name": "again", "backup_id": backup["id"], "volume_id": volume}


def places(cloud: SimulatedCloud) -> dict[str, tuple[str, str]]:
    """Of every volume, its pool and its class."""
    return {each.name: (each.storage_pool, each.storage_class) for each in cloud.state[VOLUMES]}


async def test_what_is_restored_goes_to_where_it_was_or_to_another_pool_of_its_class(
    cloud: SimulatedCloud, backup: dict[str, Any]
) -> None:
    assert [(each["name"], each["storage_pool"], each["storage_class"]) for each in backup["volumes"]] == [
        ("web", "local", "standard"),
        ("data", "fast", "performance"),
    ]
    restored = (await asked(cloud, "POST", "volumes/restore", **data_of(backup)))["volume"]["id"]
    assert places(cloud) == {"again": ("fast", "performance")}
    host = next(host for host in cloud.fleet.hosts if host.id == backup["host_id"])
    assert [set(pool.volumes) for pool in host.backings.pools.values() if pool.volumes] == [{restored}]
    await asked(cloud, "DELETE", f"volumes/{restored}")
    await a_pool(cloud, "faster", "performance")
    await without_pool(cloud, "fast")
    await asked(cloud, "POST", "volumes/restore", **data_of(backup))
    assert places(cloud) == {"again": ("faster", "performance")}


async def test_what_has_no_place_of_its_class_any_more_is_refused_until_another_is_named(
    cloud: SimulatedCloud, backup: dict[str, Any]
) -> None:
    await without_pool(cloud, "fast")
    for path, wish in (
        ("volumes/restore", data_of(backup)),
        ("instances", {"name": "again", "backup_id": backup["id"]}),
    ):
        answer = await cloud.client.post(f"/v1/{path}", json=wish)
        assert refusal(answer) == (409, "conflict", {"storage_pool"})
        assert all(word in answer.json()["detail"] for word in ("fast", "performance", "name a storage pool"))
    for wrong, status in (({"storage_pool": "fast"}, 404), ({"storage_pool": "vault"}, 409)):
        answer = await cloud.client.post("/v1/volumes/restore", json={**data_of(backup), **wrong})
        assert refusal(answer)[0] == status
    await asked(cloud, "POST", "volumes/restore", **data_of(backup), storage_pool="local")
    assert places(cloud) == {"again": ("local", "standard")}


async def test_what_has_no_room_where_it_was_is_refused_with_what_would_help(
    cloud: SimulatedCloud, backup: dict[str, Any]
) -> None:
    large = {**data_of(backup), "size_gib": 2000}
    answer = await cloud.client.post("/v1/volumes/restore", json=large)
    assert refusal(answer)[:2] == (507, "no-capacity")
    assert answer.json()["detail"].startswith("volume data was in storage pool fast: ")
    assert answer.json()["detail"].endswith("or name another one")
    await a_pool(cloud, "faster", "performance")
    both = await cloud.client.post("/v1/volumes/restore", json=large)
    assert {name.partition(", ")[2] for name in both.json()["because"]} >= {"storage pool faster"}


async def test_an_instance_of_a_backup_has_each_disk_where_it_was_unless_told_otherwise(
    cloud: SimulatedCloud, backup: dict[str, Any]
) -> None:
    instance = (await asked(cloud, "POST", "instances", name="again", backup_id=backup["id"]))["instance"]["id"]
    assert places(cloud) == {"again": ("local", "standard"), "again-data": ("fast", "performance")}
    await gone(cloud, cloud.client, instance)
    for volume in list(cloud.state[VOLUMES]):
        await asked(cloud, "DELETE", f"volumes/{volume.id}")
    await asked(cloud, "POST", "instances", name="here", backup_id=backup["id"], storage_class="performance")
    assert places(cloud) == {"here": ("fast", "performance"), "here-data": ("fast", "performance")}


async def test_disks_that_find_the_same_pool_are_promised_no_more_than_it_has(
    cloud: SimulatedCloud, backup: dict[str, Any]
) -> None:
    local = named(cloud.state, "local")
    assert local is not None
    changed = await cloud.client.patch(f"/v1/storage-pools/{local.id}", json={"storage_class": "performance"})
    assert changed.is_success, changed.text
    for host in cloud.fleet.hosts:
        await running(cloud, cloud.client, name=f"full-{host.id}", storage_pool="fast", disk_gib=1023)
    wish = {"name": "again", "backup_id": backup["id"]}
    answer = await cloud.client.post("/v1/instances", json={**wish, "disk_gib": 1023})
    assert refusal(answer)[:2] == (507, "no-capacity")
    assert answer.json()["detail"].endswith("or name another storage pool or class for its disks")
    await asked(cloud, "POST", "instances", **wish, disk_gib=1020)
    assert [places(cloud)[name] for name in ("again", "again-data")] == [("local", "performance")] * 2
