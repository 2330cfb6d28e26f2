"""Users, what they may do in which project, and the tokens that speak for them. No I/O."""

from datetime import datetime

from pileus.kernel.ids import ProjectId, TokenId, UserId
from pileus.operations.caller import Role
from pileus.state.kinds import Kind
from pileus.state.records import Record


class User(Record, frozen=True, kw_only=True):
    """A person, or a program that acts like one."""

    name: str
    is_platform: bool = False
    """Whether they administer the whole cloud."""
    enabled: bool = True


class Password(Record, frozen=True, kw_only=True):
    """A user's password, under the user's id. Nobody is ever shown it."""

    hash: str
    """Argon2id, in PHC string format."""


class Grant(Record, frozen=True, kw_only=True):
    """A role that a user has in a project."""

    project_id: ProjectId
    user_id: UserId
    role: Role


class Token(Record, frozen=True, kw_only=True):
    """What a client shows instead of a password; it acts for one user in one project."""

    project_id: ProjectId
    user_id: UserId
    name: str
    expires_at: datetime | None = None


class TokenSecret(Record, frozen=True, kw_only=True):
    """What a token is known by, under the token's id."""

    token_id: TokenId
    hash: str
    """SHA-256 of the token: its 256 random bits leave nothing to guess, so that no slower hash is needed."""


USERS = Kind("user", User, unique={"name": lambda user: user.name})
PASSWORDS = Kind("password", Password, keeps_before=False, secret=True)
GRANTS = Kind(
    "grant",
    Grant,
    indexes={"project": lambda grant: grant.project_id, "user": lambda grant: grant.user_id},
    unique={"user and project": lambda grant: (grant.user_id, grant.project_id)},
)
TOKENS = Kind("token", Token, indexes={"user": lambda token: token.user_id, "project": lambda token: token.project_id})
TOKEN_SECRETS = Kind(
    "token_secret", TokenSecret, unique={"hash": lambda secret: secret.hash}, keeps_before=False, secret=True
)
