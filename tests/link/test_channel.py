"""Requests, notes and failures between two channels over real TLS."""

import asyncio
from collections.abc import Awaitable
from types import NoneType

import msgspec
import pytest

from pileus.kernel.errors import Conflict, Invalid, NoCapacity, NotFound, PileusError, TimedOut, TooLarge, Unavailable
from pileus.kernel.programs import ProgramFailed
from pileus.link.channel import LARGEST_FRAME, MOST_IN_FLIGHT, Channel
from pileus.link.handlers import Call, Handlers
from pileus.testing.links import LoopbackCloud, until


class Number(msgspec.Struct, frozen=True, kw_only=True):
    value: int


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    sizes: list[Number] = []


async def double(body: Number, call: Call) -> Number:
    await asyncio.sleep(0)
    return Number(value=2 * body.value)


class Stuck:
    """A handler that never answers, and tells when it began and whether it was cancelled."""

    def __init__(self) -> None:
        self.began = 0
        self.cancelled = 0

    async def __call__(self, body: None, call: Call) -> None:
        self.began += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def test_requests_are_answered_both_ways_with_many_in_flight(cloud: LoopbackCloud) -> None:
    cloud.server_handlers.add("double", Number, double)
    handlers = Handlers()
    handlers.add("double", Number, double)
    async with cloud.agent(handlers) as pair:
        async with asyncio.TaskGroup() as tasks:
            asked = [
                (n, tasks.create_task(channel.request("double", Number(value=n), Number, timeout_s=60)))
                for n in range(200)
                for channel in (pair.agent, pair.controller)
            ]
        assert all(task.result() == Number(value=2 * n) for n, task in asked)


async def test_the_peer_of_a_call_is_the_host_in_the_certificate(cloud: LoopbackCloud) -> None:
    asked_by: list[str] = []

    async def who(body: None, call: Call) -> None:
        asked_by.append(call.peer)

    cloud.server_handlers.add("who", NoneType, who)
    async with cloud.agent() as pair:
        await pair.agent.request("who", None, NoneType, timeout_s=60)
        assert asked_by == [pair.host]
        assert pair.agent.peer == "controller"


async def test_progress_arrives_in_order_and_before_the_answer(cloud: LoopbackCloud) -> None:
    async def count(body: Number, call: Call) -> None:
        for value in range(body.value):
            await call.progress(Number(value=value))

    handlers = Handlers()
    handlers.add("count", Number, count)
    seen: list[int] = []
    async with cloud.agent(handlers) as pair:
        await pair.controller.request(
            "count",
            Number(value=50),
            NoneType,
            timeout_s=60,
            progress=lambda raw: seen.append(msgspec.json.decode(raw, type=Number).value),
        )
    assert seen == list(range(50))


async def test_a_progress_callback_with_a_bug_harms_nobody(cloud: LoopbackCloud) -> None:
    async def report(body: None, call: Call) -> None:
        await call.progress(Number(value=1))

    handlers = Handlers()
    handlers.add("report", NoneType, report)

    def buggy(report: msgspec.Raw) -> None:
        raise KeyError("progress")

    async with cloud.agent(handlers) as pair:
        await pair.controller.request("report", None, NoneType, timeout_s=60, progress=buggy)


async def test_notes_arrive_in_order(cloud: LoopbackCloud) -> None:
    seen: list[tuple[str, int]] = []

    def take(body: Number, channel: Channel) -> None:
        seen.append((channel.peer, body.value))

    cloud.server_handlers.add_note("report", Number, take)
    async with cloud.agent() as pair:
        for value in range(100):
            await pair.agent.notify("report", Number(value=value))
        await until(lambda: len(seen) == 100)
        assert seen == [(pair.host, value) for value in range(100)]


