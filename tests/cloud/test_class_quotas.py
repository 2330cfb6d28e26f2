"""Quotas of storage classes: whatever makes or enlarges a volume counts, and what is refused says of which class."""

from typing import Any

import httpx2
import pytest

from pileus.cloud.storagepools.model import POOLS_ON_HOSTS
from pileus.cloud.volumes.model import VOLUMES
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.testing.people import People, Person
from pileus.testing.requests import at_rest, items, made, refusal, running, shown

FAST = "volume_gib.performance"


@pytest.fixture
async def member(cloud: SimulatedCloud, people: People) -> Person:
    """Of a project that may have 4 GiB of volumes of the class `performance`, of which there is the pool `fast`."""
    for name, more in (("fast", {"storage_class": "performance"}), ("vault", {"purposes": ["backups"]})):
        pool = await made(cloud.client, "storage-pools", name=name, path=f"/srv/{name}", **more)
        await until(lambda: cloud.state[POOLS_ON_HOSTS].count_by("storage_pool", pool["id"]) == 3)  # noqa: B023 - at once
    project = await people.project("small")
    await limited(cloud, project, {FAST: 4})
    return await people.person(Role.MEMBER, project)


async def limited(cloud: SimulatedCloud, project: str, quota: dict[str, int]) -> None:
    answer = await cloud.client.patch(f"/v1/projects/{project}", json={"quota": quota})
    assert answer.status_code == 200, answer.text


async def used(member: Person, what: str = FAST) -> tuple[int, int]:
    """How much is used, and the limit."""
    line = (await shown(member.client, f"projects/{member.project_id}/quota"))["usage"][what]
    return line["used"], line["limit"]


async def done(cloud: SimulatedCloud, member: Person, path: str, **wish: Any) -> dict[str, Any]:
    """What is answered, when the task that was begun has ended."""
    answer = await member.client.post(f"/v1/{path}", json=wish)
    assert answer.status_code == 202, answer.text
    await at_rest(cloud)
    return answer.json()


def over(answer: httpx2.Response) -> str:
    """What is said of the class that has no more, and of nothing else."""
    assert refusal(answer)[:2] == (403, "quota-exceeded")
    (says,) = answer.json()["because"].items()
    assert says[0] == FAST
    assert FAST in answer.json()["detail"]
    return says[1]


async def test_a_class_has_a_limit_of_its_own_and_others_only_the_general_one(
    cloud: SimulatedCloud, member: Person
) -> None:
    for name, where in (("a", {"storage_class": "performance"}), ("b", {"storage_pool": "fast"})):
        await made(member.client, "volumes", name=name, size_gib=2, **where)
    await made(member.client, "volumes", name="c", size_gib=100)
    assert await used(member) == (4, 4)
    assert await used(member, "volume_gib.standard") == (100, -1)
    assert await used(member, "volume_gib") == (104, 10_000)
    for where in ({"storage_class": "performance"}, {"storage_pool": "fast"}):
        for query in ("", "?dry_run=true"):
            wish = {"name": "d", "size_gib": 3, **where}
            assert over(await member.client.post(f"/v1/volumes{query}", json=wish)) == "4 of 4 used, 3 more asked for"
    await limited(cloud, member.project_id, {"volume_gib": 105})
    both = await member.client.post("/v1/volumes", json={"name": "d", "size_gib": 3, "storage_pool": "fast"})
    assert set(both.json()["because"]) == {FAST, "volume_gib"}
    await limited(cloud, member.project_id, {"volume_gib": -1, FAST: -1})
    await made(member.client, "volumes", name="d", size_gib=3, storage_pool="fast")
    assert await used(member) == (7, -1)


