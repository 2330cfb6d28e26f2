"""Who may use an image besides those whose it is."""

from typing import Any

from pileus.cloud.images.model import IMAGE_SHARES
from pileus.kernel.ids import new_id
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People, Person
from pileus.testing.requests import items, made, refusal, running

RAW = bytes(range(256)) * 1024


async def an_image(owner: Person) -> str:
    id = (await made(owner.client, "images", name="ours", format="raw"))["id"]
    assert (await owner.client.put(f"/v1/images/{id}/data", content=RAW)).status_code == 200
    return id


async def share(owner: Person, id: str, **to: Any) -> str:
    return (await made(owner.client, "image-shares", image_id=id, **to))["id"]


async def sees(person: Person, id: str) -> bool:
    listed = id in [each["id"] for each in await items(person.client, "images")]
    shown = (await person.client.get(f"/v1/images/{id}")).status_code == 200
    data = (await person.client.get(f"/v1/images/{id}/data")).status_code == 200
    assert listed == shown == data
    return listed


async def test_a_project_that_an_image_is_shared_with_uses_it_and_does_not_change_it(
    cloud: SimulatedCloud, people: People
) -> None:
    owner = await people.person(Role.MEMBER, await people.project("owner"))
    other = await people.person(Role.MEMBER, await people.project("other"))
    stranger = await people.person(Role.ADMIN, await people.project("stranger"))
    id = await an_image(owner)
    assert not await sees(other, id)
    shared = await share(owner, id, to_project_id=other.project_id)
    assert await sees(other, id)
    assert not await sees(stranger, id)
    assert (await running(cloud, other.client, image_id=id))["image_id"] == id
    for refused in (
        await other.client.patch(f"/v1/images/{id}", json={"name": "mine now"}),
        await other.client.delete(f"/v1/images/{id}"),
        await other.client.patch(f"/v1/images/{id}/upload", content=b"x", headers={"upload-offset": "0"}),
        await other.client.post(f"/v1/images/{id}/upload/finish", json={}),
    ):
        assert refusal(refused)[:2] == (403, "forbidden")
    onwards = await other.client.post("/v1/image-shares", json={"image_id": id, "to_project_id": stranger.project_id})
    status, code, fields = refusal(onwards)
    assert (status, code) == (404, "not-found"), "a share is not passed on"
    assert "image_id" in fields
    assert [each["id"] for each in await items(other.client, "image-shares")] == [shared]
    assert await items(stranger.client, "image-shares") == []
    assert (await owner.client.delete(f"/v1/image-shares/{shared}")).status_code == 204
    assert not await sees(other, id)


async def test_the_members_of_a_group_use_what_is_shared_with_it(cloud: SimulatedCloud, people: People) -> None:
    owner = await people.person(Role.ADMIN, await people.project("owner"))
    member = await people.person(Role.MEMBER, await people.project("member"))
    id = await an_image(owner)
    group = await made(cloud.client, "groups", name="testers", everywhere=True)
    joined = await cloud.client.post(f"/v1/groups/{group['id']}/add", json={"user_ids": [member.user_id]})
    assert joined.is_success, joined.text
    wish = {"image_id": id, "to_group_id": group["id"]}
    assert refusal(await owner.client.post("/v1/image-shares", json=wish)) == (404, "not-found", {"to_group_id"})
    assert (await cloud.client.post("/v1/image-shares", json=wish)).status_code == 201
    assert await sees(member, id)
    shared = (await items(member.client, "image-shares"))[0]["id"]
    assert refusal(await member.client.delete(f"/v1/image-shares/{shared}"))[:2] == (403, "forbidden")
    assert (await cloud.client.delete(f"/v1/groups/{group['id']}")).is_success
    assert not await sees(member, id)
    assert len(cloud.state[IMAGE_SHARES]) == 0


async def test_a_share_goes_with_its_image_and_with_its_project(cloud: SimulatedCloud, people: People) -> None:
    owner = await people.person(Role.MEMBER, await people.project("owner"))
    other = await people.project("other")
    for_image, for_project = await an_image(owner), await an_image(owner)
    await share(owner, for_image, to_project_id=other)
    await share(owner, for_project, to_project_id=other)
    assert (await owner.client.delete(f"/v1/images/{for_image}")).status_code == 204
    assert len(cloud.state[IMAGE_SHARES]) == 1
    assert (await cloud.client.delete(f"/v1/projects/{other}")).is_success
    assert len(cloud.state[IMAGE_SHARES]) == 0


async def test_a_share_that_makes_no_sense_is_refused(people: People) -> None:
    owner = await people.person(Role.MEMBER, await people.project("owner"))
    other = await people.project("other")
    id = await an_image(owner)
    await share(owner, id, to_project_id=other)
    for wish, status, fields in (
        ({}, 400, {"to_project_id"}),
        ({"to_project_id": other, "to_group_id": new_id()}, 400, {"to_project_id"}),
        ({"to_project_id": new_id()}, 404, {"to_project_id"}),
        ({"to_group_id": new_id()}, 404, {"to_group_id"}),
        ({"to_project_id": other}, 409, {"share"}),
    ):
        answer = await owner.client.post("/v1/image-shares", json={"image_id": id, **wish})
        assert (refusal(answer)[0], refusal(answer)[2]) == (status, fields)
