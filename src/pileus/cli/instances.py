"""Commands about several instances at once: each is done or refused by itself, and the worst decides the status."""

import inspect
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from pileus.cli import consoles, plans, problems, tasks
from pileus.cli.commands import Command, body_of, described, flattened, perform, signature_of
from pileus.cli.options import option_of
from pileus.cli.session import Changing, Common, Session, Waiting
from pileus.client.document import Operation
from pileus.client.errors import TaskFailed, TaskStuck, error_of, problem_of, succeeded
from pileus.client.records import BatchItem, BatchResult, Plan, Problem, Record, Task
from pileus.kernel.errors import Conflict, Invalid, NotFound, PileusError

if TYPE_CHECKING:
    from pileus.cli.names import Names
    from pileus.client.client import Client

_MOST = 100
"""Instances that one request may be about; more are asked for by several."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a command for one of its instances."""

    name: str
    result: Literal["done", "begun", "planned", "refused", "undone", "stuck", "unknown"]
    """Of unknown ones the task has begun, and nobody could be asked how it ended."""
    id: str = ""
    """Empty for one that was not created."""
    task_id: str | None = None
    plan: Plan | None = None
    problem: Problem | None = None


def commands(session: Session) -> Mapping[str, Command]:
    """The commands, by verb."""
    operations = session.document.nouns["instance"].operations
    action = next(field for field in operations["batch"].body if field.name == "action")
    return {
        **{verb: _of_several(operations[verb], session) for verb in action.shape.choices},
        **{verb: _of_many(operations[verb], session) for verb in ("batch", "create-many")},
        **consoles.commands(session),
    }


def _of_several(operation: Operation, session: Session) -> Command:
    """A verb of one instance, that takes several."""

    async def run(*args: Any, **given: Any) -> int:  # noqa: ANN401 - what the signature says
        arguments = signature.bind(*args, **given).arguments
        others: tuple[str, ...] = arguments.pop("others", ())
        if others:
            return await _perform_on_several(operation, session, arguments, (arguments["record"], *others))
        await perform(operation, session, arguments)
        return 0

    alone = signature_of(operation)
    record, *options = alone.parameters.values()
    signature = alone.replace(parameters=[record, _OTHERS, *options])
    return described(run, signature, operation.about, operation.more)


_OTHERS = inspect.Parameter(
    "others",
    inspect.Parameter.VAR_POSITIONAL,
    annotation=Annotated[str, Parameter(name="RECORDS", help="More of them; each is done or refused by itself.")],
)


def _of_many(operation: Operation, session: Session) -> Command:
    """An operation that answers with a result for each of many instances."""

    async def run(*args: Any, **given: Any) -> int:  # noqa: ANN401 - what the signature says
        arguments = signature.bind(*args, **given).arguments
        return await _perform_on_many(operation, session, arguments)

    alone = signature_of(operation)
    signature = alone.replace(parameters=[*alone.parameters.values(), flattened("waiting", Waiting)])
    return described(run, signature, operation.about, operation.more)


async def _perform_on_several(
    operation: Operation, session: Session, given: Mapping[str, Any], texts: Sequence[str]
) -> int:
    from pileus.cli.names import Names

    session.use(given.get("common", Common()))
    own = {field.name: "of one instance only" for field in operation.body if given.get(field.name) is not None}
    if own:
        raise Invalid(f"several instances take no {' and no '.join(map(option_of, own))}", fields=own)
    changing: Changing = given.get("changing", Changing())
    waiting: Waiting = given.get("waiting", Waiting())
    batch = session.document.nouns[operation.noun].operations["batch"]
    async with session.client() as client:
        names = Names(client, session.document)
        ids = await _ids(names, operation.noun, texts)
        items: list[BatchItem] = []
        for part in (ids[first : first + _MOST] for first in range(0, len(ids), _MOST)):
            body = {"action": operation.verb, "ids": part, "dry_run": changing.dry_run}
            try:
                items += await _asked(client, batch, body)
            except PileusError as refused:
                # What has begun already must be told all the same.
                if not items:
                    raise
                items += [BatchItem(id=id, name="", problem=problem_of(refused)) for id in part]
        return await _told(session, client, names, items, wait=not waiting.no_wait)


