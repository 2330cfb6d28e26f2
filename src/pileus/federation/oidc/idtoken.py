"""What an ID token proves, if it proves anything (OpenID Connect Core 1.0, section 3.1.3.7). Pure.

The token says by which key and algorithm it is signed, and it is a stranger's until that is checked: so the algorithms
are ours to choose, all of them with a key that only the provider has. `none`, and those by a secret that both share
(HS256), are not among them: they are how such checks are talked into something else (RFC 8725, section 2.1).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from pileus.cloud.identityproviders.model import IdentityProvider
from pileus.cloud.identityproviders.port import Person
from pileus.kernel.errors import SignInRefused

ALGORITHMS: Final[Mapping[str, str]] = {
    "RS256": "RSA",
    "RS384": "RSA",
    "RS512": "RSA",
    "PS256": "RSA",
    "PS384": "RSA",
    "PS512": "RSA",
    "ES256": "EC",
    "ES384": "EC",
    "ES512": "EC",
    "EdDSA": "OKP",
}
"""Those that are taken, each with the type of its key."""

LEEWAY: Final = timedelta(seconds=60)
"""How far two clocks may be apart."""

_LEAST_RSA_BITS: Final = 2048
_LONGEST: Final = 64 * 1024
_MOST_GROUPS: Final = 10_000
_NEEDED: Final = ("iss", "sub", "aud", "exp", "iat", "nonce")
_LONGEST_SUBJECT: Final = 255

Claims = Mapping[str, Any]


class UnknownKey(Exception):
    """The token names a key that is not among those that are known: there may be new ones."""


def claims_of(
    token: str, keys: Iterable[Mapping[str, Any]], *, provider: IdentityProvider, nonce: str, now: datetime
) -> Claims:
    """What a token says, if the provider says it, to us, now, and in answer to this nonce.

    Raises:
        SignInRefused: it proves nothing.
        UnknownKey: it may, by a key that is not among these.
    """
    try:
        header = jwt.get_unverified_header(token) if len(token) <= _LONGEST else {}
        algorithm: object = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise SignInRefused(f"the ID token is signed by {str(algorithm)[:32]!r}, which is not taken")
        if str(header.get("typ", "JWT")).upper() != "JWT":
            raise SignInRefused("the token is another kind of token, not an ID token")
        key = _key(keys, header, algorithm)
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=provider.client,
            issuer=provider.url,
            # Time is told by the controller's clock, below.
            options={"require": list(_NEEDED), "verify_exp": False, "verify_nbf": False, "verify_iat": False},
        )
    except jwt.PyJWTError as wrong:
        raise SignInRefused(f"the ID token is not good: {wrong}") from None
    _check_times(claims, now)
    _check_whom(claims, provider.client)
    if not isinstance(claims["nonce"], str) or not compare_digest(claims["nonce"].encode(), nonce.encode()):
        raise SignInRefused("the ID token answers another request than ours (nonce)")
    return claims


def _key(keys: Iterable[Mapping[str, Any]], header: Mapping[str, Any], algorithm: str) -> Any:  # noqa: ANN401 - as the library types it
    named = header.get("kid")
    fitting = [
        key
        for key in keys
        if key.get("kty") == ALGORITHMS[algorithm]
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and (named is None or key.get("kid") == named)
    ]
    if not fitting:
        raise UnknownKey
    if len(fitting) > 1:
        raise SignInRefused("several keys of the provider fit, and the ID token does not say which it is signed by")
    key = jwt.PyJWK(dict(fitting[0]), algorithm=algorithm).key
    if isinstance(key, RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        raise SignInRefused(f"the provider's key has {key.key_size} bits, which are too few")
    return key


def _check_times(claims: Claims, now: datetime) -> None:
    moment, leeway = now.timestamp(), LEEWAY.total_seconds()
    for name in ("exp", "iat", "nbf"):
        if not isinstance(claims.get(name, 0), int | float):
            raise SignInRefused(f"the ID token says no time that could be read ({name})")
    if claims["exp"] <= moment - leeway:
        raise SignInRefused("the ID token has expired")
    if max(claims["iat"], claims.get("nbf", 0)) > moment + leeway:
        raise SignInRefused("the ID token is not good yet: is the clock of one of both wrong?")


def _check_whom(claims: Claims, client: str) -> None:
    """The library has seen to it that we are among those whom it is for; it must not be for others by way of us."""
    audience: object = claims["aud"]
    if claims.get("azp", client if audience in (client, [client]) else None) != client:
        raise SignInRefused("the ID token was given to somebody else (azp)")


def person_of(provider: IdentityProvider, claims: Claims) -> Person:
    """Who it is that a token is about.

    Raises:
        SignInRefused: it does not say by which name, or by one that it does not vouch for itself.
    """
    subject, name = claims["sub"], claims.get(provider.name_attribute)
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
        raise SignInRefused("the ID token does not say whom it is about")
    if not isinstance(name, str) or not name:
        raise SignInRefused(f"the ID token has no claim {provider.name_attribute}")
    if provider.name_attribute == "email" and claims.get("email_verified") is not True:
        raise SignInRefused(f"{provider.name} does not say that {name[:64]!r} is theirs (email_verified)", tried=name)
    groups: object = claims.get(provider.groups_attribute, ())
    return Person(
        subject=subject,
        name=_clean(name),
        display_name=_clean(claims.get(provider.display_name_attribute)),
        mail=_clean(claims.get(provider.mail_attribute)),
        groups=tuple(_texts(groups))[:_MOST_GROUPS],
    )


def _texts(value: object) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType] - of a stranger's JSON


def _clean(value: object) -> str:
    return "".join(letter for letter in value if letter.isprintable()) if isinstance(value, str) else ""
