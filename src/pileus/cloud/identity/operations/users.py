"""What one may do with users: those of the whole cloud, and sub-accounts, which belong to a project."""

from collections.abc import Iterator
from typing import Annotated

import msgspec
from pydantic import Field, StringConstraints

from pileus.cloud.identity.leaving import without_token, without_users
from pileus.cloud.identity.model import PASSWORDS, TOKENS, USER_NAME, USERS, Password, User
from pileus.cloud.identity.passwords import Guesses, fits, hashed_aside
from pileus.cloud.identity.rights import nobody_manages_their_betters, not_by_a_token_with_a_scope
from pileus.cloud.identityproviders.model import IDENTITY_PROVIDERS, IdentityProvider
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import Conflict, Forbidden, Invalid
from pileus.kernel.ids import IdentityProviderId, ProjectId
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire, ref
from pileus.state.state import Change, put

NewPassword = Annotated[str, StringConstraints(min_length=10, max_length=256)]


class UserCreate(Wire):
    name: Annotated[str, StringConstraints(pattern=USER_NAME)]
    password: NewPassword | None = None
    """Of a local user. Whoever signs in by an identity provider has none here."""
    provider_id: Annotated[Id, ref("identity-provider")] | None = None
    """Who says who they are; for administrators of the cloud. The name is then the one that the provider has."""
    subject: Annotated[str, Field(max_length=255)] = ""
    """What that provider knows them by for good, if it is known already; else whoever has the name there is meant."""
    is_platform: bool = False
    project_id: Annotated[Id, ref("project")] | None = None
    """The project that the user belongs to (a sub-account). Whom an administrator of a project makes belongs to it."""


class UserChange(Wire):
    enabled: bool | None = None
    is_platform: bool | None = None


class PasswordChange(Wire):
    password: NewPassword
    current_password: Annotated[str, Field(max_length=256)] | None = None
    """Of whoever sets their own: the one that they have."""


def _visible(ask: Ask, user: User) -> bool:
    """Everybody sees themselves; who manages a project's people sees its sub-accounts."""
    caller = ask.caller
    managed = user.project_id == caller.project_id and caller.may("user.change")
    return caller.is_platform or user.id == caller.user_id or managed


users = Noun(
    USERS,
    plural="users",
    columns=("name", "is_platform", "enabled", "project_id", "provider_id"),
    about="Users: people, and programs that act like one.",
    visible=_visible,
    scope="",
)
users.list(filters=("name", "project_id", "provider_id"), sorts=("name",))
users.show()


@users.post(least=Role.ADMIN)
async def create(ask: Ask, wish: UserCreate) -> Plan:
    """Create a user. One that an administrator of a project makes belongs to that project and never leaves it."""
    _project_for(ask, wish)
    _provider_for(ask, wish)
    hash = await hashed_aside(wish.password) if wish.password is not None else ""
    # That took its time: what the user is to belong to may be gone meanwhile.
    project, provider = _project_for(ask, wish), _provider_for(ask, wish)
    user = User(
        id=ask.new_id(),
        created_at=ask.now,
        name=wish.name,
        is_platform=wish.is_platform,
        project_id=project,
        provider_id=IdentityProviderId(provider.id) if provider is not None else None,
        subject=wish.subject,
    )
    changes: list[Change] = [put(user)]
    if provider is None:
        changes.append(put(Password(id=user.id, created_at=ask.now, hash=hash)))
    return Plan(summary=f"create user {wish.name}", changes=changes, answers=user, undo="delete the user")


def _provider_for(ask: Ask, wish: UserCreate) -> IdentityProvider | None:
    if wrong := dict(_wrong(wish)):
        raise Invalid("some fields are wrong", fields=wrong)
    if wish.provider_id is None:
        return None
    if not ask.caller.is_platform:
        raise Forbidden("only administrators of the cloud do this", fields={"provider_id": "not allowed"})
    not_by_a_token_with_a_scope(ask)
    return ask.see(IDENTITY_PROVIDERS, wish.provider_id, "provider_id")


def _wrong(wish: UserCreate) -> Iterator[tuple[str, str]]:
    if wish.provider_id is None and wish.password is None:
        yield "password", "is missing"
    if wish.provider_id is None and wish.subject:
        yield "subject", "only with provider_id"
    if wish.provider_id is not None and wish.password is not None:
        yield "password", "not with provider_id: the provider asks for one"


