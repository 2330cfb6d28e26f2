"""What one may do with users, their roles and tokens."""

from datetime import datetime, timedelta
from typing import Annotated

import msgspec
from pydantic import Field, StringConstraints

from pileus.cloud.identity.model import (
    GRANTS,
    PASSWORDS,
    TOKEN_SECRETS,
    TOKENS,
    USERS,
    Grant,
    Password,
    Token,
    TokenSecret,
    User,
)
from pileus.cloud.identity.passwords import Guesses, fits, hashed, hashed_aside
from pileus.cloud.identity.tokens import new_token, role_in, token_hash
from pileus.cloud.keypairs.model import KEYPAIRS
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import Conflict, Forbidden, NotFound, Unauthenticated
from pileus.kernel.ids import ProjectId, TokenId, UserId
from pileus.operations.caller import Role, allows
from pileus.operations.declare import Answer, Exchange, Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Name, Wire, ref
from pileus.state.state import Change, Origin, put, remove

SESSION = timedelta(hours=12)
"""How long a token is good that was given for a password."""

NewPassword = Annotated[str, StringConstraints(min_length=10, max_length=256)]


class UserCreate(Wire):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@-]{0,62}$")]
    password: NewPassword
    is_platform: bool = False


class UserChange(Wire):
    enabled: bool | None = None
    is_platform: bool | None = None


class PasswordChange(Wire):
    password: NewPassword


class GrantCreate(Wire):
    user_id: Annotated[Id, ref("user")]
    project_id: Annotated[Id, ref("project")]
    role: Role


class SignIn(Wire):
    user: Annotated[str, Field(max_length=255)]
    password: Annotated[str, Field(max_length=256)]
    project: Annotated[str, Field(max_length=255)] | None = None
    """Id or name; without one, the only one that the user has a role in, or the first."""


class TokenCreate(Wire):
    name: Name
    expires_in_s: Annotated[int, Field(ge=60, le=10 * 365 * 86_400)] | None = None
    """Without it, good until deleted."""


class TokenMade(msgspec.Struct, frozen=True, kw_only=True):
    """A token, shown this once."""

    id: TokenId
    token: str
    user_id: UserId
    project_id: ProjectId
    role: Role
    expires_at: datetime | None


class TokenHolder(msgspec.Struct, frozen=True, kw_only=True):
    """Who a token speaks for."""

    user_id: UserId
    user_name: str
    project_id: ProjectId
    project_name: str
    role: Role
    token_id: TokenId | None


users = Noun(
    USERS,
    plural="users",
    columns=("name", "is_platform", "enabled"),
    about="Users: people, and programs that act like one.",
    visible=lambda ask, user: ask.caller.is_platform or user.id == ask.caller.user_id,
    scope="",
)
users.list(filters=("name",), sorts=("name",))
users.show()


@users.post(least=Role.PLATFORM)
def create(ask: Ask, wish: UserCreate) -> Plan:
    """Create a user."""
    user = User(id=ask.new_id(), created_at=ask.now, name=wish.name, is_platform=wish.is_platform)
    password = Password(id=user.id, created_at=ask.now, hash=hashed(wish.password))
    return Plan(
        summary=f"create user {wish.name}", changes=(put(user), put(password)), answers=user, undo="delete the user"
    )


@users.patch(least=Role.PLATFORM)
def change(ask: Ask, user: User, wish: UserChange) -> Plan:
    """Let a user in or keep them out; make them an administrator of the cloud, or no longer one."""
    if user.id == ask.caller.user_id:
        raise Conflict("nobody can change their own rights")
    changed = msgspec.structs.replace(user, **wish.model_dump(exclude_none=True))
    return Plan(summary=f"change user {user.name}", changes=(put(changed),), answers=changed, undo="change it back")


