"""One command for each operation of the API, made when it is needed from the OpenAPI document."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from pileus.cli import plans, tasks
from pileus.cli.options import flag, is_secret, option_of, parameter_of, positional, value_of
from pileus.cli.output import NO_NAMES
from pileus.cli.session import Changing, Common, Session, Waiting
from pileus.client.document import Field, Noun, Operation
from pileus.client.records import Record
from pileus.kernel.errors import Invalid, NotFound

if TYPE_CHECKING:
    from pileus.cli.names import Names
    from pileus.client.client import Client

Command = Callable[..., Awaitable[int | None]]

_NO_FILTERS = frozenset({"limit", "all_projects", "sort", "at"})
"""Parameters of lists that say how to list, not what; `pileus at TIME` is how to say when."""


def is_command(operation: Operation) -> bool:
    """What is no command: what machines ask (joining, fetching by ticket), signing in, and sending files."""
    return operation.least != "nobody" and not operation.takes_bytes


def command_of(operation: Operation, session: Session) -> Command:
    """The command of an operation; cyclopts learns from its signature what it takes."""

    async def run(*args: Any, **given: Any) -> None:  # noqa: ANN401 - what the signature says
        bound = signature.bind(*args, **given)
        await perform(operation, session, bound.arguments)

    signature = signature_of(operation)
    return described(run, signature, operation.about, operation.more)


def described(run: Callable[..., Any], signature: inspect.Signature, about: str, more: str = "") -> Command:
    """A function under this signature and docstring."""
    run.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess] - what inspect.signature looks at
    run.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
    run.__doc__ = f"{about}.\n\n{more}".rstrip()
    return run


def own_position(operation: Operation) -> Field | None:
    """The field that needs no option: the name of what is made."""
    makes = operation.method == "POST" and not operation.takes_record
    return next((field for field in operation.body if makes and field.name == "name" and field.required), None)


def signature_of(operation: Operation) -> inspect.Signature:
    """What the command of an operation takes."""
    parameters: list[inspect.Parameter] = []
    named = own_position(operation)
    if operation.takes_record:
        parameters.append(positional("record", "Name or id."))
    elif named is not None:
        parameters.append(positional("name", named.about or "What to call it."))
    if operation.verb == "list":
        parameters += [parameter_of(field) for field in _filters(operation)]
        parameters += _of_lists(operation)
    elif operation.method == "GET":
        parameters += [parameter_of(field) for field in operation.query if field.name != "at"]
    fields = [field for field in operation.body if field is not named]
    # A secret can also be typed when it is asked for.
    optional = [msgspec.structs.replace(field, required=False) if is_secret(field) else field for field in fields]
    parameters += [parameter_of(field, clears=operation.method == "PATCH") for field in optional]
    if operation.plans:
        parameters.append(flattened("changing", Changing))
    if operation.starts:
        parameters.append(flattened("waiting", Waiting))
    parameters.append(flattened("common", Common))
    return inspect.Signature(sorted(parameters, key=lambda each: each.kind))


def flattened(name: str, of: type) -> inspect.Parameter:
    """A parameter whose fields are options."""
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=of(), annotation=Annotated[of, Parameter(name="*")]
    )


def _filters(operation: Operation) -> list[Field]:
    # A cursor is the client's business; the number of an event is something that people know.
    cursors = {field.name for field in operation.query if field.name == "after" and field.shape.type == "string"}
    return [field for field in operation.query if field.name not in _NO_FILTERS | cursors]


def _of_lists(operation: Operation) -> list[inspect.Parameter]:
    known = {field.name: field for field in operation.query}
    found: list[inspect.Parameter] = []
    if operation.labels:
        annotation = Annotated[
            list[str] | None,
            Parameter(name="--label", negative=(), help="Only with this label: KEY=VALUE; repeatable."),
        ]
        found.append(inspect.Parameter("label", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    if "sort" in known:
        found.append(parameter_of(known["sort"]))
    found.append(parameter_of(known["limit"]))
    if "all_projects" in known:
        found.append(flag("all_projects", "Of every project; for administrators of the cloud."))
    return found


async def perform(operation: Operation, session: Session, given: Mapping[str, Any]) -> None:
    """Do what a command was told to. Raises PileusError."""
    from pileus.cli.names import Names

    session.use(given.get("common", Common()))
    async with session.client() as client:
        names = Names(client, session.document)
        noun = session.document.nouns[operation.noun]
        if operation.verb == "list":
            await _list(operation, session, client, names, given)
        elif operation.method == "GET":
            await _show(operation, session, client, names, given)
        else:
            await _change(operation, noun, session, client, names, given)


async def _list(
    operation: Operation, session: Session, client: "Client", names: "Names", given: Mapping[str, Any]
) -> None:
    query: dict[str, Any] = {name: given.get(name) for name in ("sort",)}
    if given.get("all_projects"):
        query["all_projects"] = "true"
    for field in _filters(operation):
        if (value := given.get(field.name)) is not None:
            referred = session.document.referred(operation.noun, field.name)
            query[field.name] = await names.id(referred, value, field.name) if referred else _plain(value)
    for label in given.get("label") or ():
        name, _, value = label.partition("=")
        query[f"label.{name}"] = value
    pages = client.pages(operation.path, query, at_most=given.get("limit"))
    records: list[Record] = [record async for page in pages for record in page.items]
    columns = session.printer.wanted(operation.columns)
    shown = await names.of(operation.noun, records, columns) if session.printer.for_people else NO_NAMES
    session.printer.records(records, columns, shown)
    if session.printer.for_people and not records:
        session.say(f"no {session.document.nouns[operation.noun].plural.replace('-', ' ')}")


async def _show(
    operation: Operation, session: Session, client: "Client", names: "Names", given: Mapping[str, Any]
) -> None:
    path = operation.path
    if operation.takes_record:
        path = operation.at(await names.id(operation.noun, given["record"]))
    query = {field.name: given.get(field.name) for field in operation.query}
    await shown(session, names, operation.noun, (await client.get(path, query)).body)


async def shown(session: Session, names: "Names", noun: str, record: Record) -> None:
    """Print all of one record, with the names of what it refers to."""
    called = await names.of(noun, [record], record) if session.printer.for_people else NO_NAMES
    session.printer.record(record, called)


async def _change(
    operation: Operation,
    noun: Noun,
    session: Session,
    client: "Client",
    names: "Names",
    given: Mapping[str, Any],
) -> None:
    path, called = operation.path, given.get("name") or ""
    if operation.takes_record:
        called = given["record"]
        path = operation.at(await names.id(operation.noun, called))
    body = await body_of(operation, session, names, given) if operation.body else None
    changing: Changing = given.get("changing", Changing())
    if changing.dry_run:
        plan = await client.plan(operation.method, path, body)
        plans.show(plan, session, await plans.names_in(plan, names) if session.printer.for_people else NO_NAMES)
        return
    reply = await client.send(operation.method, path, body, plans=operation.plans)
    answer: Record | None = reply.body
    waiting: Waiting = given.get("waiting", Waiting())
    if operation.starts and answer is not None and _begun(operation) not in answer:
        # It answers with something of its own, and has begun a task or was done at once.
        if "task_id" in answer and not waiting.no_wait:
            await tasks.finish(session, client, answer["task_id"])
        await _result(session, names, operation, answer)
    elif operation.starts and answer is not None:
        await _started(session, client, names, noun, operation, answer, wait=not waiting.no_wait)
    elif answer is None:
        session.say(f"{operation.noun.replace('-', ' ')} {called}: {operation.verb} done".replace("  ", " "))
    else:
        await _result(session, names, operation, answer)


async def _started(
    session: Session,
    client: "Client",
    names: "Names",
    noun: Noun,
    operation: Operation,
    answer: Record,
    *,
    wait: bool,
) -> None:
    begun: Record = answer[_begun(operation)]
    if not wait:
        if not session.printer.document(answer):
            session.say(f"task {answer['task_id']} has begun")
            session.printer.handle(begun)
        return
    await tasks.finish(session, client, answer["task_id"])
    try:
        record = (await client.get(f"{noun.path}/{begun['id']}")).body
    except NotFound:
        # What was deleted is told about by its last state, to programs only.
        if not session.printer.for_people:
            session.printer.record(begun)
        return
    await _result(session, names, operation, record)


def _begun(operation: Operation) -> str:
    """The field of an answer that has the record which a task is about."""
    return operation.noun.replace("-", "_")


async def _result(session: Session, names: "Names", operation: Operation, record: Record) -> None:
    if session.printer.for_people and all(column in record for column in operation.columns):
        columns = session.printer.wanted(operation.columns)
        columns = [*columns, "id"] if not session.common.columns else columns
        session.printer.records([record], columns, await names.of(operation.noun, [record], columns))
    else:
        await shown(session, names, operation.noun, record)


async def body_of(operation: Operation, session: Session, names: "Names", given: Mapping[str, Any]) -> Record:
    """The body of a request, from the options that were given. Raises PileusError; of names that are not there, all."""
    body: Record = {}
    strange: list[NotFound] = []
    for field in operation.body:
        value = given.get(field.name)
        if is_secret(field) and (field.required if value is None else _is_to_be_typed(value, session)):
            value = _asked(field, session)
        if value is not None:
            value = value_of(field, value, session.terminal)
            try:
                body[field.name] = await _resolved(names, field, value)
            except NotFound as missing:
                strange.append(missing)
    if strange:
        fields = {field: wrong for missing in strange for field, wrong in missing.fields.items()}
        raise NotFound("; ".join(missing.detail for missing in strange), fields=fields)
    return body


async def _resolved(names: "Names", field: Field, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if field.shape.noun:
        return await names.id(field.shape.noun, value, field.name)
    if field.shape.items is not None and field.shape.items.noun:
        one = partial(names.id, field.shape.items.noun, field=field.name)
        return [await one(each) for each in value]
    if field.shape.items is not None and field.shape.items.fields:
        known = {each.name: each for each in field.shape.items.fields}
        return [
            {name: await _resolved(names, known[name], part) if name in known else part for name, part in each.items()}
            for each in value
        ]
    return value


def _is_to_be_typed(value: str, session: Session) -> bool:
    """Whether a secret is read from a terminal, which must not show it."""
    return value == "@-" and session.terminal.stdin.isatty()


def _asked(field: Field, session: Session) -> str:
    if not session.terminal.stdin.isatty():
        raise Invalid(f"{option_of(field.name)} is missing: @FILE reads it from a file, @- from the input")
    from getpass import getpass

    return getpass(f"{field.name}: ", stream=session.terminal.stderr)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any option's value
    return str(value).lower() if isinstance(value, bool) else value
