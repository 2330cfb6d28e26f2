"""The OpenAPI document (3.1), made from the declarations. It is checked in; a test compares."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

from pileus import __version__
from pileus.operations.caller import Role
from pileus.operations.declare import AT, Noun, Operation, Parameter
from pileus.operations.http import Problem
from pileus.operations.listing import MAX_PAGE
from pileus.operations.plan import ShownPlan

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"


def document(nouns: Sequence[Noun[Any]]) -> Json:
    """The OpenAPI document of these nouns; `x-pileus` says what a command line needs besides."""
    operations = [(noun, operation) for noun in nouns for operation in noun.declared]
    paths: dict[str, Json] = {}
    for noun, operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(noun, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pileus",
            "version": __version__,
            "description": "A private cloud. Every change can be previewed with `dry_run=true`, and made safe to send "
            "again with an `Idempotency-Key`.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [{"name": noun.name, "description": noun.about} for noun in nouns],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": dict(sorted(_schemas(operations).items())),
        },
    }


def _schemas(operations: Iterable[tuple[Noun[Any], Operation]]) -> dict[str, Json]:
    shown: list[type[msgspec.Struct]] = [Problem, ShownPlan]
    wishes: dict[str, Any] = {}
    for noun, operation in operations:
        for each in (noun.kind.record, operation.answers):
            if each is not None and each not in shown:
                shown.append(each)
        if operation.wish_type is not None:
            wishes[operation.wish_type.__name__] = operation.wish_type
    _, schemas = msgspec.json.schema_components(shown, ref_template=_REF)
    _, described = models_json_schema(
        [(wish, "validation") for wish in wishes.values()], ref_template=_REF.replace("{name}", "{model}")
    )
    return {**schemas, **described.get("$defs", {})}


def _ref(of: type) -> Json:
    return {"$ref": _REF.format(name=of.__name__)}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _operation(noun: Noun[Any], operation: Operation) -> Json:
    answers = {str(operation.status): {"description": _DESCRIPTIONS[operation.status], **_content(noun, operation)}}
    if operation.changes:
        answers["200"] = {
            "description": "The plan, with `dry_run=true`" + (", or what is" if operation.status == 200 else ""),
            "content": _json(_any_of(_ref(ShownPlan), _answer(noun, operation) if operation.status == 200 else None)),
        }
    if operation.special is not None and operation.starts is not None:
        answers["202"] = {"description": _DESCRIPTIONS[202], **_content(noun, operation)}
    answers["default"] = {
        "description": "What went wrong",
        "content": {"application/problem+json": {"schema": _ref(Problem)}},
    }
    if any((each.place, each.name) == ("header", "Range") for each in operation.parameters):
        answers["206"] = {"description": "The part of it that was asked for", **_content(noun, operation)}
    about, _, more = operation.about.partition("\n")
    described: Json = {
        "operationId": operation.id,
        "tags": [noun.name],
        "summary": about.rstrip("."),
        "parameters": _parameters(operation),
        "responses": answers,
        "x-pileus": {
            "noun": noun.name.replace("_", "-"),
            "verb": operation.verb.replace("_", "-"),
            "least": str(operation.least) if operation.least else "nobody",
            "columns": list(noun.columns),
            "plans": operation.changes,
            "starts": operation.starts.name if operation.starts else None,
            "socket": operation.socket is not None,
            "labels": "labels" in operation.filters,
            "hides": dict([operation.hides]) if operation.hides else {},
        },
    }
    if more.strip():
        described["description"] = more.strip()
    if operation.wish_type is not None:
        body = _json(_ref(operation.wish_type))
        described["requestBody"] = {"required": True, "content": body}
    elif operation.body_media_type != "application/json":
        schema = {"type": "string", "format": "binary"}
        described["requestBody"] = {"required": True, "content": {operation.body_media_type: {"schema": schema}}}
    if operation.least is None:
        described["security"] = []
    return described


_DESCRIPTIONS = {
    101: "The WebSocket",
    200: "What is",
    201: "What was made",
    202: "Begun; the task tells how it goes",
    204: "Done",
}


def _any_of(first: Json, second: Json | None) -> Json:
    return first if second is None else {"anyOf": [first, second]}


def _answer(noun: Noun[Any], operation: Operation) -> Json:
    if operation.reads == "list":
        return {
            "type": "object",
            "required": ["items", "next"],
            "properties": {
                "items": {"type": "array", "items": _ref(noun.kind.record)},
                "next": {"type": ["string", "null"], "description": "The cursor of the next page"},
            },
        }
    if operation.starts is not None and operation.answers is None:
        return {
            "type": "object",
            "required": ["task_id"],
            "properties": {"task_id": {"type": "string"}, noun.name: _ref(noun.kind.record)},
        }
    return _ref(operation.answers or noun.kind.record)


def _content(noun: Noun[Any], operation: Operation) -> Json:
    if operation.status in (101, 204):
        return {}
    if operation.special is not None and operation.answers is None:
        return {"content": {"*/*": {"schema": {}}}}
    return {"content": _json(_answer(noun, operation))}


def _filter_of(operation: Operation, name: str) -> Json:
    about = f"Only where `{name}` is this"
    if operation.hides is not None and operation.hides[0] == name:
        about += f"; by default all but those that are {operation.hides[1]}"
    return _query(name, about)


def _parameters(operation: Operation) -> list[Json]:
    found: list[Json] = []
    if "{id}" in operation.path:
        found.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if operation.reads == "list":
        found += [_query("limit", "How many at most", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE})]
        found += [_query("after", "The cursor that the page before gave as `next`")]
        sorts = [*operation.sorts, *(f"-{name}" for name in operation.sorts)]
        first = "newest" if operation.newest_first else "oldest"
        order = f"By this field; with a - ahead descending. Else the {first} first"
        found += [_query("sort", order, {"type": "string", "enum": sorts})]
        found += [_filter_of(operation, name) for name in operation.filters if name != "labels"]
        if operation.least is not Role.PLATFORM:
            found += [_query("all_projects", "Of every project; for administrators", {"type": "boolean"})]
    if operation.changes:
        found.append(_query("dry_run", "Only show what would be done", {"type": "boolean"}))
        key = "The same key and request is done once; a repetition gets the first answer"
        found.append({"name": "Idempotency-Key", "in": "header", "description": key, "schema": {"type": "string"}})
        if operation.takes_record:
            match = "Only if the record is at this revision"
            found.append({"name": "If-Match", "in": "header", "description": match, "schema": {"type": "string"}})
    parameters = [*operation.parameters, *([AT] if operation.reads else [])]
    found += [_parameter(each) for each in parameters]
    return found


def _parameter(each: Parameter) -> Json:
    found = {**_query(each.name, each.about, each.schema), "in": each.place}
    return {**found, "required": True} if each.required else found


def _query(name: str, about: str, schema: Mapping[str, Any] | None = None) -> Json:
    return {"name": name, "in": "query", "description": about, "schema": dict(schema or {"type": "string"})}
