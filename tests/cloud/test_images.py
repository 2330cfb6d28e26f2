"""Images: their data arrives whole or not at all, and is what was sent."""

import asyncio
import struct
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pileus.cloud.images.model import IMAGES
from pileus.cloud.images.operations.data import transfer_url
from pileus.kernel.ids import HostId, ImageId, new_id
from pileus.link.tickets import Tickets
from pileus.operations.caller import Role
from pileus.testing.asgi import conversation
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.links import until
from pileus.testing.people import People
from pileus.testing.requests import begun, items, made, refusal, shown

RAW = bytes(range(256)) * 1024


def qcow2(
    *, version: int = 3, backing_at: int = 0, cluster_bits: int = 16, size: int = 1 << 30, features: int = 0
) -> bytes:
    """A qcow2 header, with enough behind it to be one."""
    header = struct.pack(">4sIQIIQ", b"QFI\xfb", version, backing_at, 9, cluster_bits, size)
    return (header.ljust(72, b"\0") + struct.pack(">Q", features)).ljust(1024, b"\0")


def kept(cloud: SimulatedCloud, id: str) -> list[Path]:
    return [path for path in (cloud.data / "images").iterdir() if path.name.startswith(id)]


async def image(cloud: SimulatedCloud, format: str = "raw", **more: Any) -> dict[str, Any]:
    return await made(cloud.client, "images", name="mine", format=format, **more)


async def test_what_is_downloaded_is_what_was_uploaded(cloud: SimulatedCloud) -> None:
    path = f"/v1/images/{(await image(cloud))['id']}"
    assert refusal(await cloud.client.get(f"{path}/data"))[:2] == (409, "conflict")
    digest = sha256(RAW).hexdigest()
    uploaded = await cloud.client.put(f"{path}/data?sha256={digest.upper()}", content=RAW)
    assert (uploaded.status_code, uploaded.json()["state"]) == (200, "active")
    assert (uploaded.json()["size_bytes"], uploaded.json()["sha256"]) == (len(RAW), digest)
    downloaded = await cloud.client.get(f"{path}/data")
    assert downloaded.content == RAW
    assert downloaded.headers["content-length"] == str(len(RAW))
    assert downloaded.headers["repr-digest"].startswith("sha-256=:")
    again = await cloud.client.put(f"{path}/data", content=RAW)
    assert refusal(again)[:2] == (409, "conflict")


@pytest.mark.parametrize(
    ("format", "data", "query"),
    [
        ("raw", RAW, "?sha256=" + "0" * 64),
        ("raw", b"", ""),
        ("raw", qcow2(), ""),
        ("qcow2", RAW, ""),
        ("qcow2", b"QFI\xfb", ""),
        ("qcow2", qcow2(backing_at=512), ""),
        ("qcow2", qcow2(version=2, backing_at=1), ""),
        ("qcow2", qcow2(features=1 << 2), ""),
        ("qcow2", qcow2(features=1 << 40), ""),
        ("qcow2", qcow2(version=9), ""),
        ("qcow2", qcow2(size=0), ""),
        ("qcow2", qcow2(size=1 << 60), ""),
        ("qcow2", qcow2(cluster_bits=63), ""),
    ],
    ids=[
        "damaged",
        "empty",
        "qcow2 said to be raw",
        "raw said to be qcow2",
        "cut short",
        "backing file",
        "old backing file",
        "external data",
        "unknown feature",
        "unknown version",
        "no size",
        "monstrous size",
        "monstrous clusters",
    ],
)
async def test_data_that_is_not_what_it_should_be_is_refused_and_leaves_nothing(
    cloud: SimulatedCloud, format: str, data: bytes, query: str
) -> None:
    id = (await image(cloud, format))["id"]
    answer = await cloud.client.put(f"/v1/images/{id}/data{query}", content=data)
    assert refusal(answer)[:2] == (400, "invalid")
    assert kept(cloud, id) == []
    assert (await shown(cloud.client, f"images/{id}"))["state"] == "queued"
    good = RAW if format == "raw" else qcow2()
    assert (await cloud.client.put(f"/v1/images/{id}/data", content=good)).status_code == 200, "one may try again"


async def test_an_upload_that_breaks_off_leaves_nothing(cloud: SimulatedCloud) -> None:
    id = (await image(cloud))["id"]
    token = cloud.client.headers["authorization"].removeprefix("Bearer ")
    async with conversation(
        cloud.controller.api, f"/v1/images/{id}/data", method="PUT", token=token, body=None
    ) as upload:
        upload.tell({"type": "http.request", "body": RAW, "more_body": True})
        await until(lambda: any(path.stat().st_size for path in kept(cloud, id)))
    await until(lambda: kept(cloud, id) == [])
    assert cloud.state[IMAGES].get(id).state == "queued"


async def test_keeping_house_does_not_touch_what_is_arriving(cloud: SimulatedCloud) -> None:
    id = (await image(cloud))["id"]

    async def slowly() -> AsyncIterator[bytes]:
        for at in range(0, len(RAW), 65_536):
            yield RAW[at : at + 65_536]
            await until(lambda: kept(cloud, id))
            await cloud.controller.housekeeping.once()

    answer = await cloud.client.put(f"/v1/images/{id}/data", content=slowly())
    assert answer.status_code == 200, answer.text
    await cloud.controller.housekeeping.once()
    assert (await cloud.client.get(f"/v1/images/{id}/data")).content == RAW


