"""Fetches images from the web for people, and from nowhere else.

Whoever names a URL has the controller ask it, from where the controller stands: beside hosts, their consoles, the
metadata of some other cloud (server-side request forgery). So only addresses of the public Internet are asked, and
those that the operator allows (`import_prefixes`). The name is looked up once, the address that it leads to is checked,
and exactly that address is connected to: a name that leads elsewhere a moment later (DNS rebinding) leads nowhere. Each
redirection is a new URL, and checked like the first. Proxies and credentials of the controller's machine are not used.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2
import msgspec

from pileus.kernel.errors import Conflict, Forbidden, Invalid, Unavailable
from pileus.kernel.units import MIB

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

_REDIRECTIONS: Final = 5
_SILENCE_S: Final = 30.0
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""Addresses that stand for one of IPv4 (RFC 6052, section 2.1)."""
_REDIRECTED: Final = frozenset({301, 302, 303, 307, 308})
_WORTH_TRYING_AGAIN: Final = frozenset({408, 425, 429})


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What a server answers."""

    start: int
    """Where the body begins: as asked, or 0 if the server does not send parts, or has something else by now."""
    size: int
    """Of all of it, in bytes; 0 if the server does not say so."""
    validator: str
    """By which the server knows this content again; empty if it has nothing of the kind."""
    body: AsyncIterator[bytes]


class Web(Protocol):
    """Where images are imported from."""

    def fetch(self, url: str, *, start: int, validator: str) -> AbstractAsyncContextManager[Page]:
        """What is at a URL, from a byte on if it still is what the validator stands for.

        Raises:
            Invalid: it is no URL that can be fetched.
            Forbidden: it leads to where nothing may be asked.
            Conflict: the server has no such thing, or does not give it away.
            Unavailable: the server does not answer, or breaks off.
        """
        ...


def source_of(url: str) -> str:
    """A URL for people to read: without what may be secret in it.

    Raises:
        Invalid: it is no URL that can be fetched.
    """
    parts = _parts(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


class PublicWeb:
    """The public Internet, and what the operator allows besides."""

    def __init__(
        self,
        allowed: Sequence[Prefix],
        own: Callable[[], Collection[str]],
        *,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Fetch from public addresses, and from `allowed` ones; never from those that are the cloud's `own`."""
        self._allowed = allowed
        self._own = own
        self._trusted = context

    @cached_property
    def _context(self) -> ssl.SSLContext:
        # To read all authorities takes longer than most of what a controller begins with; few ever fetch.
        return self._trusted or ssl.create_default_context()

    @asynccontextmanager
    async def fetch(self, url: str, *, start: int, validator: str) -> AsyncGenerator[Page]:
        headers = {"accept-encoding": "identity", "user-agent": "pileus"}
        if start:
            headers["range"] = f"bytes={start}-"
            if validator:
                headers["if-range"] = validator
        parts = _parts(url)
        for _ in range(_REDIRECTIONS + 1):
            async with self._asked(parts, headers) as answer:
                if answer.status_code not in _REDIRECTED:
                    yield _page(answer, start)
                    return
                there = _parts(urljoin(parts.geturl(), answer.headers.get("location", "")))
            if parts.scheme == "https" and there.scheme != "https":
                raise Forbidden("the server leads from https to http, which is not followed")
            parts = there
        raise Conflict(f"the server leads on and on: {_REDIRECTIONS} redirections were followed")

    @asynccontextmanager
    async def _asked(self, parts: SplitResult, headers: dict[str, str]) -> AsyncGenerator[httpx2.Response]:
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await self.address(host, port)
        at = f"[{address}]" if address.version == 6 else str(address)
        path = parts._replace(fragment="", scheme="", netloc="").geturl() or "/"
        try:
            async with (
                httpx2.AsyncClient(verify=self._context, timeout=_SILENCE_S, trust_env=False) as client,
                client.stream(
                    "GET",
                    f"{parts.scheme}://{at}:{port}{path}",
                    headers={**headers, "host": parts.netloc},
                    extensions={"sni_hostname": host},
                    follow_redirects=False,
                ) as answer,
            ):
                yield answer
        except httpx2.TransportError as failed:
            raise Unavailable(f"{host} does not answer, or broke off", internal=repr(failed)) from failed
        except httpx2.InvalidURL as wrong:
            raise Invalid("the URL cannot be fetched", fields={"url": str(wrong)}) from wrong

    async def address(self, host: str, port: int) -> Address:
        """One of a host's addresses that may be asked. Raises Forbidden, or Unavailable if it has none."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as unknown:
            raise Unavailable(f"{host} is not known", internal=str(unknown)) from unknown
        except UnicodeError as wrong:
            raise Invalid("the URL cannot be fetched", fields={"url": "its host is no name"}) from wrong
        for each in found:
            address = ip_address(each[4][0])
            if self._may_ask(address) and not await asyncio.to_thread(_is_this_machine, address, self._allowed):
                return address
        raise Forbidden(
            f"{host} is not on the public Internet: an administrator of the cloud may allow its addresses"
            " (import_prefixes)",
            fields={"url": "leads to an address that is not public"},
        )

    def _may_ask(self, address: Address) -> bool:
        plain = _plain(address)
        if any(plain.version == prefix.version and plain in prefix for prefix in self._allowed):
            return True
        return plain.is_global and not plain.is_multicast and str(plain) not in self._own()


def _plain(address: Address) -> Address:
    """The address that is meant: some of IPv6 stand for one of IPv4."""
    if isinstance(address, IPv4Address):
        return address
    embedded = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if embedded is None and address in _NAT64:
        embedded = IPv4Address(int(address) & 0xFFFF_FFFF)
    return embedded or address


def _is_this_machine(address: Address, allowed: Sequence[Prefix]) -> bool:
    """Whether packets to it would not leave: then they would come from this very address. Nothing is sent."""
    if any(address.version == prefix.version and address in prefix for prefix in allowed):
        return False
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            return False
        return ip_address(probe.getsockname()[0]) == address


def _parts(url: str) -> SplitResult:
    wrong = ""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            wrong = "must begin with https:// or http://"
        elif not parts.hostname:
            wrong = "has no host"
        elif parts.username is not None or parts.password is not None:
            wrong = "must not hold a password"
        elif parts.port == 0:
            wrong = "has no possible port"
    except ValueError as error:
        raise Invalid("some fields are wrong", fields={"url": str(error)}) from error
    if wrong:
        raise Invalid("some fields are wrong", fields={"url": wrong})
    return parts


def _page(answer: httpx2.Response, start: int) -> Page:
    status = answer.status_code
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _WORTH_TRYING_AGAIN:
        raise Unavailable(f"the server answers {status}")
    validator = answer.headers.get("etag", "")
    validator = "" if validator.startswith("W/") else validator or answer.headers.get("last-modified", "")
    body = _body(answer)
    if status == HTTPStatus.PARTIAL_CONTENT:
        said = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if said is None or int(said[1]) != start:
            raise Conflict("the server sends another part than it was asked for")
        return Page(start=start, size=int(said[2]), validator=validator, body=body)
    if status != HTTPStatus.OK:
        raise Conflict(f"the server answers {status}")
    length = answer.headers.get("content-length", "")
    return Page(start=0, size=int(length) if length.isdigit() else 0, validator=validator, body=body)


async def _body(answer: httpx2.Response) -> AsyncIterator[bytes]:
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise Conflict("the server packs what it sends, although it was asked not to")
    async for piece in answer.aiter_raw(MIB):
        yield piece


def prefixes(texts: Sequence[str]) -> list[Prefix]:
    """Prefixes as an operator writes them. Raises ValueError."""
    return [ip_network(text) for text in texts]
