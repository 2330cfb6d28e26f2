"""What may be said of identity providers and of what their groups give, and by whom."""

from typing import Any

import pytest

from pileus.cloud.identityproviders.model import PROVIDER_SECRETS
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud, client_of
from pileus.testing.people import People
from pileus.testing.requests import made, refusal

OPERATORS = "cn=operators,ou=groups,dc=example,dc=com"
LDAP = {"kind": "ldap", "url": "ldaps://directory.example.com", "base_dn": "dc=example,dc=com"}


async def staff(cloud: SimulatedCloud, **more: Any) -> dict[str, Any]:
    """A directory."""
    return await made(cloud.client, "identity-providers", **{"name": "staff", "secret": "searching", **LDAP, **more})


async def test_the_secret_is_sealed_and_shown_to_nobody(cloud: SimulatedCloud) -> None:
    provider = await staff(cloud)
    assert "searching" not in str(cloud.state[PROVIDER_SECRETS].get(provider["id"]))
    for path in (
        f"identity-providers/{provider['id']}",
        "identity-providers",
        "events?all_projects=true&limit=1000",
        "events/audit?all_projects=true",
    ):
        assert "searching" not in (await cloud.client.get(f"/v1/{path}")).text


@pytest.mark.parametrize(
    "elsewhere", [{"url": "ldaps://thief.example.com"}, {"url": "ldap://directory.example.com", "start_tls": True}]
)
async def test_a_secret_is_not_sent_elsewhere_by_who_does_not_know_it(
    cloud: SimulatedCloud, elsewhere: dict[str, Any]
) -> None:
    path = f"/v1/identity-providers/{(await staff(cloud))['id']}"
    assert refusal(await cloud.client.patch(path, json=elsewhere)) == (400, "invalid", {"secret"})
    assert (await cloud.client.patch(path, json={**elsewhere, "secret": "searching"})).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "fields"),
    [
        ({"url": "ldap://directory.example.com"}, {"url"}),
        ({"url": "ldap://10.0.0.1"}, {"url"}),
        ({"url": "http://directory.example.com"}, {"url"}),
        ({"url": "ldaps://directory.example.com/dc=example??sub"}, {"url"}),
        ({"url": "ldaps://[directory"}, {"url"}),
        ({"start_tls": True}, {"start_tls"}),
        (
            {"base_dn": "", "user_filter": "uid=*", "name_attribute": "uid=*)(x"},
            {"base_dn", "user_filter", "name_attribute"},
        ),
        ({"authority": "not a certificate"}, {"authority"}),
        ({"client": "pileus", "scopes": ["openid"]}, {"client", "scopes"}),
        ({"group_member_attribute": "member)(x=*"}, {"group_member_attribute"}),
        ({"bind_dn": "cn=searcher,dc=example,dc=com"}, {"secret"}),
        ({"kind": "oidc", "url": "http://idp.example.com", "base_dn": "x"}, {"base_dn", "client", "url"}),
        ({"kind": "oidc", "base_dn": None, "client": "x", "subject_attribute": "email"}, {"subject_attribute", "url"}),
    ],
)
async def test_every_wrong_field_of_a_provider_is_named(
    cloud: SimulatedCloud, wrong: dict[str, Any], fields: set[str]
) -> None:
    answer = await cloud.client.post("/v1/identity-providers", json={"name": "staff", **LDAP, **wrong})
    assert refusal(answer) == (400, "invalid", fields)


@pytest.mark.parametrize("url", ["ldap://127.0.0.1:389", "ldap://localhost", "ldap://[::1]:1389"])
async def test_passwords_go_unencrypted_to_this_machine_only(cloud: SimulatedCloud, url: str) -> None:
    assert (await staff(cloud, url=url))["url"] == url


async def test_only_administrators_of_the_cloud_see_to_providers_and_not_by_a_token_with_a_scope(
    cloud: SimulatedCloud, people: People
) -> None:
    admin = await people.person(Role.ADMIN, await people.project("shop"))
    provider = await staff(cloud)
    for path in ("identity-providers", f"identity-providers/{provider['id']}", "group-mappings"):
        assert (await admin.client.get(f"/v1/{path}")).status_code == 403
    boss = await people.person(Role.PLATFORM, admin.project_id)
    token = (await made(boss.client, "tokens", name="job", permissions=["*.*"]))["token"]
    async with client_of(cloud.controller, token) as client:
        for method, path, wish in (
            ("POST", "identity-providers", {"name": "mine", **LDAP}),
            ("PATCH", f"identity-providers/{provider['id']}", {"makes_users": True}),
            (
                "POST",
                "group-mappings",
                {"provider_id": provider["id"], "external_group": "x", "project_id": admin.project_id, "role": "admin"},
            ),
            ("POST", "users", {"name": "me", "provider_id": provider["id"]}),
        ):
            assert refusal(await client.request(method, f"/v1/{path}", json=wish))[:2] == (403, "forbidden")


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({}, 400),
        ({"role": "member"}, 400),
        ({"group_id": "GROUP", "role": "member"}, 400),
        ({"project_id": "PROJECT", "role": "platform"}, 409),
        ({"project_id": "PROJECT", "role": "nonsense"}, 404),
    ],
)
async def test_a_mapping_gives_a_role_or_a_membership(
    cloud: SimulatedCloud, people: People, wish: dict[str, str], status: int
) -> None:
    provider = await staff(cloud)
    ids = {
        "GROUP": (await made(cloud.client, "groups", name="night"))["id"],
        "PROJECT": await people.project("shop"),
    }
    body = {name: ids.get(value, value) for name, value in wish.items()}
    body |= {"provider_id": provider["id"], "external_group": OPERATORS}
    assert (await cloud.client.post("/v1/group-mappings", json=body)).status_code == status