async def test_every_way_to_have_more_of_a_class_counts(cloud: SimulatedCloud, member: Person) -> None:
    image = (await items(member.client, "images"))[0]["id"]
    instance = await running(cloud, member.client, storage_class="performance", disk_gib=2)
    (root,) = await items(member.client, f"volumes?instance_id={instance['id']}")
    assert await used(member) == (2, 4)
    await made(member.client, "volumes", name="filler", size_gib=1, storage_class="performance")
    rebuild = await member.client.post(f"/v1/instances/{instance['id']}/rebuild", json={"image_id": image})
    assert over(rebuild) == "3 of 4 used, 2 more asked for"
    snapshot = (await done(cloud, member, "snapshots", name="s", instance_id=instance["id"]))["snapshot"]["id"]
    backup = (await done(cloud, member, "backups", name="b", volume_id=root["id"]))["backup"]["id"]
    size = {"vcpus": 1, "memory_mib": 64}
    for path, wish in (
        (f"volumes/{root['id']}/grow", {"size_gib": 4}),
        (f"volumes/{root['id']}/clone", {"name": "x"}),
        (f"volumes/{root['id']}/clone", {"name": "x", "snapshot_id": snapshot}),
        ("instances", {"name": "x", "image_id": image, "disk_gib": 2, "storage_pool": "fast", **size}),
        ("instances", {"name": "x", "snapshot_id": snapshot, **size}),
        ("instances", {"name": "x", "backup_id": backup, "storage_class": "performance", **size}),
    ):
        answer = await member.client.post(f"/v1/{path}", json=wish)
        assert over(answer) == "3 of 4 used, 2 more asked for", (path, wish)
    many = {"name": "n", "image_id": image, "disk_gib": 1, "storage_class": "performance", **size, "count": 2}
    none = await member.client.post("/v1/instances/create-many", json={**many, "atomic": True})
    assert none.status_code == 403, none.text
    some = await member.client.post("/v1/instances/create-many", json=many)
    assert (some.json()["accepted"], some.json()["refused"]) == (1, 1)
    assert await used(member) == (4, 4)
    await at_rest(cloud)


async def test_what_is_deleted_is_given_back_to_its_class(cloud: SimulatedCloud, member: Person) -> None:
    volume = await made(member.client, "volumes", name="a", size_gib=4, storage_class="performance")
    assert (await member.client.delete(f"/v1/volumes/{volume['id']}")).status_code == 202
    await until(lambda: volume["id"] not in cloud.state[VOLUMES])
    assert await used(member) == (0, 4)


async def test_a_volume_keeps_its_class_when_it_gets_its_pool(cloud: SimulatedCloud, member: Person) -> None:
    volume = await made(member.client, "volumes", name="a", size_gib=2, storage_class="performance")
    instance = await running(cloud, member.client)
    await done(cloud, member, f"volumes/{volume['id']}/attach", instance_id=instance["id"])
    attached = cloud.state[VOLUMES].get(volume["id"])
    assert (attached.storage_pool, attached.storage_class) == ("fast", "performance")
    assert await used(member) == (2, 4)


async def test_only_a_class_that_there_is_can_be_limited_and_a_limit_is_taken_away(
    cloud: SimulatedCloud, member: Person
) -> None:
    path = f"/v1/projects/{member.project_id}"
    for quota in ({"volume_gib.gold": 1}, {"volume_gib.": 1}, {"image_gib.performance": 1}):
        answer = await cloud.client.patch(path, json={"quota": quota})
        assert refusal(answer) == (400, "invalid", {f"quota.{what}" for what in quota})
        assert FAST in answer.json()["detail"]
        assert refusal(await cloud.client.post("/v1/projects", json={"name": "x", "quota": quota}))[0] == 400
    pool = next(each for each in await items(cloud.client, "storage-pools") if each["name"] == "fast")
    assert (await cloud.client.delete(f"/v1/storage-pools/{pool['id']}")).is_success
    assert await used(member) == (0, 4)
    await limited(cloud, member.project_id, {FAST: 2})
    await limited(cloud, member.project_id, {FAST: -1})
    assert FAST not in (await shown(cloud.client, f"projects/{member.project_id}"))["quota"]
    assert FAST not in (await shown(cloud.client, f"projects/{member.project_id}/quota"))["usage"]