def _project_for(ask: Ask, wish: UserCreate) -> ProjectId:
    if wish.is_platform:
        not_by_a_token_with_a_scope(ask)
    if not ask.caller.is_platform:
        if wish.is_platform:
            raise Forbidden("only administrators of the cloud make others so", fields={"is_platform": "not allowed"})
        if wish.project_id not in (None, ask.caller.project_id):
            ask.see(PROJECTS, "", "project_id")
        return ask.caller.project_id
    if wish.project_id is None:
        return ProjectId("")
    if wish.is_platform:
        wrong = "an administrator of the cloud belongs to no project"
        raise Conflict(wrong, fields={"project_id": wrong})
    return ProjectId(ask.see(PROJECTS, wish.project_id, "project_id").id)


@users.patch(least=Role.ADMIN)
def change(ask: Ask, user: User, wish: UserChange) -> Plan:
    """Let a user in or keep them out; make them an administrator of the cloud, or no longer one."""
    if user.id == ask.caller.user_id:
        raise Conflict("nobody can change their own rights")
    nobody_manages_their_betters(ask, user)
    if wish.is_platform is not None and not ask.caller.is_platform:
        raise Forbidden("only administrators of the cloud make others so", fields={"is_platform": "not allowed"})
    if wish.is_platform and user.project_id:
        raise Conflict("a user who belongs to a project stays in it", fields={"is_platform": "not for a sub-account"})
    changed = msgspec.structs.replace(user, **wish.model_dump(exclude_none=True))
    return Plan(summary=f"change user {user.name}", changes=(put(changed),), answers=changed, undo="change it back")


@users.special("PUT", "/{id}/password", least=Role.READER, status=204)
async def set_password(exchange: Exchange, user: User, wish: PasswordChange) -> Answer:
    """Set a password: one's own, by the one from before, or that of a user whom one administers.

    Sessions of the user end.
    """
    _may_set_password(exchange.ask, user)
    if user.provider_id is not None:
        provider = exchange.ask.state[IDENTITY_PROVIDERS].get(user.provider_id)
        raise Conflict(f"{user.name} signs in by {provider.name}, and has no password here")
    before = exchange.ask.state[PASSWORDS].find(user.id)
    if user.id == exchange.caller.user_id:
        await _know_their_own(exchange, before, wish.current_password)
    hash = await hashed_aside(wish.password)
    ask = exchange.ask
    user = ask.state[USERS].get(user.id)
    _may_set_password(ask, user)
    # By the revision that was looked at: somebody else may have set it meanwhile.
    password = Password(id=user.id, created_at=ask.now, revision=before.revision if before else 0, hash=hash)
    ended = [
        change
        for token in ask.state[TOKENS].by("user", user.id)
        if token.expires_at is not None and token.id != ask.caller.token_id
        for change in without_token(ask, token)
    ]
    return await exchange.commit(Plan(summary=f"set the password of {user.name}", changes=(put(password), *ended)))


def _may_set_password(ask: Ask, user: User) -> None:
    not_by_a_token_with_a_scope(ask)
    if user.id != ask.caller.user_id:
        nobody_manages_their_betters(ask, user)


async def _know_their_own(exchange: Exchange, password: Password | None, shown: str | None) -> None:
    """Who finds somebody's session open must not be able to take the account for good."""
    if password is None:
        raise Conflict("you have no password here that could be set")
    if shown is None:
        raise Invalid("some fields are wrong", fields={"current_password": "is missing: this is your own password"})
    guesses: Guesses = exchange.services[Guesses]
    who = f"own:{password.id}"
    guesses.begin(who)
    if not await fits(shown, password.hash):
        raise Forbidden("the current password is wrong", fields={"current_password": "wrong"})
    guesses.right(who)


@users.delete(least=Role.ADMIN)
def delete(ask: Ask, user: User) -> Plan:
    """Delete a user, with roles, tokens and keypairs. What else they made belongs to its projects and stays."""
    if user.id == ask.caller.user_id:
        raise Conflict("nobody can delete themselves")
    nobody_manages_their_betters(ask, user)
    changes = without_users(ask, [user])
    if user.provider_id is not None and user.subject:
        provider = ask.state[IDENTITY_PROVIDERS].get(user.provider_id)
        away = tuple(dict.fromkeys((*provider.turned_away, user.subject)))
        changes.append(put(msgspec.structs.replace(provider, turned_away=away)))
    return Plan(summary=f"delete user {user.name}", changes=changes, undo="create the user again")