async def test_of_two_uploads_at_once_one_counts_and_the_data_is_its_own(cloud: SimulatedCloud) -> None:
    id = (await image(cloud))["id"]
    bodies = [bytes([n]) * 200_000 for n in range(8)]
    answers = await asyncio.gather(*(cloud.client.put(f"/v1/images/{id}/data", content=body) for body in bodies))
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [200, *([409] * 7)]
    won = bodies[statuses.index(200)]
    assert (await cloud.client.get(f"/v1/images/{id}/data")).content == won
    assert (await shown(cloud.client, f"images/{id}"))["sha256"] == sha256(won).hexdigest()
    assert len(kept(cloud, id)) == 1


async def test_an_upload_beyond_the_quota_is_refused_while_it_arrives(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("small")
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"image_gib": 0}})
    member = await people.person(Role.MEMBER, project)
    mine = await made(member.client, "images", name="mine", format="raw")
    answer = await member.client.put(f"/v1/images/{mine['id']}/data", content=RAW)
    assert refusal(answer)[:2] == (403, "quota-exceeded")
    assert kept(cloud, mine["id"]) == []


async def test_an_image_that_is_deleted_while_it_arrives_leaves_nothing(cloud: SimulatedCloud) -> None:
    id = (await image(cloud))["id"]

    async def overtaken() -> AsyncIterator[bytes]:
        yield RAW
        await cloud.client.delete(f"/v1/images/{id}")

    answer = await cloud.client.put(f"/v1/images/{id}/data", content=overtaken())
    assert refusal(answer)[0] == 404
    assert kept(cloud, id) == []


async def test_an_image_that_is_renamed_while_it_arrives_has_its_new_name_and_its_data(cloud: SimulatedCloud) -> None:
    id = (await image(cloud))["id"]

    async def overtaken() -> AsyncIterator[bytes]:
        yield RAW
        await cloud.client.patch(f"/v1/images/{id}", json={"name": "renamed"})

    answer = await cloud.client.put(f"/v1/images/{id}/data", content=overtaken())
    assert (answer.json()["name"], answer.json()["state"]) == ("renamed", "active")


async def test_a_ticket_lets_its_host_fetch_its_image_and_nothing_else(cloud: SimulatedCloud) -> None:
    mini = (await items(cloud.client, "images"))[0]["id"]
    other = (await image(cloud))["id"]
    await cloud.client.put(f"/v1/images/{other}/data", content=RAW)
    tickets = Tickets((cloud.data / "ticket.key").read_bytes(), cloud.clock)
    host = HostId(new_id())
    good = transfer_url(tickets, ImageId(other), host)
    async with client_of(cloud.controller, "") as nobody:
        assert (await nobody.get(good)).content == RAW
        for bad in (
            good.replace(other, mini),
            good.replace(host, new_id()),
            good.replace("ticket=", "ticket=x"),
            good.partition("?")[0],
            good[:-1],
            f"{good}&host=twice",
        ):
            assert (await nobody.get(bad)).status_code in (400, 403), bad


async def test_an_image_that_an_instance_is_being_made_from_is_not_deleted(cloud: SimulatedCloud) -> None:
    mini = (await items(cloud.client, "images"))[0]["id"]
    task = await begun(cloud.client)
    answer = await cloud.client.delete(f"/v1/images/{mini}")
    if (await shown(cloud.client, f"instances/{task['instance']['id']}"))["state"] == "building":
        assert refusal(answer)[:2] == (409, "conflict")


async def test_a_protected_image_is_not_deleted(cloud: SimulatedCloud) -> None:
    path = f"/v1/images/{(await image(cloud))['id']}"
    await cloud.client.patch(path, json={"protected": True})
    assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")
    await cloud.client.patch(path, json={"protected": False})
    assert (await cloud.client.delete(path)).status_code == 204


async def test_the_data_of_a_deleted_image_goes(cloud: SimulatedCloud) -> None:
    id = (await image(cloud))["id"]
    await cloud.client.put(f"/v1/images/{id}/data", content=RAW)
    assert (await cloud.client.delete(f"/v1/images/{id}")).status_code == 204
    await cloud.controller.housekeeping.once()
    assert kept(cloud, id) == []


async def test_a_public_image_is_everybodys_to_use_and_its_owners_to_change(
    cloud: SimulatedCloud, people: People
) -> None:
    mini = (await items(cloud.client, "images"))[0]["id"]
    member = await people.person(Role.ADMIN, await people.project("other"))
    assert mini in [each["id"] for each in await items(member.client, "images")]
    for answer in (
        await member.client.patch(f"/v1/images/{mini}", json={"name": "mine now"}),
        await member.client.delete(f"/v1/images/{mini}"),
        await member.client.put(f"/v1/images/{mini}/data", content=RAW),
        await member.client.post("/v1/images", json={"name": "x", "format": "raw", "public": True}),
    ):
        assert refusal(answer)[:2] == (403, "forbidden")
