"""How a workflow is written: an async function made of steps, each with its undo beside it.

    @workflow("volume.create")
    async def create_volume(run: Run[World], wish: CreateVolume) -> None:
        await run(make_disk, wish)

    @create_volume.finish
    def open_for_use(state: State, wish: CreateVolume) -> Changes: ...

    @create_volume.withdraw
    def forget(state: State, wish: CreateVolume) -> Changes: ...

    @step
    async def make_disk(world: World, wish: CreateVolume) -> None: ...

    @make_disk.undo
    async def destroy_disk(world: World, wish: CreateVolume) -> None: ...

What a planner decided is committed together with the task, `finish` together with the task's end, `withdraw` (which
takes back what the planner decided) together with the end of its undoing: these three happen once, and are pure.
Steps and their undos reach into the world: each may happen twice, so both are idempotent, and ids are chosen before.
An undo takes what its step took, so that it can also clean up after a step that failed half-way.

Between the steps of a workflow there is only wiring: no clock, no chance, no I/O. After a crash the function is run
again over its journal; what is journalled is not done again. Recovery and first run are one code path.
"""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, get_type_hints

import msgspec

from pileus.state.state import Change, State

W = TypeVar("W")
A = TypeVar("A", bound=msgspec.Struct)
T = TypeVar("T")
P = ParamSpec("P")

Changes = Sequence[Change]


class Step(Generic[W, P, T]):
    """One deed in the world, and how it is undone."""

    def __init__(
        self,
        do: Callable[Concatenate[W, P], Awaitable[T]],
        *,
        patience_s: float,
        forward_only: bool = False,
        only_waits: bool = False,
    ) -> None:
        self.do = do
        self.name = do.__name__
        self.back: Callable[Concatenate[W, P], Awaitable[None]] | None = None
        self.patience_s = patience_s
        self.forward_only = forward_only
        self.only_waits = only_waits
        self._decoder: msgspec.json.Decoder[T] | None = None

    def undo(
        self, back: Callable[Concatenate[W, P], Coroutine[Any, Any, None]]
    ) -> Callable[Concatenate[W, P], Coroutine[Any, Any, None]]:
        """Declare how the step is undone, by a function of the same arguments."""
        assert not self.only_waits, f"{self.name} only waits: there is nothing to undo"
        self.back = back
        return back

    def replay(self, output: msgspec.Raw) -> T:
        """What the step gave when it was done, from the journal."""
        if self._decoder is None:
            self._decoder = msgspec.json.Decoder(get_type_hints(self.do)["return"])
        return self._decoder.decode(output)


class StepMaker(Protocol):
    def __call__(self, do: Callable[Concatenate[W, P], Coroutine[Any, Any, T]]) -> Step[W, P, T]: ...


def step(do: Callable[Concatenate[W, P], Coroutine[Any, Any, T]]) -> Step[W, P, T]:
    """A step that is retried for 30 s while a part of the cloud does not answer, then undone."""
    return Step(do, patience_s=30.0)


def step_with(*, patience_s: float = 30.0, forward_only: bool = False, only_waits: bool = False) -> StepMaker:
    """A step with its own patience, one with no way back, or one that only waits.

    Args:
        patience_s: how long, in seconds, it is retried while it raises Unavailable.
        forward_only: once it has begun the task can only be completed: it is retried for ever, and said to be stuck.
        only_waits: it changes nothing and has no undo, so that the step before it is journalled together with it.
    """

    def make(do: Callable[Concatenate[W, P], Coroutine[Any, Any, T]]) -> Step[W, P, T]:
        return Step(do, patience_s=patience_s, forward_only=forward_only, only_waits=only_waits)

    return make


class Run(Protocol[W]):
    """One run of a workflow: does a step once, however often its line is reached, and knows how to undo it."""

    async def __call__(self, step: Step[W, P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


Body = Callable[[Run[W], A], Coroutine[Any, Any, None]]
Recorder = Callable[[State, A], Changes]


class Workflow(Generic[W, A]):
    """A workflow, by its name; see the module's docstring."""

    def __init__(self, name: str, body: Body[W, A]) -> None:
        self.name = name
        self.body = body
        self.finisher: Recorder[A] | None = None
        self.withdrawer: Recorder[A] | None = None
        self.__doc__ = body.__doc__
        wish = next(iter(list(get_type_hints(body).values())[1:]))
        self._decoder: msgspec.json.Decoder[A] = msgspec.json.Decoder(wish)

    def finish(self, recorder: Recorder[A]) -> Recorder[A]:
        """Declare the changes that are committed together with the end of the task."""
        self.finisher = recorder
        return recorder

    def withdraw(self, recorder: Recorder[A]) -> Recorder[A]:
        """Declare the changes that take back what the planner decided, committed when all else is undone."""
        self.withdrawer = recorder
        return recorder

    def read(self, arguments: msgspec.Raw) -> A:
        return self._decoder.decode(arguments)


def workflow(name: str) -> Callable[[Body[W, A]], Workflow[W, A]]:
    """Declare a workflow; its name (`instance.create`) is kept in tasks for ever."""

    def declare(body: Body[W, A]) -> Workflow[W, A]:
        return Workflow(name, body)

    return declare


class Begin(msgspec.Struct, frozen=True):
    """A workflow to be started with these arguments; see `begin`."""

    workflow: Any
    arguments: msgspec.Struct


def begin(workflow: Workflow[W, A], arguments: A) -> Begin:
    """The start of a workflow, as a planner asks for it."""
    return Begin(workflow, arguments)


class Live(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the running step of a task is. Not journalled: it is news, not memory."""

    step: str
    doing: str = ""
    fraction: float | None = None
    """Between 0 and 1, or None where nobody can tell."""
    waits_because: str = ""


tell_progress: ContextVar[Callable[[str, float | None], None]] = ContextVar("tell_progress")
"""Within a step: tells what it is doing and how far it is."""
