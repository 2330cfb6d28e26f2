"""What a side of the link answers to: methods by name, each with the type of its body."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from pileus.kernel.errors import NotFound
from pileus.link.envelope import wrong_body
from pileus.link.streams import Stream

if TYPE_CHECKING:
    from pileus.link.channel import Channel

T = TypeVar("T")
C = TypeVar("C")
R = TypeVar("R")


class Call:
    """A request being answered: who asks, and a way to tell how far it has come."""

    def __init__(self, channel: "Channel", id: int, method: str) -> None:
        self.channel = channel
        self.method = method
        self._id = id

    @property
    def peer(self) -> str:
        """Who asks: on the controller the host's id, as its certificate has it."""
        return self.channel.peer

    async def progress(self, report: msgspec.Struct) -> None:
        """Tell whoever waits how far it has come; waits when the link is busy.

        Raises:
            Unavailable: the link was lost.
        """
        await self.channel.report(self._id, report)


class Opening:
    """A stream being asked for: refuse it by raising, or accept it."""

    def __init__(self, channel: "Channel", id: int, method: str) -> None:
        self.channel = channel
        self.method = method
        self.stream: Stream | None = None
        self._id = id

    @property
    def peer(self) -> str:
        """Who asks: on the controller the host's id, as its certificate has it."""
        return self.channel.peer

    async def accept(self) -> Stream:
        """Open the stream. It closes when the handler returns.

        Raises:
            Unavailable: the link was lost.
        """
        assert self.stream is None, "a stream is accepted once"
        self.stream = await self.channel.accept(self._id)
        return self.stream


class _Method(Generic[T, C, R]):
    """One method: how to read its body, and what to call with it."""

    def __init__(self, name: str, body: type[T], handler: Callable[[T, C], R]) -> None:
        self._name = name
        self._decode = msgspec.json.Decoder(body).decode
        self._handler = handler

    def __call__(self, raw: msgspec.Raw, context: C) -> R:
        try:
            body = self._decode(raw)
        except (msgspec.DecodeError, ValueError, RecursionError) as wrong:
            raise wrong_body(self._name, wrong) from wrong
        return self._handler(body, context)


class _Methods(Generic[C, R]):
    def __init__(self) -> None:
        self._by_name: dict[str, Callable[[msgspec.Raw, C], R]] = {}

    def add(self, name: str, body: type[T], handler: Callable[[T, C], R]) -> None:
        assert name not in self._by_name, f"{name} has a handler already"
        self._by_name[name] = _Method(name, body, handler)

    def call(self, name: str, raw: msgspec.Raw, context: C) -> R:
        method = self._by_name.get(name)
        if method is None:
            raise NotFound(f"there is no method {name[:100]!r}")
        return method(raw, context)


class Handlers:
    """The methods of one side. One may serve any number of channels."""

    def __init__(self) -> None:
        self.requests = _Methods[Call, Awaitable[msgspec.Struct | None]]()
        self.notes = _Methods["Channel", None]()
        self.streams = _Methods[Opening, Awaitable[None]]()

    def add(self, method: str, body: type[T], handler: Callable[[T, Call], Awaitable[msgspec.Struct | None]]) -> None:
        """Answer a request: what the handler returns or raises crosses to the peer.

        It is cancelled when the peer no longer waits or the link is lost. `body` is `NoneType` where there is none.
        """
        self.requests.add(method, body, handler)

    def add_note(self, method: str, body: type[T], handler: Callable[[T, "Channel"], None]) -> None:
        """Take a one-way message, by a plain function: a thousand reports cost no task each.

        Notes are taken in their order, and before anything that came later is looked at.
        """
        self.notes.add(method, body, handler)

    def add_stream(self, method: str, body: type[T], handler: Callable[[T, Opening], Awaitable[None]]) -> None:
        """Serve a stream: the handler accepts the opening, reads and writes, and the stream closes when it returns."""
        self.streams.add(method, body, handler)
