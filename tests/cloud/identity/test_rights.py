"""Groups, sub-accounts, custom roles: what they give, and that nobody gets more by them than was given."""

import asyncio
from typing import Any

import httpx2
import pytest

from pileus.cloud.identity.model import GRANTS, GROUPS, TOKENS, USERS
from pileus.controller.nouns import NOUNS
from pileus.kernel.ids import new_id
from pileus.operations.caller import Role, allows
from pileus.operations.permissions import Permissions
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.people import People, Person
from pileus.testing.requests import KEY, items, made, refusal, shown

PASSWORD = "correct horse battery"
OPERATIONS = [operation for noun in NOUNS for operation in noun.declared]


async def sign_in(cloud: SimulatedCloud, name: str, password: str = PASSWORD, **more: str) -> httpx2.Response:
    async with client_of(cloud.controller, "") as stranger:
        return await stranger.post("/v1/tokens/sign-in", json={"user": name, "password": password, **more})


async def with_role(admin: Person, person: Person, *permissions: str, name: str = "") -> dict[str, Any]:
    """Give somebody a custom role of these permissions in the administrator's project."""
    role = await made(admin.client, "roles", name=name or new_id(), permissions=list(permissions))
    return await made(admin.client, "grants", user_id=person.user_id, project_id=admin.project_id, role=role["id"])


async def stranger(cloud: SimulatedCloud, people: People, project: str) -> Person:
    """Somebody with a token for a project and no role in it."""
    person = await people.person(Role.READER, project)  # pyright: ignore[reportArgumentType]
    grant = cloud.state[GRANTS].by("user", person.user_id)[0]
    await cloud.client.patch(f"/v1/users/{person.user_id}", json={})
    from pileus.state.state import remove
    from pileus.testing.cloud import ORIGIN

    await cloud.state.commit([remove(grant)], ORIGIN)
    return person


@pytest.mark.parametrize("role", list(Role))
def test_built_in_roles_have_the_permissions_that_the_declarations_say(role: Role) -> None:
    declared = {each.id for each in OPERATIONS if each.least is not None and allows(role, each.least)}
    assert Permissions(NOUNS).of_role(role) == declared


def test_no_pattern_gives_in_a_project_what_is_for_the_whole_cloud() -> None:
    everything = Permissions(NOUNS).in_a_project(("*.*",))
    assert everything == Permissions(NOUNS).of_role(Role.ADMIN)


async def test_a_member_of_a_group_has_its_roles_from_the_moment_they_are_in_it_to_the_moment_they_are_out(
    cloud: SimulatedCloud, people: People
) -> None:
    project = await people.project("one")
    admin = await people.person(Role.ADMIN, project)
    ann = await stranger(cloud, people, project)
    group = await made(admin.client, "groups", name="operators")
    await made(admin.client, "grants", group_id=group["id"], project_id=project, role="member")
    assert (await ann.client.get("/v1/networks")).status_code == 401
    path = f"/v1/groups/{group['id']}"
    added = await admin.client.post(f"{path}/add", json={"user_ids": [ann.user_id]})
    assert added.json()["user_ids"] == [ann.user_id]
    assert (await ann.client.post("/v1/networks", json={"name": "mine"})).status_code == 201
    await admin.client.post(f"{path}/remove", json={"user_ids": [ann.user_id]})
    assert (await ann.client.get("/v1/networks")).status_code == 401


