"""Finding a controller by multicast DNS. What is found is only an address: trust comes from certificates and tokens."""

import asyncio
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Final

import msgspec
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from pileus.link.addresses import Address

SERVICE: Final = "_pileus._tcp.local."

_RESOLVE_WITHIN_MS: Final = 2000


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A controller that says it is there."""

    api: tuple[Address, ...]
    link: tuple[Address, ...]
    authority: str
    """The fingerprint of its CA, as it says."""


class Announcement:
    """Tells the local networks where this controller is, while it is entered.

    Args:
        name: Tells this controller from others of the network: its host's name.
        addresses: Its IP addresses.
        authority: The fingerprint of its CA.
        interfaces: Addresses of the interfaces to speak on; empty for all.
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[str],
        *,
        api_port: int,
        link_port: int,
        authority: str,
        interfaces: Sequence[str] = (),
    ) -> None:
        self._info = AsyncServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=api_port,
            properties={"link": str(link_port), "authority": authority},
            parsed_addresses=list(addresses),
            server=f"{name}.local.",
        )
        self._interfaces = interfaces
        self._zeroconf: AsyncZeroconf | None = None
        self._announcing: Awaitable[object] | None = None

    async def __aenter__(self) -> "Announcement":
        self._zeroconf = _zeroconf(self._interfaces)
        # Returns when the name is ours; the announcements, 225 ms apart, go on behind.
        self._announcing = await self._zeroconf.async_register_service(  # pyright: ignore[reportUnknownMemberType] - untyped
            self._info, allow_name_change=True
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._zeroconf is not None
        assert self._announcing is not None
        await self._announcing
        await self._zeroconf.async_unregister_all_services()
        await self._zeroconf.async_close()


async def find(*, within_s: float, authority: str = "", interfaces: Sequence[str] = ()) -> Found | None:
    """The first controller that answers (of this CA, if given), or None when none does in time."""
    zeroconf = _zeroconf(interfaces)
    names: asyncio.Queue[str] = asyncio.Queue()

    def seen(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:  # noqa: ARG001
        if state_change is ServiceStateChange.Added:
            names.put_nowait(name)

    browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[seen])
    try:
        async with asyncio.timeout(within_s):
            while True:
                found = await _resolve(zeroconf, await names.get())
                if found is not None and authority in ("", found.authority):
                    return found
    except TimeoutError:
        return None
    finally:
        await browser.async_cancel()
        await zeroconf.async_close()


async def _resolve(zeroconf: AsyncZeroconf, name: str) -> Found | None:
    info = AsyncServiceInfo(SERVICE, name)
    if not await info.async_request(zeroconf.zeroconf, _RESOLVE_WITHIN_MS):
        return None
    hosts = info.parsed_scoped_addresses(IPVersion.All)
    said = info.decoded_properties
    link_port = said.get("link") or ""
    # Anybody may announce anything.
    if info.port is None or not link_port.isdecimal() or not 0 < int(link_port) < 65536:
        return None
    return Found(
        api=tuple(Address(host, info.port) for host in hosts),
        link=tuple(Address(host, int(link_port)) for host in hosts),
        authority=said.get("authority") or "",
    )


def _zeroconf(interfaces: Sequence[str]) -> AsyncZeroconf:
    return AsyncZeroconf(interfaces=list(interfaces)) if interfaces else AsyncZeroconf()
