"""Command-line options for the fields of requests, and back."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from pileus.cli.terminal import Terminal
from pileus.client.document import Field, Shape, stem_of
from pileus.kernel.errors import Invalid

_UNITS = {"mib": "MiB", "gib": "GiB", "per_s": "", "s": "seconds"}
"""By how a field's name ends; a rate says by itself what it is."""
_SECRETS = frozenset({"password", "current_password", "secret"})
_FROM_FILES = 4096
"""Texts that may be longer than this are rather kept in files: their options read them with @."""


def option_of(field: str) -> str:
    """The option for a field: `--image` for image_id, `--memory-mib` for memory_mib."""
    return "--" + stem_of(field).replace("_", "-")


def _names_of(field: Field) -> tuple[str, ...]:
    """What can be given again and again is asked for one at a time too: `--labels a=b`, `--label a=b`."""
    option = option_of(field.name)
    repeatable = field.shape.type in ("array", "object") and option.endswith("s")
    return (option, option.removesuffix("es" if option.endswith("sses") else "s")) if repeatable else (option,)


def parameter_of(field: Field, *, clears: bool = False) -> inspect.Parameter:
    """The parameter of a command for a field; with `clears` a list can be made empty by it."""
    shape = field.shape
    negative: Sequence[str] | None = None if shape.type == "boolean" else ()
    if clears and shape.type in ("array", "object"):
        negative = (f"--empty-{option_of(field.name)[2:]}",)
    annotation = _annotation(shape)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if field.required else None,
        annotation=Annotated[
            annotation if field.required else annotation | None,
            Parameter(
                name=_names_of(field),
                negative=negative,
                help=help_of(field),
                allow_leading_hyphen=any(choice.startswith("-") for choice in shape.choices),
            ),
        ],
    )


def flag(name: str, help: str) -> inspect.Parameter:
    """A parameter that is on or left out."""
    parameter = Parameter(name=f"--{name.replace('_', '-')}", negative=(), help=help)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, parameter])


def positional(name: str, help: str) -> inspect.Parameter:
    """A parameter that stands for itself."""
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_ONLY, annotation=Annotated[str, Parameter(name=name.upper(), help=help)]
    )


def help_of(field: Field) -> str:
    """What a field is for, and what it may be."""
    shape = field.shape
    item = shape.items or shape
    parts = [f"{field.about.rstrip('.')}."] if field.about else []
    if item.noun:
        parts.append(f"Name or id of {_article(item.noun)}.")
    if unit := next((unit for end, unit in _UNITS.items() if field.name.endswith(f"_{end}")), ""):
        parts.append(f"In {unit}.")
    if item.least is not None and item.most is not None:
        parts.append(f"{item.least} to {item.most}.")
    if reads_files(field):
        parts.append("@FILE reads a file.")
    if shape.type == "object":
        parts.append("KEY=VALUE; repeatable.")
    elif shape.type == "array" and item.fields:
        keys = ",".join(f"{each.name}=..." for each in item.fields)
        parts.append(f"{keys}; repeatable.")
    elif shape.type == "array":
        parts.append("Repeatable.")
    if shape.default not in (None, "", [], False) and shape.type != "boolean":
        parts.append(f"By default {shape.default}.")
    return " ".join(parts)


def reads_files(field: Field) -> bool:
    return field.shape.type == "string" and ((field.shape.longest or 0) >= _FROM_FILES or is_secret(field))


def is_secret(field: Field) -> bool:
    return field.name in _SECRETS


def value_of(field: Field, given: Any, terminal: Terminal) -> Any:  # noqa: ANN401 - whatever the option's type is
    """The value of a field, from what was given for its option. Raises Invalid."""
    if field.shape.type == "object":
        return dict(_pair(field.name, text, field.shape) for text in given)
    if field.shape.type == "array" and field.shape.items and field.shape.items.fields:
        return [dict(_pair(field.name, each, None) for each in text.split(",")) for text in given]
    if isinstance(given, str) and given.startswith("@") and reads_files(field):
        return content_of(given[1:], field.name, terminal)
    return given


def content_of(path: str, field: str, terminal: Terminal) -> str:
    """The content of a file; `-` is the input. Raises Invalid."""
    try:
        text = terminal.stdin.read() if path == "-" else Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as failed:
        raise Invalid(f"{path} cannot be read: {failed}", fields={field: "cannot be read"}) from failed
    return text.rstrip("\n") if field in _SECRETS else text


def _pair(field: str, text: str, shape: Shape | None) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Invalid(f"{text!r} is not KEY=VALUE", fields={field: "must be KEY=VALUE"})
    if shape is not None and shape.items is not None and shape.items.type == "integer":
        try:
            return name, int(value)
        except ValueError:
            raise Invalid(f"{value!r} is not a number", fields={field: "must be KEY=NUMBER"}) from None
    return name, value


_TYPES: Mapping[str, type] = {"integer": int, "number": float, "boolean": bool, "string": str}


def _annotation(shape: Shape) -> Any:  # noqa: ANN401 - a type
    if shape.choices:
        return Literal[shape.choices]
    if shape.type == "array":
        item = shape.items
        return list[_annotation(item)] if item is not None and not item.fields else list[str]  # pyright: ignore[reportInvalidTypeForm] - made at run time
    return list[str] if shape.type == "object" else _TYPES[shape.type]


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun.replace('-', ' ')}"
