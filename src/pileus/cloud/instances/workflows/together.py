"""One task for many instances: all of it is done, or none.

It is made of the workflows that each would be a task of by itself. What those do in several steps is one step here, in
which all are at work side by side: each of their steps may happen twice, so a step of steps may too. If one of them
fails all are undone, as far as they came.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar, cast

import msgspec

from pileus.cloud.instances.workflows.creation import create_instance
from pileus.cloud.instances.workflows.deletion import undelete_instance
from pileus.cloud.instances.workflows.power import (
    pause_instance,
    resume_instance,
    start_instance,
    stop_instance,
    suspend_instance,
)
from pileus.cloud.world import World
from pileus.kernel.errors import Conflict, PileusError, Unavailable
from pileus.state.state import Change, State
from pileus.workflow.workflow import Begin, Run, Step, Workflow, begin, step_with, tell_progress, workflow

P = ParamSpec("P")
T = TypeVar("T")
_Reached = tuple[Step[World, ..., Any], tuple[Any, ...], dict[str, Any]]

_PARTS: Mapping[str, Workflow[World, Any]] = {
    each.name: each
    for each in (
        create_instance,
        start_instance,
        stop_instance,
        pause_instance,
        suspend_instance,
        resume_instance,
        undelete_instance,
    )
}
"""What can be undone as if it had not been."""


class Part(msgspec.Struct, frozen=True):
    """What is done to one of the instances."""

    name: str
    """Of the instance."""
    workflow: str
    arguments: msgspec.Raw


class Together(msgspec.Struct, frozen=True):
    """What is done to all of them."""

    parts: tuple[Part, ...]


def together(begun: Sequence[tuple[str, Begin]]) -> Begin:
    """The start of all these, each with the name of its instance, as one task."""
    parts = (Part(name, each.workflow.name, msgspec.Raw(msgspec.json.encode(each.arguments))) for name, each in begun)
    return begin(batch_instances, Together(tuple(parts)))


def can_be_undone(begun: Begin) -> bool:
    """Whether what this begins can be taken back whenever another fails: if none of its steps is forward only."""
    if begun.workflow.name not in _PARTS:
        return False
    return not any(step.forward_only for step, *_ in _steps_of(begun.workflow, begun.arguments))


@workflow("instance.batch")
async def batch_instances(run: Run[World], wish: Together) -> None:
    """Do it to all of them."""
    await run(do_all, wish)


@batch_instances.finish
def all_done(state: State, wish: Together) -> list[Change]:
    return [
        change
        for workflow, arguments in map(_read, wish.parts)
        if workflow.finisher is not None
        for change in workflow.finisher(state, arguments)
    ]


@batch_instances.withdraw
def none_done(state: State, wish: Together) -> list[Change]:
    return [
        change
        for workflow, arguments in map(_read, wish.parts)
        if workflow.withdrawer is not None
        for change in workflow.withdrawer(state, arguments)
    ]


@step_with(patience_s=120)
async def do_all(world: World, wish: Together) -> None:
    async def do(part: Part) -> None:
        workflow, arguments = _read(part)
        await workflow.body(_Doing(world), arguments)

    await _each(wish, do)


@do_all.undo
async def undo_all(world: World, wish: Together) -> None:
    async def undo(part: Part) -> None:
        for step, args, kwargs in reversed(_steps_of(*_read(part))):
            if step.back is not None:
                await step.back(world, *args, **kwargs)

    await _each(wish, undo)


class _Doing:
    """Runs the steps of a workflow without a journal."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def __call__(self, step: Step[World, P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await step.do(self._world, *args, **kwargs)


class _Naming:
    """Runs a workflow without doing anything, to learn its steps. None of those here needs what another gave."""

    def __init__(self) -> None:
        self.steps: list[_Reached] = []

    async def __call__(self, step: Step[World, P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.steps.append((step, args, kwargs))
        return cast("T", None)  # nobody looks at it


def _steps_of(workflow: Workflow[World, Any], arguments: msgspec.Struct) -> list[_Reached]:
    naming = _Naming()
    # Between steps there is only wiring: a workflow whose steps do not wait does not wait at all.
    with suppress(StopIteration):
        workflow.body(naming, arguments).send(None)
    return naming.steps


def _read(part: Part) -> tuple[Workflow[World, Any], Any]:
    workflow = _PARTS[part.workflow]
    return workflow, workflow.read(part.arguments)


async def _each(wish: Together, deed: Callable[[Part], Coroutine[Any, Any, None]]) -> None:
    """Do it to all parts, to the end of every one.

    Raises:
        Unavailable: only such errors came: it may be tried again.
        Conflict: one of them can never be done; says which, and why.
    """
    tell, ended = tell_progress.get(), 0

    async def one(part: Part) -> None:
        nonlocal ended
        await deed(part)
        ended += 1
        tell(f"{ended} of {len(wish.parts)} instances", ended / len(wish.parts))

    outcomes = await asyncio.gather(*(one(part) for part in wish.parts), return_exceptions=True)
    failed = [(part.name, each) for part, each in zip(wish.parts, outcomes, strict=True) if each is not None]
    if not failed:
        return
    for _, error in failed:
        if not isinstance(error, PileusError):
            raise error
    because = {name: error.detail for name, error in failed if isinstance(error, PileusError)}
    words = f"{len(failed)} of {len(wish.parts)} instances failed: " + "; ".join(
        f"{name}: {why}" for name, why in because.items()
    )
    lasting = any(not isinstance(error, Unavailable) for _, error in failed)
    raise (Conflict if lasting else Unavailable)(words, because=because)
