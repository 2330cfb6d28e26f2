"""Operations over HTTP: an ASGI application that routes, reads, answers, and turns errors into problem documents.

Errors are RFC 9457 `application/problem+json` with a stable `type`. What nobody meant is a bug: 500, its chain in the
log, none of it to the caller.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

import msgspec
import structlog

from pileus.kernel.errors import Invalid, NotFound, PileusError, TooLarge, Unauthenticated, Unavailable
from pileus.kernel.ids import ProjectId, UserId, new_id
from pileus.operations.caller import Caller
from pileus.operations.declare import AT, Answer, Noun, Operation
from pileus.operations.engine import Performer, PlainExchange, Request
from pileus.operations.listing import number
from pileus.operations.plan import Ask

log = structlog.stdlib.get_logger()

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_encode = msgspec.json.Encoder().encode

_LONGEST_PATH = 2048
_LONGEST_REASON = 123
_BINARY = "binary"
"""The subprotocol of sockets that carry bytes; all of ours do."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    fields: Mapping[str, str] = {}
    """Every wrong field, with what is wrong with it."""
    because: Mapping[str, str] = {}
    """The reasons, by what they are about: per host why it will not do."""
    request: str = ""
    """The id of the request, for whoever reads the log."""


def problem(error: PileusError, request: str) -> Problem:
    return Problem(
        type=f"/problems/{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        fields=error.fields,
        because=error.because,
        request=request,
    )


class Authenticator(Protocol):
    """Finds out who asks."""

    def caller(self, authorization: str, project: str, *, source: str, request: str) -> Caller:
        """Raises Unauthenticated, or NotFound for a project that is not the caller's."""
        ...


class Mounted(Protocol):
    """Something else that is served at the same address: the portal's files, the OpenAPI document."""

    async def __call__(self, path: str) -> Answer | None: ...


Refused = Callable[[Operation, Caller, str, PileusError], None]
"""Is told what was not done for whom, with the id of what it was about, and why."""


class _Route:
    """The operations of one path, by method, in a tree of path segments."""

    __slots__ = ("by_method", "children", "parameter")

    def __init__(self) -> None:
        self.children: dict[str, _Route] = {}
        self.parameter: _Route | None = None
        self.by_method: dict[str, tuple[Operation, Noun[Any]]] = {}