async def test_an_error_crosses_as_its_own_class_with_all_its_reasons_but_not_the_internal_one(
    cloud: LoopbackCloud,
) -> None:
    async def refuse(body: None, call: Call) -> None:
        raise NoCapacity("no host fits", internal="secret", because={"h1": "full"}, fields={"vcpus": "too many"})

    cloud.server_handlers.add("refuse", NoneType, refuse)
    async with cloud.agent() as pair:
        with pytest.raises(NoCapacity) as caught:
            await pair.agent.request("refuse", None, NoneType, timeout_s=60)
    error = caught.value
    assert (error.detail, error.because, error.fields) == ("no host fits", {"h1": "full"}, {"vcpus": "too many"})
    assert error.internal == ""


async def test_an_error_whose_class_needs_more_than_crosses_arrives_as_the_class_it_comes_from(
    cloud: LoopbackCloud,
) -> None:
    async def fail(body: None, call: Call) -> None:
        raise ProgramFailed(["qemu-img"], 1, "disk full")

    cloud.server_handlers.add("fail", NoneType, fail)
    async with cloud.agent() as pair:
        with pytest.raises(PileusError) as caught:
            await pair.agent.request("fail", None, NoneType, timeout_s=60)
    assert type(caught.value) is PileusError
    assert "qemu-img" in caught.value.detail


async def test_a_bug_in_a_handler_is_an_internal_error_that_tells_the_peer_nothing(cloud: LoopbackCloud) -> None:
    async def buggy(body: None, call: Call) -> None:
        raise KeyError("password hunter2")

    async def unencodable(body: None, call: Call) -> msgspec.Struct:
        return object()  # pyright: ignore[reportReturnType] - the bug that is looked at

    cloud.server_handlers.add("buggy", NoneType, buggy)
    cloud.server_handlers.add("unencodable", NoneType, unencodable)
    async with cloud.agent() as pair:
        for method in ("buggy", "unencodable"):
            with pytest.raises(PileusError) as caught:
                await pair.agent.request(method, None, NoneType, timeout_s=60)
            assert caught.value.code == "internal"
            assert "hunter2" not in str(caught.value)


async def test_an_unknown_method_is_told_so(cloud: LoopbackCloud) -> None:
    async with cloud.agent() as pair:
        with pytest.raises(NotFound):
            await pair.agent.request("no.such", None, NoneType, timeout_s=60)
        with pytest.raises(NotFound):
            await pair.agent.open_stream("no.such", None, timeout_s=60)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (Number(value=1), "name"),
        (msgspec.defstruct("Loose", [("name", int)])(1), "name"),
        (msgspec.defstruct("Loose", [("name", str), ("sizes", list[dict[str, str]])])("a", [{"value": "x"}]), "sizes"),
    ],
)
async def test_a_malformed_body_is_invalid_and_names_the_field(
    cloud: LoopbackCloud, body: msgspec.Struct, field: str
) -> None:
    async def take(body: Wish, call: Call) -> None: ...

    cloud.server_handlers.add("take", Wish, take)
    async with cloud.agent() as pair:
        with pytest.raises(Invalid) as caught:
            await pair.agent.request("take", body, NoneType, timeout_s=60)
    assert next(iter(caught.value.fields)).startswith(field)


async def test_an_answer_of_another_shape_is_an_error_here(cloud: LoopbackCloud) -> None:
    cloud.server_handlers.add("double", Number, double)
    async with cloud.agent() as pair:
        with pytest.raises(PileusError, match="malformed answer"):
            await pair.agent.request("double", Number(value=1), Wish, timeout_s=60)


async def test_a_cancelled_request_is_cancelled_on_the_other_side(cloud: LoopbackCloud) -> None:
    stuck = Stuck()
    cloud.server_handlers.add("stuck", NoneType, stuck)
    async with cloud.agent() as pair:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(pair.agent.request("stuck", None, NoneType, timeout_s=60))
            await until(lambda: stuck.began)
            asking.cancel()
        await until(lambda: stuck.cancelled)


async def test_a_request_that_is_not_answered_in_time_is_timed_out_and_cancelled(cloud: LoopbackCloud) -> None:
    stuck = Stuck()
    cloud.server_handlers.add("stuck", NoneType, stuck)
    async with cloud.agent() as pair, asyncio.timeout(60):
        # On a slow machine a request may be over before its handler has begun.
        while not stuck.cancelled:
            with pytest.raises(TimedOut):
                await pair.agent.request("stuck", None, NoneType, timeout_s=0.05)


