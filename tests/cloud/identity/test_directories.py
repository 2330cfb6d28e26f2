"""Signing in by a directory: who that makes somebody here, and what their groups there give them."""

import asyncio
from typing import Any

import httpx2
import pytest

from pileus.cloud.identity.model import GRANTS, USERS
from pileus.cloud.identityproviders.model import PROVIDER_SECRETS
from pileus.cloud.identityproviders.port import Person as Known
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.directories import SimulatedDirectory
from pileus.testing.people import People
from pileus.testing.requests import items, made, refusal, shown

PASSWORD = "correct horse battery"
OPERATORS = "cn=Operators,ou=groups,dc=example,dc=com"
CLERKS = "cn=Clerks,ou=groups,dc=example,dc=com"
LDAP = {"kind": "ldap", "url": "ldaps://directory.example.com", "base_dn": "dc=example,dc=com"}


@pytest.fixture
def directory() -> SimulatedDirectory:
    directory = SimulatedDirectory("searching")
    directory.put(Known(subject="1", name="Ann", mail="ann@example.com", groups=(OPERATORS.lower(),)), PASSWORD)
    directory.put(Known(subject="2", name="bob"), PASSWORD)
    return directory


async def staff(cloud: SimulatedCloud, **more: Any) -> dict[str, Any]:
    """An identity provider, that makes users."""
    wish = {"name": "staff", "secret": "searching", "makes_users": True, **LDAP, **more}
    return await made(cloud.client, "identity-providers", **wish)


async def gives(cloud: SimulatedCloud, provider: dict[str, Any], group: str, **what: str) -> dict[str, Any]:
    return await made(cloud.client, "group-mappings", provider_id=provider["id"], external_group=group, **what)


async def sign_in(cloud: SimulatedCloud, name: str = "ann", **more: str) -> httpx2.Response:
    async with client_of(cloud.controller, "") as stranger:
        wish = {"user": name, "password": PASSWORD, "provider": "staff", **more}
        return await stranger.post("/v1/tokens/sign-in", json=wish, headers={"authorization": ""})


async def why(cloud: SimulatedCloud) -> str:
    """What the audit says of the last refusal."""
    entries = await items(cloud.client, "events/audit?result=refused&all_projects=true&limit=1")
    return entries[0]["why"]


async def roles(cloud: SimulatedCloud, user: str) -> set[tuple[str, str]]:
    return {(each.project_id, str(each.role)) for each in cloud.state[GRANTS].by("user", user)}


async def test_somebody_new_becomes_a_user_with_what_their_groups_give(cloud: SimulatedCloud, people: People) -> None:
    shop, provider = await people.project("shop"), await staff(cloud)
    await gives(cloud, provider, OPERATORS, project_id=shop, role="member")
    await gives(cloud, provider, CLERKS, project_id=shop, role="admin")
    answer = await sign_in(cloud)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["project_id"], answer.json()["role"]) == (shop, "member")
    ann = await shown(cloud.client, f"users/{answer.json()['user_id']}")
    assert (ann["name"], ann["mail"], ann["subject"]) == ("ann", "ann@example.com", "1")
    async with client_of(cloud.controller, answer.json()["token"]) as client:
        assert (await client.get("/v1/networks")).status_code == 200
    again = await sign_in(cloud, "ANN")
    assert again.json()["user_id"] == ann["id"]


async def test_rights_follow_the_directory_and_what_was_granted_by_hand_stays(
    cloud: SimulatedCloud, people: People, directory: SimulatedDirectory
) -> None:
    shop, lab, provider = await people.project("shop"), await people.project("lab"), await staff(cloud)
    group = await made(cloud.client, "groups", name="night", everywhere=True)
    await gives(cloud, provider, OPERATORS, project_id=shop, role="admin")
    await gives(cloud, provider, OPERATORS, group_id=group["id"])
    await gives(cloud, provider, CLERKS, project_id=shop, role="reader")
    ann = (await sign_in(cloud)).json()["user_id"]
    await made(cloud.client, "grants", user_id=ann, project_id=lab, role="member")
    await made(cloud.client, "grants", user_id=ann, project_id=shop, role="member")
    assert await roles(cloud, ann) == {(shop, "admin"), (shop, "member"), (lab, "member")}
    assert (await shown(cloud.client, f"groups/{group['id']}"))["provided"][0]["user_id"] == ann
    directory.change("1", groups=(CLERKS,))
    assert (await sign_in(cloud)).status_code == 201
    assert await roles(cloud, ann) == {(shop, "reader"), (shop, "member"), (lab, "member")}
    assert (await shown(cloud.client, f"groups/{group['id']}"))["provided"] == []
    directory.change("1", groups=())
    assert (await sign_in(cloud)).status_code == 201
    assert await roles(cloud, ann) == {(shop, "member"), (lab, "member")}


