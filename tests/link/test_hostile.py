"""A peer with a valid certificate that sends whatever it likes: it harms itself at most."""

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from types import NoneType

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pileus.kernel.ids import HostId, new_id
from pileus.link import envelope
from pileus.link.channel import LARGEST_FRAME, MOST_IN_FLIGHT, Channel
from pileus.link.envelope import Malformed, StreamFrame
from pileus.link.handlers import Call, Opening
from pileus.link.streams import WINDOW
from pileus.testing.links import LoopbackCloud, until


class Number(msgspec.Struct, frozen=True, kw_only=True):
    value: int


class Nested(msgspec.Struct, frozen=True, kw_only=True):
    inner: "Nested | None" = None


async def double(body: Number, call: Call) -> Number:
    return Number(value=2 * body.value)


@asynccontextmanager
async def rogue(cloud: LoopbackCloud) -> AsyncGenerator[tuple[ClientConnection, Channel]]:
    """A bare WebSocket with a host's certificate, and the controller's channel to it."""
    host = HostId(new_id())
    connection = await cloud.dialler(cloud.join(host)).dial()
    assert connection is not None
    await until(lambda: cloud.server.channel(host))
    channel = cloud.server.channel(host)
    assert channel is not None
    try:
        yield connection, channel
    finally:
        connection.transport.abort()


async def _still_served(connection: ClientConnection, id: int = 999_999) -> None:
    await connection.send(f'["request",{id},"double",{{"value":4}}]')
    async with asyncio.timeout(60):
        while (answer := await connection.recv()) != f'["answer",{id},{{"value":8}}]':
            assert "failure" in str(answer)


NONSENSE: list[str | bytes] = [
    "",
    "nonsense",
    "null",
    "[]",
    "{}",
    '["request"]',
    '["request","one","double",{"value":1}]',
    '["request",1]',
    '["unheard-of",1,2]',
    '["failure",1,"conflict"]',
    '["note","no.such",{}]',
    '["note","report",{"value":"NaN"}]',
    '["answer",99999999999999999999999999,1]',
    '["request",-1,"double",{"value":1}',
    "[" * 100_000,
    '["note","nested",' + '{"inner":' * 100_000,
    b"\xff\xfe{}",
    b"\0",
    b"\0\0",
    b"\0\x07\0\0\0\0\0\0\0\0\x01",
]
HARMLESS: list[str | bytes] = [
    '["answer",77,{"value":1}]',
    '["answer",77,{"value":1}]',
    '["failure",77,"conflict","who asked?"]',
    '["progress",77,{}]',
    '["cancel",77]',
    envelope.stream_frame(StreamFrame.DATA, 5, b"x", by_opener=True),
    envelope.stream_frame(StreamFrame.CREDIT, 5, b"x", by_opener=False),
    envelope.stream_frame(StreamFrame.END, 5, b"", by_opener=False),
]


async def test_nonsense_is_dropped_and_counted_and_the_rest_goes_on(cloud: LoopbackCloud) -> None:
    cloud.server_handlers.add("double", Number, double)
    cloud.server_handlers.add_note("report", Number, lambda body, channel: None)
    cloud.server_handlers.add_note("nested", Nested, lambda body, channel: None)
    async with rogue(cloud) as (connection, channel):
        for frame in (*NONSENSE, *HARMLESS):
            await connection.send(frame)
        await _still_served(connection)
        assert channel.malformed == len(NONSENSE)


async def test_nonsense_in_a_body_is_answered_as_invalid(cloud: LoopbackCloud) -> None:
    async def take(body: Nested, call: Call) -> None: ...

    cloud.server_handlers.add("double", Number, double)
    cloud.server_handlers.add("nested", Nested, take)
    async with rogue(cloud) as (connection, _):
        for body in ('{"inner":7}', '{"inner":' * 500 + "{}" + "}" * 500, "[]"):
            await connection.send(f'["request",1,"nested",{body}]')
            answer = await connection.recv()
            assert '["failure",1,"invalid"' in str(answer) or '["answer",1' in str(answer)
        await _still_served(connection)


async def test_fields_and_elements_of_a_later_version_are_ignored(cloud: LoopbackCloud) -> None:
    cloud.server_handlers.add("double", Number, double)
    async with rogue(cloud) as (connection, channel):
        await connection.send('["request",1,"double",{"value":4,"colour":"red"},"later",{}]')
        assert await connection.recv() == '["answer",1,{"value":8}]'
        assert channel.malformed == 0


async def test_a_huge_frame_ends_its_own_connection_and_no_other(cloud: LoopbackCloud) -> None:
    cloud.server_handlers.add("double", Number, double)
    async with cloud.agent() as pair, rogue(cloud) as (connection, _):
        with pytest.raises(ConnectionClosed):
            await _exchange(connection, "x" * (LARGEST_FRAME + 1))
        answer = await pair.agent.request("double", Number(value=1), Number, timeout_s=60)
        assert answer == Number(value=2)


async def _exchange(connection: ClientConnection, frame: str) -> str | bytes:
    await connection.send(frame)
    return await connection.recv()


async def test_one_id_twice_is_served_once(cloud: LoopbackCloud) -> None:
    began = 0

    async def stuck(body: None, call: Call) -> None:
        nonlocal began
        began += 1
        await asyncio.Event().wait()

    cloud.server_handlers.add("stuck", NoneType, stuck)
    cloud.server_handlers.add("double", Number, double)
    async with rogue(cloud) as (connection, channel):
        for _ in range(3):
            await connection.send('["request",1,"stuck",null]')
        await _still_served(connection)
        assert (began, channel.malformed) == (1, 2)


