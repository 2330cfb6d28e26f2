"""Signing in by a directory that is one: OpenLDAP."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from slapd import ADMIN, BASE, MISSING, SEARCHER, Slapd, authority, slapd

from pileus.cloud.identityproviders.fields import DEFAULTS
from pileus.cloud.identityproviders.model import IdentityProvider, ProviderKind
from pileus.federation.ldap.binding import load
from pileus.federation.ldap.directory import LdapDirectory
from pileus.kernel.errors import SignInRefused, Unavailable
from pileus.testing.cloud import client_of, simulated_cloud
from pileus.testing.contracts.directory import ANN, OPERATORS, SECRET, DirectoryContract
from pileus.testing.memorystore import MemoryStore
from pileus.testing.requests import items, made

pytestmark = [pytest.mark.lab, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Slapd]:
    async with slapd(tmp_path / "slapd") as server:
        yield server


@pytest.fixture
def directory() -> LdapDirectory:
    return LdapDirectory()


@pytest.fixture
def provider(server: Slapd) -> IdentityProvider:
    return IdentityProvider(
        id="one",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        name="staff",
        kind=ProviderKind.LDAP,
        url=server.encrypted,
        authority=server.authority,
        bind_dn=SEARCHER,
        base_dn=BASE,
        **DEFAULTS[ProviderKind.LDAP],
    )


class TestOpenLdap(DirectoryContract):
    @pytest.fixture
    def forget(self, server: Slapd) -> Callable[[], Awaitable[None]]:
        async def forget() -> None:
            connection = cast("Any", load().initialize(server.plain))  # what only this test calls is not typed
            connection.simple_bind_s(ADMIN, SECRET)
            connection.delete_s(f"uid=bob,ou=people,{BASE}")
            connection.unbind_ext_s()

        return forget


async def test_groups_are_found_by_a_search_too(directory: LdapDirectory, provider: IdentityProvider) -> None:
    searched = msgspec.structs.replace(provider, groups_attribute="", group_base_dn=f"ou=groups,{BASE}")
    ann = await directory.authenticate(searched, SECRET, "ann", ANN)
    assert [searched.group(name) for name in ann.groups] == [OPERATORS]
    bob = await directory.authenticate(searched, SECRET, "bob", "staple")
    assert bob.groups == ()


async def test_start_tls_and_nothing_encrypted_on_this_machine_work_as_well(
    directory: LdapDirectory, provider: IdentityProvider, server: Slapd
) -> None:
    for url, start_tls in ((server.plain, True), (server.plain, False)):
        other = msgspec.structs.replace(provider, url=url, start_tls=start_tls)
        assert (await directory.authenticate(other, SECRET, "ann", ANN)).name == "ann"


async def test_who_cannot_prove_to_be_the_directory_is_not_told_a_password(
    directory: LdapDirectory, provider: IdentityProvider, server: Slapd
) -> None:
    stranger, _, _ = authority()
    for what in (
        {"authority": stranger},
        {"authority": ""},
        {"url": server.by_address},
        {"url": server.plain, "start_tls": True, "authority": stranger},
    ):
        other = msgspec.structs.replace(provider, **what)
        with pytest.raises(Unavailable):
            await directory.authenticate(other, SECRET, "ann", ANN)
        found, _ = await directory.examine(other, SECRET)
        assert [each.good for each in found] == [False]
        assert "certificate" in found[0].says or other.start_tls


async def test_a_name_that_two_people_have_is_nobodys(directory: LdapDirectory, provider: IdentityProvider) -> None:
    with pytest.raises(SignInRefused) as refused:
        await directory.authenticate(provider, SECRET, "twin", "staple")
    assert "nobody of this name, or several" in refused.value.why


async def test_a_directory_that_is_not_there_is_unavailable(
    directory: LdapDirectory, provider: IdentityProvider
) -> None:
    nowhere = msgspec.structs.replace(provider, url="ldaps://127.0.0.1:1")
    with pytest.raises(Unavailable):
        await directory.authenticate(nowhere, SECRET, "ann", ANN)
    wrong = msgspec.structs.replace(provider, base_dn="dc=nowhere")
    with pytest.raises(Unavailable):
        await directory.find(wrong, SECRET, "1")


async def test_a_whole_cloud_lets_people_in_by_their_directory(tmp_path: Path, server: Slapd) -> None:
    async with simulated_cloud(tmp_path / "cloud", store=MemoryStore(), hosts=0, directory=LdapDirectory()) as cloud:
        provider = await made(
            cloud.client,
            "identity-providers",
            name="staff",
            kind="ldap",
            url=server.encrypted,
            authority=server.authority,
            bind_dn=SEARCHER,
            base_dn=BASE,
            secret=SECRET,
            makes_users=True,
        )
        project = (await items(cloud.client, "projects"))[0]["id"]
        await made(
            cloud.client,
            "group-mappings",
            provider_id=provider["id"],
            external_group=OPERATORS,
            project_id=project,
            role="member",
        )
        tested = await cloud.client.post(f"/v1/identity-providers/{provider['id']}/test", json={"user": "ann"})
        assert tested.json()["good"] is True, tested.text
        assert "member of project" in tested.text
        async with client_of(cloud.controller, "") as stranger:
            wish = {"user": "ann", "password": ANN, "provider": "staff"}
            session = await stranger.post("/v1/tokens/sign-in", json=wish)
            assert (session.status_code, session.json()["role"]) == (201, "member")
            refused = await stranger.post("/v1/tokens/sign-in", json={**wish, "password": "wrong"})
            assert refused.status_code == 401
        (entry,) = await items(cloud.client, "events/audit?result=refused&all_projects=true&limit=1")
        assert "refuses uid=ann,ou=people,dc=example,dc=com: Invalid credentials" in entry["why"]
