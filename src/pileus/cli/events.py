"""`pileus events` and `pileus events --follow`."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from pileus.cli.commands import Command, command_of, described
from pileus.cli.options import flag
from pileus.cli.output import NO_NAMES, local
from pileus.cli.session import Common, Session
from pileus.client.document import Operation
from pileus.client.records import Record

_AUDITED = ("at", "actor", "operation", "result", "source", "kind", "id")


def commands(session: Session) -> Mapping[str, Command]:
    """The commands, by verb."""
    operations = session.document.nouns["event"].operations
    plain = command_of(operations["list"], session)

    async def listed(*, follow: bool = False, **given: Any) -> None:  # noqa: ANN401 - what the signature says
        if follow:
            await _follow(session, given)
        else:
            await plain(**given)

    async def followed(**given: Any) -> None:  # noqa: ANN401 - what the signature says
        await _follow(session, given)

    undo = command_of(operations["undo"], session)

    async def undone(what: str, **given: Any) -> None:  # noqa: ANN401 - what the signature says
        await undo(**({"sequence": int(what)} if what.isdecimal() else {"id": what}), **given)

    async def audited(**given: Any) -> None:  # noqa: ANN401 - what the signature says
        await _audit(session, operations["audit"], given)

    async def exported(**given: Any) -> None:  # noqa: ANN401 - what the signature says
        await _export(session, operations["export"], given)

    signature = inspect.signature(plain)
    of_undo = inspect.signature(undo)
    help_of_what = "The id of a task or of a request, or the number of any event of it."
    what = Annotated[str, Parameter(name="WHAT", help=help_of_what)]
    named = inspect.Parameter("what", inspect.Parameter.POSITIONAL_ONLY, annotation=what)
    rest = [each for each in of_undo.parameters.values() if each.name not in ("sequence", "id")]
    following = flag("follow", "Go on with what comes, until interrupted.")
    with_follow = signature.replace(parameters=[following, *signature.parameters.values()])
    without_limit = signature.replace(
        parameters=[each for each in signature.parameters.values() if each.name != "limit"]
    )
    of_audit, of_export = operations["audit"], operations["export"]
    return {
        "audit": described(audited, inspect.signature(command_of(of_audit, session)), of_audit.about),
        "export": described(exported, inspect.signature(command_of(of_export, session)), of_export.about),
        "list": described(listed, with_follow, operations["list"].about),
        "follow": described(followed, without_limit, operations["follow"].about),
        "undo": described(
            undone, of_undo.replace(parameters=[named, *rest]), operations["undo"].about, operations["undo"].more
        ),
    }


def _query(given: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in given.items() if name != "common" and value is not None}
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in known.items()}


async def _audit(session: Session, operation: Operation, given: Mapping[str, Any]) -> None:
    from pileus.cli.names import Names

    session.use(given.get("common", Common()))
    async with session.client() as client:
        records: list[Record] = (await client.get(operation.path, _query(given))).body["items"]
        columns = session.printer.wanted(_AUDITED)
        called = NO_NAMES
        if session.printer.for_people:
            called = await Names(client, session.document).of("event", records, columns)
        session.printer.records(records, columns, called)


async def _export(session: Session, operation: Operation, given: Mapping[str, Any]) -> None:
    session.use(given.get("common", Common()))
    async with session.client() as client, client.stream("GET", operation.path, query=_query(given)) as response:
        async for line in response.aiter_lines():
            session.terminal.out(line)


async def _follow(session: Session, given: Mapping[str, Any]) -> None:
    from pileus.client.events import follow

    session.use(given.get("common", Common()))
    query = {name: value for name, value in given.items() if name not in ("common", "limit", "all_projects")}
    if given.get("all_projects"):
        query["all_projects"] = "true"
    left: int | None = given.get("limit")
    async with session.client() as client:
        async for event in follow(client, query):
            _show(event, session)
            left = None if left is None else left - 1
            if left == 0:
                return


def _show(event: Record, session: Session) -> None:
    out = session.terminal.out
    match session.printer.format:
        case "json":
            out(msgspec.json.encode(event).decode())
        case "yaml":
            out("---")
            session.printer.document(event)
        case "table":
            record: Record = event.get("after") or event.get("before") or {}
            what = f"{event['kind']} {record.get('name', '')}".rstrip()
            out(f"{event['sequence']:>8}  {local(event['at'])}  {event['operation']:<24}  {what}  {event['id']}")
        case _:
            out(str(event["sequence"]))
