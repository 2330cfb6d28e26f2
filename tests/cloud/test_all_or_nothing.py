"""Every workflow, broken at every moment: what is left is all of it, or nothing."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.foreign.model import SHADOWS
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.networks.model import NETWORKS, PORTS, NetworkKind
from pileus.cloud.pools.model import POOLS
from pileus.cloud.projects.model import PROJECTS
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.storagepools.model import POOLS_ON_HOSTS
from pileus.cloud.volumes.model import VOLUMES
from pileus.controller.nouns import WORKFLOWS
from pileus.testing.cloud import KEEPING, SETTINGS, SimulatedCloud
from pileus.testing.diskimages import iso, vmdk
from pileus.testing.foreignguests import DATA, DISK, other, shadows
from pileus.testing.links import until
from pileus.testing.prover import Deed, Prover
from pileus.testing.requests import at_rest

URL = "https://example.com/disk.vmdk"


async def nothing(cloud: SimulatedCloud) -> None:
    pass


async def create(cloud: SimulatedCloud) -> None:
    image = cloud.state[IMAGES].ids[0]
    await ask(cloud, "POST", "", {"name": "hello", "image_id": image, "vcpus": 1, "memory_mib": 256})


async def with_one_address(cloud: SimulatedCloud) -> None:
    lan = await cloud.client.post("/v1/networks/flat", json={"name": "lan", "physical_network": "lan"})
    only = {"first": "192.168.7.7", "last": "192.168.7.7"}
    wish = {"name": "lan", "network_id": lan.json()["id"], "cidr": "192.168.7.0/24", "ranges": [only]}
    assert (await cloud.client.post("/v1/subnets", json=wish)).status_code == 201


async def create_on_lan(cloud: SimulatedCloud) -> None:
    lan = cloud.state[NETWORKS].by("kind", NetworkKind.FLAT)[0].id
    image = cloud.state[IMAGES].ids[0]
    wish = {"name": "desk", "image_id": image, "vcpus": 1, "memory_mib": 256, "network_ids": [lan]}
    await ask(cloud, "POST", "", wish)


async def running(cloud: SimulatedCloud) -> None:
    await create(cloud)
    await at_rest(cloud)


async def stopped(cloud: SimulatedCloud) -> None:
    await running(cloud)
    await stop(cloud)
    await at_rest(cloud)


async def stop(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/stop")


async def start(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/start")


async def paused(cloud: SimulatedCloud) -> None:
    await running(cloud)
    await pause(cloud)
    await at_rest(cloud)


async def pause(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/pause")


async def resume(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/resume")


async def suspended(cloud: SimulatedCloud) -> None:
    await running(cloud)
    await suspend(cloud)
    await at_rest(cloud)


async def suspend(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/suspend")


async def reboot(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/reset")


async def set_recovery(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/recovery", {"restart": "never", "watchdog": "poweroff"})


async def resize(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/resize", {"vcpus": 2, "memory_mib": 512, "disk_gib": 20})


async def with_room(cloud: SimulatedCloud) -> None:
    image = cloud.state[IMAGES].ids[0]
    most = {"max_vcpus": 4, "max_memory_mib": 1024}
    await ask(cloud, "POST", "", {"name": "hello", "image_id": image, "vcpus": 1, "memory_mib": 256, **most})
    await at_rest(cloud)


async def resize_running(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/resize", {"vcpus": 3, "memory_mib": 512})


async def rebuild(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/rebuild")


async def limit(cloud: SimulatedCloud) -> None:
    await ask(cloud, "PUT", f"/{the_instance(cloud)}/limits", {"cpu_percent": 20, "network_mbit": 100})


async def with_an_iso(cloud: SimulatedCloud) -> None:
    await running(cloud)
    made = await cloud.client.post("/v1/images", json={"name": "rescue", "format": "iso"})
    answer = await cloud.client.put(f"/v1/images/{made.json()['id']}/data", content=iso())
    assert answer.status_code == 200, answer.text


async def inserted(cloud: SimulatedCloud) -> None:
    await with_an_iso(cloud)
    await insert(cloud)
    await at_rest(cloud)


async def insert(cloud: SimulatedCloud) -> None:
    image = next(image.id for image in cloud.state[IMAGES] if image.name == "rescue")
    await ask(cloud, "POST", f"/{the_instance(cloud)}/insert", {"image_id": image})


async def eject(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/eject", {})


async def two_stopped(cloud: SimulatedCloud) -> None:
    await create_together(cloud)
    await at_rest(cloud)
    await ask_together(cloud, "batch", action="stop", ids=list(cloud.state[INSTANCES].ids))
    await at_rest(cloud)


async def create_together(cloud: SimulatedCloud) -> None:
    await until(lambda: all(host.connected for host in cloud.state[HOSTS]))
    wish = {"name": "hello", "image_id": cloud.state[IMAGES].ids[0], "vcpus": 1, "memory_mib": 256}
    await ask_together(cloud, "create-many", **wish, count=2)


async def start_together(cloud: SimulatedCloud) -> None:
    await ask_together(cloud, "batch", action="start", ids=list(cloud.state[INSTANCES].ids))


async def ask_together(cloud: SimulatedCloud, path: str, **wish: Any) -> None:
    answer = await cloud.client.post(f"/v1/instances/{path}", json={**wish, "atomic": True})
    assert answer.status_code in (200, 503), answer.text


async def set_password(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/password", {"user": "ann", "password": "correct horse"})


async def delete(cloud: SimulatedCloud) -> None:
    await ask(cloud, "DELETE", f"/{the_instance(cloud)}")


async def purge(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/purge")


async def undelete(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/undelete")


async def deleted(cloud: SimulatedCloud) -> None:
    await running(cloud)
    await delete(cloud)
    await at_rest(cloud)


async def detached(cloud: SimulatedCloud) -> None:
    await running(cloud)
    answer = await cloud.client.post("/v1/volumes", json={"name": "data", "size_gib": 1})
    assert answer.status_code == 201, answer.text


async def attached(cloud: SimulatedCloud) -> None:
    await detached(cloud)
    await attach(cloud)
    await at_rest(cloud)


async def attached_before(cloud: SimulatedCloud) -> None:
    await attached(cloud)
    await detach(cloud)
    await at_rest(cloud)


async def attach(cloud: SimulatedCloud) -> None:
    await ask_volume(cloud, "POST", "/attach", {"instance_id": the_instance(cloud)})


async def detach(cloud: SimulatedCloud) -> None:
    await ask_volume(cloud, "POST", "/detach")


async def grow(cloud: SimulatedCloud) -> None:
    await ask_volume(cloud, "POST", "/grow", {"size_gib": 3})


async def limit_volume(cloud: SimulatedCloud) -> None:
    await ask_volume(cloud, "PUT", "/limits", {"iops": 100})


async def delete_volume(cloud: SimulatedCloud) -> None:
    await ask_volume(cloud, "DELETE", "")


async def with_a_port(cloud: SimulatedCloud) -> None:
    await running(cloud)
    network = next(network.id for network in cloud.state[NETWORKS] if network.name == "default")
    answer = await cloud.client.post("/v1/ports", json={"name": "second", "network_id": network})
    assert answer.status_code == 201, answer.text


async def with_a_port_attached(cloud: SimulatedCloud) -> None:
    await with_a_port(cloud)
    await attach_port(cloud)
    await at_rest(cloud)


async def with_a_port_and_two_instances(cloud: SimulatedCloud) -> None:
    await until(lambda: all(host.connected for host in cloud.state[HOSTS]))
    group = await cloud.client.post("/v1/server-groups", json={"name": "apart", "policy": "anti-affinity"})
    wish = {
        "image_id": cloud.state[IMAGES].ids[0],
        "vcpus": 1,
        "memory_mib": 256,
        "server_group_id": group.json()["id"],
    }
    for name in ("one", "other"):
        await ask(cloud, "POST", "", {"name": name, **wish})
    network = next(network.id for network in cloud.state[NETWORKS] if network.name == "default")
    answer = await cloud.client.post("/v1/ports", json={"name": "second", "network_id": network})
    assert answer.status_code == 201, answer.text
    await at_rest(cloud)
    await attach_port(cloud)
    await at_rest(cloud)


async def attach_port(cloud: SimulatedCloud) -> None:
    await ask_port(cloud, "/attach", {"instance_id": the_instance(cloud)})


async def detach_port(cloud: SimulatedCloud) -> None:
    await ask_port(cloud, "/detach")


async def move_port(cloud: SimulatedCloud) -> None:
    await ask_port(cloud, "/move", {"instance_id": cloud.state[INSTANCES].ids[1]})


async def ask_port(cloud: SimulatedCloud, path: str, body: dict[str, Any] | None = None) -> None:
    port = next(port.id for port in cloud.state[PORTS] if port.name == "second")
    answer = await cloud.client.post(f"/v1/ports/{port}{path}", json=body)
    assert answer.status_code in (202, 503), answer.text


async def snapshot(cloud: SimulatedCloud, **more: Any) -> None:
    wish = {"name": "before", "instance_id": the_instance(cloud), **more}
    answer = await cloud.client.post("/v1/snapshots", json=wish)
    assert answer.status_code in (202, 503), answer.text


async def snapshot_with_memory(cloud: SimulatedCloud) -> None:
    await snapshot(cloud, memory=True)


async def snapshotted(cloud: SimulatedCloud) -> None:
    await attached(cloud)
    await snapshot(cloud)
    await at_rest(cloud)


async def snapshotted_with_memory(cloud: SimulatedCloud) -> None:
    await running(cloud)
    await snapshot_with_memory(cloud)
    await at_rest(cloud)


async def snapshotted_and_stopped(cloud: SimulatedCloud) -> None:
    await snapshotted(cloud)
    await stop(cloud)
    await at_rest(cloud)


async def ask_snapshot(cloud: SimulatedCloud, method: str, path: str = "") -> None:
    answer = await cloud.client.request(method, f"/v1/snapshots/{cloud.state[SNAPSHOTS].ids[0]}{path}")
    assert answer.status_code in (202, 503), answer.text


async def create_from_snapshot(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", "", {"name": "another", "snapshot_id": cloud.state[SNAPSHOTS].ids[0]})


async def revert(cloud: SimulatedCloud) -> None:
    await ask_snapshot(cloud, "POST", "/revert")


async def delete_snapshot(cloud: SimulatedCloud) -> None:
    await ask_snapshot(cloud, "DELETE")


async def with_a_vault(cloud: SimulatedCloud) -> None:
    """A storage pool for backups, that every host serves."""
    await attached(cloud)
    wish = {"name": "vault", "path": "/srv/vault", "purposes": ["backups"]}
    answer = await cloud.client.post("/v1/storage-pools", json=wish)
    assert answer.status_code == 201, answer.text
    pool = answer.json()["id"]
    await until(lambda: cloud.state[POOLS_ON_HOSTS].count_by("storage_pool", pool) == len(cloud.fleet.hosts))


async def with_another_pool(cloud: SimulatedCloud) -> None:
    """A further storage pool, that every host serves and whose volumes are limited."""
    wish = {"name": "fast", "path": "/srv/fast", "iops": 1000}
    answer = await cloud.client.post("/v1/storage-pools", json=wish)
    assert answer.status_code == 201, answer.text
    pool = answer.json()["id"]
    await until(lambda: cloud.state[POOLS_ON_HOSTS].count_by("storage_pool", pool) == len(cloud.fleet.hosts))


async def attached_with_another_pool(cloud: SimulatedCloud) -> None:
    await attached(cloud)
    await with_another_pool(cloud)


async def snapshotted_with_another_pool(cloud: SimulatedCloud) -> None:
    await snapshotted(cloud)
    await with_another_pool(cloud)


async def detached_with_another_pool(cloud: SimulatedCloud) -> None:
    await attached_before(cloud)
    await with_another_pool(cloud)
    await ask_volume(cloud, "PATCH", "", {"secure_delete": True}, done=200)


async def stopped_with_another_pool(cloud: SimulatedCloud) -> None:
    await attached(cloud)
    await stop(cloud)
    await at_rest(cloud)
    await with_another_pool(cloud)


async def move_volume(cloud: SimulatedCloud) -> None:
    await ask_volume(cloud, "POST", "/move", {"storage_pool": "fast"})


async def with_a_vault_and_stopped(cloud: SimulatedCloud) -> None:
    await with_a_vault(cloud)
    await stop(cloud)
    await at_rest(cloud)


async def back_up(cloud: SimulatedCloud, **more: Any) -> None:
    wish = {"name": "kept", "instance_id": the_instance(cloud), **more}
    answer = await cloud.client.post("/v1/backups", json=wish)
    assert answer.status_code in (202, 503), answer.text


async def back_up_volume(cloud: SimulatedCloud) -> None:
    volume = next(each.id for each in cloud.state[VOLUMES] if each.name == "data")
    answer = await cloud.client.post("/v1/backups", json={"name": "kept", "volume_id": volume})
    assert answer.status_code in (202, 503), answer.text


async def backed_up(cloud: SimulatedCloud) -> None:
    await with_a_vault(cloud)
    await back_up(cloud)
    await at_rest(cloud)


async def backed_up_and_stopped(cloud: SimulatedCloud) -> None:
    await backed_up(cloud)
    await stop(cloud)
    await at_rest(cloud)


async def ask_backup(cloud: SimulatedCloud, method: str, path: str = "", body: dict[str, Any] | None = None) -> None:
    answer = await cloud.client.request(method, f"/v1/backups/{cloud.state[BACKUPS].ids[0]}{path}", json=body)
    assert answer.status_code in (202, 503), answer.text


async def verify_backup(cloud: SimulatedCloud) -> None:
    await ask_backup(cloud, "POST", "/verify")


async def restore_backup(cloud: SimulatedCloud) -> None:
    await ask_backup(cloud, "POST", "/restore")


async def create_from_backup(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", "", {"name": "again", "backup_id": cloud.state[BACKUPS].ids[0]})


async def delete_backup(cloud: SimulatedCloud) -> None:
    await ask_backup(cloud, "DELETE")


async def restore_volume(cloud: SimulatedCloud) -> None:
    volume = next(each.id for each in cloud.state[VOLUMES] if each.name == "data")
    wish = {"name": "again", "backup_id": cloud.state[BACKUPS].ids[0], "volume_id": volume}
    answer = await cloud.client.post("/v1/volumes/restore", json=wish)
    assert answer.status_code in (202, 503), answer.text


async def clone(cloud: SimulatedCloud) -> None:
    await ask_volume(cloud, "POST", "/clone", {"name": "copy"})


async def clone_from_snapshot(cloud: SimulatedCloud) -> None:
    kept = cloud.state[SNAPSHOTS].ids[0]
    await ask_volume(cloud, "POST", "/clone", {"name": "copy", "snapshot_id": kept})


async def ask_volume(
    cloud: SimulatedCloud, method: str, path: str, body: dict[str, Any] | None = None, *, done: int = 202
) -> None:
    volume = next(volume.id for volume in cloud.state[VOLUMES] if volume.name == "data")
    answer = await cloud.client.request(method, f"/v1/volumes/{volume}{path}", json=body)
    assert answer.status_code in (done, 503), answer.text


async def uploaded(cloud: SimulatedCloud) -> None:
    wish = {"name": "mine", "format": "vmdk", "sha256": sha256(vmdk()).hexdigest()}
    made = await cloud.client.post("/v1/images", json=wish)
    assert made.status_code == 201, made.text
    path = f"/v1/images/{made.json()['id']}/upload"
    answer = await cloud.client.patch(path, content=vmdk(), headers={"upload-offset": "0"})
    assert answer.status_code == 200, answer.text


async def finish_upload(cloud: SimulatedCloud) -> None:
    image = next(image.id for image in cloud.state[IMAGES] if image.name == "mine")
    answer = await cloud.client.post(f"/v1/images/{image}/upload/finish", json={})
    assert answer.status_code in (202, 503), answer.text


async def on_the_web(cloud: SimulatedCloud) -> None:
    cloud.fleet.web.pages[URL] = vmdk()


async def import_image(cloud: SimulatedCloud) -> None:
    answer = await cloud.client.post("/v1/images/import", json={"name": "mine", "format": "vmdk", "url": URL})
    assert answer.status_code in (202, 503), answer.text


async def export_image(cloud: SimulatedCloud) -> None:
    wish = {"image_id": cloud.state[IMAGES].ids[0], "format": "vmdk"}
    answer = await cloud.client.post("/v1/image-exports", json=wish)
    assert answer.status_code in (202, 503), answer.text


async def prefetch_image(cloud: SimulatedCloud) -> None:
    await until(lambda: all(host.connected for host in cloud.state[HOSTS]))
    wish = {"pool_id": cloud.state[POOLS].ids[0]}
    answer = await cloud.client.post(f"/v1/images/{cloud.state[IMAGES].ids[0]}/prefetch", json=wish)
    assert answer.status_code in (202, 503), answer.text


async def build_image(cloud: SimulatedCloud) -> None:
    await build(cloud, instance_id=the_instance(cloud))


async def build_from_a_snapshot(cloud: SimulatedCloud) -> None:
    await build(cloud, snapshot_id=cloud.state[SNAPSHOTS].ids[0])


async def build(cloud: SimulatedCloud, **what: str) -> None:
    answer = await cloud.client.post("/v1/images/build", json={"name": "mine", **what})
    assert answer.status_code in (202, 503), answer.text


async def with_a_guest_of_others(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    other(host, disks=(DISK, DATA))
    await shadows(cloud, host)


async def adopt(cloud: SimulatedCloud) -> None:
    wish = {"project_id": next(each.id for each in cloud.state[PROJECTS] if each.name == "default")}
    answer = await cloud.client.post(f"/v1/foreign-guests/{cloud.state[SHADOWS].ids[0]}/adopt", json=wish)
    assert answer.status_code in (202, 503), answer.text


async def adopted(cloud: SimulatedCloud) -> None:
    await with_a_guest_of_others(cloud)
    await adopt(cloud)
    await at_rest(cloud)


async def leave(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/leave", {"without_network": True})


def the_instance(cloud: SimulatedCloud) -> str:
    return cloud.state[INSTANCES].ids[0]


async def ask(cloud: SimulatedCloud, method: str, path: str, body: dict[str, Any] | None = None) -> None:
    answer = await cloud.client.request(method, f"/v1/instances{path}", json=body)
    assert answer.status_code in (202, 503), answer.text


DEEDS: dict[str, tuple[Deed, Deed, int]] = {
    "instance.create": (nothing, create, 34),
    "instance.create on a LAN": (with_one_address, create_on_lan, 34),
    "instance.create_from_snapshot": (snapshotted, create_from_snapshot, 31),
    "instance.start": (stopped, start, 21),
    "instance.stop": (running, stop, 21),
    "instance.pause": (running, pause, 30),
    "instance.resume": (paused, resume, 30),
    "instance.suspend": (running, suspend, 30),
    "instance.suspend a paused one": (paused, suspend, 30),
    "instance.resume a suspended one": (suspended, resume, 21),
    "instance.stop a suspended one": (suspended, stop, 21),
    "instance.delete a suspended one": (suspended, delete, 28),
    "instance.reboot": (running, reboot, 15),
    "instance.set_recovery": (running, set_recovery, 27),
    "instance.resize": (stopped, resize, 29),
    "instance.resize_running": (with_room, resize_running, 34),
    "instance.rebuild": (running, rebuild, 51),
    "instance.change_media": (with_an_iso, insert, 40),
    "instance.change_media out": (inserted, eject, 31),
    "instance.set_limits": (running, limit, 34),
    "instance.set_password": (stopped, set_password, 15),
    "instance.batch": (two_stopped, start_together, 30),
    "instance.batch of new ones": (nothing, create_together, 45),
    "instance.delete": (running, delete, 28),
    "instance.soft_delete": (running, delete, 21),
    "instance.soft_delete with a volume": (attached, delete, 21),
    "instance.undelete": (deleted, undelete, 25),
    "instance.delete a deleted one": (deleted, purge, 22),
    "volume.attach": (detached, attach, 34),
    "volume.attach again": (attached_before, attach, 31),
    "volume.detach": (attached, detach, 27),
    "volume.grow": (attached, grow, 34),
    "volume.grow detached": (attached_before, grow, 19),
    "volume.set_limits": (attached, limit_volume, 30),
    "volume.delete": (attached_before, delete_volume, 15),
    "volume.move": (detached_with_another_pool, move_volume, 29),
    "volume.move of a running guest": (attached_with_another_pool, move_volume, 59),
    "volume.move of a stopped guest": (stopped_with_another_pool, move_volume, 35),
    "volume.move with a snapshot": (snapshotted_with_another_pool, move_volume, 59),
    "image.import": (on_the_web, import_image, 37),
    "image.finish": (uploaded, finish_upload, 26),
    "image.build": (running, build_image, 84),
    "image.build from a snapshot": (snapshotted, build_from_a_snapshot, 57),
    "image_export.create": (nothing, export_image, 23),
    "image.prefetch": (nothing, prefetch_image, 22),
    "snapshot.create": (attached, snapshot, 41),
    "snapshot.create with memory": (running, snapshot_with_memory, 29),
    "snapshot.create at rest": (stopped, snapshot, 26),
    "snapshot.revert": (snapshotted, revert, 34),
    "snapshot.revert with memory": (snapshotted_with_memory, revert, 40),
    "snapshot.delete": (snapshotted, delete_snapshot, 36),
    "snapshot.delete at rest": (snapshotted_and_stopped, delete_snapshot, 36),
    "volume.clone": (attached, clone, 50),
    "volume.clone from a snapshot": (snapshotted, clone_from_snapshot, 23),
    "backup.create": (with_a_vault, back_up, 78),
    "backup.create another": (backed_up, back_up_volume, 75),
    "backup.create at rest": (with_a_vault_and_stopped, back_up_volume, 57),
    "backup.restore": (backed_up_and_stopped, restore_backup, 38),
    "backup.verify": (backed_up, verify_backup, 20),
    "backup.delete": (backed_up, delete_backup, 57),
    "instance.create_from_backup": (backed_up, create_from_backup, 37),
    "backup.restore_volume": (backed_up, restore_volume, 18),
    "instance.delete with a volume": (attached, delete, 28),
    "instance.delete with a port": (with_a_port_attached, purge, 31),
    "instance.soft_delete with a port": (with_a_port_attached, delete, 24),
    "foreign_guest.adopt": (with_a_guest_of_others, adopt, 28),
    "instance.leave": (attached, leave, 25),
    "instance.leave one that was taken over": (adopted, leave, 19),
    "instance.delete_but_disks": (adopted, delete, 15),
    "instance.stop one that was taken over": (adopted, stop, 18),
    "port.attach": (with_a_port, attach_port, 34),
    "port.detach": (with_a_port_attached, detach_port, 30),
    "port.move": (with_a_port_and_two_instances, move_port, 56),
}
"""What is there before, what is done, and in how many ways it is broken."""


_OF_DELETED = ("instance.soft_delete", "instance.undelete", "instance.delete a deleted one")
"""What takes a cloud that keeps what is deleted."""


@pytest.mark.slow
@pytest.mark.parametrize("workflow", DEEDS)
def test_a_workflow_is_all_or_nothing_whatever_breaks_when(workflow: str, tmp_path: Path) -> None:
    prepare, deed, ways = DEEDS[workflow]
    settings = KEEPING if workflow.startswith(_OF_DELETED) else SETTINGS
    assert Prover(tmp_path, prepare, deed, settings=settings).prove() == ways


def test_every_workflow_is_proven() -> None:
    assert {deed.partition(" ")[0] for deed in DEEDS} == {workflow.name for workflow in WORKFLOWS}