class Api:
    """The ASGI application."""

    def __init__(
        self,
        performer: Performer,
        nouns: Iterable[Noun[Any]],
        authenticator: Authenticator,
        mounted: Mounted | None = None,
        refused: Refused | None = None,
    ) -> None:
        self._performer = performer
        self._authenticator = authenticator
        self._mounted = mounted
        self._refused = refused
        self._root = _Route()
        for noun in nouns:
            for operation in noun.declared:
                self._add(operation, noun)

    def _add(self, operation: Operation, noun: Noun[Any]) -> None:
        route = self._root
        for segment in operation.path.strip("/").split("/"):
            if segment.startswith("{"):
                route.parameter = route.parameter or _Route()
                route = route.parameter
            else:
                route = route.children.setdefault(segment, _Route())
        method = "SOCKET" if operation.socket else operation.method
        if method in route.by_method:
            raise ValueError(f"{operation.id} and {route.by_method[method][0].id} share {method} {operation.path}")
        route.by_method[method] = operation, noun

    def _find(self, path: str) -> tuple[_Route, str] | None:
        route, target = self._root, ""
        for segment in path.strip("/").split("/"):
            child = route.children.get(segment)
            if child is None:
                if route.parameter is None or not segment:
                    return None
                child, target = route.parameter, segment
            route = child
        return route, target

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_id()
        try:
            answer = await self._answer(scope, receive, request_id)
        except PileusError as error:
            answer = self._problem(error, request_id)
        except (asyncio.CancelledError, ssl.SSLError, ConnectionError):
            raise
        except Exception:
            log.exception("request failed", request=request_id, method=scope["method"], path=scope["path"])
            answer = self._problem(PileusError("an internal error; the log has it"), request_id)
        headers = [
            (b"content-type", answer.media_type.encode()),
            (b"pileus-request", request_id.encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()),
        ]
        if answer.stream is None:
            headers.append((b"content-length", str(len(answer.body)).encode()))
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self._stream(answer.stream, receive, send, request_id)

    async def _stream(self, stream: AsyncIterator[bytes], receive: Receive, send: Send, request_id: str) -> None:
        """Send what comes until it ends or the caller goes away."""

        async def pump() -> None:
            async for chunk in stream:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.ensure_future(pump()), asyncio.ensure_future(gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended, _ = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(ended, Exception) and not isinstance(ended, ConnectionError):
            # The status is sent: only a body that does not end as it should can tell the caller.
            log.error("stream broken off", request=request_id, exc_info=ended)

    def _problem(self, error: PileusError, request_id: str) -> Answer:
        if error.internal:
            log.info("request refused", request=request_id, code=error.code, internal=error.internal)
        headers = {"www-authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}
        if error.retryable:
            headers["retry-after"] = "1"
        return Answer(
            status=error.status,
            body=_encode(problem(error, request_id)),
            media_type="application/problem+json",
            headers=headers,
        )

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> Answer:
        path: str = scope["path"]
        method: str = scope["method"]
        if len(path) > _LONGEST_PATH:
            raise NotFound("there is no such path")
        found = self._find(path)
        if found is None:
            if self._mounted is not None and method in ("GET", "HEAD") and (file := await self._mounted(path)):
                return file
            raise NotFound("there is no such path")
        route, target = found
        if method not in route.by_method:
            if not route.by_method:
                raise NotFound("there is no such path")
            return self._not_allowed(route, request_id)
        operation, noun = route.by_method[method]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        caller = nobody(_source(scope), request_id)
        try:
            caller = self._caller(operation, scope, headers, request_id)
            query = _query(scope["query_string"])
            request = Request(
                operation=operation, noun=noun, caller=caller, target=target, query=query, headers=headers
            )
            return await self._performed(request, receive)
        except PileusError as refused:
            if self._refused is not None:
                self._refused(operation, caller, target, refused)
            raise

    async def _performed(self, request: Request, receive: Receive) -> Answer:
        operation = request.operation
        if operation.special is not None:
            return await self._special(request, receive)
        if operation.method not in ("GET", "HEAD"):
            body = await _whole_body(receive, request.headers, operation.max_body)
            request = msgspec.structs.replace(request, body=body)
        return await self._performer.perform(request)

    async def _special(self, request: Request, receive: Receive) -> Answer:
        operation = request.operation
        self._performer.authorise(operation, request.caller)
        if unknown := set(request.query) - {each.name for each in operation.parameters if each.place == "query"}:
            raise Invalid("some parameters are wrong", fields=dict.fromkeys(sorted(unknown), "no such parameter"))
        exchange = PlainExchange(
            self._performer, request, lambda: _chunks(receive, request.headers, operation.max_body)
        )
        arguments: list[Any] = [exchange]
        if operation.takes_record:
            if AT.name in request.query and operation.knows_the_past:
                arguments.append(await self._performer.target_then(request, exchange.ask))
            else:
                arguments.append(self._performer.target(request, exchange.ask))
        if operation.wish is not None:
            body = await _whole_body(receive, request.headers, operation.max_body)
            arguments.append(self._performer.wish(operation, body))
        assert operation.special is not None
        answer = await operation.special(*arguments)
        await self._performer.state.durable()
        return answer

    def _caller(self, operation: Operation, scope: Scope, headers: Mapping[str, str], request_id: str) -> Caller:
        source = _source(scope)
        authorization = headers.get("authorization", "")
        if operation.least is None:
            return nobody(source, request_id)
        return self._authenticator.caller(
            authorization, headers.get("pileus-project", ""), source=source, request=request_id
        )

    def _not_allowed(self, route: _Route, request_id: str) -> Answer:
        allowed = ", ".join(sorted(name for name in route.by_method if name != "SOCKET"))
        body = Problem(
            type="/problems/method-not-allowed",
            title="Not a method of this path",
            status=405,
            detail=f"this path takes {allowed or 'a WebSocket'}",
            request=request_id,
        )
        return Answer(status=405, body=_encode(body), media_type="application/problem+json", headers={"allow": allowed})

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        request_id = new_id()
        found = self._find(scope["path"])
        try:
            if found is None or "SOCKET" not in found[0].by_method:
                raise NotFound("there is no such path")
            route, target = found
            operation, noun = route.by_method["SOCKET"]
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            caller = self._caller(operation, scope, headers, request_id)
            query = _query(scope["query_string"])
            request = Request(operation=operation, noun=noun, caller=caller, target=target, query=query)
            self._performer.authorise(operation, caller)
            ask = self._performer.ask(caller)
            record = [self._performer.target(request, ask)] if operation.takes_record else []
        except PileusError as error:
            log.info("socket refused", request=request_id, code=error.code)
            await send({"type": "websocket.close", "code": 4000 + error.status, "reason": _reason(error.detail)})
            return
        socket = _PlainSocket(self._performer, request, ask, receive, send)
        assert operation.socket is not None
        # Viewers in browsers may ask for it, and give up if they do not get it.
        spoken = _BINARY if _BINARY in scope.get("subprotocols", ()) else None
        await send({"type": "websocket.accept", "subprotocol": spoken})
        try:
            await operation.socket(socket, *record)
            await socket.close()
        except PileusError as error:
            await socket.close(error.detail, 4000 + error.status)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("socket failed", request=request_id, path=scope["path"])
            await socket.close("an internal error; the log has it", 4500)


class _PlainSocket:
    """A `Socket` over ASGI."""

    def __init__(self, performer: Performer, request: Request, ask: Ask, receive: Receive, send: Send) -> None:
        self._performer = performer
        self._request = request
        self.ask = ask
        self._receive = receive
        self._send = send
        self._closed = False

    @property
    def services(self) -> Mapping[type, Any]:
        return self._performer.services

    @property
    def target(self) -> str:
        return self._request.target

    def query(self, name: str, default: str = "") -> str:
        return self._request.query.get(name, default)

    async def receive(self) -> bytes | None:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._closed = True
            return None
        return message.get("bytes") or (message.get("text") or "").encode()

    async def send(self, data: bytes) -> None:
        try:
            await self._send({"type": "websocket.send", "bytes": data})
        except OSError as left:  # as ASGI has it: it closed while we were sending
            self._closed = True
            raise Unavailable("the client has left") from left

    async def close(self, reason: str = "", code: int = 1000) -> None:
        if not self._closed:
            self._closed = True
            await self._send({"type": "websocket.close", "code": code, "reason": _reason(reason)})


def _reason(detail: str) -> str:
    """As much of it as a closing frame may say: 123 bytes (RFC 6455, section 5.5)."""
    return detail.encode()[:_LONGEST_REASON].decode(errors="ignore")


def _source(scope: Scope) -> str:
    """The address that a request comes from."""
    return scope["client"][0] if scope.get("client") else ""


def nobody(source: str, request_id: str) -> Caller:
    """The caller of an operation that needs no signing in."""
    return Caller(
        user_id=UserId(""),
        user_name="nobody",
        project_id=ProjectId(""),
        role=None,
        source=source,
        request=request_id,
    )


def _query(raw: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(raw.decode(), keep_blank_values=True, strict_parsing=bool(raw), max_num_fields=50)
    except ValueError:
        raise Invalid("the query of the path cannot be read") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise Invalid("a parameter is given twice")
    wrong = {name: "must not hold control characters" for name, value in pairs if not (name + value).isprintable()}
    if wrong:
        raise Invalid("some parameters are wrong", fields=wrong)
    return query


async def _chunks(receive: Receive, headers: Mapping[str, str], at_most: int) -> AsyncIterator[bytes]:
    length = number(headers.get("content-length", ""))
    if length is not None and length > at_most:
        raise TooLarge(f"the body is larger than {at_most} bytes")
    total = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Invalid("the body ended too early")
        chunk: bytes = message.get("body", b"")
        total += len(chunk)
        if total > at_most:
            raise TooLarge(f"the body is larger than {at_most} bytes")
        if chunk:
            yield chunk
        if not message.get("more_body"):
            return


async def _whole_body(receive: Receive, headers: Mapping[str, str], at_most: int) -> bytes:
    return b"".join([chunk async for chunk in _chunks(receive, headers, at_most)])
