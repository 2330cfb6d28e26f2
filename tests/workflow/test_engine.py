"""What the workflow engine promises, on a store in memory."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import pytest

from pileus.kernel.clock import SystemClock
from pileus.kernel.errors import Conflict, Unavailable
from pileus.kernel.ids import ProjectId, TaskId, new_id
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import Change, Origin, State, opened, put, remove
from pileus.testing.memorystore import Disk, Fuse, MemoryStore
from pileus.workflow.engine import Engine
from pileus.workflow.task import TASKS, UNFINISHED, Task, TaskState
from pileus.workflow.workflow import Run, Workflow, begin, step, step_with, workflow

ORIGIN = Origin(actor="user:1", operation="kite.create")


class Kite(Record, frozen=True, kw_only=True):
    flies: bool = False


KITES = Kind("kite", Kite)


@dataclass
class World:
    """Where kites are made; `hook` may refuse, break or stop the world at each deed."""

    made: dict[str, str] = field(default_factory=dict[str, str])
    deeds: list[str] = field(default_factory=list[str])
    hook: Callable[[str], None] = lambda _: None

    def do(self, deed: str) -> None:
        self.deeds.append(deed)
        self.hook(deed)


class Wish(msgspec.Struct, frozen=True):
    id: str


@workflow("kite.create")
async def create_kite(run: Run[World], wish: Wish) -> None:
    colour = await run(make_sail, wish)
    await run(tie, wish, colour)


@create_kite.finish
def let_fly(state: State, wish: Wish) -> list[Change]:
    return [put(msgspec.structs.replace(state[KITES].get(wish.id), flies=True))]


@create_kite.withdraw
def forget(state: State, wish: Wish) -> list[Change]:
    return [remove(state[KITES].get(wish.id))]


@step
async def make_sail(world: World, wish: Wish) -> str:
    world.do("sail")
    world.made[wish.id] = "red"
    return "red"


@make_sail.undo
async def tear_sail(world: World, wish: Wish) -> None:
    world.do("tear")
    world.made.pop(wish.id, None)


@step
async def tie(world: World, wish: Wish, colour: str) -> None:
    world.do("tie")
    world.made[wish.id] = f"{colour}, tied"


@tie.undo
async def untie(world: World, wish: Wish, colour: str) -> None:
    world.do("untie")
    if wish.id in world.made:
        world.made[wish.id] = colour


@workflow("kite.fly")
async def fly_kite(run: Run[World], wish: Wish) -> None:
    colour = await run(make_sail, wish)
    await run(await_wind, wish)
    await run(tie, wish, colour)


@step_with(only_waits=True)
async def await_wind(world: World, wish: Wish) -> None:
    world.do("wait")


@workflow("kite.delete")
async def delete_kite(run: Run[World], wish: Wish) -> None:
    await run(burn, wish)


@step_with(forward_only=True, patience_s=0)
async def burn(world: World, wish: Wish) -> None:
    world.do("burn")
    world.made.pop(wish.id, None)


@asynccontextmanager
async def running(world: World, disk: Disk | None = None, fuse: Fuse | None = None) -> AsyncGenerator[Engine[World]]:
    async with opened([KITES, TASKS], MemoryStore(disk, fuse), SystemClock()) as state:
        engine = Engine(
            state, world, SystemClock(), [create_kite, fly_kite, delete_kite], pause=lambda _: asyncio.sleep(0)
        )
        serving = asyncio.create_task(engine.serve())
        await asyncio.sleep(0)
        try:
            yield engine
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def started(engine: Engine[World], what: Workflow[World, Wish] = create_kite) -> TaskId:
    kite = Kite(id=new_id(), created_at=datetime(2026, 1, 1, tzinfo=UTC))
    start = begin(what, Wish(kite.id))
    task = engine.task_for(start, project=ProjectId("p"), subject=kite, origin=ORIGIN, now=kite.created_at)
    await engine.state.commit([put(kite), put(task)], ORIGIN)
    engine.launch(TaskId(task.id))
    return TaskId(task.id)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0)


async def ended(engine: Engine[World], id: TaskId) -> Task:
    await until(lambda: engine.state[TASKS].get(id).state not in UNFINISHED)
    return engine.state[TASKS].get(id)


async def test_a_task_does_its_steps_in_order_and_finishes_with_its_records() -> None:
    world = World()
    async with running(world) as engine:
        task = await ended(engine, await started(engine))
        assert task.state is TaskState.DONE
        assert [step.name for step in task.steps] == ["make_sail", "tie"]
        assert world.made == {task.subject_id: "red, tied"}
        assert engine.state[KITES].get(task.subject_id).flies


async def test_a_failed_task_is_undone_last_step_first_and_says_why() -> None:
    def refuse(deed: str) -> None:
        if deed == "tie":
            raise Conflict("no string left", because={"drawer": "empty"})

    world = World(hook=refuse)
    async with running(world) as engine:
        task = await ended(engine, await started(engine))
        assert task.state is TaskState.UNDONE
        assert task.cause is not None
        assert (task.cause.code, task.cause.step, task.cause.because) == ("conflict", "tie", {"drawer": "empty"})
        assert world.deeds == ["sail", "tie", "untie", "tear"]
        assert world.made == {}
        assert len(engine.state[KITES]) == 0


async def test_a_bug_is_undone_too_and_keeps_its_details_to_the_log() -> None:
    def break_down(deed: str) -> None:
        if deed == "tie":
            raise KeyError("secret")

    async with running(World(hook=break_down)) as engine:
        task = await ended(engine, await started(engine))
        assert task.state is TaskState.UNDONE
        assert "secret" not in str(task.cause)


async def test_what_does_not_answer_for_a_while_is_asked_again() -> None:
    answers = iter([Unavailable("busy"), Unavailable("busy"), None])

    def busy(deed: str) -> None:
        if deed == "sail" and (error := next(answers)) is not None:
            raise error

    async with running(World(hook=busy)) as engine:
        assert (await ended(engine, await started(engine))).state is TaskState.DONE


async def test_an_undo_that_fails_is_stuck_in_sight_of_all_and_goes_on_when_it_can() -> None:
    jammed = True

    def jam(deed: str) -> None:
        if deed == "tie" or (deed == "tear" and jammed):
            raise Conflict("the scissors are jammed")

    async with running(World(hook=jam)) as engine:
        id = await started(engine)
        await until(lambda: engine.state[TASKS].get(id).state is TaskState.STUCK)
        assert "jammed" in engine.state[TASKS].get(id).stuck_because
        jammed = False
        assert (await ended(engine, id)).state is TaskState.UNDONE


async def test_a_step_with_no_way_back_is_only_completed() -> None:
    wet = True

    def damp(deed: str) -> None:
        if deed == "burn" and wet:
            raise Conflict("too wet")

    async with running(World(hook=damp)) as engine:
        id = await started(engine, delete_kite)
        await until(lambda: engine.state[TASKS].get(id).state is TaskState.STUCK)
        wet = False
        assert (await ended(engine, id)).state is TaskState.DONE


async def test_cancelling_breaks_off_the_running_step_and_undoes() -> None:
    world = World()
    waits = asyncio.Event()
    original = tie.do

    async def slow(world: World, wish: Wish, colour: str) -> None:
        await original(world, wish, colour)
        waits.set()
        await asyncio.Event().wait()

    tie.do = slow
    try:
        async with running(world) as engine:
            id = await started(engine)
            await waits.wait()
            await engine.cancel(id, ORIGIN)
            task = await ended(engine, id)
            assert (task.state, task.cause and task.cause.code) == (TaskState.UNDONE, "cancelled")
            assert world.made == {}
            with pytest.raises(Conflict):
                await engine.cancel(id, ORIGIN)
    finally:
        tie.do = original


async def test_a_task_broken_off_anywhere_is_completed_by_the_next_engine_without_repeating_what_is_journalled() -> (
    None
):
    disk, world = Disk(), World()
    reached = asyncio.Event()

    async def hang(world: World, wish: Wish, colour: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    original, tie.do = tie.do, hang
    async with running(world, disk) as engine:
        id = await started(engine)
        await reached.wait()
    tie.do = original
    async with running(world, disk) as engine:
        assert (await ended(engine, id)).state is TaskState.DONE
        assert world.deeds == ["sail", "tie"]


async def test_a_loss_of_power_behind_the_last_step_repeats_that_step_and_no_other() -> None:
    disk, world = Disk(), World()

    def cut_the_power(_: int) -> None:
        if "tie" in world.deeds:
            raise Unavailable("no power")

    with suppress(Unavailable):
        async with running(world, disk, fuse=cut_the_power) as engine:
            await started(engine)
            await engine.state.broken_by()
    [id] = [TaskId(id) for kind, id in disk.records if kind == TASKS.name]
    async with running(world, disk) as engine:
        assert [step.name for step in engine.state[TASKS].get(id).steps] == ["make_sail"]
        task = await ended(engine, id)
        assert (task.state, [step.name for step in task.steps]) == (TaskState.DONE, ["make_sail", "tie"])
        assert world.deeds == ["sail", "tie", "tie"]


async def test_who_dies_while_it_only_waits_repeats_the_step_before_and_who_dies_behind_that_repeats_neither() -> None:
    disk, world = Disk(), World()

    def die_at(deed: str) -> Callable[[str], None]:
        def hook(now: str) -> None:
            if now == deed:
                raise asyncio.CancelledError

        return hook

    world.hook = die_at("wait")
    async with running(world, disk) as engine:
        id = await started(engine, fly_kite)
        await until(lambda: "wait" in world.deeds)
    world.hook = die_at("tie")
    async with running(world, disk):
        await until(lambda: "tie" in world.deeds)
    assert world.deeds == ["sail", "wait", "sail", "wait", "tie"]
    world.hook = lambda _: None
    async with running(world, disk) as engine:
        task = await ended(engine, id)
        assert (task.state, [step.name for step in task.steps]) == (TaskState.DONE, ["make_sail", "await_wind", "tie"])
        assert world.deeds == ["sail", "wait", "sail", "wait", "tie", "tie"]


async def test_what_came_before_a_wait_that_fails_is_undone() -> None:
    def calm(deed: str) -> None:
        if deed == "wait":
            raise Conflict("there is no wind")

    world = World(hook=calm)
    async with running(world) as engine:
        task = await ended(engine, await started(engine, fly_kite))
        assert (task.state, task.cause and task.cause.step) == (TaskState.UNDONE, "await_wind")
        assert [(step.name, step.undone_at is not None) for step in task.steps] == [("make_sail", True)]
        assert world.deeds == ["sail", "wait", "tear"]


async def test_what_cannot_be_finished_is_undone_with_its_last_step() -> None:
    def fall(state: State, wish: Wish) -> list[Change]:
        raise Conflict("there is no wind")

    world = World()
    let_fly, create_kite.finisher = create_kite.finisher, fall
    try:
        async with running(world) as engine:
            task = await ended(engine, await started(engine))
    finally:
        create_kite.finisher = let_fly
    assert (task.state, task.cause and task.cause.detail) == (TaskState.UNDONE, "there is no wind")
    assert all(step.undone_at for step in task.steps)
    assert world.deeds == ["sail", "tie", "untie", "tear"]


async def test_a_journal_that_the_code_no_longer_tells_is_stuck_and_not_guessed_at() -> None:
    disk, world = Disk(), World()
    async with running(world, disk) as engine:
        id = await started(engine)
        task = await ended(engine, id)
        odd = msgspec.structs.replace(task.steps[0], name="paint_it_blue")
        await engine.state.commit([put(msgspec.structs.replace(task, state=TaskState.RUNNING, steps=(odd,)))], ORIGIN)
    async with running(world, disk) as engine:
        await until(lambda: engine.state[TASKS].get(id).state is TaskState.STUCK)
        assert "paint_it_blue" in engine.state[TASKS].get(id).stuck_because
