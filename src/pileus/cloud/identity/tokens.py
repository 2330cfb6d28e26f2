"""Tokens: how one is made, and how the caller behind one is found."""

import secrets
from datetime import datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address, ip_network

import msgspec

from pileus.cloud.identity.factors import ENROLMENT, is_demanded
from pileus.cloud.identity.model import TOKEN_SECRETS, TOKENS, USERS, Token
from pileus.cloud.identity.rights import Rights, rights_in
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.clock import Clock
from pileus.kernel.errors import NotFound, Unauthenticated
from pileus.kernel.ids import ProjectId, TokenId
from pileus.operations.caller import Caller, Role
from pileus.operations.permissions import Permissions
from pileus.state.state import Change, State, put

_PREFIX = "pileus_"
"""So that people and scanners of leaked secrets know one when they see it."""

_USES_TOLD_EVERY = timedelta(minutes=10)
_SCOPE = "the scope of this token does not have it"
_NO_FACTOR = (
    "a second factor is demanded here; get one (`user enrol-second-factor`, `user confirm-second-factor`), or sign in "
    "with the one that you have"
)


def new_token() -> str:
    """256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def rights_by_token(state: State, permissions: Permissions, token: Token, project: ProjectId) -> Rights | None:
    """What a token may do in a project now: never more than its user; None if nothing."""
    rights = rights_in(state, permissions, token.user_id, project)
    if rights is None:
        return None
    user = state[USERS].get(token.user_id)
    if not token.second_factor and is_demanded(state, user, project):
        return Rights(None, rights.permissions & ENROLMENT, _NO_FACTOR)
    if token.confined and rights.role is Role.PLATFORM:
        rights = Rights(Role.ADMIN, permissions.of_role(Role.ADMIN))
    if token.permissions is not None:
        rights = Rights(rights.role, rights.permissions & permissions.of_patterns(token.permissions), _SCOPE)
    return rights


def still_good(state: State, permissions: Permissions, caller: Caller, now: datetime) -> bool:
    """Whether a caller who was let in would be let in now, with the same rights: for answers that take long."""
    token = state[TOKENS].find(caller.token_id) if caller.token_id else None
    if token is None or (token.expires_at is not None and token.expires_at <= now):
        return False
    rights = rights_by_token(state, permissions, token, caller.project_id)
    return rights is not None and (rights.role, rights.permissions) == (caller.role, caller.permissions)


class TokenUses:
    """When tokens were used last: told to the records now and then, for a write each time would cost more than it."""

    def __init__(self) -> None:
        self._at: dict[TokenId, datetime] = {}

    def note(self, token: Token, at: datetime) -> None:
        if token.last_used_at is None or at - token.last_used_at >= _USES_TOLD_EVERY:
            self._at[TokenId(token.id)] = at

    def taken(self, state: State) -> list[Change]:
        """What has to be written down, told once."""
        at, self._at = self._at, {}
        found = ((state[TOKENS].find(id), time) for id, time in at.items())
        return [put(msgspec.structs.replace(token, last_used_at=time)) for token, time in found if token is not None]


class TokenAuthenticator:
    """Knows callers by `Authorization: Bearer <token>`."""

    def __init__(self, state: State, permissions: Permissions, clock: Clock, uses: TokenUses) -> None:
        self._state = state
        self._permissions = permissions
        self._clock = clock
        self._uses = uses

    def caller(self, authorization: str, project: str, *, source: str, request: str) -> Caller:
        """The caller; header `Pileus-Project` (an id or a name) lets an administrator of the cloud act in another."""
        token = self._token(authorization)
        if token.sources and not _is_from(source, token.sources):
            raise Unauthenticated("this token is not good from here")
        user = self._state[USERS].find(token.user_id)
        at_home = rights_by_token(self._state, self._permissions, token, token.project_id)
        if user is None or at_home is None:
            raise Unauthenticated("this token is no longer good")
        acts_in = self._project(project) if project else token.project_id
        if acts_in is None or (acts_in != token.project_id and at_home.role is not Role.PLATFORM):
            raise NotFound(f"there is no project {project}")
        rights = at_home
        if acts_in != token.project_id:
            rights = rights_by_token(self._state, self._permissions, token, acts_in)
        if rights is None:
            raise Unauthenticated("this token is no longer good")
        self._uses.note(token, self._clock.now())
        return Caller(
            user_id=token.user_id,
            user_name=user.name,
            project_id=acts_in,
            role=rights.role,
            permissions=rights.permissions,
            held_back_by=rights.held_back_by,
            limited=token.is_limited,
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


def _is_from(source: str, networks: tuple[str, ...]) -> bool:
    try:
        address = ip_address(source)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in ip_network(network) for network in networks)