async def test_what_a_directory_gives_is_taken_away_there_or_with_the_mapping(
    cloud: SimulatedCloud, people: People
) -> None:
    shop, provider = await people.project("shop"), await staff(cloud)
    group = await made(cloud.client, "groups", name="night", everywhere=True)
    role = await gives(cloud, provider, OPERATORS, project_id=shop, role="member")
    membership = await gives(cloud, provider, OPERATORS, group_id=group["id"])
    ann = (await sign_in(cloud)).json()
    grant = cloud.state[GRANTS].by("user", ann["user_id"])[0]
    assert refusal(await cloud.client.delete(f"/v1/grants/{grant.id}"))[:2] == (409, "conflict")
    wish = {"user_ids": [ann["user_id"]]}
    refused = await cloud.client.post(f"/v1/groups/{group['id']}/remove", json=wish)
    assert refusal(refused) == (409, "conflict", {"user_ids"})
    for mapping in (role, membership):
        assert (await cloud.client.delete(f"/v1/group-mappings/{mapping['id']}")).status_code == 204
    assert await roles(cloud, ann["user_id"]) == set()
    assert (await shown(cloud.client, f"groups/{group['id']}"))["provided"] == []
    async with client_of(cloud.controller, ann["token"]) as client:
        assert (await client.get("/v1/networks")).status_code == 401, "at once"


async def test_everybody_who_is_not_let_in_is_told_the_same_and_the_audit_why(
    cloud: SimulatedCloud, people: People, directory: SimulatedDirectory
) -> None:
    shop = await people.project("shop")
    provider = await staff(cloud)
    await gives(cloud, provider, OPERATORS, project_id=shop, role="member")
    ann = (await sign_in(cloud)).json()["user_id"]
    await made(cloud.client, "users", name="carl", password=PASSWORD)
    directory.put(Known(subject="3", name="carl"), PASSWORD)
    directory.put(Known(subject="4", name="no user name"), PASSWORD)
    directory.put(Known(subject="5", name="dora", enabled=False), PASSWORD)
    local = await sign_in(cloud, "nobody", provider="elsewhere")
    told = [local.json()["detail"]]
    for name, password, reason in (
        ("ann", "wrong", "refuses ann"),
        ("nobody", PASSWORD, "refuses nobody"),
        ("carl", PASSWORD, "the name carl is taken here by a local user"),
        ("no user name", PASSWORD, "cannot be a user's name"),
        ("dora", PASSWORD, "has disabled dora"),
    ):
        answer = await sign_in(cloud, name, password=password)
        assert refusal(answer) == (401, "unauthenticated", set())
        told.append(answer.json()["detail"])
        assert reason in await why(cloud)
    await cloud.client.patch(f"/v1/users/{ann}", json={"enabled": False})
    answer = await sign_in(cloud)
    assert refusal(answer)[:2] == (401, "unauthenticated")
    assert "ann is disabled here" in await why(cloud)
    assert {*told, answer.json()["detail"]} == {"user name or password is wrong"}
    assert cloud.state[USERS].one("name", ("", "carl")) is not None


async def test_who_inherits_a_name_does_not_inherit_the_user(
    cloud: SimulatedCloud, people: People, directory: SimulatedDirectory
) -> None:
    provider = await staff(cloud)
    await gives(cloud, provider, OPERATORS, project_id=await people.project("shop"), role="member")
    ann = (await sign_in(cloud)).json()["user_id"]
    del directory.people["1"]
    directory.put(Known(subject="9", name="ann", groups=(OPERATORS,)), PASSWORD)
    assert (await sign_in(cloud)).status_code == 401
    assert "taken here by somebody else of staff" in await why(cloud)
    await cloud.client.delete(f"/v1/users/{ann}")
    other = (await sign_in(cloud)).json()["user_id"]
    assert other != ann


