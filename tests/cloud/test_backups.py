"""Backups through the API of a whole controller, on simulated hosts."""

from typing import Any

import pytest

from pileus.agent.backup.simulated import SimulatedPlace
from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.storagepools.model import POOLS_ON_HOSTS, STORAGE_POOLS
from pileus.cloud.volumes.model import VOLUMES
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import VolumeId
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fleet import SimulatedAgent
from pileus.testing.links import until
from pileus.testing.requests import asked, at_rest, gone, made, over, refusal, running, shown

_KEPT = ("host_id", "image_id")


async def a_vault(cloud: SimulatedCloud, name: str = "vault") -> None:
    """A storage pool for backups, that every host serves."""
    pool = await made(cloud.client, "storage-pools", name=name, path=f"/srv/{name}", purposes=["backups"])
    there = cloud.state[POOLS_ON_HOSTS]
    await until(lambda: there.count_by("storage_pool", pool["id"]) == len(cloud.fleet.hosts))


async def with_data(cloud: SimulatedCloud) -> tuple[dict[str, Any], dict[str, Any]]:
    """An instance that runs, and a volume that is attached to it."""
    await a_vault(cloud)
    instance = await running(cloud, cloud.client)
    volume = await made(cloud.client, "volumes", name="data", size_gib=1)
    await asked(cloud, "POST", f"volumes/{volume['id']}/attach", instance_id=instance["id"])
    return instance, await shown(cloud.client, f"volumes/{volume['id']}")


async def kept(cloud: SimulatedCloud, **wish: Any) -> dict[str, Any]:
    """A backup that was made."""
    begun = await asked(cloud, "POST", "backups", name="kept", **wish)
    return await shown(cloud.client, f"backups/{begun['backup']['id']}")


def host_of(cloud: SimulatedCloud, record: dict[str, Any]) -> SimulatedAgent:
    return next(host for host in cloud.fleet.hosts if host.id == record["host_id"])


def vault_of(host: SimulatedAgent) -> SimulatedPlace:
    return next(iter(host.backings.pools.values())).place


