import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pileus.kernel.errors import Unavailable
from pileus.ovn.ovsdb import Messages, Ovsdb, TransactionRefused

TEXT = st.text(alphabet='ab{}"\\ü', max_size=8)
MESSAGES = st.lists(st.dictionaries(TEXT, st.lists(TEXT) | st.dictionaries(TEXT, TEXT), max_size=3), max_size=4)


@settings(max_examples=50)
@given(MESSAGES, st.data())
def test_messages_are_cut_where_they_end_however_they_arrive(sent: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(msgspec.json.encode(each) for each in sent)
    messages = Messages()
    received: list[bytes] = []
    while stream:
        size = data.draw(st.integers(min_value=1, max_value=min(len(stream), 30)))
        received += messages.complete(stream[:size])
        stream = stream[size:]
    assert [msgspec.json.decode(each) for each in received] == sent


Reply = Callable[[Mapping[str, Any]], list[Mapping[str, Any]]]


@asynccontextmanager
async def served(folder: Path, reply: Reply) -> AsyncGenerator[Ovsdb]:
    """A connection to a server that answers each request with these messages, and hangs up when there are none."""
    path = folder / "db.sock"
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        messages = Messages()
        while data := await reader.read(1 << 16):
            for message in messages.complete(data):
                answers = reply(msgspec.json.decode(message))
                writer.writelines(map(msgspec.json.encode, answers))
                if not answers:
                    writer.close()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        gone.set()

    async with await asyncio.start_unix_server(serve, path):
        connection = await Ovsdb.connect(f"unix:{path}", "Test")
        try:
            yield connection
        finally:
            await connection.close()
            await asyncio.wait_for(gone.wait(), 60)


def result(request: Mapping[str, Any], value: object) -> Mapping[str, Any]:
    return {"id": request["id"], "result": value, "error": None}


async def test_a_transaction_returns_the_results_of_its_operations(tmp_path: Path) -> None:
    async with served(tmp_path, lambda request: [result(request, [{"count": 1}])]) as connection:
        assert await connection.transact([{"op": "select"}]) == [{"count": 1}]


async def test_a_transaction_that_is_refused_says_which_operation_was(tmp_path: Path) -> None:
    refusal: list[dict[str, str]] = [{}, {"error": "constraint violation", "details": "too long"}]
    async with served(tmp_path, lambda request: [result(request, refusal)]) as connection:
        with pytest.raises(TransactionRefused) as refused:
            await connection.transact([{"op": "first"}, {"op": "second"}])
    assert "constraint violation: too long" in refused.value.internal
    assert "second" in refused.value.internal


async def test_updates_are_told_before_the_transaction_that_made_them_returns(tmp_path: Path) -> None:
    told: list[object] = []

    def reply(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if request["method"] == "monitor_cond":
            names.append(request["params"][1])
            return [result(request, {"T": "initial"})]
        return [{"method": "update2", "params": [names[0], {"T": "changed"}], "id": None}, result(request, [])]

    names: list[str] = []
    async with served(tmp_path, reply) as connection:
        await connection.monitor({"T": ["name"]}, told.append)
        await connection.transact([{"op": "insert"}])
        assert told == [{"T": "initial"}, {"T": "changed"}]


async def test_a_lost_connection_fails_what_waits_and_what_comes(tmp_path: Path) -> None:
    lost = asyncio.Event()
    async with served(tmp_path, lambda _: []) as connection:
        connection.when_lost(lost.set)
        with pytest.raises(Unavailable):
            await connection.transact([])
        await asyncio.wait_for(lost.wait(), 60)
        assert connection.lost
        with pytest.raises(Unavailable):
            await connection.transact([])


async def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    attempt: Awaitable[Ovsdb] = Ovsdb.connect(f"unix:{tmp_path / 'nobody'}", "Test")
    with pytest.raises(Unavailable):
        await attempt
