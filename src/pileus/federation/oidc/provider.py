"""Has people sign in at an OpenID provider, by its code flow with PKCE (RFC 7636)."""

import base64
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

import msgspec

from pileus.cloud.identityproviders.model import IdentityProvider
from pileus.cloud.identityproviders.port import Finding, Person, SignInRequest
from pileus.federation.oidc.idtoken import ALGORITHMS, UnknownKey, claims_of, person_of
from pileus.federation.oidc.web import ProviderWeb, PublicAddress, Refusal
from pileus.kernel.clock import Clock
from pileus.kernel.errors import SignInRefused, Unavailable

_KNOWN_FOR_S: Final = 3600.0
_KEYS_ASKED_EVERY_S: Final = 60.0
"""At least between two questions for a key that is not known: whoever makes one up does not have us ask each time."""


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider says of itself (OpenID Connect Discovery 1.0, section 3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    token_endpoint_auth_methods_supported: Sequence[str] = ("client_secret_basic",)
    id_token_signing_alg_values_supported: Sequence[str] = ()
    code_challenge_methods_supported: Sequence[str] | None = None
    authorization_response_iss_parameter_supported: bool = False


class _Known:
    """A provider as far as it is known."""

    def __init__(self, metadata: Metadata, keys: Sequence[Mapping[str, Any]], at: float) -> None:
        self.metadata = metadata
        self.keys = keys
        self.at = at
        self.keys_at = at


class OpenIdConnect:
    """`OpenIdProviders` over HTTPS."""

    def __init__(self, public: PublicAddress, clock: Clock) -> None:
        """Ask; hosts that a provider names must have a `public` address."""
        self._public = public
        self._clock = clock
        self._monotonic = clock.monotonic
        self._known: dict[tuple[str, str], _Known] = {}

    async def begin(self, provider: IdentityProvider, request: SignInRequest) -> str:
        metadata = (await self._get_known(provider)).metadata
        challenge = base64.urlsafe_b64encode(sha256(request.verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": provider.client,
            "redirect_uri": request.redirect_uri,
            "scope": " ".join(provider.scopes),
            "state": request.state,
            "nonce": request.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        there = metadata.authorization_endpoint
        return f"{there}{'&' if '?' in there else '?'}{urlencode(asked)}"

    async def redeem(
        self, provider: IdentityProvider, secret: str, request: SignInRequest, code: str, issuer: str
    ) -> Person:
        known = await self._get_known(provider)
        # The code may be another provider's, that wants to have it redeemed with us (mix-up, RFC 9207).
        if (issuer or known.metadata.authorization_response_iss_parameter_supported) and issuer != provider.url:
            raise SignInRefused(f"the code is by {issuer[:100]!r}, not by {provider.url}")
        web = ProviderWeb(provider, self._public)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": request.redirect_uri,
            "code_verifier": request.verifier,
        }
        headers = _introduction(provider, secret, known.metadata, form)
        try:
            answer = await web.post(known.metadata.token_endpoint, form, headers)
        except Refusal as refused:
            raise SignInRefused(f"{provider.name} does not redeem the code: {refused}") from None
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise SignInRefused(f"{provider.name} gives no ID token; is `openid` among its scopes?")
        try:
            claims = claims_of(token, known.keys, provider=provider, nonce=request.nonce, now=self._clock.now())
        except UnknownKey:
            await self._get_new_keys(web, known)
            try:
                claims = claims_of(token, known.keys, provider=provider, nonce=request.nonce, now=self._clock.now())
            except UnknownKey:
                raise SignInRefused(f"the ID token is signed by a key that {provider.name} does not have") from None
        return person_of(provider, claims)

    async def examine(self, provider: IdentityProvider) -> Sequence[Finding]:
        self._known.pop((provider.url, provider.authority), None)
        try:
            known = await self._get_known(provider)
        except Unavailable as failed:
            return [Finding(about="discovery", says=failed.internal or failed.detail, good=False)]
        metadata = known.metadata
        supported = metadata.id_token_signing_alg_values_supported
        challenges = metadata.code_challenge_methods_supported
        by = "is in each answer" if metadata.authorization_response_iss_parameter_supported else "is not in answers"
        return [
            Finding(about="discovery", says=f"{provider.url} is the issuer it says it is"),
            Finding(about="keys", says=f"{len(known.keys)} keys", good=bool(known.keys)),
            Finding(
                about="algorithms",
                says=", ".join(supported) or "it does not say by which it signs",
                good=not supported or bool(set(supported) & set(ALGORITHMS)),
            ),
            Finding(
                about="PKCE",
                says="it does not say whether it knows S256" if challenges is None else ", ".join(challenges),
                good=challenges is None or "S256" in challenges,
            ),
            Finding(about="issuer", says=f"{by} (RFC 9207)"),
            Finding(about="client", says=f"{provider.client}: shown only by signing in"),
        ]

    async def _get_known(self, provider: IdentityProvider) -> _Known:
        """What a provider says of itself. Raises Unavailable if it cannot be asked, or says it is somebody else."""
        place = provider.url, provider.authority
        known = self._known.get(place)
        if known is not None and self._monotonic() - known.at < _KNOWN_FOR_S:
            return known
        web = ProviderWeb(provider, self._public)
        said = await web.get(f"{provider.url.rstrip('/')}/.well-known/openid-configuration")
        try:
            metadata = msgspec.convert(said, Metadata)
        except msgspec.ValidationError as wrong:
            raise _unusable(provider, f"its discovery cannot be read: {wrong}") from None
        if metadata.issuer != provider.url:
            raise _unusable(provider, f"it says that it is {metadata.issuer[:200]!r}")
        if not metadata.authorization_endpoint.startswith(("https://", provider.url.split("//")[0] + "//")):
            raise _unusable(provider, "it would have people sign in unencrypted")
        known = _Known(metadata, await _keys(web, metadata), self._monotonic())
        self._known = {key: each for key, each in self._known.items() if self._monotonic() - each.at < _KNOWN_FOR_S}
        self._known[place] = known
        return known

    async def _get_new_keys(self, web: ProviderWeb, known: _Known) -> None:
        now = self._monotonic()
        if now - known.keys_at >= _KEYS_ASKED_EVERY_S:
            known.keys_at = now
            known.keys = await _keys(web, known.metadata)


def _unusable(provider: IdentityProvider, why: str) -> Unavailable:
    return Unavailable(f"identity provider {provider.name} cannot be asked; try again later", internal=why)


async def _keys(web: ProviderWeb, metadata: Metadata) -> Sequence[Mapping[str, Any]]:
    said: object = (await web.get(metadata.jwks_uri)).get("keys")
    return [key for key in said if isinstance(key, dict)] if isinstance(said, list) else []  # pyright: ignore[reportUnknownVariableType] - of a stranger's JSON


def _introduction(
    provider: IdentityProvider, secret: str, metadata: Metadata, form: dict[str, str]
) -> Mapping[str, str]:
    """How this cloud says who it is (RFC 6749, section 2.3.1): in headers, or added to the form."""
    methods = metadata.token_endpoint_auth_methods_supported
    if secret and ("client_secret_basic" in methods or "client_secret_post" not in methods):
        pair = f"{quote_plus(provider.client)}:{quote_plus(secret)}"
        return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    form["client_id"] = provider.client
    if secret:
        form["client_secret"] = secret
    return {}
