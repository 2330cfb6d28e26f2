"""Images in other formats: converted for whoever asks, fetched in ranges, and gone soon after."""

from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2

from pileus.cloud.imageexports.model import IMAGE_EXPORTS
from pileus.cloud.imageexports.operations import KEPT
from pileus.cloud.images.model import IMAGES
from pileus.kernel.clock import FrozenClock, SystemClock
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import ImageExportId
from pileus.kernel.units import GIB, MIB
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.diskimages import iso, qcow2, vhdx, vmdk
from pileus.testing.fleet import SimulatedFleet
from pileus.testing.links import until
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import made, over, refusal, shown


def mini(cloud: SimulatedCloud) -> str:
    return next(image.id for image in cloud.state[IMAGES] if image.name == "mini")


async def begun(client: httpx2.AsyncClient, image: str, format: str = "vhdx") -> dict[str, Any]:
    answer = await client.post("/v1/image-exports", json={"image_id": image, "format": format})
    assert answer.status_code == 202, answer.text
    return answer.json()


async def exported(cloud: SimulatedCloud, image: str, format: str = "vhdx") -> dict[str, Any]:
    task = await begun(cloud.client, image, format)
    ended = await over(cloud, task["task_id"])
    assert ended.state == "done", ended.cause
    return await shown(cloud.client, f"image-exports/{task['image_export']['id']}")


def kept(cloud: SimulatedCloud) -> list[str]:
    return sorted(path.name for path in (cloud.data / "image-exports").iterdir())


async def an_image(client: httpx2.AsyncClient, format: str, data: bytes) -> str:
    id = (await made(client, "images", name="mine", format=format))["id"]
    answer = await client.put(f"/v1/images/{id}/data", content=data)
    assert answer.status_code == 200, answer.text
    return id


async def test_an_export_is_the_image_in_another_format_and_comes_whole_or_in_parts(cloud: SimulatedCloud) -> None:
    image = mini(cloud)
    for format, content in (("vhdx", vhdx(size=MIB)), ("vmdk", vmdk(size=MIB)), ("qcow2", qcow2(size=MIB))):
        export = await exported(cloud, image, format)
        assert (export["state"], export["name"], export["format"]) == ("available", "mini", format)
        assert (export["size_bytes"], export["sha256"]) == (len(content), sha256(content).hexdigest())
        path = f"/v1/image-exports/{export['id']}/data"
        whole = await cloud.client.get(path)
        assert (whole.status_code, whole.content) == (200, content)
        assert whole.headers["repr-digest"].startswith("sha-256=:")
        part = await cloud.client.get(path, headers={"range": "bytes=100-"})
        assert (part.status_code, part.content) == (206, content[100:])
        assert part.headers["content-range"] == f"bytes 100-{len(content) - 1}/{len(content)}"
    assert len(kept(cloud)) == 3
    for export in cloud.state[IMAGE_EXPORTS].ids[:]:
        assert (await cloud.client.delete(f"/v1/image-exports/{export}")).status_code == 204
    await cloud.controller.housekeeping.once()
    assert kept(cloud) == []


async def test_an_export_is_there_for_an_hour_after_somebody_last_fetched_of_it(tmp_path: Path) -> None:
    clock = FrozenClock()
    async with simulated_cloud(tmp_path, store=MemoryStore(), clock=clock, hosts=1) as cloud:
        export = (await exported(cloud, mini(cloud)))["id"]
        for _ in range(2):
            clock.advance(KEPT - timedelta(minutes=1))
            await cloud.controller.housekeeping.once()
            assert (await cloud.client.get(f"/v1/image-exports/{export}/data")).status_code == 200
        clock.advance(KEPT + timedelta(minutes=1))
        await cloud.controller.housekeeping.once()
        assert refusal(await cloud.client.get(f"/v1/image-exports/{export}"))[:2] == (404, "not-found")
        assert kept(cloud) == []


async def test_whoever_fetches_slowly_is_given_all_of_it_though_it_is_deleted_meanwhile(cloud: SimulatedCloud) -> None:
    export = await exported(cloud, mini(cloud))
    id = ImageExportId(export["id"])
    pieces = cloud.controller.engine.world.exports.send(id, start=0, length=export["size_bytes"])
    content = await anext(pieces)
    assert (await cloud.client.delete(f"/v1/image-exports/{id}")).status_code == 204
    await cloud.controller.housekeeping.once()
    assert kept(cloud) == []
    content += b"".join([piece async for piece in pieces])
    assert sha256(content).hexdigest() == export["sha256"]


async def test_an_export_whose_image_is_deleted_meanwhile_is_finished(cloud: SimulatedCloud) -> None:
    image = await an_image(cloud.client, "qcow2", qcow2(size=8 * MIB))
    converted = cloud.fleet.disk_tools.faults.hold("disk_tools.convert")
    task = await begun(cloud.client, image)
    await until(lambda: any(name.endswith(".source") for name in kept(cloud)))
    assert (await cloud.client.delete(f"/v1/images/{image}")).status_code == 204
    await cloud.controller.housekeeping.once()
    converted.set()
    assert (await over(cloud, task["task_id"])).state == "done"
    assert kept(cloud) == [task["image_export"]["id"]]
    assert not (cloud.data / "images" / image).exists()


