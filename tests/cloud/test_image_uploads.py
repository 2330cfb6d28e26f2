"""Images that arrive in parts: what was acknowledged is there, and goes on, whatever breaks."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pileus.cloud.images import files
from pileus.cloud.images.model import IMAGES
from pileus.cloud.images.operations.arrival import UPLOADS_KEPT
from pileus.kernel.clock import FrozenClock
from pileus.kernel.units import GIB, MIB
from pileus.operations.caller import Role
from pileus.testing.asgi import conversation
from pileus.testing.cloud import SimulatedCloud, simulated_cloud
from pileus.testing.diskimages import iso, qcow2, vmdk, vmdk_descriptor
from pileus.testing.fleet import SimulatedFleet
from pileus.testing.links import until
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import made, over, refusal, running, shown

RAW = bytes(range(256)) * 1024


async def image(cloud: SimulatedCloud, format: str = "raw", **more: Any) -> str:
    return (await made(cloud.client, "images", name="mine", format=format, **more))["id"]


async def part(
    client: httpx2.AsyncClient, id: str, offset: object, data: bytes | AsyncIterator[bytes]
) -> httpx2.Response:
    return await client.patch(f"/v1/images/{id}/upload", content=data, headers={"upload-offset": str(offset)})


async def offset(cloud: SimulatedCloud, id: str) -> int:
    return (await shown(cloud.client, f"images/{id}/upload"))["offset_bytes"]


async def finish(cloud: SimulatedCloud, id: str, **wish: Any) -> tuple[str, str]:
    """The state of the task of finishing, and why it failed."""
    answer = await cloud.client.post(f"/v1/images/{id}/upload/finish", json=wish)
    assert answer.status_code == 202, answer.text
    assert answer.json()["image"]["state"] == "importing"
    task = await over(cloud, answer.json()["task_id"])
    return task.state, task.cause.code if task.cause else ""


def files_of(cloud: SimulatedCloud) -> files.ImageFiles:
    return cloud.controller.engine.world.files


def kept(cloud: SimulatedCloud, id: str) -> list[str]:
    return sorted(path.name.removeprefix(id) for path in (cloud.data / "images").iterdir() if path.name.startswith(id))


async def test_an_image_arrives_in_parts(cloud: SimulatedCloud) -> None:
    id = await image(cloud, size_bytes=len(RAW), sha256=sha256(RAW).hexdigest().upper())
    assert await shown(cloud.client, f"images/{id}/upload") == {
        "image_id": id,
        "offset_bytes": 0,
        "size_bytes": len(RAW),
        "expires_at": None,
    }
    for at in range(0, len(RAW), 100_000):
        answer = await part(cloud.client, id, at, RAW[at : at + 100_000])
        now = min(at + 100_000, len(RAW))
        assert (answer.status_code, answer.headers["upload-offset"]) == (200, str(now))
        assert answer.json()["expires_at"]
    assert await finish(cloud, id) == ("done", "")
    active = await shown(cloud.client, f"images/{id}")
    assert (active["state"], active["size_bytes"], active["sha256"]) == (
        "active",
        len(RAW),
        sha256(RAW).hexdigest(),
    )
    assert (await cloud.client.get(f"/v1/images/{id}/data")).content == RAW
    assert kept(cloud, id) == [""]
    for answer in (
        await part(cloud.client, id, 0, RAW),
        await cloud.client.get(f"/v1/images/{id}/upload"),
        await cloud.client.post(f"/v1/images/{id}/upload/finish", json={}),
    ):
        assert refusal(answer)[:2] == (409, "conflict")


async def test_a_part_that_begins_elsewhere_is_told_where_to_go_on(cloud: SimulatedCloud) -> None:
    id = await image(cloud)
    await part(cloud.client, id, 0, RAW[:1000])
    for wrong in (0, 999, 1001, 10**12):
        answer = await part(cloud.client, id, wrong, RAW)
        assert refusal(answer)[:2] == (409, "conflict")
        assert answer.json()["because"] == {"upload-offset": "1000"}
    for nonsense in ("", "-1", "1e3", "x", "9" * 400, "\u00b2"):
        headers = {b"upload-offset": nonsense.encode("latin-1")}
        answer = await cloud.client.patch(f"/v1/images/{id}/upload", content=RAW, headers=list(headers.items()))
        assert refusal(answer) == (400, "invalid", {"Upload-Offset"})
    assert await offset(cloud, id) == 1000


async def test_what_arrived_before_a_break_stays_and_the_upload_goes_on(cloud: SimulatedCloud) -> None:
    id = await image(cloud)
    token = cloud.client.headers["authorization"].removeprefix("Bearer ")
    async with conversation(
        cloud.controller.api,
        f"/v1/images/{id}/upload",
        method="PATCH",
        token=token,
        body=None,
        headers=[(b"upload-offset", b"0")],
    ) as upload:
        upload.tell({"type": "http.request", "body": RAW[:70_000], "more_body": True})
        await until(lambda: files_of(cloud).arrived.get(id) == 70_000)
    assert await offset(cloud, id) == 70_000
    assert (await part(cloud.client, id, 70_000, RAW[70_000:])).status_code == 200
    assert await finish(cloud, id, sha256=sha256(RAW).hexdigest()) == ("done", "")


async def test_what_was_acknowledged_outlives_the_controller(tmp_path: Path) -> None:
    store, fleet = MemoryStore(), SimulatedFleet(1, clock=FrozenClock())
    async with simulated_cloud(tmp_path, store=store, fleet=fleet) as cloud:
        id = await image(cloud, size_bytes=len(RAW))
        await part(cloud.client, id, 0, RAW[:50_000])
    async with simulated_cloud(tmp_path, store=MemoryStore(store.disk), fleet=fleet) as cloud:
        await cloud.controller.housekeeping.once()
        assert await offset(cloud, id) == 50_000
        await part(cloud.client, id, 50_000, RAW[50_000:])
        assert await finish(cloud, id) == ("done", "")
        assert (await cloud.client.get(f"/v1/images/{id}/data")).content == RAW


async def test_of_two_who_send_the_later_one_goes_on(cloud: SimulatedCloud) -> None:
    id = await image(cloud)
    dead, begun = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"a" * 1000
        begun.set()
        await dead.wait()
        yield b"b" * 1000

    first = asyncio.create_task(part(cloud.client, id, 0, slowly()))
    await begun.wait()
    await until(lambda: files_of(cloud).arrived.get(id) == 1000)
    assert (await part(cloud.client, id, 1000, b"c" * 500)).status_code == 200
    dead.set()
    assert refusal(await first)[:2] == (409, "conflict")
    assert await offset(cloud, id) == 1500


@pytest.mark.parametrize(
    ("format", "data", "becomes"),
    [("vmdk", vmdk(), "qcow2"), ("qcow2", qcow2(), "qcow2"), ("iso", iso(), "iso"), ("raw", RAW, "raw")],
)
async def test_what_hosts_do_not_use_is_converted(
    cloud: SimulatedCloud, format: str, data: bytes, becomes: str
) -> None:
    id = await image(cloud, format)
    await part(cloud.client, id, 0, data)
    assert await finish(cloud, id) == ("done", "")
    active = await shown(cloud.client, f"images/{id}")
    assert (active["state"], active["format"]) == ("active", becomes)
    content = (await cloud.client.get(f"/v1/images/{id}/data")).content
    assert sha256(content).hexdigest() == active["sha256"]
    assert (content == data) == (becomes == format)


@pytest.mark.parametrize(
    ("format", "data", "declared", "cause"),
    [
        ("raw", RAW, {"sha256": "0" * 64}, "invalid"),
        ("raw", RAW, {"size_bytes": len(RAW) + 1}, "conflict"),
        ("raw", b"", {}, "conflict"),
        ("raw", qcow2(), {}, "invalid"),
        ("qcow2", qcow2(backing_at=512), {}, "invalid"),
        ("vmdk", vmdk_descriptor('RW 1 FLAT "/etc/shadow" 0'), {}, "invalid"),
        ("iso", RAW, {}, "invalid"),
    ],
    ids=["damaged", "not all of it", "nothing", "another format", "backing file", "extent", "no iso"],
)
async def test_what_is_not_what_it_should_be_does_not_count(
    cloud: SimulatedCloud, format: str, data: bytes, declared: dict[str, Any], cause: str
) -> None:
    id = await image(cloud, format, **declared)
    await part(cloud.client, id, 0, data)
    assert await finish(cloud, id) == ("undone", cause)
    assert (await shown(cloud.client, f"images/{id}"))["state"] == "queued"
    assert kept(cloud, id) == [".part"]
    assert (await cloud.client.delete(f"/v1/images/{id}/upload")).status_code == 204
    assert kept(cloud, id) == []
    assert await offset(cloud, id) == 0, "one may try again"


async def test_more_than_was_declared_is_refused(cloud: SimulatedCloud) -> None:
    id = await image(cloud, size_bytes=1000)
    assert refusal(await part(cloud.client, id, 0, RAW))[:2] == (400, "invalid")
    assert await offset(cloud, id) <= 1000


async def test_a_declared_size_takes_quota_at_once_and_the_rest_while_it_arrives(
    cloud: SimulatedCloud, people: People
) -> None:
    project = await people.project("small")
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"image_gib": 2}})
    member = await people.person(Role.MEMBER, project)
    wish = {"name": "mine", "format": "raw"}
    refused = await member.client.post("/v1/images", json={**wish, "size_bytes": 2 * GIB + 1})
    assert refusal(refused)[:2] == (403, "quota-exceeded")
    declared = await made(member.client, "images", **wish, size_bytes=GIB)
    silent = [await made(member.client, "images", **wish) for _ in range(2)]
    assert (await part(member.client, silent[0]["id"], 0, b"x")).status_code == 200
    answer = await part(member.client, silent[1]["id"], 0, b"x")
    assert refusal(answer)[:2] == (403, "quota-exceeded"), "what others have of it counts before they are complete"
    await member.client.delete(f"/v1/images/{declared['id']}")
    assert (await part(member.client, silent[1]["id"], 0, b"x")).status_code == 200


async def test_an_upload_is_refused_before_the_controller_is_full(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = await image(cloud, size_bytes=100 * MIB)
    real = os.statvfs

    def nearly_full(path: Path) -> os.statvfs_result:
        found = list(real(path))
        found[1], found[2], found[3], found[4] = 4096, GIB // 4096, 64 * MIB // 4096, 64 * MIB // 4096
        return os.statvfs_result(found)

    monkeypatch.setattr(files.os, "statvfs", nearly_full)
    answer = await part(cloud.client, id, 0, RAW)
    assert refusal(answer)[:2] == (507, "no-room")
    assert "64 MiB of 1.0 GiB free" in answer.json()["detail"].replace("1 GiB", "1.0 GiB")
    assert await offset(cloud, id) == 0


async def test_administrators_see_what_images_take_of_the_controllers_disk(
    cloud: SimulatedCloud, people: People
) -> None:
    before = await shown(cloud.client, "images/storage")
    id = await image(cloud)
    await part(cloud.client, id, 0, os.urandom(MIB))
    arriving = await shown(cloud.client, "images/storage")
    assert arriving["arriving_bytes"] - before["arriving_bytes"] >= MIB
    await finish(cloud, id)
    complete = await shown(cloud.client, "images/storage")
    assert complete["images_bytes"] - before["images_bytes"] >= MIB
    assert complete["arriving_bytes"] == before["arriving_bytes"]
    assert 0 < complete["free_bytes"] < complete["total_bytes"]
    member = await people.person(Role.ADMIN, await people.project("one"))
    assert refusal(await member.client.get("/v1/images/storage"))[:2] == (403, "forbidden")


async def test_an_abandoned_upload_gives_back_its_room_and_its_quota(tmp_path: Path) -> None:
    clock = FrozenClock()
    async with simulated_cloud(tmp_path, store=MemoryStore(), clock=clock, hosts=1) as cloud:
        id = await image(cloud, size_bytes=GIB)
        await part(cloud.client, id, 0, RAW)
        clock.advance(UPLOADS_KEPT - timedelta(minutes=1))
        await cloud.controller.housekeeping.once()
        assert await part(cloud.client, id, len(RAW), RAW), "a part makes it last"
        clock.advance(timedelta(hours=1))
        await cloud.controller.housekeeping.once()
        assert await offset(cloud, id) == 2 * len(RAW)
        clock.advance(UPLOADS_KEPT)
        await cloud.controller.housekeeping.once()
        assert kept(cloud, id) == []
        assert cloud.state[IMAGES].get(id).expected_bytes == 0


async def test_an_image_that_is_deleted_while_it_arrives_leaves_nothing(cloud: SimulatedCloud) -> None:
    id = await image(cloud)

    async def overtaken() -> AsyncIterator[bytes]:
        yield RAW
        await cloud.client.delete(f"/v1/images/{id}")
        yield RAW

    assert (await part(cloud.client, id, 0, overtaken())).status_code == 404
    await cloud.controller.housekeeping.once()
    assert kept(cloud, id) == []


async def test_what_a_task_works_on_is_not_added_to_and_not_deleted(cloud: SimulatedCloud) -> None:
    id = await image(cloud, "vmdk")
    await part(cloud.client, id, 0, vmdk())
    cloud.fleet.disk_tools.faults.hold("disk_tools.convert")
    task = (await cloud.client.post(f"/v1/images/{id}/upload/finish", json={})).json()["task_id"]
    for answer in (
        await part(cloud.client, id, len(vmdk()), RAW),
        await cloud.client.delete(f"/v1/images/{id}"),
        await cloud.client.delete(f"/v1/images/{id}/upload"),
        await cloud.client.put(f"/v1/images/{id}/data", content=RAW),
    ):
        assert refusal(answer)[:2] == (409, "conflict")
    await cloud.controller.housekeeping.once()
    assert (await cloud.client.post(f"/v1/tasks/{task}/cancel")).is_success
    assert (await over(cloud, task)).state == "undone"
    assert (await cloud.client.delete(f"/v1/images/{id}")).status_code == 204


async def test_a_stranger_learns_nothing_of_an_upload(cloud: SimulatedCloud, people: People) -> None:
    id = await image(cloud)
    stranger = await people.person(Role.ADMIN, await people.project("other"))
    assert (await part(stranger.client, id, 0, RAW)).status_code == 404
    assert (await stranger.client.get(f"/v1/images/{id}/upload")).status_code == 404


async def test_an_instance_needs_what_its_image_needs(cloud: SimulatedCloud) -> None:
    id = await image(cloud, min_disk_gib=7, min_memory_mib=512, template="legacy")
    await part(cloud.client, id, 0, RAW)
    await finish(cloud, id)
    wish = {"name": "x", "image_id": id, "vcpus": 1, "memory_mib": 256, "disk_gib": 1}
    answer = await cloud.client.post("/v1/instances", json=wish)
    assert refusal(answer) == (400, "invalid", {"disk_gib", "memory_mib"})
    instance = await running(cloud, cloud.client, image_id=id, memory_mib=512)
    assert (instance["disk_gib"], instance["template"]) == (7, "legacy")
    changed = await cloud.client.patch(f"/v1/images/{id}", json={"min_memory_mib": 0, "architecture": "x86_64"})
    assert (changed.json()["min_memory_mib"], changed.json()["architecture"]) == (0, "x86_64")


async def test_an_iso_is_no_disk(cloud: SimulatedCloud) -> None:
    id = await image(cloud, "iso")
    await part(cloud.client, id, 0, iso())
    await finish(cloud, id)
    wish = {"name": "x", "image_id": id, "vcpus": 1, "memory_mib": 256}
    assert refusal(await cloud.client.post("/v1/instances", json=wish)) == (400, "invalid", {"disk_gib"})
    assert refusal(await cloud.client.post("/v1/volumes", json={"name": "x", "image_id": id}))[0] == 409


@pytest.mark.parametrize(
    ("wanted", "status", "first", "last"),
    [
        ("bytes=0-9", 206, 0, 9),
        ("bytes=100-", 206, 100, len(RAW) - 1),
        (f"bytes=5-{10**17}", 206, 5, len(RAW) - 1),
        ("bytes=0-", 200, 0, len(RAW) - 1),
        (f"bytes={len(RAW)}-", 200, 0, len(RAW) - 1),
        ("bytes=9-3", 200, 0, len(RAW) - 1),
        ("bytes=0-1,5-6", 200, 0, len(RAW) - 1),
        ("bytes=-5", 200, 0, len(RAW) - 1),
        ("lines=1-2", 200, 0, len(RAW) - 1),
    ],
)
async def test_a_part_of_an_image_is_downloaded(
    cloud: SimulatedCloud, wanted: str, status: int, first: int, last: int
) -> None:
    id = await image(cloud)
    await cloud.client.put(f"/v1/images/{id}/data", content=RAW)
    answer = await cloud.client.get(f"/v1/images/{id}/data", headers={"range": wanted})
    assert (answer.status_code, answer.content) == (status, RAW[first : last + 1])
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(RAW)}"


@given(
    parts=st.lists(st.tuples(st.integers(-2000, 2000), st.integers(0, 5000), st.booleans(), st.booleans()), max_size=12)
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_parts_are_sent_what_arrives_is_what_was_accepted(
    parts: list[tuple[int, int, bool, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    asyncio.run(_fuzzed(parts, tmp_path_factory.mktemp("fuzz")))


async def _fuzzed(parts: list[tuple[int, int, bool, bool]], folder: Path) -> None:
    """Parts at offsets that are right or beside it, that end or break off, with a finish now and then."""
    async with simulated_cloud(folder, store=MemoryStore(), hosts=1) as cloud:
        id = await image(cloud)
        accepted = b""
        for number, (beside, length, breaks, finishes) in enumerate(parts):
            data = bytes([number + 1]) * length

            async def body(data: bytes = data, breaks: bool = breaks) -> AsyncIterator[bytes]:
                yield data
                if breaks:
                    raise ConnectionResetError

            wrong = beside if beside % 3 == 0 else 0
            try:
                answer = await part(cloud.client, id, max(len(accepted) + wrong, 0), body())
                assert answer.status_code == (409 if max(len(accepted) + wrong, 0) != len(accepted) else 200)
            except ConnectionResetError:
                pass
            now = await offset(cloud, id)
            assert now in (len(accepted), len(accepted) + length)
            accepted += data[: now - len(accepted)]
            if finishes and number % 5 == 4:
                state, _ = await finish(cloud, id, sha256="0" * 64)
                assert state == "undone"
        if accepted:
            assert await finish(cloud, id, sha256=sha256(accepted).hexdigest()) == ("done", "")
            assert (await cloud.client.get(f"/v1/images/{id}/data")).content == accepted