@users.special("PUT", "/{id}/password", least=Role.READER, status=204)
async def set_password(exchange: Exchange, user: User, wish: PasswordChange) -> Answer:
    """Set a password: one's own, or anybody's as an administrator. Sessions of the user end."""
    hash = await hashed_aside(wish.password)
    ask = exchange.ask
    user = ask.state[USERS].get(user.id)
    before = ask.state[PASSWORDS].find(user.id)
    password = Password(id=user.id, created_at=ask.now, revision=before.revision if before else 0, hash=hash)
    ended = [
        change
        for token in ask.state[TOKENS].by("user", user.id)
        if token.expires_at is not None and token.id != ask.caller.token_id
        for change in without_token(ask, token)
    ]
    return await exchange.commit(Plan(summary=f"set the password of {user.name}", changes=(put(password), *ended)))


@users.delete(least=Role.PLATFORM)
def delete(ask: Ask, user: User) -> Plan:
    """Delete a user, with roles, tokens and keypairs. What else they made belongs to its projects and stays."""
    if user.id == ask.caller.user_id:
        raise Conflict("nobody can delete themselves")
    changes: list[Change] = [remove(user)]
    if (password := ask.state[PASSWORDS].find(user.id)) is not None:
        changes.append(remove(password))
    changes += [remove(grant) for grant in ask.state[GRANTS].by("user", user.id)]
    changes += [remove(keypair) for keypair in ask.state[KEYPAIRS].by("user", user.id)]
    for token in ask.state[TOKENS].by("user", user.id):
        changes += without_token(ask, token)
    return Plan(summary=f"delete user {user.name}", changes=changes, undo="create the user again")


grants = Noun(
    GRANTS,
    plural="grants",
    columns=("user_id", "project_id", "role"),
    about="Grants: the roles that users have in projects.",
)
grants.list(filters=("user_id", "project_id", "role"), least=Role.ADMIN)
grants.show(least=Role.ADMIN)


@grants.post(verb="create", least=Role.ADMIN)
def create_grant(ask: Ask, wish: GrantCreate) -> Plan:
    """Give a user a role in a project; another one that they have there is replaced."""
    if wish.role is Role.PLATFORM:
        raise Conflict("this is not a role in a project", fields={"role": "one of reader, member, admin"})
    project = ask.state[PROJECTS].find(wish.project_id)
    if project is None or not (ask.caller.is_platform or project.id == ask.caller.project_id):
        raise NotFound(f"there is no project {wish.project_id}", fields={"project_id": "not found"})
    user = ask.state[USERS].find(wish.user_id)
    if user is None:
        raise NotFound(f"there is no user {wish.user_id}", fields={"user_id": "not found"})
    before = ask.state[GRANTS].one("user and project", (user.id, project.id))
    if before is None:
        grant = Grant(
            id=ask.new_id(),
            created_at=ask.now,
            project_id=ProjectId(project.id),
            user_id=UserId(user.id),
            role=wish.role,
        )
    else:
        grant = msgspec.structs.replace(before, role=wish.role)
    return Plan(
        summary=f"make {user.name} {wish.role} of {project.name}",
        changes=(put(grant),),
        answers=grant,
        undo="delete the grant",
    )


@grants.delete(verb="delete", least=Role.ADMIN)
def delete_grant(ask: Ask, grant: Grant) -> Plan:
    """Take a role away; the user's tokens for the project end."""
    changes: list[Change] = [remove(grant)]
    for token in ask.state[TOKENS].by("user", grant.user_id):
        if token.project_id == grant.project_id:
            changes += without_token(ask, token)
    return Plan(summary="take a role away", changes=changes, undo="grant it again")


tokens = Noun(
    TOKENS,
    plural="tokens",
    columns=("name", "project_id", "expires_at"),
    about="API tokens: what a client shows instead of a password.",
    visible=lambda ask, token: token.user_id == ask.caller.user_id,
    scope="",
)
tokens.list(filters=("name", "project_id"))
tokens.show()


