"""Asks OpenID providers, carefully: what they say of themselves leads to other addresses.

An administrator names the issuer, and it may well be on a private network: its host is asked wherever it is. Which
other hosts are asked (for keys, for tokens) is the provider's to say; those must be on the public Internet, as where
images are imported from, or the provider could have the controller ask whomever it stands beside. Only HTTPS, except on
this machine; no redirections, no more than it takes.
"""

import ssl
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import msgspec

from pileus.cloud.identityproviders.fields import is_loopback
from pileus.cloud.identityproviders.model import IdentityProvider
from pileus.kernel.errors import Forbidden, Unavailable

PublicAddress = Callable[[str, int], Awaitable[IPv4Address | IPv6Address]]
"""The address of a host that may be asked. Raises Forbidden, or Unavailable if it has none."""

_ANSWER_S: Final = 10.0
_LARGEST: Final = 512 * 1024


class Refusal(Exception):
    """The provider answers, and refuses; it says why."""


class ProviderWeb:
    """Asks one provider and whom it names."""

    def __init__(self, provider: IdentityProvider, public: PublicAddress) -> None:
        self._provider = provider
        self._public = public
        self._issuer = urlsplit(provider.url)
        self._context = ssl.create_default_context(cadata=provider.authority or None)

    async def get(self, url: str) -> dict[str, Any]:
        """What is there, as JSON. Raises Unavailable, also if it is refused."""
        try:
            return await self._ask("GET", url, None, {})
        except Refusal as refused:
            raise Unavailable(self._away, internal=f"{url}: {refused}") from None

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
        """What is answered to a form. Raises Refusal, or Unavailable."""
        return await self._ask("POST", url, form, headers)

    @property
    def _away(self) -> str:
        return f"identity provider {self._provider.name} cannot be asked; try again later"

    async def _ask(
        self, method: str, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        try:
            there, extensions = await self._place(url)
            async with (
                httpx2.AsyncClient(verify=self._context, timeout=_ANSWER_S, trust_env=False) as client,
                client.stream(
                    method,
                    there,
                    data=form,
                    headers={"accept": "application/json", "host": urlsplit(url).netloc, **headers},
                    extensions=extensions,
                    follow_redirects=False,
                ) as answer,
            ):
                body = b""
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > _LARGEST:
                        raise Unavailable(self._away, internal=f"{url} answers more than {_LARGEST} bytes")
        except (httpx2.TransportError, httpx2.InvalidURL, httpx2.DecodingError, ValueError) as failed:
            raise Unavailable(self._away, internal=f"{url}: {failed!r}") from failed
        return self._read(url, answer.status_code, body)

    def _read(self, url: str, status: int, body: bytes) -> dict[str, Any]:
        try:
            said = msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.MsgspecError:
            said = {}
        if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            parts = (str(said.get(name, "")) for name in ("error", "error_description"))
            raise Refusal(": ".join(part for part in parts if part)[:300] or f"it answers {status}")
        if status != HTTPStatus.OK or not said:
            raise Unavailable(self._away, internal=f"{url} answers {status}, or no JSON object")
        return said

    async def _place(self, url: str) -> tuple[str, dict[str, Any]]:
        """Where to connect to for a URL, and what else it takes. Raises Unavailable if nobody may be asked there."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_issuers = host == self._issuer.hostname and parts.scheme == self._issuer.scheme
        if is_issuers:
            return url, {}
        if parts.scheme != "https" or not host or is_loopback(host):
            raise Unavailable(
                self._away, internal=f"it names {url}, which is not asked: HTTPS on the public Internet is"
            )
        port = parts.port or 443
        try:
            address = await self._public(host, port)
        except Forbidden as refused:
            raise Unavailable(self._away, internal=f"it names {url}: {refused.detail}") from None
        at = f"[{address}]" if address.version == 6 else str(address)
        return parts._replace(netloc=f"{at}:{port}").geturl(), {"sni_hostname": host}
