"""Users and groups of them, what they may do in which project, and the tokens that speak for them. No I/O."""

from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from pileus.kernel.ids import GroupId, GroupMappingId, IdentityProviderId, ProjectId, RoleId, TokenId, UserId
from pileus.operations.caller import Role
from pileus.state.kinds import Kind
from pileus.state.records import Record

POLICY_ID = "policy"
USER_NAME = r"^[a-z0-9][a-z0-9._@-]{0,62}$"


class User(Record, frozen=True, kw_only=True):
    """A person, or a program that acts like one."""

    name: str
    is_platform: bool = False
    """Whether they administer the whole cloud."""
    enabled: bool = True
    project_id: ProjectId = ProjectId("")
    """Of a sub-account: the project that it belongs to and never leaves. Its names are the project's own."""
    second_factor: bool = False
    """Whether signing in takes a code, too."""
    provider_id: IdentityProviderId | None = None
    """Who says who they are; None for a local user, who has a password here."""
    subject: str = ""
    """What the provider knows them by for good; empty until they have signed in for the first time."""
    barred: bool = False
    """Whether the provider knows them no longer, or has disabled them."""
    display_name: str = ""
    mail: str = ""


class ProvidedMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member of a group for as long as their identity provider says so."""

    user_id: UserId
    mapping_id: GroupMappingId
    """By which of our mappings."""


class Group(Record, frozen=True, kw_only=True):
    """Some users, to be given roles and shown things together."""

    name: str
    description: str = ""
    project_id: ProjectId = ProjectId("")
    """The project that it belongs to; empty for one of the whole cloud."""
    user_ids: tuple[UserId, ...] = ()
    """Who was put into it by hand."""
    provided: tuple[ProvidedMember, ...] = ()

    @property
    def member_ids(self) -> tuple[UserId, ...]:
        """Everybody who is in it, each once."""
        return tuple(dict.fromkeys((*self.user_ids, *self.provided_user_ids)))

    @property
    def provided_user_ids(self) -> tuple[UserId, ...]:
        return tuple(each.user_id for each in self.provided)

    @property
    def provided_mapping_ids(self) -> tuple[GroupMappingId, ...]:
        return tuple(each.mapping_id for each in self.provided)


class CustomRole(Record, frozen=True, kw_only=True):
    """A set of permissions under a name, beside the built-in roles."""

    name: str
    description: str = ""
    project_id: ProjectId = ProjectId("")
    """The project in which it can be granted; empty for one of the whole cloud."""
    permissions: tuple[str, ...]
    """Operations by id, or patterns over them: `instance.start`, `instance.*`, `*.list`."""


class Password(Record, frozen=True, kw_only=True):
    """A user's password, under the user's id. Nobody is ever shown it."""

    hash: str
    """Argon2id, in PHC string format."""


class Grant(Record, frozen=True, kw_only=True):
    """A role that a user has in a project, or every member of a group."""

    project_id: ProjectId
    user_id: UserId | None = None
    group_id: GroupId | None = None
    role: Role | None = None
    """A built-in role,"""
    role_id: RoleId | None = None
    """or a custom one."""
    mapping_id: GroupMappingId | None = None
    """The mapping by which an identity provider gives it; None if somebody granted it."""

    @property
    def holder(self) -> str:
        """The id of the user or the group."""
        return self.user_id or self.group_id or ""


class SecondFactor(Record, frozen=True, kw_only=True):
    """What a user's codes are computed from, under the user's id. Nobody is shown it once it is confirmed."""

    sealed_secret: str
    confirmed: bool = False
    last_step: int = 0
    """The step of the last code that was used: those up to it are used up."""
    recovery_hashes: tuple[str, ...] = ()


class SecondFactorPolicy(StrEnum):
    """Who must have a second factor."""

    OPTIONAL = "optional"
    ADMINISTRATORS = "administrators"
    EVERYBODY = "everybody"


class Policy(Record, frozen=True, kw_only=True):
    """What the cloud demands of people. There is one at most."""

    second_factor: SecondFactorPolicy


class Token(Record, frozen=True, kw_only=True):
    """What a client shows instead of a password; it acts for one user in one project."""

    project_id: ProjectId
    user_id: UserId
    name: str
    expires_at: datetime | None = None
    permissions: tuple[str, ...] | None = None
    """Its scope: the only operations that it may do, by id or pattern; None is all that its user may."""
    confined: bool = False
    """Whether it stays in its project as one of that project's users, although its user administers the cloud."""
    sources: tuple[str, ...] = ()
    """The networks (CIDR) that it is good from; anywhere if there are none."""
    second_factor: bool = False
    """Whether who made it had shown a second factor."""
    last_used_at: datetime | None = None
    """To within ten minutes; None if never."""

    @property
    def is_limited(self) -> bool:
        """Whether it can do less than its user."""
        return self.permissions is not None or self.confined or bool(self.sources)


