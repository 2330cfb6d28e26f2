"""ID tokens that prove something, and all others."""

import base64
import warnings
from datetime import UTC, datetime
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from pileus.cloud.identityproviders.fields import DEFAULTS
from pileus.cloud.identityproviders.model import IdentityProvider, ProviderKind
from pileus.federation.oidc.idtoken import UnknownKey, claims_of, person_of
from pileus.kernel.errors import SignInRefused

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
PROVIDER = IdentityProvider(
    id="one",
    created_at=NOW,
    name="keycloak",
    kind=ProviderKind.OIDC,
    url="https://id.example.com/realms/staff",
    client="pileus",
    **DEFAULTS[ProviderKind.OIDC],
)
CLAIMS: dict[str, Any] = {
    "iss": PROVIDER.url,
    "sub": "1",
    "aud": "pileus",
    "exp": NOW.timestamp() + 300,
    "iat": NOW.timestamp(),
    "nonce": "ours",
    "preferred_username": "ann",
}


def jwk(key: ec.EllipticCurvePrivateKey, **more: str) -> dict[str, Any]:
    return {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), **more}


KEYS = [jwk(KEY, kid="one"), jwk(OTHER, kid="two"), {"kty": "oct", "k": "c2VjcmV0", "kid": "three"}]


def signed(key: Any = KEY, algorithm: str = "ES256", headers: dict[str, Any] | None = None, **lies: Any) -> str:
    claims = {name: value for name, value in {**CLAIMS, **lies}.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "one", **(headers or {})})


def read(token: str, keys: list[dict[str, Any]] = KEYS) -> dict[str, Any]:
    return dict(claims_of(token, keys, provider=PROVIDER, nonce="ours", now=NOW))


@pytest.mark.parametrize(
    "truth",
    [
        {},
        {"aud": ["pileus"]},
        {"aud": ["pileus", "other"], "azp": "pileus"},
        {"exp": NOW.timestamp() - 59},
        {"iat": NOW.timestamp() + 59, "nbf": NOW.timestamp() + 59},
    ],
)
def test_a_token_of_the_provider_for_us_and_now_is_read(truth: dict[str, Any]) -> None:
    assert read(signed(**truth))["sub"] == "1"


@pytest.mark.parametrize(
    "lie",
    [
        {"iss": "https://id.example.com/realms/other"},
        {"iss": "https://id.example.com/realms/staff/"},
        {"aud": "somebody else"},
        {"aud": []},
        {"aud": ["pileus", "other"]},
        {"aud": ["pileus", "other"], "azp": "other"},
        {"azp": "other"},
        {"exp": NOW.timestamp() - 61},
        {"exp": "tomorrow"},
        {"iat": NOW.timestamp() + 61},
        {"nbf": NOW.timestamp() + 61},
        {"nonce": "another's"},
        {"nonce": 1},
        *({name: None} for name in ("iss", "sub", "aud", "exp", "iat", "nonce")),
    ],
    ids=str,
)
def test_a_token_that_lies_or_keeps_silent_proves_nothing(lie: dict[str, Any]) -> None:
    with pytest.raises(SignInRefused):
        read(signed(**lie))


def test_an_algorithm_is_never_the_tokens_to_choose() -> None:
    body = signed().split(".")[1]
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode() + f".{body}."
    public = KEY.public_key().public_numbers().x.to_bytes(32)
    shared = [
        jwt.encode(CLAIMS, secret, algorithm="HS256", headers={"kid": kid})
        for secret, kid in ((public, "one"), (b"secret" * 6, "three"))
    ]
    for token in (unsigned, unsigned + "x", *shared):
        with pytest.raises(SignInRefused):
            read(token)


@pytest.mark.parametrize(
    "token",
    ["", ".", "a.b.c", "x" * 100_000, signed() + "x", signed()[:-8], signed(headers={"typ": "at+jwt"}), signed(OTHER)],
    ids=range(8),
)
def test_what_is_damaged_or_something_else_is_nothing(token: str) -> None:
    with pytest.raises(SignInRefused):
        read(token)


def test_a_key_that_is_not_known_may_be_a_new_one() -> None:
    for token, keys in (
        (signed(headers={"kid": "four"}), KEYS),
        (signed(), [jwk(KEY, kid="one", use="enc")]),
        (signed(), [jwk(KEY, kid="one", alg="ES384")]),
        (signed(), []),
    ):
        with pytest.raises(UnknownKey):
            read(token, keys)


def test_without_a_name_a_key_must_be_the_only_one() -> None:
    token = jwt.encode(CLAIMS, KEY, algorithm="ES256")
    assert read(token, [jwk(KEY)])["sub"] == "1"
    with pytest.raises(SignInRefused):
        read(token, [jwk(KEY), jwk(OTHER)])


def test_a_short_key_is_refused() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        token = jwt.encode(CLAIMS, weak, algorithm="RS256", headers={"kid": "weak"})
        with pytest.raises(SignInRefused):
            read(token, [{**RSAAlgorithm.to_jwk(weak.public_key(), as_dict=True), "kid": "weak"}])


def test_a_person_is_who_the_claims_say() -> None:
    person = person_of(PROVIDER, {**CLAIMS, "name": "Ann\n Arbor", "email": "ann@example.com", "groups": ["/ops", 1]})
    assert (person.subject, person.name, person.display_name) == ("1", "ann", "Ann Arbor")
    assert person.groups == ("/ops",)


@pytest.mark.parametrize(
    "claims", [{"preferred_username": ""}, {"preferred_username": None}, {"sub": ""}, {"sub": 1}, {"sub": "x" * 256}]
)
def test_who_has_no_name_or_subject_is_nobody(claims: dict[str, Any]) -> None:
    with pytest.raises(SignInRefused):
        person_of(PROVIDER, {**CLAIMS, **claims})


@pytest.mark.parametrize(("verified", "good"), [(True, True), (False, False), ("true", False), (None, False)])
def test_an_address_is_a_name_only_if_it_is_known_to_be_theirs(verified: object, *, good: bool) -> None:
    by_mail = msgspec.structs.replace(PROVIDER, name_attribute="email")
    claims = {**CLAIMS, "email": "boss@example.com", "email_verified": verified}
    if good:
        assert person_of(by_mail, claims).name == "boss@example.com"
    else:
        with pytest.raises(SignInRefused):
            person_of(by_mail, claims)