async def _perform_on_many(operation: Operation, session: Session, given: Mapping[str, Any]) -> int:
    from pileus.cli.names import Names

    session.use(given.get("common", Common()))
    waiting: Waiting = given.get("waiting", Waiting())
    async with session.client() as client:
        names = Names(client, session.document)
        items = await _asked(client, operation, await body_of(operation, session, names, given))
        return await _told(session, client, names, items, wait=not waiting.no_wait)


async def _ids(names: "Names", noun: str, texts: Iterable[str]) -> Sequence[str]:
    """The ids of all that are called so, each once. Raises NotFound or Conflict with every wrong name."""
    found: dict[str, str] = {}
    wrong: dict[str, NotFound | Conflict] = {}
    for text in dict.fromkeys(texts):
        try:
            found[text] = str((await names.record(noun, text))["id"])
        except (NotFound, Conflict) as error:
            wrong[text] = error
    if wrong:
        because = {about: why for text, each in wrong.items() for about, why in _reasons(text, each)}
        worst = max(wrong.values(), key=problems.exit_code)
        raise type(worst)("nothing was done, because of wrong names", because=because)
    return list(dict.fromkeys(found.values()))


def _reasons(text: str, error: PileusError) -> Iterable[tuple[str, str]]:
    yield text, error.detail
    yield from error.because.items()


async def _asked(client: "Client", operation: Operation, body: Record) -> Sequence[BatchItem]:
    # It takes an idempotency key, though it is not planned as a whole.
    return (await client.send(operation.method, operation.path, body, plans=True)).read(BatchResult).items


async def _told(session: Session, client: "Client", names: "Names", items: Sequence[BatchItem], *, wait: bool) -> int:
    """Tell what came of each, having waited for it or not; the status is the highest of theirs."""
    begun = list(dict.fromkeys(item.task_id for item in items if item.task_id is not None))
    ends = dict(zip(begun, await tasks.finish_all(session, client, begun), strict=True)) if wait and begun else {}
    told = [_outcome(item, ends.get(item.task_id or "")) for item in items]
    outcomes = [outcome for outcome, _ in told]
    errors = [(outcome.name or outcome.id, error) for outcome, error in told if error is not None]
    printer = session.printer
    if printer.for_people:
        async for plan, called in _plans(outcomes, names):
            plans.show(plan, session, called)
            session.terminal.out("")
        shown = [each for each in outcomes if each.plan is None]
        if not outcomes:
            session.say("no instances")
        columns = ("name", "result", "id") if wait else ("name", "result", "task_id")
        printer.records([msgspec.to_builtins(each) for each in shown], columns)
    elif not printer.document(outcomes):
        for each in outcomes:
            if each.problem is None:
                printer.handle(msgspec.to_builtins(each))
    if session.common.output != "json":
        for name, error in errors:
            problems.show(error, session.terminal, as_json=False, of=name)
    return max((problems.exit_code(error) for _, error in errors), default=0)


async def _plans(outcomes: Iterable[Outcome], names: "Names") -> AsyncIterator[tuple[Plan, Mapping[str, str]]]:
    for each in outcomes:
        if each.plan is not None:
            yield each.plan, await plans.names_in(each.plan, names)


def _outcome(item: BatchItem, end: Task | PileusError | None) -> tuple[Outcome, PileusError | None]:
    error = _error(item, end)
    match error:
        case None if item.plan is not None:
            result = "planned"
        case None:
            result = "begun" if end is None else "done"
        case TaskStuck():
            result = "stuck"
        case TaskFailed():
            result = "undone"
        case _:
            result = "refused" if item.problem is not None else "unknown"
    outcome = Outcome(
        name=item.name,
        result=result,
        id=item.id,
        task_id=item.task_id,
        plan=item.plan,
        problem=None if error is None else problem_of(error),
    )
    return outcome, error


def _error(item: BatchItem, end: Task | PileusError | None) -> PileusError | None:
    if item.problem is not None:
        return error_of(item.problem)
    if isinstance(end, Task):
        try:
            succeeded(end)
        except TaskFailed as failed:
            return failed
        return None
    return end
