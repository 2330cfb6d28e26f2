"""Who asks, and what they may do."""

from collections.abc import Iterable
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


def allows(role: Role | None, least: Role) -> bool:
    """Whether a role may do what takes at least this one."""
    return role is not None and _ORDER[role] >= _ORDER[least]


def highest(roles: Iterable[Role]) -> Role | None:
    """The one among these roles that may do most; None if there is none."""
    return max(roles, key=_ORDER.__getitem__, default=None)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The user behind a request, in one project."""

    user_id: UserId
    user_name: str
    project_id: ProjectId
    role: Role | None
    """The highest built-in role that they have in the project; None if only custom ones."""
    permissions: frozenset[str] = frozenset()
    """The operations that they may do, by id: what their roles give, as far as their token lets them."""
    held_back_by: str = ""
    """Why they may do less than their roles say; empty if they may do all of it."""
    limited: bool = False
    """Whether their token has a scope: it must not be a way to one without."""
    token_id: TokenId | None = None
    source: str = ""
    """The address that the request came from."""
    request: str = ""
    """The id of the request."""

    @property
    def actor(self) -> str:
        """As events name it."""
        return f"user:{self.user_id}"

    def may(self, operation: str) -> bool:
        """Whether they may do the operation of this id."""
        return operation in self.permissions

    @property
    def is_platform(self) -> bool:
        return self.role is Role.PLATFORM