class TokenSecret(Record, frozen=True, kw_only=True):
    """What a token is known by, under the token's id."""

    token_id: TokenId
    hash: str
    """SHA-256 of the token: its 256 random bits leave nothing to guess, so that no slower hash is needed."""


def _user_2(user: dict[str, Any]) -> dict[str, Any]:
    """Since version 2 users can belong to a project, have a second factor, and be those of an identity provider."""
    return {
        **user,
        "project_id": "",
        "second_factor": False,
        "provider_id": None,
        "subject": "",
        "barred": False,
        "display_name": "",
        "mail": "",
    }


def _grant_2(grant: dict[str, Any]) -> dict[str, Any]:
    """Since version 2 groups have roles too, roles can be custom ones, and identity providers give them."""
    return {**grant, "group_id": None, "role_id": None, "mapping_id": None}


def _token_2(token: dict[str, Any]) -> dict[str, Any]:
    """Since version 2 tokens can have a scope, and tell when they were used."""
    return {
        **token,
        "permissions": None,
        "confined": False,
        "sources": [],
        "second_factor": False,
        "last_used_at": None,
    }


USERS = Kind(
    "user",
    User,
    indexes={"project": lambda user: user.project_id or None, "provider": lambda user: user.provider_id},
    unique={
        "name": lambda user: (user.project_id, user.name),
        "subject": lambda user: (user.provider_id, user.subject) if user.subject else None,
        "awaited": lambda user: (user.provider_id, user.name) if user.provider_id and not user.subject else None,
    },
    counts=lambda user: {"users": 1} if user.project_id and user.provider_id is None else {},
    upgrades=(_user_2,),
)
GROUPS = Kind(
    "group",
    Group,
    indexes={"project": lambda group: group.project_id or None},
    many={"user": lambda group: group.member_ids, "mapping": lambda group: set(group.provided_mapping_ids)},
    unique={"name": lambda group: (group.project_id, group.name)},
    counts=lambda group: {"groups": 1} if group.project_id else {},
)
ROLES = Kind(
    "role",
    CustomRole,
    indexes={"project": lambda role: role.project_id or None},
    unique={"name": lambda role: (role.project_id, role.name)},
    counts=lambda role: {"roles": 1} if role.project_id else {},
)
PASSWORDS = Kind("password", Password, keeps_before=False, secret=True)
SECOND_FACTORS = Kind("second_factor", SecondFactor, keeps_before=False, secret=True)
POLICIES = Kind("policy", Policy)
GRANTS = Kind(
    "grant",
    Grant,
    indexes={
        "project": lambda grant: grant.project_id,
        "user": lambda grant: grant.user_id,
        "group": lambda grant: grant.group_id,
        "role": lambda grant: grant.role_id,
        "mapping": lambda grant: grant.mapping_id,
        "place": lambda grant: (grant.holder, grant.project_id),
    },
    unique={"grant": lambda grant: (grant.holder, grant.project_id, grant.role_id, grant.mapping_id)},
    counts=lambda grant: {"grants": 1} if grant.mapping_id is None else {},
    upgrades=(_grant_2,),
)
TOKENS = Kind(
    "token",
    Token,
    indexes={"user": lambda token: token.user_id, "project": lambda token: token.project_id},
    counts=lambda _: {"tokens": 1},
    upgrades=(_token_2,),
)
TOKEN_SECRETS = Kind(
    "token_secret", TokenSecret, unique={"hash": lambda secret: secret.hash}, keeps_before=False, secret=True
)