@pytest.mark.parametrize("lost_by", ["controller", "agent"])
async def test_a_lost_connection_fails_every_waiter_and_cancels_every_handler(
    cloud: LoopbackCloud, lost_by: str
) -> None:
    stuck = Stuck()
    cloud.server_handlers.add("stuck", NoneType, stuck)
    async with cloud.agent() as pair:
        async with asyncio.TaskGroup() as tasks:
            waiting = [
                tasks.create_task(_error_of(pair.agent.request("stuck", None, NoneType, timeout_s=60)))
                for _ in range(50)
            ]
            await until(lambda: stuck.began == 50)
            (pair.controller if lost_by == "controller" else pair.agent).abort()
        assert {type(task.result()) for task in waiting} == {Unavailable}
        await until(lambda: stuck.cancelled == 50)
        with pytest.raises(Unavailable):
            await pair.agent.request("stuck", None, NoneType, timeout_s=60)


async def test_more_requests_than_may_be_in_flight_are_refused_as_unavailable(cloud: LoopbackCloud) -> None:
    stuck = Stuck()
    cloud.server_handlers.add("stuck", NoneType, stuck)
    cloud.server_handlers.add("double", Number, double)
    async with cloud.agent() as pair, asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(_error_of(pair.agent.request("stuck", None, NoneType, timeout_s=60)))
            for _ in range(MOST_IN_FLIGHT)
        ]
        await until(lambda: stuck.began == MOST_IN_FLIGHT)
        with pytest.raises(Unavailable, match="in flight"):
            await pair.agent.request("double", Number(value=1), Number, timeout_s=60)
        waiting[0].cancel()
        await until(lambda: stuck.cancelled)
        assert await pair.agent.request("double", Number(value=1), Number, timeout_s=60) == Number(value=2)
        for task in waiting:
            task.cancel()


async def test_what_does_not_fit_a_frame_is_too_large_on_either_way(cloud: LoopbackCloud) -> None:
    async def much(body: Wish, call: Call) -> Wish:
        return Wish(name="x" * LARGEST_FRAME)

    cloud.server_handlers.add("much", Wish, much)
    async with cloud.agent() as pair:
        with pytest.raises(TooLarge):
            await pair.agent.request("much", Wish(name="x" * LARGEST_FRAME), Wish, timeout_s=60)
        with pytest.raises(TooLarge):
            await pair.agent.request("much", Wish(name="x"), Wish, timeout_s=60)
        nearly = Wish(name="x" * (LARGEST_FRAME - 100))
        with pytest.raises(TooLarge):
            await pair.agent.request("much", nearly, Wish, timeout_s=60)


async def test_a_handler_may_ask_back_on_the_same_channel(cloud: LoopbackCloud) -> None:
    async def relay(body: Number, call: Call) -> Number:
        return await call.channel.request("double", body, Number, timeout_s=60)

    handlers = Handlers()
    handlers.add("double", Number, double)
    cloud.server_handlers.add("relay", Number, relay)
    async with cloud.agent(handlers) as pair:
        assert await pair.agent.request("relay", Number(value=4), Number, timeout_s=60) == Number(value=8)


async def test_a_conflict_of_one_request_leaves_the_others_alone(cloud: LoopbackCloud) -> None:
    async def odd_only(body: Number, call: Call) -> Number:
        if body.value % 2 == 0:
            raise Conflict("even")
        return body

    cloud.server_handlers.add("odd", Number, odd_only)
    async with cloud.agent() as pair, asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(_error_of(pair.agent.request("odd", Number(value=n), Number, timeout_s=60)))
            for n in range(20)
        ]
    assert [type(task.result()) for task in asked] == [Conflict, NoneType] * 10


async def _error_of(asking: Awaitable[object]) -> PileusError | None:
    try:
        await asking
    except PileusError as error:
        return error
    return None
