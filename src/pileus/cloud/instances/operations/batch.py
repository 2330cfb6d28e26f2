"""One request for many instances: each is done, or refused with its reason, as if it had been asked for alone."""

import asyncio
from collections.abc import Coroutine, Iterable
from enum import StrEnum
from typing import Annotated, Any, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState
from pileus.cloud.instances.operations.creation import MAX_BODY, InstanceCreate
from pileus.cloud.instances.operations.noun import instances
from pileus.kernel.errors import Invalid, PileusError
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange
from pileus.operations.engine import ShownPlan
from pileus.operations.http import Problem, problem
from pileus.operations.plan import Ask
from pileus.operations.wire import Id, Labels, Wire, ref

MOST = 100
"""Instances that one request may be about."""
NUMBER = "{n}"
"""In a name: the number of the instance, from 1."""
_LONGEST_NAME = 255


class BatchItem(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it for one instance: a task that has begun, or a plan that was only asked for, or a problem."""

    id: str
    """Empty for one that was not created."""
    name: str
    task_id: str | None = None
    plan: ShownPlan | None = None
    problem: Problem | None = None


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it for each instance, in the order of the request."""

    accepted: int
    refused: int
    items: list[BatchItem]


class BatchAction(StrEnum):
    """What may be done to many instances at once."""

    START = "start"
    STOP = "stop"
    REBOOT = "reboot"
    RESET = "reset"
    PAUSE = "pause"
    SUSPEND = "suspend"
    RESUME = "resume"
    DELETE = "delete"
    UNDELETE = "undelete"
    PURGE = "purge"


class InstanceBatch(Wire):
    action: BatchAction
    ids: Annotated[tuple[Annotated[Id, ref("instance")], ...], Field(max_length=MOST)] = ()
    labels: Labels = Field(default_factory=dict[str, str])
    """Instead of ids: every instance that has all of these labels."""
    dry_run: bool = False
    """Only show what would be done to each."""

    @model_validator(mode="after")
    def _names_some(self) -> Self:
        if bool(self.ids) == bool(self.labels):
            raise ValueError("give ids, or labels")
        return self


class InstanceCreateMany(InstanceCreate):
    """As for one instance. In its name {n} stands for the number of each; without, the number is appended: web-1."""

    count: Annotated[int, Field(ge=1, le=MOST)]
    dry_run: bool = False
    """Only show what would be done for each, as if it were the only one."""

    @model_validator(mode="after")
    def _has_room_for_numbers(self) -> Self:
        if len(_numbered(self.name, self.count)) > _LONGEST_NAME:
            raise ValueError("the name has no room for a number")
        return self


@instances.special("POST", "/batch", least=Role.MEMBER, answers=BatchResult)
async def batch(exchange: Exchange, wish: InstanceBatch) -> Answer:
    """Start, stop, restart, suspend or delete many instances at once.

    Each is done, or refused with its reason, by itself: what one cannot do keeps no other from it.
    """
    chosen = tuple(dict.fromkeys(wish.ids)) or _labelled(exchange.ask, wish)
    return await _all(_done(exchange, wish, id) for id in chosen)


@instances.special("POST", "/create-many", least=Role.MEMBER, answers=BatchResult, max_body=MAX_BODY)
async def create_many(exchange: Exchange, wish: InstanceCreateMany) -> Answer:
    """Create up to 100 instances that are alike, and start them.

    Each is created, or refused with its reason, by itself: if there is room for some of them, those are created.
    """
    return await _all(_created(exchange, wish, number) for number in range(1, wish.count + 1))


def _labelled(ask: Ask, wish: InstanceBatch) -> tuple[str, ...]:
    """The caller's instances with these labels; deleted ones only to have them back.

    Raises Invalid if they are too many.
    """
    deleted = wish.action is BatchAction.UNDELETE
    found = [
        instance
        for instance in ask.state[INSTANCES].by("project", ask.caller.project_id)
        if (instance.state is InstanceState.DELETED) is deleted and wish.labels.items() <= instance.labels.items()
    ]
    if len(found) > MOST:
        raise Invalid("some fields are wrong", fields={"labels": f"{len(found)} have them, {MOST} may be done at once"})
    return tuple(instance.id for instance in found)


async def _all(items: Iterable[Coroutine[Any, Any, BatchItem]]) -> Answer:
    # Side by side they share their writes of the log.
    done = await asyncio.gather(*items)
    refused = sum(item.problem is not None for item in done)
    result = BatchResult(accepted=len(done) - refused, refused=refused, items=done)
    return Answer(status=200, body=msgspec.json.encode(result))


async def _done(exchange: Exchange, wish: InstanceBatch, id: str) -> BatchItem:
    ask = exchange.ask
    known = ask.state[INSTANCES].find(id)
    name = known.name if known is not None and ask.may_see(known) else ""
    try:
        answer = await exchange.perform(wish.action, id, target=id, body=b"", dry_run=wish.dry_run)
    except PileusError as refused:
        return BatchItem(id=id, name=name, problem=problem(refused, exchange.caller.request))
    return _accepted(answer, id, name, dry_run=wish.dry_run)


async def _created(exchange: Exchange, wish: InstanceCreateMany, number: int) -> BatchItem:
    name = _numbered(wish.name, number)
    one = wish.model_copy(update={"name": name})
    body = one.model_dump_json(exclude={"count", "dry_run"}, exclude_unset=True).encode()
    try:
        answer = await exchange.perform("create", str(number), body=body, dry_run=wish.dry_run)
    except PileusError as refused:
        return BatchItem(id="", name=name, problem=problem(refused, exchange.caller.request))
    return _accepted(answer, "", name, dry_run=wish.dry_run)


class _Begun(msgspec.Struct):
    task_id: str
    instance: Instance


def _accepted(answer: Answer, id: str, name: str, *, dry_run: bool) -> BatchItem:
    if dry_run:
        return BatchItem(id=id, name=name, plan=msgspec.json.decode(answer.body, type=ShownPlan))
    begun = msgspec.json.decode(answer.body, type=_Begun)
    return BatchItem(id=begun.instance.id, name=name, task_id=begun.task_id)


def _numbered(name: str, number: int) -> str:
    return name.replace(NUMBER, str(number)) if NUMBER in name else f"{name}-{number}"