async def test_roles_of_oneself_and_of_groups_add_up(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("one")
    admin, ann = await people.person(Role.ADMIN, project), await people.person(Role.READER, project)
    assert (await ann.client.post("/v1/keypairs", json={"name": "x", "public_key": KEY})).status_code == 403
    grant = await with_role(admin, ann, "keypair.*")
    assert (await ann.client.post("/v1/keypairs", json={"name": "x", "public_key": KEY})).status_code == 201
    assert refusal(await ann.client.post("/v1/networks", json={"name": "x"}))[:2] == (403, "forbidden")
    current = await shown(ann.client, "tokens/current")
    assert current["role"] == "reader"
    assert {"keypair.create", "keypair.delete", "network.list"} <= set(current["permissions"])
    await admin.client.delete(f"/v1/grants/{grant['id']}")
    assert (await ann.client.delete("/v1/keypairs/x")).status_code == 403
    assert (await ann.client.get("/v1/networks")).status_code == 200, "the other role is left, and the token with it"


async def test_each_operation_takes_its_own_permission_and_no_other(cloud: SimulatedCloud, people: People) -> None:
    """For every operation there is: whoever has that permission alone is let do that and nothing else."""
    project = await people.project("one")
    admin = await people.person(Role.ADMIN, project)
    ann = await stranger(cloud, people, project)
    wanted = [each for each in OPERATIONS if each.least is not None and allows(Role.ADMIN, each.least)]
    role = await made(admin.client, "roles", name="only", permissions=["instance.show"])
    await made(admin.client, "grants", user_id=ann.user_id, project_id=project, role=role["id"])
    for operation in wanted:
        changed = await admin.client.patch(f"/v1/roles/{role['id']}", json={"permissions": [operation.id]})
        assert changed.status_code == 200, changed.text
        caller = cloud.controller.api._authenticator.caller(  # pyright: ignore[reportPrivateUsage]
            f"Bearer {ann.token}", "", source="", request=""
        )
        assert caller.permissions == {operation.id}
        assert caller.role is None


async def test_a_wildcard_permits_what_it_names(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("one")
    admin = await people.person(Role.ADMIN, project)
    ann = await stranger(cloud, people, project)
    await with_role(admin, ann, "*.list", "keypair.*")
    assert (await ann.client.get("/v1/networks")).status_code == 200
    keypair = await made(ann.client, "keypairs", name="x", public_key=KEY)
    assert (await ann.client.delete(f"/v1/keypairs/{keypair['id']}")).status_code == 204
    network = (await items(ann.client, "networks"))[0]["id"]
    answer = await ann.client.get(f"/v1/networks/{network}")
    assert refusal(answer)[:2] == (403, "forbidden")
    assert "network.show" in answer.json()["detail"]


@pytest.mark.parametrize("permission", ["host.list", "host.*", "project.change", "flavor.create", "hsot.list", "x.*"])
async def test_a_role_of_what_is_for_the_whole_cloud_or_of_nothing_is_refused(
    cloud: SimulatedCloud, permission: str
) -> None:
    wish = {"name": "x", "permissions": ["instance.list", permission]}
    assert refusal(await cloud.client.post("/v1/roles", json=wish)) == (400, "invalid", {"permissions.1"})


async def test_nobody_gives_more_than_they_have_and_is_told_what_is_missing(
    cloud: SimulatedCloud, people: People
) -> None:
    project = await people.project("one")
    admin, ann = await people.person(Role.ADMIN, project), await people.person(Role.READER, project)
    bob = await people.person(Role.READER, project)
    await with_role(admin, ann, "grant.*", "role.*", "group.*", "user.*", "instance.start")
    strong = await made(admin.client, "roles", name="strong", permissions=["instance.start", "instance.delete"])
    weak = await made(admin.client, "roles", name="weak", permissions=["instance.start"])
    group = await made(admin.client, "groups", name="strong")
    given = await made(admin.client, "grants", group_id=group["id"], project_id=project, role=strong["id"])
    admins = cloud.state[GRANTS].by("user", admin.user_id)[0]
    to_bob = {"user_id": bob.user_id, "project_id": project}
    for method, path, wish in (
        ("POST", "grants", {**to_bob, "role": "member"}),
        ("POST", "grants", {**to_bob, "role": strong["id"]}),
        ("POST", "grants", {"user_id": ann.user_id, "project_id": project, "role": "admin"}),
        ("POST", "grants", {"user_id": admin.user_id, "project_id": project, "role": "reader"}),
        ("POST", "roles", {"name": "x", "permissions": ["instance.*"]}),
        ("PATCH", f"roles/{weak['id']}", {"permissions": ["instance.start", "instance.delete"]}),
        ("PATCH", f"roles/{strong['id']}", {"permissions": ["instance.start"]}),
        ("POST", f"groups/{group['id']}/add", {"user_ids": [ann.user_id]}),
        ("POST", f"groups/{group['id']}/remove", {"user_ids": [bob.user_id]}),
        ("DELETE", f"groups/{group['id']}", None),
        ("DELETE", f"grants/{given['id']}", None),
        ("DELETE", f"grants/{admins.id}", None),
    ):
        answer = await ann.client.request(method, f"/v1/{path}", json=wish)
        assert refusal(answer)[:2] == (403, "forbidden"), path
        assert answer.json()["because"], path
    answer = await ann.client.post("/v1/grants", json={**to_bob, "role": strong["id"]})
    assert list(answer.json()["because"]) == ["instance.delete"]
    assert (await ann.client.post("/v1/grants", json={**to_bob, "role": weak["id"]})).status_code == 201
    assert (await ann.client.post("/v1/grants", json={**to_bob, "role": "reader"})).status_code == 201


async def test_the_built_in_roles_are_shown_with_the_others_and_changed_by_nobody(cloud: SimulatedCloud) -> None:
    own = await made(cloud.client, "roles", name="starter", permissions=["instance.start"], everywhere=True)
    listed = await items(cloud.client, "roles")
    assert [each["name"] for each in listed] == [*Role, "starter"]
    assert [each["built_in"] for each in listed] == [True] * 4 + [False]
    assert (await shown(cloud.client, "roles/member"))["permissions"] == sorted(Permissions(NOUNS).of_role(Role.MEMBER))
    assert [each["id"] for each in await items(cloud.client, "roles?name=starter")] == [own["id"]]
    assert (await cloud.client.patch("/v1/roles/member", json={"description": "x"})).status_code == 404
    assert refusal(await cloud.client.post("/v1/roles", json={"name": "admin", "permissions": ["*.list"]})) == (
        409,
        "conflict",
        {"name"},
    )


async def test_a_role_that_somebody_has_is_not_deleted(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("one")
    admin, ann = await people.person(Role.ADMIN, project), await people.person(Role.READER, project)
    grant = await with_role(admin, ann, "keypair.create")
    path = f"/v1/roles/{grant['role_id']}"
    assert refusal(await admin.client.delete(path))[:2] == (409, "conflict")
    await admin.client.delete(f"/v1/grants/{grant['id']}")
    assert (await admin.client.delete(path)).status_code == 204


async def test_a_role_or_group_of_one_project_is_nothing_in_another(cloud: SimulatedCloud, people: People) -> None:
    one, two = await people.project("one"), await people.project("two")
    first, second = await people.person(Role.ADMIN, one), await people.person(Role.ADMIN, two)
    role = await made(first.client, "roles", name="x", permissions=["*.list"])
    group = await made(first.client, "groups", name="x")
    mine = {"project_id": two, "role": "reader"}
    wish = {"user_id": second.user_id, "project_id": two, "role": role["id"]}
    other = await second.client.post("/v1/grants", json=wish)
    assert refusal(other) == (404, "not-found", {"role"})
    assert refusal(await second.client.post("/v1/grants", json={**mine, "group_id": group["id"]}))[0] == 404
    boss = await cloud.client.post("/v1/grants", json={**mine, "group_id": group["id"]})
    assert refusal(boss)[:2] == (409, "conflict"), "not even by an administrator of the cloud"
    assert (await cloud.client.post("/v1/grants", json=wish)).status_code == 404


# Sub-accounts


async def sub_account(admin: Person, name: str = "bob", role: str = "") -> dict[str, Any]:
    user = await made(admin.client, "users", name=name, password=PASSWORD)
    if role:
        await made(admin.client, "grants", user_id=user["id"], project_id=admin.project_id, role=role)
    return user


async def test_a_project_admin_makes_users_who_belong_to_the_project(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("shop")
    admin = await people.person(Role.ADMIN, project)
    bob = await sub_account(admin, role="member")
    assert (bob["project_id"], bob["is_platform"]) == (project, False)
    assert [each["name"] for each in await items(admin.client, "users?name=bob")] == ["bob"]
    session = await sign_in(cloud, "bob@shop")
    assert session.json()["project_id"] == project
    assert (await sign_in(cloud, "bob")).status_code == 401, "the name is good in the project only"
    async with client_of(cloud.controller, session.json()["token"]) as client:
        assert (await client.get("/v1/networks")).status_code == 200
        assert [each["id"] for each in await items(client, "projects")] == [project]
        assert [each["id"] for each in await items(client, "users")] == [bob["id"]]


async def test_names_of_sub_accounts_are_the_projects_own_and_tell_nothing_of_others(
    cloud: SimulatedCloud, people: People
) -> None:
    one = await people.person(Role.ADMIN, await people.project("one"))
    two = await people.person(Role.ADMIN, await people.project("two"))
    await made(cloud.client, "users", name="bob", password=PASSWORD)
    await sub_account(one)
    await sub_account(two)
    again = await two.client.post("/v1/users", json={"name": "bob", "password": PASSWORD})
    assert refusal(again) == (409, "conflict", {"name"})


async def test_a_sub_account_never_leaves_its_project(cloud: SimulatedCloud, people: People) -> None:
    one, two = await people.project("one"), await people.project("two")
    admin, other = await people.person(Role.ADMIN, one), await people.person(Role.ADMIN, two)
    bob = await sub_account(admin)
    everywhere = await made(cloud.client, "groups", name="all", everywhere=True)
    for client, method, path, wish, status in (
        (other.client, "POST", "grants", {"user_id": bob["id"], "project_id": two, "role": "reader"}, 404),
        (cloud.client, "POST", "grants", {"user_id": bob["id"], "project_id": two, "role": "reader"}, 409),
        (cloud.client, "POST", f"groups/{everywhere['id']}/add", {"user_ids": [bob["id"]]}, 404),
        (cloud.client, "PATCH", f"users/{bob['id']}", {"is_platform": True}, 409),
        (admin.client, "PATCH", f"users/{bob['id']}", {"is_platform": True}, 403),
        (admin.client, "POST", "users", {"name": "x", "password": PASSWORD, "is_platform": True}, 403),
        (admin.client, "POST", "users", {"name": "x", "password": PASSWORD, "project_id": two}, 404),
        (other.client, "PATCH", f"users/{bob['id']}", {"enabled": False}, 404),
        (other.client, "PUT", f"users/{bob['id']}/password", {"password": PASSWORD}, 404),
        (other.client, "DELETE", f"users/{bob['id']}", None, 404),
        (other.client, "GET", f"users/{bob['id']}", None, 404),
    ):
        answer = await client.request(method, f"/v1/{path}", json=wish)
        assert answer.status_code == status, (path, answer.text)


async def test_a_project_admin_keeps_a_sub_account_out_resets_its_password_and_deletes_it(
    cloud: SimulatedCloud, people: People
) -> None:
    admin = await people.person(Role.ADMIN, await people.project("shop"))
    bob = await sub_account(admin, role="member")
    token = (await sign_in(cloud, "bob@shop")).json()["token"]
    path = f"/v1/users/{bob['id']}"
    await admin.client.patch(path, json={"enabled": False})
    assert (await sign_in(cloud, "bob@shop")).status_code == 401
    await admin.client.patch(path, json={"enabled": True})
    assert (await admin.client.put(f"{path}/password", json={"password": "a new one for bob"})).status_code == 204
    assert (await sign_in(cloud, "bob@shop")).status_code == 401
    assert (await sign_in(cloud, "bob@shop", "a new one for bob")).status_code == 201
    async with client_of(cloud.controller, token) as client:
        assert (await client.get("/v1/networks")).status_code == 401
    assert (await admin.client.delete(path)).status_code == 204
    assert bob["id"] not in cloud.state[USERS]


async def test_who_may_manage_users_does_not_become_an_admin_by_it(cloud: SimulatedCloud, people: People) -> None:
    admin = await people.person(Role.ADMIN, await people.project("shop"))
    helper = await people.person(Role.READER, admin.project_id)
    await with_role(admin, helper, "user.*", "grant.*")
    chief = await sub_account(admin, "chief", role="admin")
    clerk = await sub_account(admin, "clerk", role="reader")
    path = f"/v1/users/{chief['id']}"
    for enabled in (True, False):
        await admin.client.patch(path, json={"enabled": enabled})
        for method, at, wish in (
            ("PUT", f"{path}/password", {"password": "now it is mine"}),
            ("PATCH", path, {"enabled": True}),
            ("DELETE", path, None),
        ):
            answer = await helper.client.request(method, at, json=wish)
            assert refusal(answer)[:2] == (403, "forbidden"), at
    reset = await helper.client.put(f"/v1/users/{clerk['id']}/password", json={"password": "forgot it again"})
    assert reset.status_code == 204


async def test_an_ordinary_member_sees_no_other_user(cloud: SimulatedCloud, people: People) -> None:
    admin = await people.person(Role.ADMIN, await people.project("shop"))
    member = await people.person(Role.MEMBER, admin.project_id)
    bob = await sub_account(admin)
    assert [each["id"] for each in await items(member.client, "users")] == [member.user_id]
    assert (await member.client.put(f"/v1/users/{bob['id']}/password", json={"password": PASSWORD})).status_code == 404


async def test_a_project_goes_with_its_people_and_their_rights(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("shop")
    admin = await people.person(Role.ADMIN, project)
    bob = await sub_account(admin, role="member")
    group = await made(admin.client, "groups", name="all")
    await admin.client.post(f"/v1/groups/{group['id']}/add", json={"user_ids": [bob["id"], admin.user_id]})
    await with_role(admin, admin, "*.list")
    token = (await sign_in(cloud, "bob@shop")).json()
    async with client_of(cloud.controller, token["token"]) as client:
        await made(client, "keypairs", name="x", public_key=KEY)
    assert (await cloud.client.delete(f"/v1/projects/{project}")).status_code == 204
    assert bob["id"] not in cloud.state[USERS]
    assert group["id"] not in cloud.state[GROUPS]
    assert token["id"] not in cloud.state[TOKENS]
    assert admin.user_id in cloud.state[USERS], "who does not belong to it stays"


async def test_a_user_who_is_deleted_leaves_their_groups(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("one")
    ann = await people.person(Role.READER, project)
    group = await made(cloud.client, "groups", name="all", everywhere=True)
    await cloud.client.post(f"/v1/groups/{group['id']}/add", json={"user_ids": [ann.user_id]})
    assert [each["id"] for each in await items(ann.client, "groups")] == [group["id"]], "members see their group"
    assert refusal(await ann.client.post(f"/v1/groups/{group['id']}/add", json={"user_ids": [ann.user_id]}))[0] == 403
    await cloud.client.delete(f"/v1/users/{ann.user_id}")
    assert (await shown(cloud.client, f"groups/{group['id']}"))["user_ids"] == []


async def test_two_who_change_a_group_at_once_both_count_or_one_is_told(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("one")
    persons = [await people.person(Role.READER, project) for _ in range(4)]
    group = await made(cloud.client, "groups", name="all", everywhere=True)
    answers = await asyncio.gather(
        *(cloud.client.post(f"/v1/groups/{group['id']}/add", json={"user_ids": [each.user_id]}) for each in persons)
    )
    assert {answer.status_code for answer in answers} == {200}
    assert set((await shown(cloud.client, f"groups/{group['id']}"))["user_ids"]) == {each.user_id for each in persons}
