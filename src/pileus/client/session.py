"""Signing in: first finding out whom to trust, then getting a token."""

import ssl
from collections.abc import Callable, Mapping
from hashlib import sha256

import httpx2
import msgspec

from pileus.client.client import Client, Reply
from pileus.client.config import Config
from pileus.client.records import BegunSignIn, OfferedProviders, SignedIn
from pileus.kernel.errors import Forbidden, Invalid, NotFound, Unavailable

_AUTHORITY_PATH = "/v1/authority"
_LARGEST = 64 * 1024


async def authority_at(url: str, trusted: Callable[[str], bool]) -> str:
    """The certificate of the authority of the cloud at a URL, as PEM.

    The connection that it comes over proves nothing: `trusted` is asked with its fingerprint (`sha256:...`).

    Raises:
        Forbidden: it is not trusted.
        Unavailable: nobody answers there.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with httpx2.AsyncClient(verify=context, timeout=10.0, trust_env=False) as http:
            response = await http.get(url.rstrip("/") + _AUTHORITY_PATH)
    except httpx2.TransportError as failed:
        raise Unavailable(f"{url} does not answer: {failed or type(failed).__name__}") from failed
    except httpx2.InvalidURL as wrong:
        raise Invalid(f"{url!r} is not a URL: {wrong}") from wrong
    pem = response.text if response.is_success and len(response.content) <= _LARGEST else ""
    found = fingerprint(pem)
    if not trusted(found):
        raise Forbidden("the cloud's authority is not trusted", because={"fingerprint": found})
    return pem


def fingerprint(pem: str) -> str:
    """What people compare: `sha256:` and 64 hexadecimal digits. Raises Forbidden if this is no certificate."""
    try:
        return f"sha256:{sha256(ssl.PEM_cert_to_DER_cert(pem.strip())).hexdigest()}"
    except ValueError as wrong:
        raise Forbidden("who answers there is not a controller") from wrong


async def sign_in(
    config: Config, user: str, password: str, code: str = "", *, provider: str = "", patience_s: float = 5.0
) -> Config:
    """The configuration with a token for this user, in its project if it names one.

    Raises:
        SecondFactorRequired: there has to be a code.
        PileusError: any other refusal.
    """
    body = {
        "user": user,
        "password": password,
        "provider": provider or None,
        "project": config.project or None,
        "code": code or None,
    }
    made = (await _asked(config, "/v1/tokens/sign-in", body, patience_s)).read(SignedIn)
    return msgspec.structs.replace(config, token=made.token, project="")


async def kind_of(config: Config, provider: str, *, patience_s: float = 5.0) -> str:
    """How one signs in by an identity provider: `ldap`, by name and password, or `oidc`, in a browser.

    Raises:
        NotFound: nobody can sign in by one of that name.
        PileusError: any other refusal.
    """
    async with Client(_nobody(config), patience_s=patience_s) as client:
        offered = (await client.get("/v1/identity-providers/offered")).read(OfferedProviders).items
    kinds = {each.name: each.kind for each in offered}
    if provider not in kinds:
        raise NotFound(f"there is no identity provider {provider}; there are: {', '.join(sorted(kinds)) or 'none'}")
    return kinds[provider]


async def begin_in_browser(config: Config, provider: str, redirect_uri: str, *, patience_s: float = 5.0) -> BegunSignIn:
    """Begin to sign in by an OpenID provider; a browser is to go to the `url` and to come back to `redirect_uri`."""
    body = {"provider": provider, "redirect_uri": redirect_uri}
    return (await _asked(config, "/v1/tokens/begin-sign-in", body, patience_s)).read(BegunSignIn)


async def finish_from_browser(
    config: Config, attempt: str, brought: Mapping[str, str], code: str = "", *, patience_s: float = 5.0
) -> Config:
    """The configuration with a token for whoever signed in, by what the browser has brought.

    Raises:
        SecondFactorRequired: there has to be a code.
        PileusError: any other refusal.
    """
    body = {
        "attempt": attempt,
        "state": brought.get("state", ""),
        "authorization_code": brought.get("code", ""),
        "issuer": brought.get("iss", ""),
        "project": config.project or None,
        "code": code or None,
    }
    made = (await _asked(config, "/v1/tokens/finish-sign-in", body, patience_s)).read(SignedIn)
    return msgspec.structs.replace(config, token=made.token, project="")


async def _asked(config: Config, path: str, body: Mapping[str, str | None], patience_s: float) -> Reply:
    async with Client(_nobody(config), patience_s=patience_s) as client:
        return await client.send("POST", path, body, plans=False)


def _nobody(config: Config) -> Config:
    return msgspec.structs.replace(config, token="", project="")