async def test_requests_cancelled_before_they_began_take_no_place(cloud: LoopbackCloud) -> None:
    cloud.server_handlers.add("double", Number, double)
    async with rogue(cloud) as (connection, _):
        for id in range(2 * MOST_IN_FLIGHT):
            # Both are there before the handler's first step.
            await connection.send(f'["request",{id},"double",{{"value":1}}]')
            await connection.send(f'["cancel",{id}]')
        await connection.send('["request",9999,"double",{"value":4}]')
        async with asyncio.timeout(60):
            while not str(answer := await connection.recv()).startswith('["answer",9999'):
                assert "in flight" not in str(answer)


async def test_an_answer_given_twice_counts_once(cloud: LoopbackCloud) -> None:
    async with rogue(cloud) as (connection, channel), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(channel.request("a", None, Number, timeout_s=60))
        later = tasks.create_task(channel.request("b", None, Number, timeout_s=60))
        await connection.recv()
        await connection.recv()
        for frame in ('["answer",1,{"value":1}]', '["answer",1,{"value":2}]', '["answer",2,{"value":3}]'):
            await connection.send(frame)
        assert (await asked, await later) == (Number(value=1), Number(value=3))


async def test_a_flood_of_requests_whose_answers_are_never_read_is_bounded(cloud: LoopbackCloud) -> None:
    served = 0

    async def big(body: None, call: Call) -> msgspec.Struct:
        nonlocal served
        served += 1
        return Text(text="x" * 100_000)

    cloud.server_handlers.add("big", NoneType, big)
    cloud.server_handlers.add("double", Number, double)
    async with rogue(cloud) as (connection, _), cloud.agent() as pair, asyncio.TaskGroup() as tasks:
        # It reads nothing: TCP's own buffers take what they take, and then the controller stops reading it.
        connection.transport.pause_reading()

        async def flood() -> None:
            # On a very slow machine its pings, whose answers it does not read either, end the connection.
            with suppress(ConnectionClosed):
                for id in range(5_000):
                    await connection.send(f'["request",{id},"big",null]')

        flooding = tasks.create_task(flood())
        seen = -1
        while seen != served:
            seen = served
            for _ in range(50):
                await pair.agent.request("double", Number(value=1), Number, timeout_s=60)
        assert served < 10 * MOST_IN_FLIGHT
        flooding.cancel()


class Text(msgspec.Struct, frozen=True, kw_only=True):
    text: str


async def test_more_on_a_stream_than_its_window_ends_the_stream_alone(cloud: LoopbackCloud) -> None:
    ended: list[bool] = []

    async def listen(body: None, opening: Opening) -> None:
        stream = await opening.accept()
        await until(lambda: stream.unread == WINDOW)
        ended.append(True)
        await asyncio.Event().wait()

    cloud.server_handlers.add_stream("listen", NoneType, listen)
    cloud.server_handlers.add("double", Number, double)
    async with rogue(cloud) as (connection, channel):
        await connection.send('["open",1,"listen",null]')
        assert await connection.recv() == '["answer",1,null]'
        for _ in range(2):
            await connection.send(envelope.stream_frame(StreamFrame.DATA, 1, bytes(WINDOW), by_opener=True))
        await until(lambda: ended)
        await _still_served(connection)
        assert channel.malformed == 1


async def test_credit_that_was_never_owed_does_not_open_the_window(cloud: LoopbackCloud) -> None:
    written = 0

    async def pour(body: None, opening: Opening) -> None:
        nonlocal written
        stream = await opening.accept()
        while True:
            await stream.write(bytes(WINDOW))
            written += WINDOW

    cloud.server_handlers.add_stream("pour", NoneType, pour)
    cloud.server_handlers.add("double", Number, double)
    async with rogue(cloud) as (connection, _):
        await connection.send('["open",1,"pour",null]')
        assert await connection.recv() == '["answer",1,null]'
        for _ in range(3):
            grant = envelope.credit(2**32 - 1)
            await connection.send(envelope.stream_frame(StreamFrame.CREDIT, 1, grant, by_opener=True))
        got = 0
        while got < WINDOW:
            frame = await connection.recv()
            assert isinstance(frame, bytes)
            got += len(envelope.read_stream_frame(frame)[3])
        assert written <= 4 * WINDOW


async def test_nothing_is_left_of_a_peer_that_is_gone(cloud: LoopbackCloud) -> None:
    async def stuck(body: None, call: Call) -> None:
        await asyncio.Event().wait()

    cloud.server_handlers.add("stuck", NoneType, stuck)
    cloud.server_handlers.add("double", Number, double)
    async with rogue(cloud) as (connection, channel):
        gone = weakref.ref(channel)
        del channel
        for id in range(100):
            await connection.send(f'["request",{id},"stuck",null]')
        await _still_served(connection)
    await until(lambda: gc.collect() >= 0 and gone() is None)


@settings(max_examples=300)
@given(st.binary())
def test_no_bytes_are_more_than_malformed(frame: bytes) -> None:
    for read in (envelope.decode, envelope.read_stream_frame, envelope.read_credit, envelope.decode_failure):
        with suppress(Malformed):
            read(frame)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=4)))
def test_no_json_is_more_than_malformed(value: object) -> None:
    for frame in (value, ["request", 1, value], ["failure", 1, value, "x"], ["note", "x", value]):
        with suppress(Malformed):
            envelope.decode(msgspec.json.encode(frame))
