import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from types import NoneType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.kernel.errors import Conflict, NotFound, PileusError, Unavailable
from pileus.link.envelope import Malformed, StreamFrame, read_credit
from pileus.link.handlers import Call, Handlers, Opening
from pileus.link.streams import WINDOW, Stream
from pileus.testing.links import LoopbackCloud, until


class Console(msgspec.Struct, frozen=True, kw_only=True):
    instance: str


async def echo(body: Console, opening: Opening) -> None:
    stream = await opening.accept()
    while data := await stream.read():
        await stream.write(data)


async def ping(body: None, call: Call) -> None: ...


CONSOLE = Console(instance="i")


async def test_bytes_come_through_in_order_both_ways(cloud: LoopbackCloud) -> None:
    handlers = Handlers()
    handlers.add_stream("console", Console, echo)
    sent = bytes(range(256)) * 16 * 1024  # 4 MiB: many windows
    async with cloud.agent(handlers) as pair, await pair.controller.open_stream("console", CONSOLE, timeout_s=60) as s:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(s.write(sent))
            got = bytearray()
            while len(got) < len(sent):
                got += await s.read()
        assert got == sent


async def test_both_sides_may_open_streams_at_once(cloud: LoopbackCloud) -> None:
    handlers = Handlers()
    handlers.add_stream("console", Console, echo)
    cloud.server_handlers.add_stream("console", Console, echo)
    async with cloud.agent(handlers) as pair:
        # The first of each side have the same id.
        streams = [
            await channel.open_stream("console", CONSOLE, timeout_s=60)
            for _ in range(3)
            for channel in (pair.agent, pair.controller)
        ]
        for n, stream in enumerate(streams):
            await stream.write(b"%d" % n)
        for n, stream in enumerate(streams):
            assert await stream.read() == b"%d" % n
        for stream in streams:
            await stream.close()


async def test_a_slow_reader_holds_up_its_stream_alone_and_keeps_no_more_than_the_window(cloud: LoopbackCloud) -> None:
    written = 0

    async def pour(body: Console, opening: Opening) -> None:
        nonlocal written
        stream = await opening.accept()
        while True:
            await stream.write(bytes(1000))
            written += 1000

    handlers = Handlers()
    handlers.add_stream("console", Console, pour)
    handlers.add("ping", NoneType, ping)
    async with cloud.agent(handlers) as pair:
        stream = await pair.controller.open_stream("console", CONSOLE, timeout_s=60)
        await until(lambda: written >= WINDOW - 1000)
        for _ in range(100):
            await pair.controller.request("ping", None, NoneType, timeout_s=60)
        assert written <= WINDOW
        assert len(await stream.read()) <= WINDOW
        # What was read is granted again when the reader comes back for more.
        assert await stream.read()
        await until(lambda: written > WINDOW)
        await stream.close()


async def test_what_was_written_before_the_end_is_still_read(cloud: LoopbackCloud) -> None:
    async def farewell(body: Console, opening: Opening) -> None:
        stream = await opening.accept()
        await stream.write(b"login: ")

    handlers = Handlers()
    handlers.add_stream("console", Console, farewell)
    async with cloud.agent(handlers) as pair:
        stream = await pair.controller.open_stream("console", CONSOLE, timeout_s=60)
        assert await stream.read() == b"login: "
        assert await stream.read() == b""
        assert await stream.read() == b""
        with pytest.raises(Unavailable):
            await stream.write(b"x")
        await stream.close()


async def test_closing_ends_the_handlers_reading(cloud: LoopbackCloud) -> None:
    ended = asyncio.Event()

    async def listen(body: Console, opening: Opening) -> None:
        stream = await opening.accept()
        while await stream.read():
            pass
        ended.set()

    handlers = Handlers()
    handlers.add_stream("console", Console, listen)
    async with cloud.agent(handlers) as pair:
        async with await pair.controller.open_stream("console", CONSOLE, timeout_s=60) as stream:
            await stream.write(b"x")
        async with asyncio.timeout(60):
            await ended.wait()


async def test_a_refused_stream_raises_where_it_was_asked_for(cloud: LoopbackCloud) -> None:
    async def refuse(body: Console, opening: Opening) -> None:
        raise NotFound(f"no instance {body.instance}")

    async def forget(body: Console, opening: Opening) -> None: ...

    handlers = Handlers()
    handlers.add_stream("console", Console, refuse)
    handlers.add_stream("forgotten", Console, forget)
    async with cloud.agent(handlers) as pair:
        with pytest.raises(NotFound, match="no instance i"):
            await pair.controller.open_stream("console", CONSOLE, timeout_s=60)
        with pytest.raises(Unavailable):
            await pair.controller.open_stream("forgotten", CONSOLE, timeout_s=60)


