"""Signing in in a browser: it brings the provider's answer to a port of this machine (RFC 8252, section 7.3)."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, urlsplit

from pileus.kernel.errors import Forbidden, Unauthenticated

_PATH = "/callback"
_WITHIN_S = 600.0
"""As long as the controller keeps an attempt."""
_LONGEST = 16 * 1024
_PAGE = (
    "<!doctype html><title>Pileus</title><p>Pileus has what it needs. "
    "You can close this page and go back to the terminal."
)


class Landing:
    """Where the browser comes back to."""

    def __init__(self, port: int) -> None:
        self.redirect_uri = f"http://127.0.0.1:{port}{_PATH}"
        self._came = asyncio.Queue[Mapping[str, str]]()

    async def brought(self, state: str) -> Mapping[str, str]:
        """What the browser brings in answer to what was begun with this state; what others bring is not looked at.

        Raises:
            Forbidden: the provider has let nobody in; it says why.
            Unauthenticated: nobody came in time.
        """
        try:
            async with asyncio.timeout(_WITHIN_S):
                while (answer := await self._came.get()).get("state") != state:
                    pass
        except TimeoutError:
            raise Unauthenticated("nobody has signed in in the browser in time") from None
        if "code" not in answer:
            said = answer.get("error_description") or answer.get("error") or "nothing"
            raise Forbidden(f"the identity provider says: {''.join(filter(str.isprintable, said))[:300]}")
        return answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, _, rest = head.partition(" ")
            parts = urlsplit(rest.partition(" ")[0])
            found = method == "GET" and parts.path == _PATH
            if found:
                self._came.put_nowait(dict(parse_qsl(parts.query)))
            page = _PAGE if found else ""
            writer.write(
                f"HTTP/1.1 {'200 OK' if found else '404 Not Found'}\r\ncontent-type: text/html; charset=utf-8\r\n"
                f"cache-control: no-store\r\nreferrer-policy: no-referrer\r\ncontent-length: {len(page)}\r\n"
                f"connection: close\r\n\r\n{page}".encode()
            )
            await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever it was, it was no browser with an answer
        finally:
            writer.close()


@asynccontextmanager
async def landing() -> AsyncGenerator[Landing]:
    """A port of this machine that nobody else can reach, for as long as this is open."""
    place: Landing

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await place.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_LONGEST)
    place = Landing(server.sockets[0].getsockname()[1])
    async with server:
        yield place
