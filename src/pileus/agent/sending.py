"""Sends what is here to the controller by HTTPS, and goes on where it stopped when the connection breaks."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus
from typing import Any, Final

import httpx2
import msgspec
import structlog

from pileus.agent.fetching import ATTEMPTS, SILENCE_S, url_at
from pileus.agent.packing import Read
from pileus.agent.storage.port import Told
from pileus.kernel.errors import PileusError, Unavailable, error_class
from pileus.link.addresses import Address
from pileus.link.certificates import CONTROLLER_NAME

_OFFSET: Final = "upload-offset"
_LONGEST_PROBLEM: Final = 16 * 1024

log = structlog.stdlib.get_logger()


class _Problem(msgspec.Struct):
    """As much of a refusal as is of use (RFC 9457)."""

    type: str = ""
    detail: str = ""


class Sender:
    """Sends to wherever the controller's API is."""

    def __init__(
        self,
        addresses: Callable[[], Sequence[Address]],
        client: Callable[[], httpx2.AsyncClient],
        *,
        pause_s: float = 1.0,
    ) -> None:
        """Send to these addresses of the API, asked anew at each attempt; `pause_s` is between two attempts."""
        self._addresses = addresses
        self._client = client
        self._pause_s = pause_s

    async def send(self, path: str, size_bytes: int, read: Read, told: Told) -> None:
        """Have so many bytes arrive at a path, in order; what is there already is not sent again.

        Raises:
            PileusError: what the controller refuses it with.
            Unavailable: the controller does not answer, although asked several times.
        """
        failures, arrived, why = 0, -1, ""
        while failures < ATTEMPTS:
            if failures:
                await asyncio.sleep(self._pause_s)
            url = url_at(path, self._address(failures))
            try:
                async with self._client() as client:
                    now = await _asked(client, "GET", url)
                    failures = 0 if now > arrived else failures
                    arrived = now
                    if arrived >= size_bytes:
                        return
                    headers = {_OFFSET: str(arrived), "content-length": str(size_bytes - arrived)}
                    body = _counted(read(arrived), lambda sent, at=arrived: told((at + sent) / size_bytes))
                    if await _asked(client, "PATCH", url, headers=headers, content=body) >= size_bytes:
                        return
                why = "it ended early"
            except (httpx2.TransportError, httpx2.InvalidURL, Unavailable) as broken:
                why = str(broken) or type(broken).__name__
            failures += 1
            log.info("sending broke off", url=url.partition("?")[0], arrived=arrived, why=why)
        raise Unavailable("it cannot be sent to the controller", internal=why)

    def _address(self, attempt: int) -> Address:
        addresses = self._addresses()
        if not addresses:
            raise Unavailable("it is not known where the controller is")
        return addresses[attempt % len(addresses)]


async def _asked(client: httpx2.AsyncClient, method: str, url: str, **more: Any) -> int:  # noqa: ANN401 - httpx's own
    """How much has arrived when this is answered. Raises PileusError."""
    # The name in the certificate stands for the controller, whatever its address.
    extensions = {"sni_hostname": CONTROLLER_NAME}
    async with client.stream(method, url, extensions=extensions, timeout=SILENCE_S, **more) as answer:
        if answer.status_code == HTTPStatus.OK:
            return int(answer.headers.get(_OFFSET, "0"))
        said = b""
        async for piece in answer.aiter_bytes():
            said += piece
            if len(said) > _LONGEST_PROBLEM:
                break
        raise _refusal(answer.status_code, said)


def _refusal(status: int, said: bytes) -> PileusError:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.INSUFFICIENT_STORAGE:
        return Unavailable(f"the controller answered with status {status}")
    try:
        problem = msgspec.json.decode(said, type=_Problem)
    except msgspec.DecodeError:
        return Unavailable(f"the controller answered with status {status}")
    return error_class(problem.type.rpartition("/")[2])(problem.detail)


async def _counted(pieces: AsyncIterator[bytes], told: Callable[[int], None]) -> AsyncIterator[bytes]:
    sent = 0
    async for piece in pieces:
        yield piece
        sent += len(piece)
        told(sent)