async def test_a_failing_handler_raises_in_the_reader_after_what_it_had_written(cloud: LoopbackCloud) -> None:
    async def fail(body: Console, opening: Opening) -> None:
        stream = await opening.accept()
        await stream.write(b"so far")
        raise Conflict("the instance stopped")

    handlers = Handlers()
    handlers.add_stream("console", Console, fail)
    async with cloud.agent(handlers) as pair:
        stream = await pair.controller.open_stream("console", CONSOLE, timeout_s=60)
        assert await stream.read() == b"so far"
        with pytest.raises(Conflict, match="stopped"):
            await stream.read()


async def test_a_lost_connection_wakes_readers_and_writers(cloud: LoopbackCloud) -> None:
    handled: list[Stream] = []

    async def accept(body: Console, opening: Opening) -> None:
        handled.append(await opening.accept())
        await asyncio.Event().wait()

    handlers = Handlers()
    handlers.add_stream("console", Console, accept)
    async with cloud.agent(handlers) as pair:
        stream = await pair.controller.open_stream("console", CONSOLE, timeout_s=60)

        async with asyncio.TaskGroup() as tasks:
            failing = [
                tasks.create_task(_error_of(doing)) for doing in (stream.read(), stream.write(bytes(2 * WINDOW)))
            ]
            await until(lambda: handled and handled[0].unread == WINDOW)
            pair.controller.abort()
        assert [type(task.result()) for task in failing] == [Unavailable, Unavailable]


async def _error_of(doing: Awaitable[object]) -> PileusError | None:
    try:
        await doing
    except PileusError as error:
        return error
    return None


async def test_a_cancelled_reader_loses_nothing() -> None:
    stream = _Wire().stream
    sent = bytes(range(200)) * 1000
    got = bytearray()
    for at in range(0, len(sent), 1000):
        reading = asyncio.ensure_future(stream.read())
        for _ in range(at // 1000 % 4):
            await asyncio.sleep(0)
        stream.arrived(sent[at : at + 1000])
        if at % 3:
            await asyncio.sleep(0)
        reading.cancel()
        with suppress(asyncio.CancelledError):
            got += await reading
    while stream.unread:
        got += await stream.read()
    assert got == sent


class _Wire:
    """Two stream ends joined by queues that deliver when told to."""

    def __init__(self) -> None:
        self.frames: list[tuple[StreamFrame, bytes]] = []
        self.stream = Stream(self._send, lambda: None)

    async def _send(self, kind: StreamFrame, payload: bytes) -> None:
        self.frames.append((kind, payload))

    def deliver_to(self, other: Stream) -> None:
        for kind, payload in self.frames:
            match kind:
                case StreamFrame.DATA:
                    other.arrived(payload)
                case StreamFrame.CREDIT:
                    other.credited(read_credit(payload))
                case StreamFrame.END:
                    other.ended(None)
        self.frames.clear()


@given(st.lists(st.one_of(st.just("read"), st.just("deliver"), st.integers(1, 3 * WINDOW)), max_size=30))
def test_whatever_the_order_nothing_is_lost_and_no_more_waits_than_the_window(script: list[str | int]) -> None:
    async def play() -> None:
        left, right = _Wire(), _Wire()
        sent, got = bytearray(), bytearray()
        async with asyncio.TaskGroup() as tasks:
            writers: list[asyncio.Task[None]] = []
            reading: asyncio.Task[bytes] | None = None
            for number, act in enumerate([*script, *["deliver", "read"] * 400]):
                if isinstance(act, int):
                    data = bytes([number % 251]) * act
                    sent += data
                    writers.append(tasks.create_task(left.stream.write(data)))
                elif act == "deliver":
                    left.deliver_to(right.stream)  # raises Malformed if it were more than the window
                    right.deliver_to(left.stream)
                elif reading is None:
                    reading = tasks.create_task(right.stream.read())
                await asyncio.sleep(0)
                assert right.stream.unread <= WINDOW
                if reading is not None and reading.done():
                    got += reading.result()
                    reading = None
                if number >= len(script) and all(writer.done() for writer in writers) and got == sent:
                    break
            if reading is not None:
                reading.cancel()
        assert got == sent

    asyncio.run(play())


async def test_more_than_the_window_is_refused() -> None:
    stream = _Wire().stream
    stream.arrived(bytes(WINDOW))
    with pytest.raises(Malformed):
        stream.arrived(b"x")


async def test_an_error_of_the_other_side_is_raised_by_the_writer() -> None:
    stream = _Wire().stream
    stream.ended(PileusError("gone"))
    with pytest.raises(PileusError, match="gone"):
        await stream.write(b"x")
