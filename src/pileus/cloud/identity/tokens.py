"""Tokens: how one is made, and how the caller behind one is found."""

import secrets
from datetime import datetime
from hashlib import sha256

from pileus.cloud.identity.model import GRANTS, TOKEN_SECRETS, TOKENS, USERS, Token
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.clock import Clock
from pileus.kernel.errors import NotFound, Unauthenticated
from pileus.kernel.ids import ProjectId, TokenId, UserId
from pileus.operations.caller import Caller, Role
from pileus.state.state import State

_PREFIX = "pileus_"
"""So that people and scanners of leaked secrets know one when they see it."""


def new_token() -> str:
    """256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def role_in(state: State, user: UserId, project: ProjectId) -> Role | None:
    """What a user is in a project; None if nothing."""
    found = state[USERS].find(user)
    if found is None or not found.enabled:
        return None
    if found.is_platform:
        return Role.PLATFORM
    grant = state[GRANTS].one("user and project", (user, project))
    return grant.role if grant is not None else None


def still_good(state: State, caller: Caller, now: datetime) -> bool:
    """Whether a caller who was let in would be let in now, with the same rights: for answers that take long."""
    token = state[TOKENS].find(caller.token_id) if caller.token_id else None
    if token is None or (token.expires_at is not None and token.expires_at <= now):
        return False
    return role_in(state, caller.user_id, token.project_id) is caller.role


class TokenAuthenticator:
    """Knows callers by `Authorization: Bearer <token>`."""

    def __init__(self, state: State, clock: Clock) -> None:
        self._state = state
        self._clock = clock

    def caller(self, authorization: str, project: str, *, source: str, request: str) -> Caller:
        """The caller; header `Pileus-Project` (an id or a name) lets an administrator of the cloud act in another."""
        token = self._token(authorization)
        user = self._state[USERS].find(token.user_id)
        role = role_in(self._state, token.user_id, token.project_id)
        if user is None or role is None:
            raise Unauthenticated("this token is no longer good")
        acts_in = self._project(project) if project else token.project_id
        if acts_in is None or (acts_in != token.project_id and role is not Role.PLATFORM):
            raise NotFound(f"there is no project {project}")
        return Caller(
            user_id=token.user_id,
            user_name=user.name,
            project_id=acts_in,
            role=role,
            token_id=TokenId(token.id),
            source=source,
            request=request,
        )

    def _token(self, authorization: str) -> Token:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("this takes a token: `Authorization: Bearer <token>`")
        secret = self._state[TOKEN_SECRETS].one("hash", token_hash(token.strip()))
        found = self._state[TOKENS].find(secret.token_id) if secret is not None else None
        if found is None or (found.expires_at is not None and found.expires_at <= self._clock.now()):
            raise Unauthenticated("this token is not good, or no longer")
        return found

    def _project(self, wanted: str) -> ProjectId | None:
        project = self._state[PROJECTS].find(wanted) or self._state[PROJECTS].one("name", wanted)
        return None if project is None else ProjectId(project.id)
