"""The DNS forwarder of the metadata address: what OVN does not answer itself goes to the host's own resolvers.

Queries are passed on byte by byte, from a port of their own and with a number of their own, so that nobody can answer
in the resolver's place. Guests are hostile: each has so many queries a second, and so many at once.

What OVN passes on of its own domain, and of names of a single label, stays here: it has no address for them, and others
neither know them nor need to hear of them.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from pileus.agent.network.ovn_limits import AtOnce, Rate
from pileus.ovn.names import DOMAIN

_RESOLV_CONF = Path("/etc/resolv.conf")
_PORT = 53
_HEAD_BYTES = 12
_TYPE_AND_CLASS_BYTES = 4
_QUERY_LIMIT_BYTES = 4096
_ANSWER_WITHIN_S = 3.0
_IDLE_S = 10.0
_AT_ONCE_OF_A_GUEST = 32
_AT_ONCE = 512
_CONNECTIONS_OF_A_GUEST, _CONNECTIONS = 4, 256
_PER_SECOND, _BURST = 100.0, 200.0
_IS_ANSWER, _RECURSION_AVAILABLE = 0x80, 0x80
_NOERROR, _SERVFAIL = 0, 2
_KEPT_FLAGS = 0x79
"""Of the first byte of flags: the operation, and whether recursion is desired."""


def resolvers(text: str) -> list[str]:
    """The name servers in a resolv.conf(5)."""
    words = (line.split() for line in text.splitlines())
    return [
        each[1].partition("%")[0] for each in words if len(each) > 1 and each[0] == "nameserver" and _valid(each[1])
    ]


def _valid(address: str) -> bool:
    try:
        ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return True


def resolvers_of_host() -> list[str]:
    """The name servers that this host asks."""
    try:
        return resolvers(_RESOLV_CONF.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []


class Forwarder:
    """Answers queries by asking `upstreams`, which are looked up anew for each."""

    def __init__(self, upstreams: Callable[[], Sequence[str]] = resolvers_of_host, *, port: int = _PORT) -> None:
        self._upstreams = upstreams
        self._port = port
        self._rate = Rate(_PER_SECOND, _BURST)
        self._queries = AtOnce(_AT_ONCE_OF_A_GUEST, _AT_ONCE)
        self._connections = AtOnce(_CONNECTIONS_OF_A_GUEST, _CONNECTIONS)

    async def answer(self, query: bytes, guest: str, *, stream: bool = False) -> bytes | None:
        """The answer to a guest's query; None if it is to have none, because it asks nonsense or too often."""
        if not _HEAD_BYTES < len(query) <= _QUERY_LIMIT_BYTES or query[2] & _IS_ANSWER or not self._rate.allows(guest):
            return None
        with self._queries.one_more(guest) as may:
            if not may:
                return None
            if _is_ours(query):
                return _nothing(query)
            ask = self._by_stream if stream else self._by_datagram
            for upstream in self._upstreams():
                with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                    async with asyncio.timeout(_ANSWER_WITHIN_S):
                        return await ask(query, upstream)
            return failure(query)

    async def _by_datagram(self, query: bytes, upstream: str) -> bytes:
        number = os.urandom(2)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Question(number, answer), remote_addr=(upstream, self._port)
        )
        try:
            transport.sendto(number + query[2:])
            return query[:2] + (await answer)[2:]
        finally:
            transport.close()

    async def _by_stream(self, query: bytes, upstream: str) -> bytes:
        reader, writer = await asyncio.open_connection(upstream, self._port)
        try:
            writer.write(len(query).to_bytes(2) + query)
            return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        finally:
            writer.close()

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one TCP connection to its end (RFC 7766)."""
        guest = str(writer.get_extra_info("peername")[0])
        try:
            with self._connections.one_more(guest) as may:
                while may:
                    async with asyncio.timeout(_IDLE_S):
                        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                    answer = await self.answer(query, guest, stream=True)
                    if answer is None:
                        break
                    writer.write(len(answer).to_bytes(2) + answer)
                    async with asyncio.timeout(_IDLE_S):
                        await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the guest went away, or was too slow to wait for
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def failure(query: bytes) -> bytes | None:
    """The answer "server failure" to a query (RFC 1035, section 4.1), with its question; None if it has none."""
    return _answer_without_records(query, _SERVFAIL)


def _nothing(query: bytes) -> bytes | None:
    """The answer that a name has no such record; not that there is no such name, which only OVN knows."""
    return _answer_without_records(query, _NOERROR)


def _answer_without_records(query: bytes, code: int) -> bytes | None:
    _, end = _name(query)
    if end + _TYPE_AND_CLASS_BYTES > len(query):
        return None
    flags = bytes((query[2] & _KEPT_FLAGS | _IS_ANSWER, _RECURSION_AVAILABLE | code))
    return query[:2] + flags + b"\0\1" + bytes(6) + query[_HEAD_BYTES : end + _TYPE_AND_CLASS_BYTES]


def _is_ours(query: bytes) -> bool:
    labels, _ = _name(query)
    return len(labels) == 1 or (len(labels) > 1 and labels[-1].lower() == DOMAIN.encode())


def _name(query: bytes) -> tuple[list[bytes], int]:
    """The labels of the name that is asked for, and where it ends: maybe beyond the end of the query."""
    labels: list[bytes] = []
    at = _HEAD_BYTES
    while at < len(query) and query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]])
        at += 1 + query[at]
    return labels, at + 1


class _Question(asyncio.DatagramProtocol):
    """Waits for the answer that has the number of the query."""

    def __init__(self, number: bytes, answer: asyncio.Future[bytes]) -> None:
        self._number = number
        self._answer = answer

    def datagram_received(self, data: bytes, addr: object) -> None:
        del addr  # the socket is connected: it is the resolver's
        if len(data) >= _HEAD_BYTES and data[:2] == self._number and not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


class DatagramServer(asyncio.DatagramProtocol):
    """Serves the UDP socket of one network."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(self._tasks) < _AT_ONCE:
            task = asyncio.create_task(self._answer(data, addr))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        for task in self._tasks:
            task.cancel()

    async def _answer(self, query: bytes, addr: tuple[str, int]) -> None:
        answer = await self._forwarder.answer(query, addr[0])
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)
