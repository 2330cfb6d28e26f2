"""One connection between controller and agent, used alike by both sides: requests, notes and streams, many at once.

A frame that makes no sense is dropped and counted; it harms nobody but the one who sent it. What a peer may hold here
is bounded: the size of a frame, the requests it has in flight, the window of each stream. Whoever sends waits while the
peer does not read, and a peer that reads nothing any more is found by keepalive pings (see `server` and `dialler`).
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final, NamedTuple, TypeVar

import msgspec
import structlog
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import broadcast
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from pileus.kernel.errors import PileusError, TimedOut, TooLarge, Unavailable
from pileus.link import envelope
from pileus.link.envelope import (
    STREAM_MARK,
    Answer,
    Cancel,
    Failure,
    Malformed,
    Note,
    Open,
    Outgoing,
    Progress,
    Request,
    StreamFrame,
)
from pileus.link.handlers import Call, Handlers, Opening
from pileus.link.streams import Stream

LARGEST_FRAME: Final = 1024 * 1024
"""Bytes; a connection is closed by a frame that is larger, and no side sends one."""
PING_EVERY_S: Final = 20.0
"""Both sides ping, so that each finds a connection that died without a word within twice this time. Host failure is
not judged by it: reports are, which come every 2 s."""
MOST_IN_FLIGHT: Final = 256
"""Requests and streams of one peer that are served at the same time; more are refused as Unavailable."""
_MOST_AT_A_TIME: Final = 64
"""Frames taken from one connection before the others get their turn."""
_WRITE_LIMIT: Final = 32 * 1024
"""Bytes that wait for the peer to read, above which senders wait too; the connection's own limit is the same."""

T = TypeVar("T")
log = structlog.stdlib.get_logger()


def _frame(message: Outgoing) -> bytes:
    frame = envelope.encode(message)
    if len(frame) > LARGEST_FRAME:
        raise TooLarge(f"a message of {len(frame)} bytes does not fit the link's frame of {LARGEST_FRAME}")
    return frame


class _Waiting(NamedTuple):
    """Someone who waits for an answer. An error is handed over as a value: nobody may be left to raise it to."""

    answer: asyncio.Future[msgspec.Raw | PileusError]
    progress: Callable[[msgspec.Raw], None] | None


