"""What is told of the copies of images that hosts keep."""

import msgspec

from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.world import Nothing
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import ImageId, SnapshotId, new_id
from pileus.link.images import ImagesDrop
from pileus.link.messages import Method
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.testing.people import People
from pileus.testing.requests import begun, refusal, running, shown


def no_life(_call: str) -> None:
    """A host of which no driver answers says no hello."""
    raise Unavailable("away")


async def test_a_host_tells_which_images_it_has_copies_of(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    image = cloud.state[IMAGES].get(instance["image_id"])
    told = await shown(cloud.client, f"hosts/{instance['host_id']}/images")
    (copy,) = told["images"]
    assert (copy["image"], copy["pool"]) == (image.id, "local")
    assert told["allocated_bytes"] == copy["allocated_bytes"] == image.virtual_size_bytes
    other = next(host for host in cloud.fleet.hosts if host.id != instance["host_id"])
    assert (await shown(cloud.client, f"hosts/{other.id}/images"))["images"] == []


async def test_only_administrators_of_the_cloud_are_told(cloud: SimulatedCloud, people: People) -> None:
    admin = await people.person(Role.ADMIN, await people.project("theirs"))
    answer = await admin.client.get(f"/v1/hosts/{cloud.fleet.hosts[0].id}/images")
    assert refusal(answer)[0] in (403, 404)


async def test_an_image_tells_which_hosts_have_copies_of_it_and_which_do_not_say(
    cloud: SimulatedCloud, people: People
) -> None:
    instance = await running(cloud, cloud.client)
    path = f"images/{instance['image_id']}/copies"
    told = await shown(cloud.client, path)
    (copy,) = told["copies"]
    assert (copy["host_id"], copy["copy"]["pool"], told["not_known"]) == (instance["host_id"], "local", {})
    assert told["allocated_bytes"] == copy["copy"]["allocated_bytes"] > 0
    away = next(host for host in cloud.fleet.hosts if host.id != instance["host_id"])
    away.faults.watch = no_life
    away.kill_agent()
    await until(lambda: not cloud.state[HOSTS].get(away.id).connected)
    assert set((await shown(cloud.client, path))["not_known"]) == {away.name}
    member = await people.person(Role.ADMIN, await people.project("theirs"))
    assert refusal(await member.client.get(f"/v1/{path}"))[:2] == (403, "forbidden")
    assert (await cloud.client.get(f"/v1/images/{away.id}/copies")).status_code == 404


async def test_copies_of_a_deleted_image_go_at_once_and_what_was_made_of_them_stays(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    host = next(host for host in cloud.fleet.hosts if host.id == instance["host_id"])
    volumes = set(host.storage.volumes)
    assert set(host.storage.images) == {instance["image_id"]}
    assert (await cloud.client.delete(f"/v1/images/{instance['image_id']}")).status_code == 204
    await until(lambda: not host.storage.images)
    assert set(host.storage.volumes) == volumes
    assert (await shown(cloud.client, f"instances/{instance['id']}"))["state"] == "running"


async def test_a_host_that_was_away_drops_copies_of_deleted_images_when_it_returns(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    host = next(host for host in cloud.fleet.hosts if host.id == instance["host_id"])
    unknown = msgspec.structs.replace(host.storage.images[instance["image_id"]], id=ImageId(new_id()))
    host.storage.images[unknown.id], host.storage.used[unknown.id] = unknown, cloud.now()
    host.faults.watch = no_life
    host.kill_agent()
    await until(lambda: not cloud.state[HOSTS].get(host.id).connected)
    assert (await cloud.client.delete(f"/v1/images/{instance['image_id']}")).status_code == 204
    assert len(host.storage.images) == 2
    host.faults.mend()
    await until(lambda: instance["image_id"] not in host.storage.images)
    assert set(host.storage.images) == {unknown.id}, "that of which nobody knows that it was deleted"


async def test_a_copy_that_a_volume_is_being_made_from_is_not_dropped(cloud: SimulatedCloud) -> None:
    image = ImageId(cloud.state[IMAGES].ids[0])
    made_now = [each.faults.hold("storage.ensure") for each in cloud.fleet.hosts]
    made = (await begun(cloud.client))["instance"]
    host = next(host for host in cloud.fleet.hosts if host.id == made["host_id"])
    await until(lambda: image in host.storage.images)
    hosts = cloud.controller.engine.world.hosts
    await hosts.ask(host.id, Method.IMAGES_DROP, ImagesDrop(images=(image,)), Nothing, timeout_s=60)
    assert image in host.storage.images
    for each in made_now:
        each.set()
    await until(lambda: cloud.state[INSTANCES].get(made["id"]).state == "running")
    await hosts.ask(host.id, Method.IMAGES_DROP, ImagesDrop(images=(image,)), Nothing, timeout_s=60)
    assert image not in host.storage.images


async def test_what_is_packed_for_an_image_that_nobody_knows_is_forgotten(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    host = next(host for host in cloud.fleet.hosts if host.id == instance["host_id"])
    (volume,), snapshot = host.storage.volumes, SnapshotId(new_id())
    await host.storage.layering.lay(volume, snapshot)
    await host.storage.packing.pack(ImageId(new_id()), volume, snapshot, lambda _: None)
    await host.storage.layering.take_back(volume, snapshot)
    host.kill_agent()
    await until(lambda: not host.storage.packing.files)
