"""Directories and OpenID providers that vouch for people, and what their groups give here. No I/O."""

import re
from enum import StrEnum

from pileus.kernel.ids import GroupId, IdentityProviderId, ProjectId, RoleId
from pileus.operations.caller import Role
from pileus.state.kinds import Kind
from pileus.state.records import Record

_AFTER_A_COMMA = re.compile(r"(?<!\\),\s+")


class ProviderKind(StrEnum):
    """How a provider is asked."""

    LDAP = "ldap"
    """By name and password: a directory such as OpenLDAP or Active Directory."""
    OIDC = "oidc"
    """In a browser: an OpenID provider such as Keycloak."""


class IdentityProvider(Record, frozen=True, kw_only=True):
    """Somebody else who says who people are. What it needs as a secret is a record of its own."""

    name: str
    kind: ProviderKind
    enabled: bool = True
    """While it is not, none of its users is let in, and their tokens are good for nothing."""
    url: str
    """Of the directory (`ldaps://...`), or the issuer."""
    authority: str = ""
    """Certificates of the authorities that may vouch for it, as PEM; empty trusts those that the machine trusts."""
    makes_users: bool = False
    """Whether somebody who is not known here yet becomes a user by signing in."""
    users_project_id: ProjectId = ProjectId("")
    """The project that users whom it makes belong to, as sub-accounts; empty makes them users of the whole cloud."""
    name_attribute: str
    display_name_attribute: str
    mail_attribute: str
    groups_attribute: str
    """Of a person: the groups that they are in. Empty, if the directory is searched for those."""
    subject_attribute: str
    """What is somebody's for good, whatever they are called by and by."""
    start_tls: bool = False
    bind_dn: str = ""
    """As whom the directory is searched; empty asks without a name."""
    base_dn: str = ""
    user_filter: str = ""
    group_base_dn: str = ""
    group_member_attribute: str = ""
    client: str = ""
    """What the provider calls this cloud (`client_id`)."""
    scopes: tuple[str, ...] = ()
    turned_away: tuple[str, ...] = ()
    """Subjects of users who were deleted here: they are not made again by signing in."""

    def group(self, name: str) -> str:
        """A group's name in the form in which two can be compared: a directory does not tell upper from lower case."""
        return _AFTER_A_COMMA.sub(",", name).lower() if self.kind is ProviderKind.LDAP else name


class ProviderSecret(Record, frozen=True, kw_only=True):
    """What a provider knows this cloud by, under the provider's id. Nobody is ever shown it."""

    sealed: str


class GroupMapping(Record, frozen=True, kw_only=True):
    """What being in a group of a provider gives here: a role in a project, or membership of a group."""

    provider_id: IdentityProviderId
    external_group: str
    """As the provider calls it: a directory's by its distinguished name."""
    group_id: GroupId | None = None
    project_id: ProjectId = ProjectId("")
    role: Role | None = None
    role_id: RoleId | None = None


IDENTITY_PROVIDERS = Kind(
    "identity_provider",
    IdentityProvider,
    indexes={"kind": lambda provider: provider.kind, "project": lambda provider: provider.users_project_id or None},
    unique={"name": lambda provider: provider.name},
)
PROVIDER_SECRETS = Kind("provider_secret", ProviderSecret, keeps_before=False, secret=True)
GROUP_MAPPINGS = Kind(
    "group_mapping",
    GroupMapping,
    indexes={
        "provider": lambda mapping: mapping.provider_id,
        "group": lambda mapping: mapping.group_id,
        "project": lambda mapping: mapping.project_id or None,
        "role": lambda mapping: mapping.role_id,
    },
    unique={
        "mapping": lambda mapping: (
            mapping.provider_id,
            mapping.external_group,
            mapping.group_id,
            mapping.project_id,
            mapping.role,
            mapping.role_id,
        )
    },
)
