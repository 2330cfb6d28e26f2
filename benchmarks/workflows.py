"""What workflows cost: run through, kept alive, and taken up again after the process was killed.

    PYTHONPATH=src python benchmarks/workflows.py [--run 10000] [--alive 50000] [--recovered 20000] [--folder /var/tmp]

A workflow has four steps, each journalled to SQLite with synchronous=FULL before the next begins, and is begun and
ended by a commit of its own. The ratio is to the same number of commits, as many at once, without workflows. Those
alive wait within their third step, and memory is what the process has grown by, divided by their number: journal,
records and indexes included. Those recovered waited there when their process was killed by SIGKILL; another opens the
store, loads it, and has each of them in its third step again. The interpreter's start is not in it.

The full size is `--alive 200000`.
"""

# ruff: noqa: ARG001 - steps and undos have one signature
import argparse
import asyncio
import logging
import multiprocessing
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvloop
from processes import Process, in_process

from pileus.kernel.clock import SystemClock
from pileus.kernel.ids import ProjectId, TaskId, new_id
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.sqlite import SqliteStore
from pileus.state.state import Origin, State, opened, put
from pileus.workflow.engine import Engine
from pileus.workflow.task import TASKS, UNFINISHED
from pileus.workflow.workflow import Run, begin, step, workflow

_ORIGIN = Origin(actor="system", operation="benchmark")
_AT_ONCE = 1000
_STEPS = 4


class Thing(Record, frozen=True, kw_only=True):
    """What the workflows are about."""

    project_id: ProjectId
    name: str


THINGS = Kind("thing", Thing, indexes={"project": lambda thing: thing.project_id})


class World:
    """Counts those that have come to their third step, and lets them go on once it is open."""

    def __init__(self, *, is_open: bool) -> None:
        self.arrived = 0
        self.open = asyncio.Event()
        if is_open:
            self.open.set()


class OfThing(msgspec.Struct, frozen=True):
    """The arguments."""

    thing: str


@workflow("thing.create")
async def create_thing(run: Run[World], wish: OfThing) -> None:
    """Four steps."""
    place = await run(choose, wish)
    await run(prepare, wish, place)
    await run(wait, wish, place)
    await run(finish, wish)


@step
async def choose(world: World, wish: OfThing) -> str:
    return wish.thing


@step
async def prepare(world: World, wish: OfThing, place: str) -> None:
    pass


@prepare.undo
async def clear(world: World, wish: OfThing, place: str) -> None:
    pass


@step
async def wait(world: World, wish: OfThing, place: str) -> None:
    world.arrived += 1
    await world.open.wait()


@step
async def finish(world: World, wish: OfThing) -> None:
    pass


class Bench:
    """An engine over a store."""

    def __init__(self, state: State, engine: Engine[World]) -> None:
        self.state = state
        self.engine = engine
        self._project = ProjectId(new_id())

    async def start(self, count: int) -> None:
        """Begin so many workflows."""
        clock = SystemClock()
        for _ in range(count):
            thing = Thing(id=new_id(), created_at=clock.now(), project_id=self._project, name="thing")
            start = begin(create_thing, OfThing(thing.id))
            task = self.engine.task_for(
                start, project=self._project, subject=thing, origin=_ORIGIN, now=thing.created_at
            )
            self.state.apply([put(thing), put(task)], _ORIGIN)
            self.engine.launch(TaskId(task.id))
        await self.state.durable()

    async def start_in_turns(self, count: int) -> None:
        """The same, so that they do not all wait for one large write."""
        for begun in range(0, count, _AT_ONCE):
            await self.start(min(_AT_ONCE, count - begun))

    async def until_ended(self) -> None:
        tasks = self.state[TASKS]
        while any(tasks.count_by("state", state) for state in UNFINISHED):  # noqa: ASYNC110 - measured from outside
            await asyncio.sleep(0.01)