@tokens.special("POST", "/sign-in", least=None, status=201, answers=TokenMade)
async def sign_in(exchange: Exchange, wish: SignIn) -> Answer:
    """Get a token for a user name and password, good for 12 hours."""
    guesses: Guesses = exchange.services[Guesses]
    ask = exchange.ask
    who = (f"source:{ask.caller.source}", f"user:{wish.user}")
    guesses.begin(*who)
    user = ask.state[USERS].one("name", wish.user)
    password = ask.state[PASSWORDS].find(user.id) if user is not None and user.enabled else None
    fitting = await fits(wish.password, password.hash if password else None)
    # The check takes its time: a password that was changed meanwhile is a wrong one.
    if not fitting or user is None or ask.state[PASSWORDS].find(user.id) is not password:
        raise Unauthenticated("user name or password is wrong")
    guesses.right(*who)
    ask = exchange.ask
    project = _project_of(ask, user, wish.project)
    made, changes = _new(ask, UserId(user.id), project, name="sign-in", expires_at=ask.now + SESSION)
    origin = Origin(
        actor=f"user:{user.id}", operation="token.sign_in", request=ask.caller.request, source=ask.caller.source
    )
    await ask.state.commit(changes, origin)
    return Answer(status=201, body=msgspec.json.encode(made))


@tokens.special("GET", "/current", least=Role.READER, answers=TokenHolder)
async def current(exchange: Exchange) -> Answer:
    """Show who one is: the user behind the token that is shown, the project, and the role there."""
    ask = exchange.ask
    caller = ask.caller
    holder = TokenHolder(
        user_id=caller.user_id,
        user_name=caller.user_name,
        project_id=caller.project_id,
        project_name=ask.state[PROJECTS].get(caller.project_id).name,
        role=caller.role,
        token_id=caller.token_id,
    )
    return Answer(status=200, body=msgspec.json.encode(holder))


@tokens.special("POST", "", verb="create", least=Role.READER, status=201, answers=TokenMade)
async def create_token(exchange: Exchange, wish: TokenCreate) -> Answer:
    """Make another token for oneself in the same project: for a program, or one that lasts."""
    ask = exchange.ask
    expires_at = None if wish.expires_in_s is None else ask.now + timedelta(seconds=wish.expires_in_s)
    made, changes = _new(ask, ask.caller.user_id, ask.caller.project_id, name=wish.name, expires_at=expires_at)
    origin = Origin(
        actor=ask.caller.actor, operation="token.create", request=ask.caller.request, source=ask.caller.source
    )
    await ask.state.commit(changes, origin)
    return Answer(status=201, body=msgspec.json.encode(made))


@tokens.delete(verb="delete", least=Role.READER)
def delete_token(ask: Ask, token: Token) -> Plan:
    """Delete a token: whoever shows it is nobody from now on."""
    return Plan(summary=f"delete token {token.name}", changes=without_token(ask, token), undo="make a new one")


def without_token(ask: Ask, token: Token) -> list[Change]:
    """What it takes for a token to be no more."""
    secret = ask.state[TOKEN_SECRETS].find(token.id)
    return [remove(token)] if secret is None else [remove(token), remove(secret)]


def _new(
    ask: Ask, user: UserId, project: ProjectId, *, name: str, expires_at: datetime | None
) -> tuple[TokenMade, list[Change]]:
    role = role_in(ask.state, user, project)
    if role is None or not allows(role, Role.READER):
        raise Forbidden("you have no role in this project")
    text = new_token()
    id = TokenId(ask.new_id())
    token = Token(id=id, created_at=ask.now, project_id=project, user_id=user, name=name, expires_at=expires_at)
    secret = TokenSecret(id=id, created_at=ask.now, token_id=id, hash=token_hash(text))
    made = TokenMade(id=id, token=text, user_id=user, project_id=project, role=role, expires_at=expires_at)
    return made, [put(token), put(secret)]


def _project_of(ask: Ask, user: User, wanted: str | None) -> ProjectId:
    state = ask.state
    if wanted is not None:
        project = state[PROJECTS].find(wanted) or state[PROJECTS].one("name", wanted)
        if project is None or role_in(state, UserId(user.id), ProjectId(project.id)) is None:
            raise NotFound(f"there is no project {wanted}", fields={"project": "not found"})
        return ProjectId(project.id)
    if granted := state[GRANTS].by("user", user.id):
        return granted[0].project_id
    if user.is_platform and len(state[PROJECTS]):
        return ProjectId(state[PROJECTS].ids[0])
    raise Forbidden("you have no role in any project yet")
