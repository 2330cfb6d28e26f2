"""The client: requests, pages, tasks.

    async with Client(config) as client:
        async for instance in client.records("/v1/instances", state="running"):
            ...
        answer = await client.send("POST", "/v1/instances", {"name": "hello", "image_id": id}, plans=True)
        task = await client.wait(answer.body["task_id"])

What is safe to ask again is asked again for a while when the controller is away or says that it is: reading, and every
change that carries an idempotency key, which this client makes for it.
"""

import asyncio
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeVar

import httpx2
import msgspec

from pileus.client.config import Config
from pileus.client.errors import refused, succeeded
from pileus.client.records import Page, Plan, Record, Task
from pileus.kernel.errors import Invalid, PileusError, Unavailable
from pileus.kernel.ids import new_id

T = TypeVar("T")

CONTROLLER_NAME: Final = "controller.pileus.internal"
"""Every controller's certificate holds this name, whatever its addresses; hosts' certificates do not."""
PAGE: Final = 1000
"""Records asked for at once."""

_CONNECT_S = 5.0
_ANSWER_S = 30.0
_TIMEOUT = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S)
_WAIT_S = 20.0
_PATIENCE_OF_WAITING_S = 120.0
"""How long the controller may be away before somebody who waits for a task is told so."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> Any:  # noqa: ANN401 - any JSON document
        return msgspec.json.decode(self.content) if self.content else None

    def read(self, kind: type[T]) -> T:
        """The body as this type. Raises PileusError if it is something else."""
        try:
            return msgspec.json.decode(self.content, type=kind)
        except msgspec.MsgspecError as strange:
            raise PileusError(f"who answers there is not a controller of this version: {strange}") from strange


class Client:
    """A connection to a cloud's API. To be entered as a context."""

    def __init__(self, config: Config, *, patience_s: float = 5.0) -> None:
        """A client for this cloud; for `patience_s` seconds it asks again when nobody answers."""
        self.config = config
        self._patience_s = patience_s
        pem = config.authority_pem()
        self.tls = trusting(pem)
        # Proxies of the environment lead out; a cloud with its own authority is not there.
        headers = {"accept": "application/json", "user-agent": "pileus"}
        if config.token:
            headers["authorization"] = f"Bearer {config.token}"
        if config.project:
            headers["pileus-project"] = config.project
        self.headers: Mapping[str, str] = headers
        self.server_name = CONTROLLER_NAME if pem else None
        """The name that the server must prove to have, if that is not the one in the URL."""
        try:
            self._http = httpx2.AsyncClient(
                verify=self.tls, base_url=config.url, timeout=_TIMEOUT, trust_env=not pem, headers=headers
            )
        except httpx2.InvalidURL as wrong:
            raise Invalid(f"{config.url!r} is not a URL: {wrong}") from wrong

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str, query: Mapping[str, Any] | None = None) -> Reply:
        """Read something. Raises PileusError."""
        return await self._persistently("GET", path, query, None, {}, self._patience_s)

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401 - any JSON document
        query: Mapping[str, Any] | None = None,
        *,
        plans: bool,
    ) -> Reply:
        """Change something.

        Args:
            method: such as POST.
            path: of the operation.
            body: what is sent as JSON; None sends none.
            query: parameters; those that are None are left out.
            plans: whether the operation takes idempotency keys. Only then it is sent again if its answer is lost.

        Raises:
            PileusError: as the API refused it, or Unavailable.
        """
        content = None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} if content is not None else {}
        if plans:
            headers["idempotency-key"] = new_id()
            return await self._persistently(method, path, query, content, headers, self._patience_s)
        return await self._once(method, path, query, content, headers)

    async def plan(self, method: str, path: str, body: Any = None) -> Plan:  # noqa: ANN401 - any JSON document
        """What a change would do. Raises PileusError, as the change itself would."""
        return (await self.send(method, path, body, {"dry_run": "true"}, plans=True)).read(Plan)

    async def pages(self, path: str, query: Mapping[str, Any], *, at_most: int | None = None) -> AsyncIterator[Page]:
        """A collection, page by page, with `at_most` records in all."""
        left = at_most
        after: Any = query.get("after")
        while left is None or left > 0:
            limit = PAGE if left is None else min(left, PAGE)
            page = (await self.get(path, {**query, "after": after, "limit": limit})).read(Page)
            yield page
            # Records have a cursor for as long as there are more; the event log always tells where it would go on.
            if page.next is None or (isinstance(page.next, int) and len(page.items) < limit):
                return
            after = page.next
            left = None if left is None else left - len(page.items)

    async def records(self, path: str, **query: Any) -> AsyncIterator[Record]:  # noqa: ANN401 - any filter
        """The records of a collection that fit these filters."""
        async for page in self.pages(path, query):
            for record in page.items:
                yield record

    async def task(self, id: str) -> Task:
        """A task as it is now."""
        return (await self.get(f"/v1/tasks/{id}")).read(Task)

    async def watch(self, id: str) -> AsyncIterator[Task]:
        """A task at each of its news, until it has ended or is stuck. Survives a controller that restarts."""
        query: dict[str, Any] = {"wait_s": 0}
        while True:
            path = f"/v1/tasks/{id}"
            reply = await self._persistently("GET", path, query, None, {}, _PATIENCE_OF_WAITING_S)
            task = reply.read(Task)
            yield task
            if task.ended or task.state == "stuck":
                return
            query = {"wait_s": _WAIT_S, "seen": reply.headers.get("pileus-seen", "")}

    async def wait(self, id: str) -> Task:
        """Wait for a task to be done.

        Raises:
            TaskFailed: it was undone.
            TaskStuck: it could not even be undone, so far.
        """
        return succeeded([task async for task in self.watch(id)][-1])

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterator[bytes] | None = None,
        read_timeout_s: float = _ANSWER_S,
    ) -> AsyncGenerator[httpx2.Response]:
        """One exchange whose body is not read at once. Raises PileusError if the answer is an error."""
        timeout = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S, read=read_timeout_s)
        try:
            async with self._http.stream(
                method,
                path,
                params=_given(query),
                headers=dict(headers or {}),
                content=content,
                timeout=timeout,
                extensions=self._extensions(),
            ) as response:
                if not response.is_success:
                    raise refused(
                        response.status_code, await response.aread(), response.headers.get("pileus-request", "")
                    )
                yield response
        except httpx2.TransportError as failed:
            raise self._unavailable(failed) from failed

    async def _persistently(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        content: bytes | None,
        headers: Mapping[str, str],
        patience_s: float,
    ) -> Reply:
        until = time.monotonic() + patience_s
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return await self._once(method, path, query, content, headers)
            except Unavailable:
                # Spread, so that clients that lost the same controller do not come back all at once.
                pause_now = pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                if time.monotonic() + pause_now > until:
                    raise
                await asyncio.sleep(pause_now)
                pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        content: bytes | None,
        headers: Mapping[str, str],
    ) -> Reply:
        try:
            response = await self._http.request(
                method,
                path,
                params=_given(query),
                content=content,
                headers=dict(headers),
                timeout=_TIMEOUT,
                extensions=self._extensions(),
            )
        except httpx2.TransportError as failed:
            raise self._unavailable(failed) from failed
        if not response.is_success:
            raise refused(response.status_code, response.content, response.headers.get("pileus-request", ""))
        return Reply(status=response.status_code, headers=response.headers, content=response.content)

    def _extensions(self) -> dict[str, Any]:
        return {"sni_hostname": self.server_name} if self.server_name else {}

    def _unavailable(self, failed: Exception) -> Unavailable:
        return Unavailable(f"the controller at {self.config.url} does not answer: {failed or type(failed).__name__}")


def trusting(authority_pem: str) -> ssl.SSLContext:
    """Trust in this authority alone; in those of the machine if it is empty.

    Raises:
        Invalid: this is no certificate.
    """
    context = ssl.create_default_context() if not authority_pem else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authority_pem:
        try:
            context.load_verify_locations(cadata=authority_pem)
        except ssl.SSLError as wrong:
            raise Invalid(f"the authority's certificate is none: {wrong}") from wrong
    return context


def _given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}
