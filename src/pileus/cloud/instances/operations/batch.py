"""One request for many instances: each is done or refused as if it had been asked for alone, or all are or none."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState
from pileus.cloud.instances.operations.creation import MAX_BODY, InstanceCreate
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.workflows.together import can_be_undone, together
from pileus.kernel.errors import Conflict, Invalid, PileusError
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange
from pileus.operations.http import Problem, problem
from pileus.operations.plan import Ask, Plan, ShownPlan
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
    atomic: bool = False
    """All of it or nothing, by one task: if one of them cannot do it, nothing is done to any."""
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
    atomic: bool = False
    """All of them or none, by one task: if there is no room for one of them none is created."""
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

    Each is done, or refused with its reason, by itself: what one cannot do keeps no other from it. Or all are done or
    none (`atomic`): what cannot be undone is refused then.
    """
    if wish.atomic and (answered := await exchange.answered(_once(wish))) is not None:
        return _as_result(answered)
    chosen = tuple(dict.fromkeys(wish.ids)) or _labelled(exchange.ask, wish)
    if wish.atomic:
        return await _all_or_none(exchange, wish, wish.action, [(_name_of(exchange.ask, id), id, b"") for id in chosen])
    return await _all(_done(exchange, wish, id) for id in chosen)


@instances.special("POST", "/create-many", least=Role.MEMBER, answers=BatchResult, max_body=MAX_BODY)
async def create_many(exchange: Exchange, wish: InstanceCreateMany) -> Answer:
    """Create up to 100 instances that are alike, and start them.

    Each is created, or refused with its reason, by itself: if there is room for some of them, those are created. Or
    all are created or none (`atomic`).
    """
    if wish.atomic:
        if (answered := await exchange.answered(_once(wish))) is not None:
            return _as_result(answered)
        named = [_numbered(wish.name, number) for number in range(1, wish.count + 1)]
        return await _all_or_none(exchange, wish, "create", [(name, "", _body_of(wish, name)) for name in named])
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
    return _result(done)


def _result(items: list[BatchItem]) -> Answer:
    refused = sum(item.problem is not None for item in items)
    result = BatchResult(accepted=len(items) - refused, refused=refused, items=items)
    return Answer(status=200, body=msgspec.json.encode(result))


async def _done(exchange: Exchange, wish: InstanceBatch, id: str) -> BatchItem:
    name = _name_of(exchange.ask, id)
    try:
        answer = await exchange.perform(wish.action, id, target=id, body=b"", dry_run=wish.dry_run)
    except PileusError as refused:
        return BatchItem(id=id, name=name, problem=problem(refused, exchange.caller.request))
    return _accepted(answer, id, name, dry_run=wish.dry_run)


async def _created(exchange: Exchange, wish: InstanceCreateMany, number: int) -> BatchItem:
    name = _numbered(wish.name, number)
    try:
        answer = await exchange.perform("create", str(number), body=_body_of(wish, name), dry_run=wish.dry_run)
    except PileusError as refused:
        return BatchItem(id="", name=name, problem=problem(refused, exchange.caller.request))
    return _accepted(answer, "", name, dry_run=wish.dry_run)


async def _all_or_none(
    exchange: Exchange, wish: InstanceBatch | InstanceCreateMany, verb: str, asked: Sequence[tuple[str, str, bytes]]
) -> Answer:
    """Plan it for all, and begin one task. Raises PileusError, naming each for which there is no plan."""
    if not asked:
        raise Conflict("there are no such instances")
    plans: list[Plan] = []
    refused: dict[str, PileusError] = {}
    planned = exchange.plan_together(verb, [(target, body) for _, target, body in asked], dry_run=wish.dry_run)
    for (name, target, _), each in zip(asked, planned, strict=True):
        if isinstance(each, PileusError):
            refused[name or target] = each
        elif each.begin is None or not can_be_undone(each.begin):
            refused[name] = Conflict(f"to {verb} it cannot be undone, so that it is done to each by itself only")
        else:
            plans.append(each)
    if refused:
        because = {name: each.detail for name, each in refused.items()}
        kinds = {type(each) for each in refused.values()}
        raise (kinds.pop() if len(kinds) == 1 else Conflict)(
            f"nothing was done: {len(refused)} of {len(asked)} cannot be", because=because
        )
    shown = [plan.answers for plan in plans if isinstance(plan.answers, Instance)]
    if wish.dry_run:
        items = [
            BatchItem(id=each.id if verb != "create" else "", name=each.name, plan=exchange.shown(plan))
            for each, plan in zip(shown, plans, strict=True)
        ]
        return _result(items)
    begun = [(each.name, plan.begin) for each, plan in zip(shown, plans, strict=True) if plan.begin is not None]
    whole = Plan(
        summary=f"{verb} {len(plans)} instances together",
        changes=[change for plan in plans for change in plan.changes],
        begin=together(begun),
        answers=_Chosen(items=[_Named(id=each.id, name=each.name) for each in shown]),
    )
    return _as_result(await exchange.commit(whole, once=_once(wish)))


class _Named(msgspec.Struct, frozen=True):
    id: str
    name: str


class _Chosen(msgspec.Struct, frozen=True):
    items: list[_Named]


class _BegunTogether(msgspec.Struct, frozen=True):
    task_id: str
    instance: _Chosen


def _as_result(answer: Answer) -> Answer:
    """The answer to a request that began one task, as a result for each instance."""
    begun = msgspec.json.decode(answer.body, type=_BegunTogether)
    result = _result([BatchItem(id=each.id, name=each.name, task_id=begun.task_id) for each in begun.instance.items])
    return msgspec.structs.replace(result, headers=answer.headers)


def _once(wish: InstanceBatch | InstanceCreateMany) -> bytes:
    return wish.model_dump_json().encode()


def _name_of(ask: Ask, id: str) -> str:
    """What an instance is called; empty if the caller may not know of it."""
    known = ask.state[INSTANCES].find(id)
    return known.name if known is not None and ask.may_see(known) else ""


def _body_of(wish: InstanceCreateMany, name: str) -> bytes:
    one = wish.model_copy(update={"name": name})
    return one.model_dump_json(exclude={"count", "dry_run", "atomic"}, exclude_unset=True).encode()


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