async def test_an_export_that_is_cancelled_or_fails_leaves_nothing(cloud: SimulatedCloud) -> None:
    cloud.fleet.disk_tools.faults.hold("disk_tools.convert")
    task = await begun(cloud.client, mini(cloud))
    path = f"/v1/image-exports/{task['image_export']['id']}"
    await until(lambda: kept(cloud) != [])
    assert refusal(await cloud.client.get(f"{path}/data"))[:2] == (409, "conflict")
    assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")
    assert (await cloud.client.post(f"/v1/tasks/{task['task_id']}/cancel")).status_code < 300
    assert (await over(cloud, task["task_id"])).state == "undone"
    assert (kept(cloud), list(cloud.state[IMAGE_EXPORTS].ids)) == ([], [])
    cloud.fleet.disk_tools.faults.mend()
    cloud.fleet.disk_tools.faults.fail("disk_tools.convert", Conflict("it takes more than there is"))
    task = await begun(cloud.client, mini(cloud))
    assert (await over(cloud, task["task_id"])).state == "undone"
    assert (kept(cloud), list(cloud.state[IMAGE_EXPORTS].ids)) == ([], [])


async def test_what_cannot_be_exported_is_refused_with_the_reason(cloud: SimulatedCloud) -> None:
    medium = await an_image(cloud.client, "iso", iso())
    queued = (await made(cloud.client, "images", name="queued", format="raw"))["id"]
    for image, format, refused in (
        (mini(cloud), "raw", (409, "conflict", {"format"})),
        (mini(cloud), "vdi", (400, "invalid", {"format"})),
        (medium, "vmdk", (409, "conflict", {"image_id"})),
        (queued, "vmdk", (409, "conflict", {"image_id"})),
    ):
        answer = await cloud.client.post("/v1/image-exports", json={"image_id": image, "format": format})
        assert refusal(answer) == refused
    assert kept(cloud) == []


async def test_an_export_counts_in_the_quota_of_who_asks_and_is_theirs_alone(
    cloud: SimulatedCloud, people: People
) -> None:
    project = await people.project("theirs")
    member = await people.person(Role.MEMBER, project)
    reader = await people.person(Role.READER, project)
    task = await begun(member.client, mini(cloud))
    assert (await over(cloud, task["task_id"])).state == "done"
    path = f"/v1/image-exports/{task['image_export']['id']}"
    assert (await shown(member.client, f"tasks/{task['task_id']}"))["state"] == "done", "it is theirs to watch"
    assert (await reader.client.get(f"{path}/data")).content == vhdx(size=MIB)
    other = await people.person(Role.ADMIN, await people.project("others"))
    for method, below in (("GET", ""), ("GET", "/data"), ("DELETE", "")):
        assert refusal(await other.client.request(method, path + below))[:2] == (404, "not-found")
    wish = {"image_id": mini(cloud), "format": "vmdk"}
    assert refusal(await reader.client.post("/v1/image-exports", json=wish))[:2] == (403, "forbidden")
    assert (await shown(member.client, "image-exports?state=available"))["items"][0]["project_id"] == project
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"image_gib": 1}})
    assert refusal(await member.client.post("/v1/image-exports", json=wish))[:2] == (403, "quota-exceeded")
    mine = await made(member.client, "images", name="mine", format="raw")
    answer = await member.client.put(f"/v1/images/{mine['id']}/data", content=bytes(1000))
    assert refusal(answer)[:2] == (403, "quota-exceeded"), "what is exported leaves no room for what arrives"


async def test_as_raw_an_image_takes_all_that_it_says_that_it_has(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("small")
    member = await people.person(Role.MEMBER, project)
    huge = await an_image(member.client, "qcow2", qcow2(size=900 * GIB))
    wish = {"image_id": huge, "format": "raw"}
    assert refusal(await member.client.post("/v1/image-exports", json=wish))[:2] == (403, "quota-exceeded")
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"image_gib": -1}})
    huge = await an_image(member.client, "qcow2", qcow2(size=50_000 * GIB))
    task = await begun(member.client, huge, "raw")
    ended = await over(cloud, task["task_id"])
    assert ended.cause is not None
    assert (ended.state, ended.cause.code) == ("undone", "no-room")
    assert kept(cloud) == []


async def test_what_a_controller_that_died_has_left_of_an_export_is_removed(tmp_path: Path) -> None:
    store, fleet = MemoryStore(), SimulatedFleet(1, clock=SystemClock())
    async with simulated_cloud(tmp_path, store=store, fleet=fleet) as cloud:
        export = (await exported(cloud, mini(cloud)))["id"]
    folder = tmp_path / "image-exports"
    for name in (f"{export}.made", f"{export}.source", another := "01a1fe53-3dd2-739a-85c4-c6ecb40eea55"):
        (folder / name).write_bytes(b"x")
    (folder / f"{another}.source.{export}.job").mkdir()
    async with simulated_cloud(tmp_path, store=MemoryStore(store.disk), fleet=fleet) as cloud:
        await cloud.controller.housekeeping.once()
        assert kept(cloud) == [export]
        (folder / export).unlink()
        assert refusal(await cloud.client.get(f"/v1/image-exports/{export}/data"))[:2] == (409, "conflict")
