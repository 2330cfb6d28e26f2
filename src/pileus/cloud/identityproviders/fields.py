"""What may be said of an identity provider, by its kind. Pure."""

import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from cryptography import x509

from pileus.cloud.identityproviders.model import IdentityProvider, ProviderKind
from pileus.kernel.errors import Invalid

DEFAULTS: Mapping[ProviderKind, Mapping[str, Any]] = {
    ProviderKind.LDAP: {
        "name_attribute": "uid",
        "display_name_attribute": "cn",
        "mail_attribute": "mail",
        "groups_attribute": "memberOf",
        "subject_attribute": "entryUUID",
        "user_filter": "(objectClass=person)",
        "group_member_attribute": "member",
    },
    ProviderKind.OIDC: {
        "name_attribute": "preferred_username",
        "display_name_attribute": "name",
        "mail_attribute": "email",
        "groups_attribute": "groups",
        "subject_attribute": "sub",
        "scopes": ("openid", "profile", "email"),
    },
}
"""What a kind begins with; for OpenLDAP and for OpenID Connect as their standards have it."""

_OF_LDAP = ("start_tls", "bind_dn", "base_dn", "user_filter", "group_base_dn", "group_member_attribute")
_OF_OIDC = ("client", "scopes")
_ATTRIBUTE = re.compile(r"[a-zA-Z][a-zA-Z0-9;-]{0,62}")
_MATCHED_ATTRIBUTE = re.compile(_ATTRIBUTE.pattern + r"(:[0-9.]{1,64}:)?")
"""With a matching rule, as Active Directory has one for groups within groups (RFC 4515, section 3)."""
_CLAIM = re.compile(r"[\x21-\x7e]{1,255}")


def checked(provider: IdentityProvider) -> IdentityProvider:
    """The provider, if it can be one.

    Raises:
        Invalid: with every wrong field.
    """
    wrong = dict(_wrong(provider))
    if wrong:
        raise Invalid("some fields are wrong", fields=wrong)
    return provider


def _wrong(provider: IdentityProvider) -> Iterator[tuple[str, str]]:
    ldap = provider.kind is ProviderKind.LDAP
    others = _OF_OIDC if ldap else _OF_LDAP
    yield from ((name, f"not for {provider.kind}") for name in others if getattr(provider, name))
    yield from _wrong_authority(provider.authority)
    try:
        parts = urlsplit(provider.url)
        _ = parts.port
    except ValueError as error:
        yield "url", str(error)
        return
    yield from (_wrong_in_ldap if ldap else _wrong_in_oidc)(provider, parts)


def _wrong_authority(pem: str) -> Iterator[tuple[str, str]]:
    if pem:
        try:
            x509.load_pem_x509_certificates(pem.encode())
        except ValueError:
            yield "authority", "holds no certificate in PEM"


def _wrong_in_ldap(provider: IdentityProvider, parts: SplitResult) -> Iterator[tuple[str, str]]:
    if parts.scheme not in ("ldap", "ldaps") or not parts.hostname or parts.path.strip("/") or parts.query:
        yield "url", "must be ldaps://HOST or ldap://HOST, and a port if it is another than usual"
    elif parts.scheme == "ldaps" and provider.start_tls:
        yield "start_tls", "ldaps:// is encrypted from its beginning"
    elif parts.scheme == "ldap" and not provider.start_tls and not is_loopback(parts.hostname):
        yield "url", "passwords would go over the network for all to read: ldaps://, or start_tls"
    if not provider.base_dn:
        yield "base_dn", "is missing: where in the directory people are"
    if not (provider.user_filter.startswith("(") and provider.user_filter.endswith(")")):
        yield "user_filter", "must be a filter in parentheses (RFC 4515)"
    for name in ("name_attribute", "display_name_attribute", "mail_attribute", "subject_attribute"):
        if not _ATTRIBUTE.fullmatch(getattr(provider, name)):
            yield name, "is no name of an attribute"
    if provider.groups_attribute and not _ATTRIBUTE.fullmatch(provider.groups_attribute):
        yield "groups_attribute", "is no name of an attribute"
    if not _MATCHED_ATTRIBUTE.fullmatch(provider.group_member_attribute):
        yield "group_member_attribute", "is no name of an attribute"


def _wrong_in_oidc(provider: IdentityProvider, parts: SplitResult) -> Iterator[tuple[str, str]]:
    encrypted = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if not encrypted or not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        yield "url", "must be the issuer, as https://HOST/... and exactly as the provider writes it"
    if not provider.client:
        yield "client", "is missing: what the provider calls this cloud (client_id)"
    if "openid" not in provider.scopes:
        yield "scopes", "must hold openid"
    if provider.subject_attribute != "sub":
        yield "subject_attribute", "is always sub: nothing else is somebody's for good"
    for name in ("name_attribute", "display_name_attribute", "mail_attribute", "groups_attribute"):
        if not _CLAIM.fullmatch(getattr(provider, name)):
            yield name, "is no name of a claim"


def is_loopback(host: str) -> bool:
    """Whether what is sent there stays on this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