class Channel:
    """One connection. Nothing arrives unless `run` runs."""

    def __init__(self, connection: Connection, handlers: Handlers, *, peer: str) -> None:
        self.peer = peer
        """Who is on the other side: a host's id, or `controller`."""
        self.malformed = 0
        """Frames that made no sense."""
        self._connection = connection
        self._handlers = handlers
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._opened: dict[int, Stream] = {}
        self._accepted: dict[int, Stream] = {}
        self._tasks: asyncio.TaskGroup | None = None
        # Taken only while the peer does not read: one sender waits in the connection and the others here,
        # with their messages not yet encoded.
        self._sending = asyncio.Lock()
        self._log = log.bind(peer=peer)

    async def run(self, alongside: Callable[["Channel"], Awaitable[None]] | None = None) -> None:
        """Serve the connection until it is lost or closed, then fail everything that waits on it.

        `alongside` is called when all is ready and cancelled with the connection; it may return earlier. If it fails,
        the connection is closed.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            companion = tasks.create_task(self._accompany(alongside)) if alongside else None
            try:
                await self._receive_all()
            finally:
                if companion is not None:
                    companion.cancel()
                self._end()

    async def close(self) -> None:
        """Close the connection in good order; `run` returns."""
        await self._connection.close()

    def abort(self) -> None:
        """Drop the connection at once; `run` returns."""
        self._connection.transport.abort()

    async def request(
        self,
        method: str,
        body: msgspec.Struct | None,
        answer: type[T],
        *,
        timeout_s: float,
        progress: Callable[[msgspec.Raw], None] | None = None,
    ) -> T:
        """Ask the other side and wait for its answer (`NoneType` where there is nothing to say).

        `progress` is called with what the other side reports in between; it must copy what it keeps undecoded. When
        the caller is cancelled or the time is up, the other side is told to stop.

        Raises:
            TimedOut: no answer in `timeout_s` seconds; what was asked may have been done or not.
            Unavailable: the connection is or was lost; the same holds.
            TooLarge: the body does not fit a frame.
            PileusError: what the other side raised, as the same class.
        """
        raw = await self._ask(Request(next(self._ids), method, body), timeout_s, progress)
        try:
            return msgspec.json.decode(raw, type=answer)
        except (msgspec.DecodeError, ValueError, RecursionError) as strange:
            raise PileusError(f"{self.peer} gave a malformed answer to {method}", internal=str(strange)) from strange

    async def notify(self, method: str, body: msgspec.Struct | None) -> None:
        """Tell the other side something; it does not answer. Waits while it does not read.

        Raises:
            Unavailable: the connection is lost.
            TooLarge: the body does not fit a frame.
        """
        await self._send(Note(method, body))

    async def open_stream(self, method: str, body: msgspec.Struct | None, *, timeout_s: float) -> Stream:
        """Open a stream and wait until the other side has accepted it. Whoever opens it closes it.

        Raises:
            TimedOut, Unavailable, TooLarge, PileusError: as `request`.
        """
        id = next(self._ids)
        # It is there before the answer: the first bytes may follow in the same packet.
        stream = self._opened[id] = self._stream(self._opened, id, by_opener=True)
        try:
            await self._ask(Open(id, method, body), timeout_s, None)
        except BaseException:
            self._opened.pop(id, None)
            raise
        return stream

    # What Call and Opening need.

    async def report(self, id: int, progress: msgspec.Struct) -> None:
        """Send progress on the peer's request."""
        await self._send(Progress(id, progress))

    async def accept(self, id: int) -> Stream:
        """Open the stream that the peer asked for."""
        stream = self._accepted[id] = self._stream(self._accepted, id, by_opener=False)
        await self._send(Answer(id, None))
        return stream

    # Asking.

    async def _ask(
        self,
        question: Request[object] | Open[object],
        timeout_s: float,
        progress: Callable[[msgspec.Raw], None] | None,
    ) -> msgspec.Raw:
        id = question.id
        answer = asyncio.get_running_loop().create_future()
        self._waiting[id] = _Waiting(answer, progress)
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(question)
                outcome: msgspec.Raw | PileusError = await answer
        except TimeoutError as late:
            self._give_up(id)
            raise TimedOut(f"no answer from {self.peer} to {question.method} within {timeout_s:g} s") from late
        except asyncio.CancelledError:
            self._give_up(id)
            raise
        finally:
            self._waiting.pop(id, None)
        if isinstance(outcome, PileusError):
            raise outcome
        return outcome

    def _give_up(self, id: int) -> None:
        """Tell the peer to stop, without making the one who gives up wait for a busy link."""
        if self._tasks is not None:
            self._tasks.create_task(self._reply(Cancel(id)))

    # Sending.

    async def _send(self, message: Outgoing) -> None:
        if self._has_room():
            # The same as `send` for one connection, without what that spends on waiting: a tenth of a request.
            broadcast((self._connection,), _frame(message), text=True)
            return
        async with self._sending:
            await self._transmit(_frame(message), text=True)

    async def _send_piece(self, frame: bytes) -> None:
        async with self._sending:
            await self._transmit(frame, text=False)

    def _has_room(self) -> bool:
        """Whether a frame can be written at once, with nobody waiting before it."""
        return (
            self._tasks is not None
            and not self._sending.locked()
            and self._connection.state is State.OPEN
            and self._connection.transport.get_write_buffer_size() < _WRITE_LIMIT
        )

    async def _transmit(self, frame: bytes, *, text: bool) -> None:
        if self._tasks is None:
            raise self._lost()
        try:
            await self._connection.send(frame, text=text)
        except ConnectionClosed as closed:
            raise self._lost() from closed

    async def _reply(self, message: Outgoing) -> None:
        """Send what nobody here waits for: if the connection is lost, so is the interest in it."""
        try:
            await self._send(message)
        except Unavailable:
            self._log.debug("reply not sent, the link is lost")

    def _lost(self) -> Unavailable:
        return Unavailable(f"the link to {self.peer} is down")

    # Beginning and end.

    async def _accompany(self, alongside: Callable[["Channel"], Awaitable[None]]) -> None:
        try:
            await alongside(self)
        except Unavailable as lost:
            self._log.info("connection given up", why=lost.detail)
            await self.close()
        except Exception:  # noqa: BLE001 - a bug ends this connection and no other; the log has the chain
            self._log.exception("connection given up")
            await self.close()

    def _end(self) -> None:
        self._tasks = None
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_result(self._lost())
        self._waiting.clear()
        for stream in (*self._opened.values(), *self._accepted.values()):
            stream.ended(self._lost())
        for task in self._serving.values():
            task.cancel()
        # Who waits for room in the connection wakes up by this.
        self.abort()

    # Receiving.

    async def _receive_all(self) -> None:
        try:
            for number in itertools.count(1):
                # What has arrived already is handed out without a pause.
                if number % _MOST_AT_A_TIME == 0:
                    await asyncio.sleep(0)
                frame = await self._connection.recv(decode=False)
                try:
                    refusal = self._take_piece(frame) if frame.startswith(STREAM_MARK) else self._take(frame)
                except Malformed as why:
                    self._count_malformed(why)
                    continue
                if refusal is not None:
                    # By the reader itself: whoever asks too much is not read until it has read our refusals.
                    await self._reply(refusal)
        except ConnectionClosed as closed:
            self._log.info("link lost", why=str(closed), malformed_frames=self.malformed)

    def _take(self, frame: bytes) -> Failure | None:
        match envelope.decode(frame):
            case Answer(id, body):
                self._answered(id, body)
            case Note() as note:
                self._noted(note)
            case Request(id, method, body):
                return self._refusal(id) or self._start(id, self._serve(id, method, body))
            case Failure() as failure:
                self._answered(failure.id, envelope.error_from(failure))
            case Progress(id, body):
                self._progressed(id, body)
            case Cancel(id):
                if (task := self._serving.get(id)) is not None:
                    task.cancel()
            case Open(id, method, body):
                return self._refusal(id) or self._start(id, self._serve_stream(id, method, body))
        return None

    def _answered(self, id: int, outcome: msgspec.Raw | PileusError) -> None:
        waiting = self._waiting.pop(id, None)
        # An answer that nobody waits for is no fault: it may have crossed our cancel.
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_result(outcome)

    def _progressed(self, id: int, body: msgspec.Raw) -> None:
        waiting = self._waiting.get(id)
        if waiting is None or waiting.progress is None:
            return
        try:
            waiting.progress(body)
        except Exception:  # noqa: BLE001 - a bug in one callback must not end the connection
            self._log.exception("progress callback failed")

    def _noted(self, note: Note[msgspec.Raw]) -> None:
        try:
            self._handlers.notes.call(note.method, note.body, self)
        except PileusError as wrong:
            raise Malformed(f"{wrong.detail} {wrong.fields or ''}") from wrong
        except Exception:  # noqa: BLE001 - a bug in one handler must not end the connection
            self._log.exception("note handler failed", method=note.method)

    def _take_piece(self, frame: bytes) -> None:
        kind, id, by_opener, payload = envelope.read_stream_frame(frame)
        stream = (self._accepted if by_opener else self._opened).get(id)
        if stream is None:
            # Not a fault: it may have crossed the end of the stream.
            return
        match kind:
            case StreamFrame.DATA:
                try:
                    stream.arrived(payload)
                except Malformed as excess:
                    stream.ended(PileusError("the other side of the stream does not keep to its window"))
                    raise excess from None
            case StreamFrame.CREDIT:
                stream.credited(envelope.read_credit(payload))
            case StreamFrame.END:
                stream.ended(envelope.error_from(envelope.decode_failure(payload)) if payload else None)

    def _count_malformed(self, why: Malformed) -> None:
        self.malformed += 1
        # Once: a log that a hostile peer can fill is an attack of its own. The number is told when the link ends.
        if self.malformed == 1:
            self._log.warning("malformed frame dropped", why=str(why)[:500])

    # Serving.

    def _refusal(self, id: int) -> Failure | None:
        if id in self._serving:
            raise Malformed(f"request {id} is being served already")
        if len(self._serving) >= MOST_IN_FLIGHT:
            return envelope.failure(id, Unavailable(f"more than {MOST_IN_FLIGHT} requests in flight"))
        return None

    def _start(self, id: int, serving: Coroutine[None, None, None]) -> None:
        assert self._tasks is not None
        task = self._serving[id] = self._tasks.create_task(serving)
        # Not at the end of the coroutine: one that is cancelled before its first step has no end.
        task.add_done_callback(lambda _: self._serving.pop(id))

    async def _serve(self, id: int, method: str, body: msgspec.Raw) -> None:
        try:
            result = await self._handlers.requests.call(method, body, Call(self, id, method))
            await self._send(Answer(id, result))
        except Exception as error:  # noqa: BLE001 - whatever it is, the peer is told and the log has the chain
            await self._reply(self._failure(id, method, error))

    async def _serve_stream(self, id: int, method: str, body: msgspec.Raw) -> None:
        opening = Opening(self, id, method)
        end = b""
        try:
            await self._handlers.streams.call(method, body, opening)
            if opening.stream is None:
                await self._reply(envelope.failure(id, Unavailable(f"{method} did not open a stream")))
        except Exception as error:  # noqa: BLE001 - whatever it is, the peer is told and the log has the chain
            failure = self._failure(id, method, error)
            if opening.stream is None:
                await self._reply(failure)
            else:
                end = envelope.encode(failure)
        finally:
            if opening.stream is not None:
                await self._close_stream(opening.stream, end)

    async def _close_stream(self, stream: Stream, failure: bytes) -> None:
        try:
            await stream.close(failure)
        except Unavailable:
            self._log.debug("stream not closed, the link is lost")

    def _failure(self, id: int, method: str, error: Exception) -> Failure:
        if isinstance(error, PileusError):
            if error.internal:
                self._log.warning("request failed", method=method, error=error.detail, internal=error.internal)
            return envelope.failure(id, error)
        self._log.error("handler failed", method=method, exc_info=error)
        return envelope.failure(id, PileusError("internal error, see the log of the other side"))

    def _stream(self, table: dict[int, Stream], id: int, *, by_opener: bool) -> Stream:
        async def send(kind: StreamFrame, payload: bytes) -> None:
            await self._send_piece(envelope.stream_frame(kind, id, payload, by_opener=by_opener))

        return Stream(send, forget=lambda: table.pop(id, None))
