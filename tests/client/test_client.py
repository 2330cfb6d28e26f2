"""What the client does when answers do not come, against a server that answers as it is told."""

import pytest

from pileus.client.client import Client
from pileus.client.config import Config
from pileus.client.events import follow, messages
from pileus.kernel.errors import Invalid, NotFound, Unavailable

from .conftest import Server


async def test_reading_is_repeated_while_the_controller_is_away(server: Server, config: Config) -> None:
    server.answer(503)
    server.hang_up()
    server.answer(200, b'{"id": 1}')
    async with Client(config) as client:
        assert (await client.get("/v1/flavors/1")).body == {"id": 1}
    assert len(server.asked) == 3
    assert {asked.headers["authorization"] for asked in server.asked} == {"bearer secret"}


async def test_a_change_whose_answer_is_lost_is_sent_again_with_the_same_key(server: Server, config: Config) -> None:
    server.hang_up()
    server.answer(201)
    async with Client(config) as client:
        await client.send("POST", "/v1/flavors", {"name": "x"}, plans=True)
        server.answer(201)
        await client.send("POST", "/v1/flavors", {"name": "x"}, plans=True)
    first, second, other = (asked.headers["idempotency-key"] for asked in server.asked)
    assert first == second != other
    assert server.asked[0].body == b'{"name":"x"}'


async def test_a_change_without_a_key_is_sent_once(server: Server, config: Config) -> None:
    server.hang_up()
    async with Client(config) as client:
        with pytest.raises(Unavailable):
            await client.send("POST", "/v1/tokens", {}, plans=False)
    assert len(server.asked) == 1
    assert "idempotency-key" not in server.asked[0].headers


async def test_a_refusal_is_not_repeated(server: Server, config: Config) -> None:
    server.answer(404, b'{"type": "/problems/not-found", "detail": "gone"}')
    async with Client(config) as client:
        with pytest.raises(NotFound, match="gone"):
            await client.get("/v1/flavors/1")
    assert len(server.asked) == 1


async def test_patience_has_an_end() -> None:
    async with Client(Config(url="http://127.0.0.1:9"), patience_s=0.05) as client:
        with pytest.raises(Unavailable, match="does not answer"):
            await client.get("/v1/flavors")


async def test_all_pages_are_read_up_to_a_number(server: Server, config: Config) -> None:
    async with Client(config) as client:
        server.answer(200, b'{"items": [{"id": "1"}, {"id": "2"}], "next": "cursor"}')
        server.answer(200, b'{"items": [{"id": "3"}], "next": null}')
        pages = client.pages("/v1/flavors", {"name": "x"}, at_most=3)
        assert [record["id"] async for page in pages for record in page.items] == ["1", "2", "3"]
    first, second = (asked.line for asked in server.asked)
    assert "limit=3" in first
    assert "after" not in first
    assert "after=cursor" in second
    assert "name=x" in second


async def test_an_authority_that_is_none_is_refused() -> None:
    with pytest.raises(Invalid):
        Client(Config(url="https://x", authority="-----BEGIN nothing"))


async def test_a_stream_of_events_is_read_by_its_rules() -> None:
    async def lines() -> object:
        for line in (": a comment", "id: 7", "", "event: flavor", "id:8", "data: {", "data: }", "", "data: cut"):
            yield line

    found = [(each.id, each.data) async for each in messages(lines())]  # pyright: ignore[reportArgumentType]
    assert found == [("7", ""), ("8", "{\n}")]


async def test_events_are_taken_up_again_behind_the_last_one(server: Server, config: Config) -> None:
    server.answer_with_a_stream(b"id: 4\n\n")
    server.answer(503)
    server.answer_with_a_stream(b'id: 5\ndata: {"sequence": 5}\n\nid: 6\ndata: {"se')
    server.answer_with_a_stream(b'id: 6\ndata: {"sequence": 6}\n\n')
    seen: list[int] = []
    async with Client(config) as client:
        async for event in follow(client, {"kind": "flavor"}):
            seen.append(event["sequence"])
            if len(seen) == 2:
                break
    assert seen == [5, 6]
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "4", "4", "5"]
    assert all("kind=flavor" in asked.line for asked in server.asked)


async def test_a_stream_that_is_lost_is_no_matter_of_patience(server: Server, config: Config) -> None:
    server.answer_and_break_off(b": still here\n\n")
    server.answer_and_break_off(b'id: 1\ndata: {"sequence": 1}\n\n')
    server.hang_up()
    async with Client(config) as client:
        events = follow(client, patience_s=0.0)
        assert (await anext(events))["sequence"] == 1
        with pytest.raises(Unavailable):
            await anext(events)
