"""What is told of the copies of images that hosts keep."""

from pileus.cloud.images.model import IMAGES
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import refusal, running, shown


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
