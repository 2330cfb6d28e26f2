"""What a host sends arrives whole, in order and once, whatever the connection does."""

from collections.abc import AsyncIterator

import httpx2
import pytest

from pileus.agent.fetching import ATTEMPTS
from pileus.agent.sending import Sender
from pileus.kernel.errors import QuotaExceeded, Unavailable
from pileus.link.addresses import Address

CONTENT = bytes(range(256)) * 1000


class Desk:
    """Takes in what arrives, and breaks off behind so many bytes as often as it is told."""

    def __init__(self) -> None:
        self.arrived = b""
        self.breaks: list[int] = []
        self.refusal: tuple[int, bytes] | None = None
        self.asked: list[str] = []

    async def handle(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.method)
        if self.refusal is not None:
            return httpx2.Response(self.refusal[0], content=self.refusal[1])
        if request.method == "PATCH":
            assert int(request.headers["upload-offset"]) == len(self.arrived)
            body = await request.aread()
            if self.breaks:
                self.arrived += body[: self.breaks.pop(0)]
                raise httpx2.ReadError("gone")
            self.arrived += body
        return httpx2.Response(200, headers={"upload-offset": str(len(self.arrived))})

    def sender(self, *addresses: Address) -> Sender:
        api = addresses or (Address("controller", 443),)
        return Sender(lambda: api, lambda: httpx2.AsyncClient(transport=httpx2.MockTransport(self.handle)), pause_s=0)


async def read(start: int) -> AsyncIterator[bytes]:
    for at in range(start, len(CONTENT), 10_000):
        yield CONTENT[at : at + 10_000]


async def test_what_breaks_off_goes_on_where_it_stopped() -> None:
    desk, told = Desk(), list[float]()
    desk.breaks = [100_000, 1, 50_000]
    await desk.sender().send("/there?ticket=secret", len(CONTENT), read, told.append)
    assert (desk.arrived, told[-1]) == (CONTENT, 1.0)


async def test_what_has_arrived_is_not_sent_again() -> None:
    desk = Desk()
    desk.arrived = CONTENT
    await desk.sender().send("/there", len(CONTENT), read, lambda _: None)
    assert desk.asked == ["GET"]


async def test_a_line_that_stays_dead_is_given_up() -> None:
    desk = Desk()
    desk.breaks = [0] * 100
    with pytest.raises(Unavailable):
        await desk.sender().send("/there", len(CONTENT), read, lambda _: None)
    assert desk.asked.count("PATCH") == ATTEMPTS


@pytest.mark.parametrize("said", [b"no JSON", b"[]", b'{"type": 1}'])
async def test_a_controller_that_is_out_of_order_is_asked_again(said: bytes) -> None:
    desk = Desk()
    desk.refusal = (404, said)
    with pytest.raises(Unavailable):
        await desk.sender().send("/there", len(CONTENT), read, lambda _: None)
    assert len(desk.asked) == ATTEMPTS


async def test_what_the_controller_refuses_is_refused_for_its_reason() -> None:
    desk = Desk()
    desk.refusal = (403, b'{"type": "/problems/quota-exceeded", "detail": "the quota is used up"}')
    with pytest.raises(QuotaExceeded, match="used up"):
        await desk.sender().send("/there", len(CONTENT), read, lambda _: None)


async def test_without_an_address_nothing_is_sent() -> None:
    sender = Sender(list[Address], httpx2.AsyncClient)
    with pytest.raises(Unavailable, match="where the controller is"):
        await sender.send("/there", len(CONTENT), read, lambda _: None)
