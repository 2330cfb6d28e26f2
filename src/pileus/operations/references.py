"""What a request refers to: the ids in its body, and the nouns that they are of."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import TypeAdapter

Json = dict[str, Any]


def references(wish: "TypeAdapter[Any]", body: Any) -> Iterator[tuple[str, str, str]]:  # noqa: ANN401 - any JSON value
    """The field, the noun and the id of each reference in a body that the wish has accepted."""
    schema = wish.json_schema()
    yield from _within(schema, schema.get("$defs", {}), "", body)


def _within(schema: Json, shapes: Mapping[str, Json], field: str, value: Any) -> Iterator[tuple[str, str, str]]:  # noqa: ANN401
    if "$ref" in schema:
        schema = {**shapes[schema["$ref"].rpartition("/")[2]], **schema}
    if isinstance(value, str) and (noun := schema.get("x-pileus-ref")):
        yield field, noun, value
        return
    for either in schema.get("anyOf", ()):
        yield from _within(either, shapes, field, value)
    if isinstance(value, list):
        for each in cast("list[Any]", value):
            yield from _within(schema.get("items", {}), shapes, field, each)
    elif isinstance(value, dict):
        for name, shape in schema.get("properties", {}).items():
            within = f"{field}.{name}" if field else name
            yield from _within(shape, shapes, within, cast("Json", value).get(name))
