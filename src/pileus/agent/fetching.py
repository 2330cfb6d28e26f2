"""Brings images from the controller by HTTPS, and goes on where it stopped when the connection breaks."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus
from typing import Final

import httpx2
import structlog

from pileus.kernel.errors import Unavailable
from pileus.kernel.units import MIB
from pileus.link.addresses import Address
from pileus.link.certificates import CONTROLLER_NAME
from pileus.link.images import ImageSource

ATTEMPTS: Final = 4
"""In a row, without a single byte between them."""
SILENCE_S: Final = 30.0
"""How long the controller may keep a connection waiting."""

log = structlog.stdlib.get_logger()


class ImageFetcher:
    """Fetches images from wherever the controller's API is."""

    def __init__(
        self, addresses: Callable[[], Sequence[Address]], context: Callable[[], ssl.SSLContext], *, pause_s: float = 1.0
    ) -> None:
        """Fetch from these addresses of the API, asked anew at each attempt; `pause_s` is between two attempts."""
        self._addresses = addresses
        self._context = context
        self._pause_s = pause_s

    async def fetch(self, image: ImageSource) -> AsyncIterator[bytes]:
        """The image's bytes, in pieces.

        Raises:
            Unavailable: nobody gave them, although asked several times.
        """
        received, failures, why = 0, 0, ""
        while received < image.size_bytes:
            if failures >= ATTEMPTS:
                raise Unavailable("the image cannot be fetched", internal=f"{image.id}: {why}")
            if failures:
                await asyncio.sleep(self._pause_s)
            address = self._address(failures)
            failures += 1
            try:
                async for piece in self._pieces(image, address, received):
                    received += len(piece)
                    failures = 1
                    yield piece
                why = "it ended early"
            except (httpx2.TransportError, httpx2.InvalidURL, _RefusedError) as error:
                why = str(error) or type(error).__name__
                log.info("image transfer broke off", image=image.id, received=received, why=why, address=str(address))

    def _address(self, attempt: int) -> Address:
        addresses = self._addresses()
        if not addresses:
            raise Unavailable("it is not known where the controller is")
        return addresses[attempt % len(addresses)]

    async def _pieces(self, image: ImageSource, address: Address, start: int) -> AsyncIterator[bytes]:
        # The name in the certificate stands for the controller, whatever its address.
        extensions = {"sni_hostname": CONTROLLER_NAME}
        headers = {"range": f"bytes={start}-"} if start else {}
        async with (
            api_client(self._context()) as client,
            client.stream("GET", url_at(image.url, address), headers=headers, extensions=extensions) as answer,
        ):
            match answer.status_code:
                case HTTPStatus.PARTIAL_CONTENT:
                    known = 0
                case HTTPStatus.OK:  # it does not do ranges: what is known comes again
                    known = start
                case status:
                    raise _RefusedError(f"status {status}")
            async for piece in answer.aiter_bytes(MIB):
                if news := piece[known:]:
                    yield news
                known = max(0, known - len(piece))


def api_client(context: ssl.SSLContext) -> httpx2.AsyncClient:
    """A client of the controller's API."""
    return httpx2.AsyncClient(verify=context, timeout=SILENCE_S, trust_env=False)


class _RefusedError(Exception):
    """The server answered something else."""


def url_at(url: str, address: Address) -> str:
    """A path of the API at this address of it; a whole URL as it is."""
    return f"https://{address}{url}" if url.startswith("/") else url
