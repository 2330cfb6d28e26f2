import asyncio
from collections.abc import AsyncIterator, Mapping

import msgspec
import pytest

from pileus.client.config import Config


class Asked(msgspec.Struct, frozen=True):
    """A request that arrived."""

    line: str
    headers: Mapping[str, str]
    body: bytes


class Server:
    """An HTTP server that answers from a list, one answer for each connection; None answers by hanging up."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []
        self.asked: list[Asked] = []
        self.url = ""
        self.answering = asyncio.Event()
        """Cleared, requests arrive and their answers wait."""
        self.answering.set()

    def answer(self, status: int, body: bytes = b"{}", *headers: str) -> None:
        lines = (f"HTTP/1.1 {status} x", f"content-length: {len(body)}", "connection: close", *headers)
        self.answers.append("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def answer_with_a_stream(self, body: bytes) -> None:
        """An answer without an announced end, that ends with the connection."""
        self.answers.append(b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body)

    def answer_and_break_off(self, chunk: bytes) -> None:
        """The beginning of an answer whose connection is lost."""
        head = b"HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n"
        self.answers.append(head + b"%x\r\n%s\r\n" % (len(chunk), chunk))

    def hang_up(self) -> None:
        self.answers.append(None)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.asked.append(Asked(head[0], headers, body))
            await self.answering.wait()
            answer = self.answers.pop(0)
            if answer is not None:
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a client that gave up
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    server.url = f"http://{host}:{port}"
    async with listening:
        yield server


@pytest.fixture
def config(server: Server) -> Config:
    return Config(url=server.url, token="secret")
