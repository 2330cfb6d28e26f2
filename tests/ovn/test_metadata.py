"""What the metadata address serves, on loopback: a guest may send anything, and gets only what is his."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.agent.network.ovn_dns import DatagramServer, Forwarder, failure, resolvers
from pileus.agent.network.ovn_http import HEAD_LIMIT_BYTES, MetadataServer
from pileus.agent.network.ovn_limits import AtOnce, Rate
from pileus.kernel.ids import NetworkId

QUERY = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + b"\3www\7example\0" + b"\0\1\0\1"


class Listener:
    async def answer(self, network: NetworkId, address: str, method: str, path: str) -> tuple[int, str, bytes]:
        if path == "/broken":
            raise ValueError(path)
        return 200, "text/plain", f"{method} {path} by {address} of {network}".encode()


@asynccontextmanager
async def asked(sent: bytes) -> AsyncGenerator[asyncio.StreamReader]:
    """What a server says to this."""
    metadata = MetadataServer(NetworkId("net"), Listener())
    server = await asyncio.start_server(metadata.serve, "127.0.0.1", 0, limit=HEAD_LIMIT_BYTES)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(sent)
        try:
            yield reader
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def status(sent: bytes) -> int:
    async with asyncio.timeout(60), asked(sent) as reader:
        return int((await reader.readline()).split()[1])


async def test_requests_on_one_connection_are_answered_in_their_order() -> None:
    sent = (
        b"GET /one HTTP/1.1\r\nHost: x\r\n\r\n"
        b"PUT /two HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
        b"HEAD /three HTTP/1.1\r\n\r\n"
        b"GET /four HTTP/1.1\r\nConnection: close\r\n\r\n"
    )
    async with asyncio.timeout(60), asked(sent) as reader:
        said = (await reader.read()).decode()
    assert said.count("HTTP/1.1 200 OK") == 4
    assert [part for part in said.split() if part.startswith("/")] == ["/one", "/two", "/four"]
    assert said.endswith("GET /four by 127.0.0.1 of net")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"DELETE / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01 hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 2 * HEAD_LIMIT_BYTES + b"\r\n\r\n", 431),
        (b"PUT / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", 413),
        (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500),
    ],
)
async def test_what_is_not_understood_is_refused(sent: bytes, expected: int) -> None:
    assert await status(sent) == expected


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that answers is waited for, however slow the machine."""
    monkeypatch.setattr("pileus.agent.network.ovn_dns._ANSWER_WITHIN_S", 60.0)


@asynccontextmanager
async def resolver(*, answers: bool = True) -> AsyncGenerator[int]:
    """A resolver that answers each query by itself and a byte; the port that it listens on."""

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if answers:
                self.transport.sendto(b"\0\0 not the number" + data, addr)
                self.transport.sendto(data + b"!", addr)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        writer.write((len(query) + 1).to_bytes(2) + query + b"?")
        writer.close()
        await writer.wait_closed()

    loop = asyncio.get_running_loop()
    while True:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = int(server.sockets[0].getsockname()[1])
        try:
            transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", port))
            break
        except OSError:  # free for TCP, but not for UDP
            server.close()
    async with server:
        yield port
        transport.close()


@pytest.mark.usefixtures("patient")
async def test_a_query_is_passed_on_and_its_answer_has_its_number() -> None:
    async with resolver() as port:
        forwarder = Forwarder(lambda: ["127.0.0.1"], port=port)
        assert await forwarder.answer(QUERY, "guest") == QUERY + b"!"
        assert await forwarder.answer(QUERY, "guest", stream=True) == QUERY + b"?"


@pytest.mark.usefixtures("patient")
async def test_the_next_resolver_is_asked_when_one_is_not_there() -> None:
    async with resolver() as port:
        forwarder = Forwarder(lambda: ["127.0.0.2", "127.0.0.1"], port=port)
        assert await forwarder.answer(QUERY, "guest") == QUERY + b"!"


async def test_without_a_resolver_the_answer_is_a_failure() -> None:
    answer = await Forwarder(list).answer(QUERY, "guest")
    assert answer == failure(QUERY)
    assert answer is not None
    assert answer[:2] == QUERY[:2]
    assert answer[3] & 0x0F == 2
    assert answer[12:] == QUERY[12:]


@pytest.mark.parametrize("name", [b"\5hello\0", b"\5hello\10internal\0", b"\1a\1b\10INTERNAL\0", b"\10internal\0"])
async def test_the_clouds_own_names_are_not_asked_elsewhere(name: bytes) -> None:
    query = QUERY[:12] + name + b"\0\34\0\1"
    async with resolver() as port:
        answer = await Forwarder(lambda: ["127.0.0.1"], port=port).answer(query, "guest")
    assert answer == query[:2] + b"\x81\x80" + query[4:], "no error, and no record"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", [b"\0", b"\10internal\7example\0", b"\3not\11internals\0"])
async def test_all_other_names_are(name: bytes) -> None:
    query = QUERY[:12] + name + b"\0\2\0\1"
    async with resolver() as port:
        assert await Forwarder(lambda: ["127.0.0.1"], port=port).answer(query, "guest") == query + b"!"


async def test_nonsense_and_answers_are_not_passed_on() -> None:
    forwarder = Forwarder(list)
    for nonsense in (b"", b"short", b"x" * 5000, QUERY[:2] + b"\x81" + QUERY[3:]):
        assert await forwarder.answer(nonsense, "guest") is None


@given(st.binary(min_size=13, max_size=100))
def test_a_failure_is_made_of_any_query(query: bytes) -> None:
    answer = failure(query)
    assert answer is None or len(answer) <= len(query)


async def test_a_guest_that_asks_too_often_is_not_heard_and_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pileus.agent.network.ovn_dns._PER_SECOND", 0.001)
    forwarder = Forwarder(list)
    heard = [await forwarder.answer(QUERY, "greedy") for _ in range(1000)]
    assert None in heard
    assert await forwarder.answer(QUERY, "modest") is not None


async def test_datagrams_are_answered_to_the_one_who_asked() -> None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    class Guest(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            answer.set_result(data)

    server, _ = await loop.create_datagram_endpoint(
        lambda: DatagramServer(Forwarder(list)), local_addr=("127.0.0.1", 0)
    )
    guest, _ = await loop.create_datagram_endpoint(Guest, remote_addr=server.get_extra_info("sockname"))
    guest.sendto(QUERY)
    async with asyncio.timeout(60):
        assert await answer == failure(QUERY)
    guest.close()
    server.close()


def test_limits_count_each_guest_and_all_of_them() -> None:
    limits = AtOnce(each=2, altogether=3)
    with limits.one_more("a") as first, limits.one_more("a") as second, limits.one_more("a") as third:
        assert (first, second, third) == (True, True, False)
    with limits.one_more("a"), limits.one_more("a"), limits.one_more("b") as other, limits.one_more("c") as last:
        assert (other, last) == (True, False)


async def test_a_rate_lets_a_burst_pass() -> None:
    rate = Rate(per_second=0.001, burst=3)
    assert [rate.allows("guest") for _ in range(5)] == [True, True, True, False, False]


def test_resolvers_are_read_as_the_library_does() -> None:
    text = (
        "# nameserver 192.0.2.9\nsearch x\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver no\nnameserver\n"
    )
    assert resolvers(text) == ["192.0.2.1", "fe80::1"]
