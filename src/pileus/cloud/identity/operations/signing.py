"""Signing in by name and password: those of a local user, or those that a directory knows."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

import msgspec
import structlog
from pydantic import Field

from pileus.cloud.identity.factors import confirmed, spent
from pileus.cloud.identity.model import PASSWORDS, USERS, SecondFactor, User
from pileus.cloud.identity.operations.tokens import TokenMade, token_for, tokens
from pileus.cloud.identity.passwords import Guesses, fits
from pileus.cloud.identity.rights import projects_of, rights_in
from pileus.cloud.identityproviders.admission import admitted
from pileus.cloud.identityproviders.model import IDENTITY_PROVIDERS, IdentityProvider, ProviderKind
from pileus.cloud.identityproviders.operations import secret_of
from pileus.cloud.identityproviders.port import Directory, Person
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import Forbidden, NotFound, SecondFactorRequired, SignInRefused, Unavailable
from pileus.kernel.ids import ProjectId, UserId
from pileus.operations.declare import Answer, Exchange
from pileus.operations.permissions import Permissions
from pileus.operations.plan import Ask
from pileus.operations.wire import Wire
from pileus.state.state import Origin, put

log = structlog.stdlib.get_logger()

SESSION = timedelta(hours=12)
"""How long a token is good that was given for signing in."""


class SignIn(Wire):
    user: Annotated[str, Field(max_length=255)]
    """Name; a user who belongs to a project signs in as `name@project`."""
    password: Annotated[str, Field(max_length=256)]
    provider: Annotated[str, Field(max_length=63)] | None = None
    """The directory that knows user and password, by the name of its identity provider; without one, this cloud."""
    project: Annotated[str, Field(max_length=255)] | None = None
    """Id or name; without one, the only one that the user has a role in, or the first."""
    code: Annotated[str, Field(max_length=40)] | None = None
    """What the user's authenticator shows, or a recovery code; for those who have a second factor."""


@tokens.special("POST", "/sign-in", least=None, status=201, answers=TokenMade)
async def sign_in(exchange: Exchange, wish: SignIn) -> Answer:
    """Get a token for a user name and password, good for 12 hours."""
    guesses: Guesses = exchange.services[Guesses]
    # A directory may know somebody however the name is written: they are guessed at all the same.
    name = " ".join(wish.user.casefold().split())
    who = (f"source:{exchange.caller.source}", f"user:{name}" + (f" of {wish.provider}" if wish.provider else ""))
    guesses.begin(*who)
    user = await (_by_password(exchange, wish) if wish.provider is None else _by_directory(exchange, wish))
    factor = confirmed(exchange.ask.state, user)
    if factor is not None and not wish.code:
        guesses.right(*who)
        raise SecondFactorRequired("signing in takes a code of your second factor, too")
    shown = [spent(exchange, factor, wish.code or "")] if factor is not None else []
    guesses.right(*who)
    return await signed_in(exchange, user, wish.project, shown)


async def _by_password(exchange: Exchange, wish: SignIn) -> User:
    ask = exchange.ask
    user = user_named(ask, wish.user)
    password = ask.state[PASSWORDS].find(user.id) if user is not None and user.enabled else None
    fitting = await fits(wish.password, password.hash if password else None)
    # The check takes its time: a password that was changed meanwhile is a wrong one.
    if not fitting or user is None or ask.state[PASSWORDS].find(user.id) is not password:
        raise SignInRefused(tried=wish.user)
    return ask.state[USERS].get(user.id)


async def _by_directory(exchange: Exchange, wish: SignIn) -> User:
    provider = provider_in_use(exchange.ask, wish.provider or "", ProviderKind.LDAP, tried=wish.user)
    directory: Directory = exchange.services[Directory]
    secret = secret_of(exchange.ask, provider)
    try:
        person = await directory.authenticate(provider, secret, wish.user, wish.password)
    except Unavailable as failed:
        log.warning("directory cannot be asked", provider=provider.name, reason=failed.detail, internal=failed.internal)
        raise
    return await let_in(exchange, provider, person)


def user_named(ask: Ask, name: str) -> User | None:
    """Which local user signs in by this name: one of the whole cloud, or, as `name@project`, a sub-account."""
    users, projects = ask.state[USERS], ask.state[PROJECTS]
    if (user := users.one("name", ("", name))) is not None and user.provider_id is None:
        return user
    own, _, of = name.rpartition("@")
    project = projects.one("name", of) or projects.find(of)
    user = users.one("name", (project.id, own)) if project is not None else None
    return user if user is not None and user.provider_id is None else None


def provider_in_use(ask: Ask, name: str, kind: ProviderKind, *, tried: str) -> IdentityProvider:
    """The provider of this name. Raises SignInRefused if nobody can sign in by it."""
    provider = ask.state[IDENTITY_PROVIDERS].one("name", name)
    if provider is None or provider.kind is not kind or not provider.enabled:
        raise SignInRefused(f"there is no {kind} provider {name[:63]} in use", tried=tried)
    return provider


async def let_in(exchange: Exchange, provider: IdentityProvider, person: Person) -> User:
    """The user that this person is, with what the provider gives them from now on.

    Raises:
        SignInRefused: they are not to be let in, although the provider vouches for them.
        Unavailable: the provider was changed while it was asked.
    """
    ask = exchange.ask
    if ask.state[IDENTITY_PROVIDERS].find(provider.id) is not provider:
        raise Unavailable("the identity provider has just been changed; try again")
    user, changes = admitted(ask, provider, person)
    if changes:
        await ask.state.commit(changes, _origin(exchange, user))
    return ask.state[USERS].get(user.id)


async def signed_in(exchange: Exchange, user: User, project: str | None, shown: Sequence[SecondFactor]) -> Answer:
    """The session of a user who has shown who they are, with the second factor as it is after that if they have one."""
    ask = exchange.ask
    made, changes = token_for(
        ask,
        user,
        _project_of(ask, user, project),
        name="sign-in",
        expires_at=ask.now + SESSION,
        second_factor=bool(shown),
    )
    await ask.state.commit([*map(put, shown), *changes], _origin(exchange, user))
    return Answer(status=201, body=msgspec.json.encode(made))


def _origin(exchange: Exchange, user: User) -> Origin:
    caller = exchange.caller
    return Origin(actor=f"user:{user.id}", operation="token.sign_in", request=caller.request, source=caller.source)


def _project_of(ask: Ask, user: User, wanted: str | None) -> ProjectId:
    projects = ask.state[PROJECTS]
    if wanted is not None:
        project = projects.find(wanted) or projects.one("name", wanted)
        if project is None or not _may_work_in(ask, user, ProjectId(project.id)):
            raise NotFound(f"there is no project {wanted}", fields={"project": "not found"})
        return ProjectId(project.id)
    if granted := projects_of(ask.state, UserId(user.id)):
        return granted[0]
    if user.is_platform and len(projects):
        return ProjectId(projects.ids[0])
    raise Forbidden("you have no role in any project yet")


def _may_work_in(ask: Ask, user: User, project: ProjectId) -> bool:
    return rights_in(ask.state, ask.view(Permissions), UserId(user.id), project) is not None