async def test_who_is_renamed_there_is_the_same_user_here(
    cloud: SimulatedCloud, people: People, directory: SimulatedDirectory
) -> None:
    provider = await staff(cloud)
    await gives(cloud, provider, OPERATORS, project_id=await people.project("shop"), role="member")
    ann = (await sign_in(cloud)).json()["user_id"]
    directory.change("1", name="ann.married")
    assert (await sign_in(cloud, "ann.married")).json()["user_id"] == ann
    assert cloud.state[USERS].get(ann).name == "ann.married"
    await made(cloud.client, "users", name="boss", password=PASSWORD)
    directory.change("1", name="boss")
    assert (await sign_in(cloud, "boss")).json()["user_id"] == ann
    assert cloud.state[USERS].get(ann).name == "ann.married", "a name that is taken stays with whom it is of"


async def test_a_user_who_was_deleted_here_is_not_made_again_until_an_administrator_does(
    cloud: SimulatedCloud, people: People
) -> None:
    shop = await people.project("shop")
    provider = await staff(cloud)
    await gives(cloud, provider, OPERATORS, project_id=shop, role="member")
    ann = (await sign_in(cloud)).json()["user_id"]
    assert (await cloud.client.delete(f"/v1/users/{ann}")).status_code == 204
    assert (await sign_in(cloud)).status_code == 401
    assert "ann was deleted here" in await why(cloud)
    again = await made(cloud.client, "users", name="ann", provider_id=provider["id"])
    assert (await sign_in(cloud)).json()["user_id"] == again["id"]


async def test_where_no_users_are_made_those_get_in_who_were_made_before(
    cloud: SimulatedCloud, people: People, directory: SimulatedDirectory
) -> None:
    shop = await people.project("shop")
    provider = await staff(cloud, makes_users=False)
    await gives(cloud, provider, OPERATORS, project_id=shop, role="member")
    assert (await sign_in(cloud)).status_code == 401
    assert "makes none by itself" in await why(cloud)
    bob = await made(cloud.client, "users", name="bob", provider_id=provider["id"], subject="another")
    await made(cloud.client, "users", name="ann", provider_id=provider["id"])
    assert (await sign_in(cloud)).status_code == 201
    assert (await sign_in(cloud, "bob")).status_code == 401, "the subject that was said is somebody else's"
    assert cloud.state[USERS].get(bob["id"]).subject == "another"
    for wish in ({"name": "x"}, {"name": "x", "subject": "y"}, {"name": "x", "password": PASSWORD, "subject": "y"}):
        assert (await cloud.client.post("/v1/users", json=wish)).status_code == 400
    admin = await people.person(Role.ADMIN, shop)
    wish = {"name": "x", "provider_id": provider["id"]}
    assert refusal(await admin.client.post("/v1/users", json=wish)) == (403, "forbidden", {"provider_id"})


async def test_sub_accounts_that_a_provider_makes_have_rights_in_their_project_only(
    cloud: SimulatedCloud, people: People
) -> None:
    shop, lab = await people.project("shop"), await people.project("lab")
    provider = await staff(cloud, users_project_id=shop)
    everywhere = await made(cloud.client, "groups", name="night", everywhere=True)
    await gives(cloud, provider, OPERATORS, project_id=shop, role="reader")
    await gives(cloud, provider, OPERATORS, project_id=lab, role="admin")
    await gives(cloud, provider, OPERATORS, group_id=everywhere["id"])
    ann = (await sign_in(cloud)).json()["user_id"]
    assert cloud.state[USERS].get(ann).project_id == shop
    assert await roles(cloud, ann) == {(shop, "reader")}
    assert (await shown(cloud.client, f"groups/{everywhere['id']}"))["provided"] == []
    assert refusal(await cloud.client.delete(f"/v1/projects/{shop}"))[:2] == (409, "conflict")


async def test_a_name_from_a_directory_does_not_stand_before_a_sub_account(
    cloud: SimulatedCloud, people: People, directory: SimulatedDirectory
) -> None:
    admin = await people.person(Role.ADMIN, await people.project("shop"))
    bob = await made(admin.client, "users", name="bob", password=PASSWORD)
    await made(admin.client, "grants", user_id=bob["id"], project_id=admin.project_id, role="member")
    await staff(cloud)
    directory.put(Known(subject="7", name="bob@shop"), PASSWORD)
    assert (await sign_in(cloud, "bob@shop")).status_code == 401
    assert "is taken here by a local user" in await why(cloud)
    async with client_of(cloud.controller, "") as stranger:
        own = await stranger.post("/v1/tokens/sign-in", json={"user": "bob@shop", "password": PASSWORD})
    assert own.json()["user_id"] == bob["id"]


