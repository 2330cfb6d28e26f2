"""Talking to the API below HTTP clients: for endless streams, for sockets, for requests that no client would send."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_PATIENCE_S = 60.0


class Conversation:
    """One request or socket: what is told to the application, and what it answers."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()

    def tell(self, message: Message) -> None:
        self._told.put_nowait(message)

    async def answer(self) -> Message:
        """The next message of the application; its end is a message of type `ended`."""
        async with asyncio.timeout(_PATIENCE_S):
            return await self._answers.get()

    async def until(self, wanted: bytes, body: bytes = b"") -> bytes:
        """The body from here on, up to where it has this in it."""
        while wanted not in body:
            message = await self.answer()
            assert message["type"] == "http.response.body", f"{message} after {body!r}"
            body += message.get("body", b"")
        return body

    async def run(self, app: App, scope: Message) -> None:
        try:
            await app(scope, self._told.get, self._answers.put)
        finally:
            self._answers.put_nowait({"type": "ended"})


@asynccontextmanager
async def conversation(
    app: App,
    path: str,
    *,
    method: str = "GET",
    query: bytes = b"",
    headers: Iterable[tuple[bytes, bytes]] = (),
    token: str = "",
    body: bytes | None = b"",
    source: str = "192.0.2.1",
    socket: bool = False,
) -> AsyncGenerator[Conversation]:
    """A request to an ASGI application, of which nothing is checked; the caller goes away when the block is left.

    Args:
        app: the application.
        path: as the server has decoded it.
        method: of the request.
        query: what stands behind the question mark.
        headers: besides the token's.
        token: a bearer token, if there is one.
        body: all of it; None lets the block tell it.
        source: the caller's address.
        socket: whether to ask for a WebSocket.
    """
    sent = [*headers, *([(b"authorization", f"Bearer {token}".encode())] if token else [])]
    scope: Message = {
        "type": "websocket" if socket else "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": sent,
        "client": (source, 50_000),
    }
    talk = Conversation()
    if socket:
        talk.tell({"type": "websocket.connect"})
    elif body is not None:
        talk.tell({"type": "http.request", "body": body})
    running = asyncio.create_task(talk.run(app, scope))
    try:
        yield talk
    finally:
        talk.tell({"type": "websocket.disconnect" if socket else "http.disconnect"})
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await asyncio.gather(running, return_exceptions=True)
        finally:
            running.cancel()


async def status_of(app: App, path: str, **request: Any) -> int:  # noqa: ANN401 - what `conversation` takes
    """The status of an answer, or the code with which a socket is closed; 101 for one that is accepted."""
    async with conversation(app, path, **request) as talk:
        first = await talk.answer()
    match first["type"]:
        case "http.response.start":
            return int(first["status"])
        case "websocket.close":
            return int(first["code"])
        case "websocket.accept":
            return 101
        case other:
            raise AssertionError(f"the application answered {other}")