@asynccontextmanager
async def bench(data: Path, world: World) -> AsyncGenerator[Bench]:
    async with opened((TASKS, THINGS), SqliteStore(data), SystemClock()) as state:
        engine = Engine(state, world, SystemClock(), [create_thing])
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(engine.serve())
            await asyncio.sleep(0)
            yield Bench(state, engine)
            serving.cancel()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - an event for each would be measured with it
        await asyncio.sleep(0.005)


async def run_through(data: Path, count: int) -> tuple[float, float, float]:
    """Workflows per second, CPU seconds of each, and of as many commits without them."""
    async with bench(data, World(is_open=True)) as running:
        await running.start(_AT_ONCE)
        await running.until_ended()
        begun, cpu = time.perf_counter(), time.process_time()
        await running.start_in_turns(count)
        await running.until_ended()
        elapsed, spent = time.perf_counter() - begun, (time.process_time() - cpu) / count
        cpu = time.process_time()
        await bare_commits(running.state, count)
        return count / elapsed, spent, (time.process_time() - cpu) / count


async def bare_commits(state: State, count: int) -> None:
    """As many commits, and as many at once, of records that do not grow."""

    async def commit_some(number: int) -> None:
        for _ in range(number):
            thing = Thing(id=new_id(), created_at=SystemClock().now(), project_id=ProjectId("bare"), name="thing")
            for revision in range(_STEPS + 2):
                await state.commit([put(msgspec.structs.replace(thing, revision=revision))], _ORIGIN)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_AT_ONCE):
            tasks.create_task(commit_some(count // _AT_ONCE))


async def alive(data: Path, count: int) -> float:
    """KiB of memory for each workflow that waits."""
    world, me = World(is_open=False), Process.this()
    async with bench(data, world) as running:
        await running.start(_AT_ONCE)
        await until(lambda: world.arrived == _AT_ONCE)
        before = me.rss_mib
        await running.start_in_turns(count)
        await until(lambda: world.arrived == _AT_ONCE + count)
        each = 1024 * (me.rss_mib - before) / count
        world.open.set()
        await running.until_ended()
        return each


async def until_killed(data: Path, count: int) -> None:
    """Bring so many to their third step, say so, and wait there."""
    world = World(is_open=False)
    async with bench(data, world) as running:
        await running.start_in_turns(count)
        await until(lambda: world.arrived == count)
        (data / "waiting").touch()
        await asyncio.Event().wait()


def kill_in_the_middle(data: Path, count: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(until_killed, data, count))
    process.start()
    while not (data / "waiting").exists():
        assert process.is_alive(), "it ended by itself"
        time.sleep(0.01)
    process.kill()
    process.join()


def _run(work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
    uvloop.run(work(*arguments))


async def recover(data: Path, count: int) -> tuple[float, float]:
    """Seconds until all are where they were, and until all have ended."""
    world, begun = World(is_open=False), time.perf_counter()
    async with bench(data, world) as running:
        await until(lambda: world.arrived == count)
        there = time.perf_counter() - begun
        world.open.set()
        await running.until_ended()
        return there, time.perf_counter() - begun


def main(run: int, living: int, recovered: int, folder: Path) -> None:
    """Measure and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        rate, spent, bare = in_process(run_through, Path(name), run)
        print(
            f"run through   {rate:8,.0f} workflows/s   {1e3 * spent:6.3f} ms CPU each = {1 / spent:7,.0f} per CPU"
            f" second   {spent / bare:.1f} times their commits alone",
            flush=True,
        )
    with tempfile.TemporaryDirectory(dir=folder) as name:
        each = in_process(alive, Path(name), living)
        print(f"alive         {living:8,} at once       {each:6.2f} KiB each", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        kill_in_the_middle(Path(name), recovered)
        there, ended = in_process(recover, Path(name), recovered)
        print(f"recovered     {recovered:8,} in {there:.2f} s after SIGKILL, ended in {ended:.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=int, default=10_000)
    parser.add_argument("--alive", type=int, default=50_000)
    parser.add_argument("--recovered", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    main(given.run, given.alive, given.recovered, given.folder)