async def test_whom_a_directory_knows_has_no_password_here(cloud: SimulatedCloud, people: People) -> None:
    provider = await staff(cloud)
    await gives(cloud, provider, OPERATORS, project_id=await people.project("shop"), role="member")
    ann = (await sign_in(cloud)).json()["user_id"]
    wish = {"password": "another one entirely"}
    assert refusal(await cloud.client.put(f"/v1/users/{ann}/password", json=wish))[:2] == (409, "conflict")
    async with client_of(cloud.controller, "") as stranger:
        answer = await stranger.post("/v1/tokens/sign-in", json={"user": "ann", "password": PASSWORD})
    assert refusal(answer)[:2] == (401, "unauthenticated"), "only by naming the provider"


async def test_a_provider_that_is_switched_off_keeps_its_users_out_at_once(
    cloud: SimulatedCloud, people: People
) -> None:
    provider = await staff(cloud)
    await gives(cloud, provider, OPERATORS, project_id=await people.project("shop"), role="member")
    token = (await sign_in(cloud)).json()["token"]
    path = f"/v1/identity-providers/{provider['id']}"
    async with client_of(cloud.controller, token) as client:
        assert (await cloud.client.patch(path, json={"enabled": False})).status_code == 200
        assert (await client.get("/v1/networks")).status_code == 401
        assert (await sign_in(cloud)).status_code == 401
        assert (await cloud.client.get("/v1/identity-providers/offered")).json()["items"] == []
        await cloud.client.patch(path, json={"enabled": True})
        assert (await client.get("/v1/networks")).status_code == 200


async def test_a_provider_goes_with_its_users_and_all_that_it_gave(cloud: SimulatedCloud, people: People) -> None:
    shop, provider = await people.project("shop"), await staff(cloud)
    group = await made(cloud.client, "groups", name="night", everywhere=True)
    await gives(cloud, provider, OPERATORS, project_id=shop, role="member")
    await gives(cloud, provider, OPERATORS, group_id=group["id"])
    ann = (await sign_in(cloud)).json()
    path = f"/v1/identity-providers/{provider['id']}"
    planned = (await cloud.client.delete(f"{path}?dry_run=true")).json()
    assert "with 1 users" in planned["summary"]
    assert (await cloud.client.delete(path)).status_code == 204
    assert ann["user_id"] not in cloud.state[USERS]
    assert len(cloud.state[PROVIDER_SECRETS]) == 0
    assert await items(cloud.client, "group-mappings") == []


@pytest.mark.parametrize("what", ["project", "group"])
async def test_a_mapping_goes_with_what_it_gives(cloud: SimulatedCloud, people: People, what: str) -> None:
    admin = await people.person(Role.ADMIN, await people.project("shop"))
    group = await made(admin.client, "groups", name="night")
    provider = await staff(cloud)
    await gives(cloud, provider, OPERATORS, project_id=admin.project_id, role="member")
    await gives(cloud, provider, OPERATORS, group_id=group["id"])
    assert (await sign_in(cloud)).status_code == 201
    if what == "project":
        assert (await cloud.client.delete(f"/v1/projects/{admin.project_id}")).status_code == 204
        assert await items(cloud.client, "group-mappings") == []
    else:
        assert (await cloud.client.delete(f"/v1/groups/{group['id']}")).status_code == 204
        assert len(await items(cloud.client, "group-mappings")) == 1


async def test_a_role_that_a_mapping_gives_is_not_deleted(cloud: SimulatedCloud, people: People) -> None:
    shop, provider = await people.project("shop"), await staff(cloud)
    role = await made(cloud.client, "roles", name="starter", permissions=["instance.start"], everywhere=True)
    mapping = await gives(cloud, provider, OPERATORS, project_id=shop, role=role["id"])
    assert mapping["role_id"] == role["id"]
    assert refusal(await cloud.client.delete(f"/v1/roles/{role['id']}"))[:2] == (409, "conflict")