async def test_a_backup_of_an_instance_is_of_all_its_volumes_while_it_runs_on(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    backup = await kept(cloud, instance_id=instance["id"])
    assert (backup["state"], backup["consistency"], backup["damaged"]) == ("available", "file-systems", False)
    volumes = cloud.state[VOLUMES].ids_by("instance", instance["id"])
    assert [each["id"] for each in backup["volumes"]] == [*volumes]
    assert (backup["data_bytes"], backup["read_bytes"]) == (2 * 1024**2, 2 * 1024**2)
    assert (await shown(cloud.client, f"instances/{instance['id']}"))["state"] == "running"
    assert (await shown(cloud.client, f"volumes/{volume['id']}"))["state"] == "in-use"
    assert not cloud.state[SNAPSHOTS].ids


async def test_the_next_backup_reads_what_has_changed_unless_all_is_asked_for(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    first = await kept(cloud, instance_id=instance["id"])
    host_of(cloud, instance).storage.contents[VolumeId(volume["id"])] = b"something else"
    second = await kept(cloud, instance_id=instance["id"])
    assert [each["since"] for each in second["volumes"]] == [first["id"]] * 2
    assert (second["data_bytes"], second["read_bytes"]) == (2 * 1024**2, 1024**2)
    third = await kept(cloud, instance_id=instance["id"], full=True)
    assert [each["since"] for each in third["volumes"]] == [None] * 2
    assert (third["read_bytes"], third["stored_bytes"]) == (2 * 1024**2, 0)
    assert [backup.based_volume_ids for backup in cloud.state[BACKUPS]][:2] == [(), ()]


async def test_only_while_it_is_taken_does_a_backup_keep_its_instance_busy(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    written = host_of(cloud, instance).faults.hold("backups.put")
    answer = await cloud.client.post("/v1/backups", json={"name": "kept", "instance_id": instance["id"]})
    id = answer.json()["backup"]["id"]
    await until(lambda: cloud.state[BACKUPS].get(id).state == "writing")
    again = await cloud.client.post("/v1/backups", json={"name": "other", "volume_id": volume["id"]})
    assert refusal(again)[:2] == (409, "conflict")
    stopped = await cloud.client.post(f"/v1/instances/{instance['id']}/stop")
    assert stopped.status_code == 202, stopped.text
    assert (await over(cloud, stopped.json()["task_id"])).state == "done"
    written.set()
    await at_rest(cloud)
    assert cloud.state[BACKUPS].get(id).state == "available"


async def test_a_backup_outlives_what_it_is_of_and_a_new_volume_is_made_of_it(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    storage = host_of(cloud, instance).storage
    storage.contents[VolumeId(volume["id"])] = b"of some worth"
    backup = await kept(cloud, instance_id=instance["id"])
    await asked(cloud, "POST", f"volumes/{volume['id']}/detach")
    await asked(cloud, "DELETE", f"volumes/{volume['id']}")
    await gone(cloud, cloud.client, instance["id"])
    assert cloud.state[BACKUPS].get(backup["id"]).based_volume_ids == ()
    of = {"name": "again", "backup_id": backup["id"]}
    begun = await asked(cloud, "POST", "volumes/restore", **of, volume_id=volume["id"], size_gib=2)
    restored = await shown(cloud.client, f"volumes/{begun['volume']['id']}")
    assert (restored["state"], restored["size_gib"], restored["name"]) == ("available", 2, "again")
    assert storage.contents[VolumeId(restored["id"])].startswith(b"of some worth")
    which = await cloud.client.post("/v1/volumes/restore", json=of)
    assert refusal(which) == (400, "invalid", {"volume_id"})


async def test_a_backup_that_is_deleted_leaves_the_others_whole_and_nothing_of_its_own(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    storage = host_of(cloud, instance).storage
    first = await kept(cloud, volume_id=volume["id"])
    storage.contents[VolumeId(volume["id"])] = b"later"
    second = await kept(cloud, volume_id=volume["id"])
    await asked(cloud, "DELETE", f"backups/{first['id']}")
    begun = await asked(cloud, "POST", "volumes/restore", backup_id=second["id"], name="again")
    assert storage.contents[VolumeId(begun["volume"]["id"])].startswith(b"later")
    await asked(cloud, "DELETE", f"backups/{second['id']}")
    assert not cloud.state[BACKUPS].ids
    assert not vault_of(host_of(cloud, instance)).objects
    assert not (await storage.layering.layers(VolumeId(volume["id"]))).below


async def test_damage_is_found_told_of_all_backups_that_it_hurts_and_not_restored(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    place = vault_of(host_of(cloud, instance))
    first = await kept(cloud, volume_id=volume["id"])
    second = await kept(cloud, volume_id=volume["id"])
    await asked(cloud, "POST", f"backups/{second['id']}/verify")
    assert (await shown(cloud.client, f"backups/{second['id']}"))["verified_at"] is not None
    chunk = next(name for name in place.objects if "/chunks/" in name)
    place.objects[chunk] = place.objects[chunk][:-1] + bytes([place.objects[chunk][-1] ^ 1])
    begun = await asked(cloud, "POST", "volumes/restore", backup_id=first["id"], name="again")
    assert begun["volume"]["id"] not in cloud.state[VOLUMES]
    assert "damaged" in (await shown(cloud.client, f"tasks/{begun['task_id']}"))["cause"]["detail"]
    await asked(cloud, "POST", f"backups/{first['id']}/verify")
    for each in (first, second):
        assert (await shown(cloud.client, f"backups/{each['id']}"))["damaged"]
    third = await kept(cloud, volume_id=volume["id"])
    assert third["volumes"][0]["since"] is None
    await asked(cloud, "POST", f"backups/{first['id']}/verify")
    assert not (await shown(cloud.client, f"backups/{first['id']}"))["damaged"]


async def test_a_suspended_guest_does_not_hold_up_what_is_done_with_its_backups(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    backup = await kept(cloud, instance_id=instance["id"])
    await asked(cloud, "POST", f"instances/{instance['id']}/suspend")
    refused = await cloud.client.post("/v1/backups", json={"name": "kept", "instance_id": instance["id"]})
    assert refusal(refused)[:2] == (409, "conflict")
    await asked(cloud, "DELETE", f"backups/{backup['id']}")
    await asked(cloud, "POST", f"instances/{instance['id']}/resume")
    layering = host_of(cloud, instance).storage.layering
    assert backup["id"] not in (await layering.layers(VolumeId(volume["id"]))).frozen


@pytest.mark.parametrize("wish", [{}, {"instance_id": "both", "volume_id": "both"}])
async def test_a_backup_is_of_one_thing(cloud: SimulatedCloud, wish: dict[str, str]) -> None:
    answer = await cloud.client.post("/v1/backups", json={"name": "kept", **wish})
    assert refusal(answer)[:2] == (400, "invalid")


async def test_a_volume_without_data_has_nothing_to_be_backed_up(cloud: SimulatedCloud) -> None:
    volume = await made(cloud.client, "volumes", name="data", size_gib=1)
    answer = await cloud.client.post("/v1/backups", json={"name": "kept", "volume_id": volume["id"]})
    assert refusal(answer) == (409, "conflict", {"volume_id"})


async def test_where_a_backup_goes_is_another_storage_pool_that_is_for_backups(cloud: SimulatedCloud) -> None:
    _, volume = await with_data(cloud)
    backup = await kept(cloud, volume_id=volume["id"])
    assert backup["storage_pool"] == "vault"
    for pool, status in (("local", 409), ("nowhere", 404)):
        wish = {"name": "kept", "volume_id": volume["id"], "storage_pool": pool}
        answer = await cloud.client.post("/v1/backups", json=wish)
        assert refusal(answer)[0::2] == (status, {"storage_pool"})
    await a_vault(cloud, "cellar")
    answer = await cloud.client.post("/v1/backups", json={"name": "kept", "volume_id": volume["id"]})
    assert refusal(answer) == (409, "conflict", {"storage_pool"})
    elsewhere = await kept(cloud, volume_id=volume["id"], storage_pool="cellar")
    assert elsewhere["volumes"][0]["since"] is None
    again = await kept(cloud, volume_id=volume["id"], storage_pool="vault")
    assert again["volumes"][0]["since"] == backup["id"]
    vault = next(pool for pool in cloud.state[STORAGE_POOLS] if pool.name == "vault")
    assert refusal(await cloud.client.delete(f"/v1/storage-pools/{vault.id}"))[0] == 409


async def test_a_stopped_instance_becomes_what_it_was_all_of_it_or_nothing(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    storage = host_of(cloud, instance).storage
    storage.contents[VolumeId(volume["id"])] = b"early"
    backup = await kept(cloud, instance_id=instance["id"])
    storage.contents[VolumeId(volume["id"])] = b"late"
    path = f"/v1/backups/{backup['id']}/restore"
    assert refusal(await cloud.client.post(path))[:2] == (409, "conflict")
    await asked(cloud, "POST", f"instances/{instance['id']}/stop")
    storage.faults.fail("storage.prepare", Conflict("the storage pool is full"))
    await asked(cloud, "POST", f"backups/{backup['id']}/restore")
    assert storage.contents[VolumeId(volume["id"])] == b"late"
    await asked(cloud, "POST", f"backups/{backup['id']}/restore")
    assert storage.contents[VolumeId(volume["id"])].startswith(b"early")
    assert cloud.state[BACKUPS].get(backup["id"]).based_volume_ids == ()
    assert not storage.prepared
    await asked(cloud, "POST", f"instances/{instance['id']}/start")
    assert (await kept(cloud, instance_id=instance["id"]))["volumes"][0]["since"] is None


async def test_a_new_instance_is_what_one_was_with_all_its_volumes(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    storage = host_of(cloud, instance).storage
    storage.contents[VolumeId(volume["id"])] = b"of some worth"
    backup = await kept(cloud, instance_id=instance["id"])
    await asked(cloud, "POST", f"volumes/{volume['id']}/detach")
    await gone(cloud, cloud.client, instance["id"])
    begun = await asked(cloud, "POST", "instances", name="again", backup_id=backup["id"])
    again = await shown(cloud.client, f"instances/{begun['instance']['id']}")
    assert (again["state"], again["host_id"], again["image_id"]) == ("running", *(instance[each] for each in _KEPT))
    assert [again[each] for each in ("vcpus", "memory_mib", "disk_gib")] == [1, 256, instance["disk_gib"]]
    (data,) = again["attached_volume_ids"]
    assert storage.contents[VolumeId(data)].startswith(b"of some worth")
    assert cloud.state[VOLUMES].get(data).name == "again-data"
    assert cloud.state[BACKUPS].get(backup["id"]).state == "available"


async def test_what_has_snapshots_or_has_changed_its_volumes_is_not_restored_in_place(cloud: SimulatedCloud) -> None:
    instance, volume = await with_data(cloud)
    backup = await kept(cloud, instance_id=instance["id"])
    await asked(cloud, "POST", f"instances/{instance['id']}/stop")
    taken = await asked(cloud, "POST", "snapshots", name="before", volume_id=volume["id"])
    path = f"/v1/backups/{backup['id']}/restore"
    assert "snapshot" in (await cloud.client.post(path)).json()["detail"]
    await asked(cloud, "DELETE", f"snapshots/{taken['snapshot']['id']}")
    await asked(cloud, "POST", f"volumes/{volume['id']}/detach")
    assert "attach it first" in (await cloud.client.post(path)).json()["detail"]
    await asked(cloud, "DELETE", f"volumes/{volume['id']}")
    assert "gone" in (await cloud.client.post(path)).json()["detail"]
