"""Users and groups of them, what they may do in which project, and the tokens that speak for them. No I/O."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pileus.kernel.ids import GroupId, ProjectId, RoleId, TokenId, UserId
from pileus.operations.caller import Role
from pileus.state.kinds import Kind
from pileus.state.records import Record

POLICY_ID = "policy"


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


class Group(Record, frozen=True, kw_only=True):
    """Some users, to be given roles and shown things together."""

    name: str
    description: str = ""
    project_id: ProjectId = ProjectId("")
    """The project that it belongs to; empty for one of the whole cloud."""
    user_ids: tuple[UserId, ...] = ()


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
    """Since version 2 users can belong to a project and have a second factor."""
    return {**user, "project_id": "", "second_factor": False}


def _grant_2(grant: dict[str, Any]) -> dict[str, Any]:
    """Since version 2 groups have roles too, and roles can be custom ones."""
    return {**grant, "group_id": None, "role_id": None}


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
    indexes={"project": lambda user: user.project_id or None},
    unique={"name": lambda user: (user.project_id, user.name)},
    counts=lambda user: {"users": 1} if user.project_id else {},
    upgrades=(_user_2,),
)
GROUPS = Kind(
    "group",
    Group,
    indexes={"project": lambda group: group.project_id or None},
    many={"user": lambda group: group.user_ids},
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
        "place": lambda grant: (grant.holder, grant.project_id),
    },
    unique={"grant": lambda grant: (grant.holder, grant.project_id, grant.role_id)},
    counts=lambda _: {"grants": 1},
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
