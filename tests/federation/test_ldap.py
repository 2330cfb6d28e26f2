"""What is said to a directory and made of its answers; without one."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.cloud.identityproviders.fields import DEFAULTS
from pileus.cloud.identityproviders.model import IdentityProvider, ProviderKind
from pileus.federation.ldap.binding import load
from pileus.federation.ldap.directory import LdapDirectory
from pileus.federation.ldap.words import by_name, by_subject, escaped, person
from pileus.kernel.errors import SignInRefused, Unavailable

OPENLDAP = IdentityProvider(
    id="one",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    name="staff",
    kind=ProviderKind.LDAP,
    url="ldap://127.0.0.1:1",
    base_dn="dc=example,dc=com",
    **DEFAULTS[ProviderKind.LDAP],
)
GUID = UUID("12345678-1234-5678-1234-567812345678")


def active_directory() -> IdentityProvider:
    return msgspec.structs.replace(OPENLDAP, name_attribute="sAMAccountName", subject_attribute="objectGUID")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("ann", "ann"),
        ("a*", r"a\2a"),
        ("ann)(uid=*", r"ann\29\28uid=\2a"),
        ("back\\slash", r"back\5cslash"),
        ("nothing\0after", r"nothing\00after"),
        ("Lučić", r"Lu\c4\8di\c4\87"),
    ],
)
def test_a_value_in_a_filter_is_written_as_the_rfc_has_it(value: str, said: str) -> None:
    assert escaped(value.encode()) == said


@given(st.text())
def test_no_name_says_more_than_itself(name: str) -> None:
    filter = by_name(OPENLDAP, name.encode(errors="ignore").decode())
    rest = filter.removeprefix("(&(objectClass=person)(uid=").removesuffix("))")
    assert not set(rest) & set("()*\0")


def test_active_directorys_ids_are_asked_for_as_bytes_and_shown_as_text() -> None:
    provider = active_directory()
    attributes = {"sAMAccountName": [b"ann"], "objectguid": [GUID.bytes_le], "userAccountControl": [b"512"]}
    ann = person(provider, attributes)
    assert ann is not None
    assert ann.subject == str(GUID)
    assert by_subject(provider, ann.subject).endswith(f"(objectGUID={escaped(GUID.bytes_le)}))")


@pytest.mark.parametrize(("flags", "enabled"), [(b"512", True), (b"514", False), (b"66050", False), (b"", True)])
def test_an_account_that_active_directory_has_disabled_is_known_as_that(flags: bytes, *, enabled: bool) -> None:
    attributes = {"sAMAccountName": [b"ann"], "objectGUID": [GUID.bytes_le], "userAccountControl": [flags]}
    ann = person(active_directory(), attributes)
    assert ann is not None
    assert ann.enabled is enabled


@pytest.mark.parametrize("attributes", [{}, {"uid": [b"ann"]}, {"uid": [b"ann"], "entryUUID": [b"1", b"2"]}])
def test_who_could_not_be_known_again_is_nobody(attributes: dict[str, list[bytes]]) -> None:
    assert person(OPENLDAP, attributes) is None


async def test_an_empty_password_is_refused_before_anybody_is_asked() -> None:
    def never() -> None:
        raise AssertionError("asked")

    with pytest.raises(SignInRefused):
        await LdapDirectory(never).authenticate(OPENLDAP, "", "ann", "")  # pyright: ignore[reportArgumentType]


async def test_without_python_ldap_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ldap"]:
        monkeypatch.delitem(sys.modules, name)
    directory = LdapDirectory(lambda: load(tmp_path))
    with pytest.raises(Unavailable, match="python3-ldap"):
        await directory.authenticate(OPENLDAP, "", "ann", "secret")
    findings, nobody = await directory.examine(OPENLDAP, "")
    assert [(each.about, each.good) for each in findings] == [("library", False)]
    assert "python3-ldap" in findings[0].says
    assert nobody is None