async def test_what_users_are_known_by_stays_what_it_is(cloud: SimulatedCloud, people: People) -> None:
    provider = await staff(cloud)
    path = f"/v1/identity-providers/{provider['id']}"
    assert (await cloud.client.patch(path, json={"subject_attribute": "uid"})).status_code == 200
    await gives(cloud, provider, OPERATORS, project_id=await people.project("shop"), role="member")
    ann = (await sign_in(cloud)).json()["user_id"]
    refused = await cloud.client.patch(path, json={"subject_attribute": "mail"})
    assert refusal(refused) == (409, "conflict", {"subject_attribute"})
    elsewhere = {"url": "ldaps://other.example.com", "secret": "searching"}
    assert (await cloud.client.patch(path, json=elsewhere)).status_code == 200, "a directory may move"
    assert (await cloud.client.delete(f"/v1/users/{ann}")).status_code == 204
    assert (await cloud.client.patch(path, json={"subject_attribute": "mail"})).status_code == 200


async def test_a_second_factor_is_asked_for_here_too(cloud: SimulatedCloud, people: People) -> None:
    provider = await staff(cloud)
    await gives(cloud, provider, OPERATORS, project_id=await people.project("shop"), role="member")
    session = (await sign_in(cloud)).json()
    from pileus.cloud.identity.totp import code_at, step_at

    path = f"/v1/users/{session['user_id']}"
    async with client_of(cloud.controller, session["token"]) as client:
        secret = (await client.post(f"{path}/enrol-second-factor")).json()["secret"]
        code = code_at(secret, step_at(cloud.now()))
        assert (await client.post(f"{path}/confirm-second-factor", json={"code": code})).status_code == 200
    assert refusal(await sign_in(cloud))[1] == "second-factor-required"
    assert refusal(await sign_in(cloud, password="wrong"))[1] == "unauthenticated"
    later = code_at(secret, step_at(cloud.now()) + 1)
    assert (await sign_in(cloud, code=later)).status_code == 201


async def test_guessing_at_a_directory_ends_as_it_does_here(
    cloud: SimulatedCloud, directory: SimulatedDirectory
) -> None:
    await staff(cloud)
    answers = await asyncio.gather(*(sign_in(cloud, password=f"guess {n}") for n in range(15)))
    assert [answer.status_code for answer in answers].count(401) == 10
    assert len(directory.asked) == 10


async def test_a_name_that_is_written_otherwise_is_guessed_at_no_more_often(cloud: SimulatedCloud) -> None:
    await staff(cloud)
    statuses: list[int] = []
    for place, name in enumerate(("ann", "Ann", "ANN", " ann", "ann ", "aNN", "anN", "AnN", "aNn", "ann  ", "  ann")):
        there = httpx2.ASGITransport(app=cloud.controller.api, client=(f"192.0.2.{place}", 4711))
        async with httpx2.AsyncClient(transport=there, base_url="https://cloud") as stranger:
            wish = {"user": name, "password": "wrong", "provider": "staff"}
            statuses.append((await stranger.post("/v1/tokens/sign-in", json=wish)).status_code)
    assert statuses == [401] * 10 + [429]


async def test_a_directory_that_does_not_answer_is_nobodys_wrong_password(
    cloud: SimulatedCloud, directory: SimulatedDirectory
) -> None:
    provider = await staff(cloud)
    directory.away = True
    assert refusal(await sign_in(cloud))[:2] == (503, "unavailable")
    answer = await cloud.client.post(f"/v1/identity-providers/{provider['id']}/test", json={"user": "ann"})
    assert answer.status_code == 200
    assert answer.json()["good"] is False


async def test_testing_a_provider_says_what_somebody_would_have_and_changes_nothing(
    cloud: SimulatedCloud, people: People
) -> None:
    provider = await staff(cloud, enabled=False)
    await gives(cloud, provider, OPERATORS, project_id=await people.project("shop"), role="member")
    answer = await cloud.client.post(f"/v1/identity-providers/{provider['id']}/test", json={"user": "ann"})
    assert answer.json()["good"] is True
    assert {"about": "gives", "says": f"{OPERATORS}: member of project shop", "good": True} in answer.json()["findings"]
    assert len(cloud.state[USERS].by("provider", provider["id"])) == 0
