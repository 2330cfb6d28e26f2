"""Who asks, and what they may do."""

from enum import StrEnum

import msgspec

from pileus.kernel.ids import ProjectId, TokenId, UserId


class Role(StrEnum):
    """What a user may do in a project; each may do what those before it may."""

    READER = "reader"
    MEMBER = "member"
    ADMIN = "admin"
    PLATFORM = "platform"
    """Not a role in a project: an administrator of the whole cloud, in every project."""


_ORDER = {role: place for place, role in enumerate(Role)}


def allows(role: Role, least: Role) -> bool:
    """Whether a role may do what takes at least this one."""
    return _ORDER[role] >= _ORDER[least]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The user behind a request, in one project."""

    user_id: UserId
    user_name: str
    project_id: ProjectId
    role: Role
    token_id: TokenId | None = None
    source: str = ""
    """The address that the request came from."""
    request: str = ""
    """The id of the request."""

    @property
    def actor(self) -> str:
        """As events name it."""
        return f"user:{self.user_id}"

    @property
    def is_platform(self) -> bool:
        return self.role is Role.PLATFORM
