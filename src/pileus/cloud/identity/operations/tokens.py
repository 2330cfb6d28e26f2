"""What one may do with tokens: make them, look at them, delete them. See `signing` for how one gets the first."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Annotated

import msgspec
from pydantic import AfterValidator, Field, StringConstraints

from pileus.cloud.identity.leaving import without_token
from pileus.cloud.identity.model import TOKENS, USERS, Token, TokenSecret, User
from pileus.cloud.identity.rights import not_by_a_token_with_a_scope, rights_in
from pileus.cloud.identity.tokens import new_token, token_hash
from pileus.cloud.projects.model import PROJECTS
from pileus.kernel.errors import Forbidden, Invalid
from pileus.kernel.ids import ProjectId, TokenId, UserId
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun
from pileus.operations.permissions import PATTERN, Permissions
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Name, Wire
from pileus.state.state import Change, put


def _network(text: str) -> str:
    return str(ip_network(text))


Source = Annotated[str, StringConstraints(max_length=43), AfterValidator(_network)]
"""A network in CIDR notation, or an address."""


class TokenCreate(Wire):
    name: Name
    expires_in_s: Annotated[int, Field(ge=60, le=10 * 365 * 86_400)] | None = None
    """Without it, good until deleted."""
    permissions: (
        Annotated[
            list[Annotated[str, StringConstraints(pattern=PATTERN, max_length=100)]],
            Field(min_length=1, max_length=200),
        ]
        | None
    ) = None
    """Its scope, such as `instance.*` and `*.list`: it may do that of all that you may. Without it, all."""
    confined: bool = False
    """Let it act and see in this project only, although you administer the cloud."""
    sources: Annotated[list[Source], Field(max_length=50)] = Field(default_factory=list)
    """Networks that it is good from, such as 192.0.2.0/24. Without any, from everywhere."""


class TokenMade(msgspec.Struct, frozen=True, kw_only=True):
    """A token, shown this once."""

    id: TokenId
    token: str
    user_id: UserId
    project_id: ProjectId
    role: Role | None
    """The highest built-in role that its user has; None if only custom ones."""
    expires_at: datetime | None


class TokenHolder(msgspec.Struct, frozen=True, kw_only=True):
    """Who a token speaks for, and what it may do."""

    user_id: UserId
    user_name: str
    project_id: ProjectId
    project_name: str
    role: Role | None
    token_id: TokenId | None
    permissions: Sequence[str]


tokens = Noun(
    TOKENS,
    plural="tokens",
    columns=("name", "project_id", "expires_at", "last_used_at"),
    about="API tokens: what a client shows instead of a password.",
    visible=lambda ask, token: token.user_id == ask.caller.user_id,
    scope="",
)
tokens.list(filters=("name", "project_id"))
tokens.show()


@tokens.special("GET", "/current", least=Role.READER, answers=TokenHolder)
async def current(exchange: Exchange) -> Answer:
    """Show who one is: the user behind the token that is shown, the project, and what one may do there."""
    ask = exchange.ask
    caller = ask.caller
    holder = TokenHolder(
        user_id=caller.user_id,
        user_name=caller.user_name,
        project_id=caller.project_id,
        project_name=ask.state[PROJECTS].get(caller.project_id).name,
        role=caller.role,
        token_id=caller.token_id,
        permissions=sorted(caller.permissions),
    )
    return Answer(status=200, body=msgspec.json.encode(holder))


@tokens.special("POST", "", verb="create", least=Role.READER, status=201, answers=TokenMade)
async def create(exchange: Exchange, wish: TokenCreate) -> Answer:
    """Make another token for oneself in the same project: for a program, or one that lasts, or may do less."""
    ask = exchange.ask
    not_by_a_token_with_a_scope(ask)
    _check_scope(ask, wish.permissions or ())
    made, changes = token_for(
        ask,
        ask.state[USERS].get(ask.caller.user_id),
        ask.caller.project_id,
        name=wish.name,
        expires_at=None if wish.expires_in_s is None else ask.now + timedelta(seconds=wish.expires_in_s),
        permissions=None if wish.permissions is None else tuple(sorted(set(wish.permissions))),
        confined=wish.confined,
        sources=tuple(wish.sources),
        second_factor=_had_shown_one(ask),
    )
    return await exchange.commit(Plan(summary=f"make token {wish.name}", changes=changes, answers=made))


def _had_shown_one(ask: Ask) -> bool:
    own = ask.state[TOKENS].find(ask.caller.token_id or "")
    return own is not None and own.second_factor


def _check_scope(ask: Ask, wanted: Sequence[str]) -> None:
    wrong = ask.view(Permissions).wrong(wanted, within=Role.PLATFORM)
    if wrong:
        fields = {f"permissions.{wanted.index(pattern)}": f"{pattern}: {why}" for pattern, why in wrong.items()}
        raise Invalid("some permissions are not known", fields=fields)


@tokens.delete(verb="delete", least=Role.READER)
def delete(ask: Ask, token: Token) -> Plan:
    """Delete a token: whoever shows it is nobody from now on."""
    return Plan(summary=f"delete token {token.name}", changes=without_token(ask, token), undo="make a new one")


def token_for(
    ask: Ask,
    user: User,
    project: ProjectId,
    *,
    name: str,
    expires_at: datetime | None,
    permissions: tuple[str, ...] | None = None,
    confined: bool = False,
    sources: tuple[str, ...] = (),
    second_factor: bool = False,
) -> tuple[TokenMade, list[Change]]:
    """A token for a user in a project, and what it takes for it to be. Raises Forbidden if they have no role there."""
    rights = rights_in(ask.state, ask.view(Permissions), UserId(user.id), project)
    if rights is None:
        raise Forbidden("you have no role in this project")
    text = new_token()
    id = TokenId(ask.new_id())
    token = Token(
        id=id,
        created_at=ask.now,
        project_id=project,
        user_id=UserId(user.id),
        name=name,
        expires_at=expires_at,
        permissions=permissions,
        confined=confined,
        sources=sources,
        second_factor=second_factor,
    )
    secret = TokenSecret(id=id, created_at=ask.now, token_id=id, hash=token_hash(text))
    made = TokenMade(
        id=id, token=text, user_id=UserId(user.id), project_id=project, role=rights.role, expires_at=expires_at
    )
    return made, [put(token), put(secret)]
