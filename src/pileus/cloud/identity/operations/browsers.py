"""Signing in by an OpenID provider: begun here, done in a browser, and finished here with what the browser brought."""

from datetime import timedelta
from hmac import compare_digest
from typing import Annotated

import msgspec
import structlog
from pydantic import Field, StringConstraints

from pileus.cloud.identity.attempts import GOOD_FOR, Attempt, Attempts
from pileus.cloud.identity.factors import confirmed, spent
from pileus.cloud.identity.model import User
from pileus.cloud.identity.operations.signing import let_in, provider_in_use, signed_in
from pileus.cloud.identity.operations.tokens import TokenMade, tokens
from pileus.cloud.identity.passwords import Guesses
from pileus.cloud.identityproviders.model import IDENTITY_PROVIDERS, IdentityProvider, ProviderKind
from pileus.cloud.identityproviders.operations import secret_of
from pileus.cloud.identityproviders.port import OpenIdProviders, Person
from pileus.kernel.errors import SecondFactorRequired, SignInRefused, Unavailable
from pileus.kernel.ids import IdentityProviderId
from pileus.operations.declare import Answer, Exchange
from pileus.operations.wire import Wire

log = structlog.stdlib.get_logger()

LOOPBACK = r"^http://(127\.0\.0\.1|\[::1\]):[1-9][0-9]{0,4}/callback$"
"""Where a program on the person's own machine listens for the answer (RFC 8252, section 7.3), and nowhere else: an
address that anybody could choose would have the answer brought to them."""


_NOT_LET_IN = "you are not let in; administrators of the cloud find the reason in its audit"


class SignInBegin(Wire):
    provider: Annotated[str, Field(max_length=63)]
    """The OpenID provider, by its name."""
    redirect_uri: Annotated[str, StringConstraints(pattern=LOOPBACK)]
    """Where the browser goes with the answer: `http://127.0.0.1:PORT/callback`."""


class SignInFinish(Wire):
    attempt: Annotated[str, Field(max_length=100)]
    """What beginning answered with."""
    state: Annotated[str, Field(max_length=100)]
    """As the browser brought it,"""
    authorization_code: Annotated[str, Field(min_length=1, max_length=4096)]
    """and so this."""
    issuer: Annotated[str, Field(max_length=1000)] = ""
    """And this (`iss`), if it did."""
    project: Annotated[str, Field(max_length=255)] | None = None
    """Id or name; without one, the only one that the user has a role in, or the first."""
    code: Annotated[str, Field(max_length=40)] | None = None
    """What the user's authenticator shows, or a recovery code; for those who have a second factor."""


class SignInBegun(msgspec.Struct, frozen=True, kw_only=True):
    """Signing in that has begun."""

    attempt: str
    """By which it is finished: for whoever began it alone."""
    url: str
    """Where a browser is to go."""
    state: str
    """What the browser must bring back."""
    expires_in_s: int


@tokens.special("POST", "/begin-sign-in", least=None, answers=SignInBegun)
async def begin_sign_in(exchange: Exchange, wish: SignInBegin) -> Answer:
    """Begin to sign in by an OpenID provider: get the address to open in a browser."""
    guesses: Guesses = exchange.services[Guesses]
    source = exchange.caller.source
    guesses.begin(f"source:{source}")
    provider = provider_in_use(exchange.ask, wish.provider, ProviderKind.OIDC, tried="")
    attempts: Attempts = exchange.services[Attempts]
    secret, attempt = attempts.begin(IdentityProviderId(provider.id), wish.redirect_uri, source)
    openid: OpenIdProviders = exchange.services[OpenIdProviders]
    try:
        url = await openid.begin(provider, attempt.request)
    except Unavailable as failed:
        attempts.take(secret)
        log.warning("provider cannot be asked", provider=provider.name, internal=failed.internal)
        raise
    guesses.right(f"source:{source}")
    begun = SignInBegun(
        attempt=secret, url=url, state=attempt.request.state, expires_in_s=GOOD_FOR // timedelta(seconds=1)
    )
    return Answer(status=200, body=msgspec.json.encode(begun))


@tokens.special("POST", "/finish-sign-in", least=None, status=201, answers=TokenMade)
async def finish_sign_in(exchange: Exchange, wish: SignInFinish) -> Answer:
    """Get a token for what the browser brought from an OpenID provider, good for 12 hours."""
    guesses: Guesses = exchange.services[Guesses]
    source = f"source:{exchange.caller.source}"
    guesses.begin(source)
    try:
        user = await _known(exchange, wish)
    except SignInRefused as refused:
        raise SignInRefused(refused.why, tried=refused.internal, detail=_NOT_LET_IN) from None
    factor = confirmed(exchange.ask.state, user)
    if factor is not None and not wish.code:
        guesses.right(source)
        raise SecondFactorRequired("signing in takes a code of your second factor, too")
    shown = [spent(exchange, factor, wish.code or "")] if factor is not None else []
    guesses.right(source)
    attempts: Attempts = exchange.services[Attempts]
    attempts.take(wish.attempt)
    return await signed_in(exchange, user, wish.project, shown)


async def _known(exchange: Exchange, wish: SignInFinish) -> User:
    """Who it is, by what the browser has brought. A second factor may still be missing: then they come again."""
    attempts: Attempts = exchange.services[Attempts]
    # Taken, whatever comes of it: nobody tries a second answer on it, or the same one twice.
    attempt = attempts.take(wish.attempt)
    if attempt is None or not compare_digest(attempt.request.state.encode(), wish.state.encode()):
        raise SignInRefused("this answers no attempt to sign in that is under way")
    provider = exchange.ask.state[IDENTITY_PROVIDERS].find(attempt.provider_id)
    if provider is None or not provider.enabled:
        raise SignInRefused("the identity provider is no longer in use")
    person = attempt.person or await _redeemed(exchange, provider, attempt, wish)
    user = await let_in(exchange, provider, person)
    attempts.put_back(wish.attempt, attempt, person)
    return user


async def _redeemed(exchange: Exchange, provider: IdentityProvider, attempt: Attempt, wish: SignInFinish) -> Person:
    openid: OpenIdProviders = exchange.services[OpenIdProviders]
    secret = secret_of(exchange.ask, provider)
    try:
        return await openid.redeem(provider, secret, attempt.request, wish.authorization_code, wish.issuer)
    except Unavailable as failed:
        log.warning("provider cannot be asked", provider=provider.name, internal=failed.internal)
        raise
