"""Copies of images that are brought to hosts before anything is made from them."""

from typing import Any

import httpx2

from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.images.model import IMAGES
from pileus.cloud.pools.model import POOLS
from pileus.cloud.tasks.operations import ShownTask
from pileus.kernel.errors import Conflict, Unavailable
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.testing.people import People
from pileus.testing.requests import made, over, refusal, running


async def ask(cloud: SimulatedCloud, client: httpx2.AsyncClient | None = None, **more: Any) -> httpx2.Response:
    wish = {"pool_id": cloud.state[POOLS].ids[0], **more}
    return await (client or cloud.client).post(f"/v1/images/{cloud.state[IMAGES].ids[0]}/prefetch", json=wish)


async def prefetched(cloud: SimulatedCloud) -> ShownTask:
    answer = await ask(cloud)
    assert answer.status_code == 202, answer.text
    return await over(cloud, answer.json()["task_id"])


def copies(cloud: SimulatedCloud) -> list[int]:
    return [len(host.storage.images) for host in cloud.fleet.hosts]


async def test_an_image_is_brought_to_every_host_of_a_pool_that_has_no_copy(cloud: SimulatedCloud) -> None:
    await running(cloud, cloud.client)
    assert sorted(copies(cloud)) == [0, 0, 1]
    for _ in range(2):
        assert (await prefetched(cloud)).state == "done"
        assert copies(cloud) == [1, 1, 1]


async def test_one_host_that_cannot_take_it_leaves_it_where_it_was_and_nowhere_else(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    full = next(host for host in cloud.fleet.hosts if host.id != instance["host_id"])
    full.faults.fail("storage.ensure_image", Conflict("the storage pool has no room"))
    task = await prefetched(cloud)
    assert task.cause is not None
    assert (task.state, task.cause.detail) == ("undone", "the storage pool has no room")
    before = [1 if host.id == instance["host_id"] else 0 for host in cloud.fleet.hosts]
    assert copies(cloud) == before


async def test_what_is_cancelled_is_brought_nowhere_though_hosts_were_at_it(cloud: SimulatedCloud) -> None:
    for host in cloud.fleet.hosts:
        host.faults.hold("storage.ensure_image")
    cloud.fleet.hosts[0].faults.mend()
    answer = await ask(cloud)
    await until(lambda: copies(cloud) == [1, 0, 0])
    image = cloud.state[IMAGES].ids[0]
    assert refusal(await cloud.client.delete(f"/v1/images/{image}"))[:2] == (409, "conflict"), "it is being read"
    assert (await cloud.client.post(f"/v1/tasks/{answer.json()['task_id']}/cancel")).status_code < 300
    assert (await over(cloud, answer.json()["task_id"])).state == "undone"
    assert copies(cloud) == [0, 0, 0]


async def test_only_administrators_of_the_cloud_prefetch_and_only_what_is_there(
    cloud: SimulatedCloud, people: People
) -> None:
    member = await people.person(Role.ADMIN, await people.project("theirs"))
    assert refusal(await ask(cloud, member.client))[:2] == (403, "forbidden")
    assert refusal(await ask(cloud, pool_id=cloud.fleet.hosts[0].id)) == (404, "not-found", {"pool_id"})
    queued = await made(cloud.client, "images", name="queued", format="raw")
    wish = {"pool_id": cloud.state[POOLS].ids[0]}
    answer = await cloud.client.post(f"/v1/images/{queued['id']}/prefetch", json=wish)
    assert refusal(answer)[:2] == (409, "conflict")


async def test_a_pool_without_a_connected_host_is_refused(cloud: SimulatedCloud) -> None:
    def away(_call: str) -> None:
        raise Unavailable("away")

    for host in cloud.fleet.hosts:
        host.faults.watch = away
        host.kill_agent()
    await until(lambda: not any(host.connected for host in cloud.state[HOSTS]))
    assert refusal(await ask(cloud)) == (409, "conflict", {"pool_id"})
