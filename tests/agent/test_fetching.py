"""Images come by HTTPS from the controller, with certificates of its own authority, and go on where they broke off."""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import structs

from pileus.agent.fetching import ImageFetcher
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import HostId, ImageId, new_id
from pileus.link.addresses import Address
from pileus.link.images import ImageSource
from pileus.testing.links import LoopbackCloud

CONTENT = os.urandom(300_000)
IMAGE = ImageSource(
    id=ImageId(new_id()),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size_bytes=len(CONTENT),
    virtual_size_bytes=len(CONTENT),
    format="raw",
    url="/images/1/data?ticket=good",
)


class Shelf:
    """An HTTPS server with one image, which breaks off after so many bytes as often as it is told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.breaks: list[int] = []
        self.ranges = True
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head)
            writer.write(self._answer(head))
            await writer.drain()
        finally:
            writer.close()

    def _answer(self, head: str) -> bytes:
        if "ticket=good" not in head:
            return b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
        found = re.search(r"range: bytes=(\d+)-", head, re.IGNORECASE) if self.ranges else None
        start = int(found[1]) if found else 0
        body = CONTENT[start:]
        status = "206 Partial Content" if found else "200 OK"
        sent = body[: self.breaks.pop(0)] if self.breaks else body
        return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + sent

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)


@asynccontextmanager
async def shelf_of(cloud: LoopbackCloud) -> AsyncGenerator[Shelf, None]:
    shelf = Shelf()
    server = await asyncio.start_server(shelf.serve, "127.0.0.1", 0, ssl=cloud.identity.api_context())
    async with server:
        shelf.port = int(server.sockets[0].getsockname()[1])
        yield shelf


@pytest.fixture
def cloud(tmp_path: Path) -> LoopbackCloud:
    return LoopbackCloud(tmp_path)


def fetcher_of(cloud: LoopbackCloud, *addresses: Address) -> ImageFetcher:
    return ImageFetcher(lambda: addresses, cloud.join(HostId(new_id())).context, pause_s=0)


async def all_of(fetcher: ImageFetcher, image: ImageSource = IMAGE) -> bytes:
    return b"".join([piece async for piece in fetcher.fetch(image)])


async def test_an_image_is_fetched_from_the_controller(cloud: LoopbackCloud) -> None:
    async with shelf_of(cloud) as shelf:
        assert await all_of(fetcher_of(cloud, shelf.address)) == CONTENT
        assert shelf.asked[0].startswith("GET /images/1/data?ticket=good ")


async def test_a_transfer_that_breaks_off_goes_on_where_it_was(cloud: LoopbackCloud) -> None:
    async with shelf_of(cloud) as shelf:
        shelf.breaks = [100_000, 50_000, 0]
        assert await all_of(fetcher_of(cloud, shelf.address)) == CONTENT
        assert len(shelf.asked) == 4


async def test_a_server_that_does_no_ranges_may_break_off_too(cloud: LoopbackCloud) -> None:
    async with shelf_of(cloud) as shelf:
        shelf.ranges = False
        shelf.breaks = [100_000, 250_000]
        assert await all_of(fetcher_of(cloud, shelf.address)) == CONTENT
        assert len(shelf.asked) == 3


async def test_an_address_where_nobody_is_does_no_harm(cloud: LoopbackCloud) -> None:
    async with shelf_of(cloud) as shelf:
        assert await all_of(fetcher_of(cloud, Address("127.0.0.1", 1), shelf.address)) == CONTENT


async def test_a_refused_ticket_is_told_and_not_asked_for_ever(cloud: LoopbackCloud) -> None:
    async with shelf_of(cloud) as shelf:
        with pytest.raises(Unavailable):
            await all_of(fetcher_of(cloud, shelf.address), structs.replace(IMAGE, url="/images/1/data?ticket=old"))
        assert len(shelf.asked) == 4


async def test_a_server_of_another_authority_is_not_trusted(cloud: LoopbackCloud, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with shelf_of(LoopbackCloud(tmp_path / "other")) as stranger:
        with pytest.raises(Unavailable):
            await all_of(fetcher_of(cloud, stranger.address))
        assert not stranger.asked


async def test_without_an_address_nothing_can_be_fetched(cloud: LoopbackCloud) -> None:
    with pytest.raises(Unavailable, match="where the controller is"):
        await all_of(fetcher_of(cloud))
