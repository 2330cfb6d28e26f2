"""The HTTP server of the metadata service. Guests are hostile: everything they send is small, timed and counted."""

import asyncio
import re
from contextlib import suppress
from http import HTTPStatus

import structlog

from pileus.agent.network.ovn_limits import AtOnce
from pileus.agent.network.port import MetadataListener
from pileus.kernel.ids import NetworkId

log: structlog.stdlib.BoundLogger = structlog.get_logger()

HEAD_LIMIT_BYTES = 8192
_BODY_LIMIT_BYTES = 4096
_HEAD_WITHIN_S = 10.0
_ANSWER_WITHIN_S = 15.0
_WRITTEN_WITHIN_S = 15.0
_REQUESTS_OF_A_CONNECTION = 1000
_CONNECTIONS_OF_A_GUEST, _CONNECTIONS = 8, 256

_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST) (/[!-~]{0,1023}) HTTP/1\.([01])")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)
_KEEP = re.compile(rb"\r\nconnection:[ \t]*keep-alive[ \t]*\r\n", re.IGNORECASE)


class MetadataServer:
    """Answers the guests of one network. A guest is known by its address: the switch lets no other one through."""

    def __init__(self, network: NetworkId, listener: MetadataListener) -> None:
        self._network = network
        self._listener = listener
        self._connections = AtOnce(_CONNECTIONS_OF_A_GUEST, _CONNECTIONS)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        address = str(writer.get_extra_info("peername")[0])
        try:
            with self._connections.one_more(address) as may:
                left = _REQUESTS_OF_A_CONNECTION if may else 0
                while left and await self._request(address, reader, writer):
                    left -= 1
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the guest went away, or was too slow to wait for
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _request(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; says whether there may be another one."""
        try:
            async with asyncio.timeout(_HEAD_WITHIN_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return await _refuse(writer, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        request = _REQUEST.fullmatch(head.partition(b"\r\n")[0])
        if request is None:
            return await _refuse(writer, HTTPStatus.BAD_REQUEST)
        length = _LENGTH.search(head)
        body_bytes = int(length[1]) if length else 0
        if _CHUNKED.search(head) or body_bytes > _BODY_LIMIT_BYTES:
            return await _refuse(writer, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        async with asyncio.timeout(_HEAD_WITHIN_S):
            await reader.readexactly(body_bytes)
        keep = _CLOSE.search(head) is None if request[3] == b"1" else _KEEP.search(head) is not None
        method = request[1].decode()
        status, kind, body = await self._answer(address, method, request[2].decode())
        await _write(writer, status, kind, body, keep=keep, body_too=method != "HEAD")
        return keep

    async def _answer(self, address: str, method: str, path: str) -> tuple[int, str, bytes]:
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                return await self._listener.answer(self._network, address, method, path)
        except TimeoutError:
            return HTTPStatus.GATEWAY_TIMEOUT, "text/plain", b"no answer in time\n"
        except Exception:
            log.exception("metadata request failed", network=self._network, address=address, path=path)
            return HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"internal error\n"


async def _refuse(writer: asyncio.StreamWriter, status: HTTPStatus) -> bool:
    await _write(writer, status, "text/plain", f"{status.phrase}\n".encode(), keep=False, body_too=True)
    return False


async def _write(
    writer: asyncio.StreamWriter, status: int, kind: str, body: bytes, *, keep: bool, body_too: bool
) -> None:
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
    )
    writer.write(head.encode() + (body if body_too else b""))
    async with asyncio.timeout(_WRITTEN_WITHIN_S):
        await writer.drain()
