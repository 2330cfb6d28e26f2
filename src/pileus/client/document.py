"""The OpenAPI document, as clients need it: which operations there are, and what each of them takes.

It is a file of this package, so that a command line knows its commands before it has asked anybody.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

Schema = Mapping[str, Any]

_PATH = Path(__file__).parent / "openapi.json"
_METHODS = ("get", "post", "put", "patch", "delete")


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What a value must be like; a JSON schema, without what only validators need."""

    type: str
    """`string`, `integer`, `number`, `boolean`, `array` or `object`."""
    choices: tuple[str, ...] = ()
    noun: str = ""
    """The noun that this is an id of, or empty."""
    items: "Shape | None" = None
    """Of an array, or the values of an object that maps names to values."""
    fields: "tuple[Field, ...]" = ()
    """Of an object with known fields; one without maps names to values."""
    least: int | float | None = None
    most: int | float | None = None
    longest: int | None = None
    default: Any = None


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """A field of a body, or a parameter of a query."""

    name: str
    shape: Shape
    required: bool = False
    about: str = ""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of the API."""

    noun: str
    verb: str
    method: str
    path: str
    about: str
    """One sentence, without its full stop."""
    more: str
    least: str
    """The role that it takes, or `nobody`."""
    columns: tuple[str, ...]
    """What a table of its records shows."""
    plans: bool
    """Whether it takes `dry_run`, and idempotency keys."""
    starts: str
    """The workflow that it starts, or empty."""
    socket: bool
    labels: bool
    """Whether a list can be had by label."""
    hides: Mapping[str, str]
    """The filter by which a list shows what it leaves out otherwise."""
    query: tuple[Field, ...]
    body: tuple[Field, ...]
    """Fields of its JSON body."""
    takes_bytes: bool
    """Whether its body is a file, or a part of one."""
    statuses: tuple[str, ...]

    @property
    def takes_record(self) -> bool:
        return "{id}" in self.path

    @property
    def knows_the_past(self) -> bool:
        """Whether it can answer with what was at a moment."""
        return any(field.name == "at" for field in self.query)

    def at(self, id: str) -> str:
        """Its path, for the record of this id."""
        return self.path.replace("{id}", id)


class Noun(msgspec.Struct, frozen=True, kw_only=True):
    """A noun with its operations, by verb, in the order of their declaration."""

    name: str
    plural: str
    about: str
    operations: Mapping[str, Operation]

    @property
    def path(self) -> str:
        return f"/v1/{self.plural}"

    @property
    def known_by(self) -> str:
        """The field by which people call its records: `name`, else `address`; empty if they have only ids."""
        listed = self.operations.get("list")
        filters = [field.name for field in listed.query] if listed is not None else []
        return next((field for field in ("name", "address") if field in filters), "")


class Document:
    """All nouns."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._schemas: Mapping[str, Schema] = raw["components"]["schemas"]
        self.raw = raw
        found: dict[str, dict[str, Operation]] = {}
        for path, methods in raw["paths"].items():
            for method in _METHODS:
                if method in methods:
                    operation = self._operation(path, method, methods[method])
                    found.setdefault(operation.noun, {})[operation.verb] = operation
        about = {tag["name"].replace("_", "-"): tag["description"] for tag in raw["tags"]}
        self.nouns: Mapping[str, Noun] = {
            name: Noun(name=name, plural=_plural(operations), about=about[name], operations=operations)
            for name, operations in found.items()
        }
        self._by_plural = {noun.plural: name for name, noun in self.nouns.items()}

    def noun_of_plural(self, plural: str) -> str | None:
        return self._by_plural.get(plural)

    def operations(self) -> Iterator[Operation]:
        for noun in self.nouns.values():
            yield from noun.operations.values()

    def knows_the_past(self, path: str) -> bool:
        """Whether what is read at this path can be had as it was at a moment."""
        reads = {each.path: each for each in self.operations() if each.method == "GET"}
        of_record = path.rpartition("/")[0] + "/{id}"
        found = reads.get(path) or reads.get(of_record)
        return found is not None and found.knows_the_past

    def referred(self, noun: str, field: str) -> str:
        """The noun whose ids a field of a noun's records holds, by what its requests say or else by its name."""
        of_noun = self.nouns.get(noun)
        for operation in of_noun.operations.values() if of_noun else ():
            for each in operation.body:
                if each.name == field and (found := each.shape.noun or (each.shape.items and each.shape.items.noun)):
                    return found
        stem = stem_of(field)
        if stem == field:
            return ""
        parts = stem.split("_")
        names = ("-".join(parts[start:]) for start in range(len(parts)))
        return next((name for name in names if name in self.nouns), "")

    def record(self, noun: str) -> Shape | None:
        """What a noun's records are like, as `show` or `list` gives them."""
        schema: Any = None
        for verb in ("show", "list"):
            if (operation := self.nouns[noun].operations.get(verb)) is not None:
                answer = self.raw["paths"][operation.path]["get"]["responses"]["200"]
                schema = answer["content"]["application/json"]["schema"]
                break
        if schema is None:
            return None
        shape = self._shape(schema)
        return shape if verb == "show" else next(each.shape.items for each in shape.fields if each.name == "items")

    def _operation(self, path: str, method: str, raw: Mapping[str, Any]) -> Operation:
        ours = raw["x-pileus"]
        content = raw.get("requestBody", {}).get("content", {}).get("application/json", {})
        return Operation(
            noun=ours["noun"],
            verb=ours["verb"],
            method=method.upper(),
            path=path,
            about=raw["summary"],
            more=raw.get("description", ""),
            least=ours["least"],
            columns=tuple(ours["columns"]),
            plans=ours["plans"],
            starts=ours["starts"] or "",
            socket=ours["socket"],
            labels=ours["labels"],
            hides=ours["hides"],
            query=tuple(self._query(raw.get("parameters", ()))),
            body=self._shape(content["schema"]).fields if "schema" in content else (),
            takes_bytes="requestBody" in raw and not content,
            statuses=tuple(raw["responses"]),
        )

    def _query(self, parameters: Sequence[Mapping[str, Any]]) -> Iterator[Field]:
        for each in parameters:
            if each["in"] == "query":
                shape = self._shape(each["schema"])
                yield Field(name=each["name"], shape=shape, about=each.get("description", ""))

    def _shape(self, schema: Schema) -> Shape:
        default = schema.get("default")
        schema = self._resolved(schema)
        types: str | list[str] = schema.get("type", "string")
        type = types if isinstance(types, str) else next(each for each in types if each != "null")
        required = schema.get("required", ())
        items: Schema | None = schema.get("items") or schema.get("additionalProperties") or None
        return Shape(
            type=type,
            choices=tuple(schema.get("enum", ())),
            noun=schema.get("x-pileus-ref", ""),
            items=self._shape(items) if items else None,
            fields=tuple(
                Field(name=name, shape=self._shape(each), required=name in required, about=each.get("description", ""))
                for name, each in schema.get("properties", {}).items()
            ),
            least=schema.get("minimum"),
            most=schema.get("maximum"),
            longest=schema.get("maxLength"),
            default=default,
        )

    def _resolved(self, schema: Schema) -> Schema:
        """The schema itself: what it refers to, and of `this or null` this."""
        while True:
            if "$ref" in schema:
                schema = self._schemas[schema["$ref"].rpartition("/")[2]]
            elif "anyOf" in schema:
                schema = next(each for each in schema["anyOf"] if each.get("type") != "null")
            else:
                return schema


def stem_of(field: str) -> str:
    """A field's name without what says that it holds ids: `image_id` is image, `network_ids` network."""
    return field.removesuffix("_ids").removesuffix("_id")


@cache
def load() -> Document:
    """The document of this version of Pileus."""
    return Document(msgspec.json.decode(_PATH.read_bytes()))


def _plural(operations: Mapping[str, Operation]) -> str:
    return next(iter(operations.values())).path.split("/")[2]
