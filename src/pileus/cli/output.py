"""Printing: tables for people, JSON and YAML for programs, names and ids for the shell."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import msgspec

from pileus.cli.terminal import Terminal
from pileus.client.document import Document, stem_of
from pileus.client.records import Record

if TYPE_CHECKING:
    from rich.console import Console

NO_NAMES: Mapping[str, str] = {}
_GOOD = frozenset({"running", "active", "done", "in-service", "in-use", "available", "yes"})
_BAD = frozenset({"stuck", "undone", "failed", "error", "lost"})
_BETWEEN = frozenset({"building", "starting", "stopping", "rebooting", "deleting", "undoing", "queued"})
_FIRST = ("name", "id")


class Printer:
    """Prints results as they are wanted."""

    def __init__(
        self,
        terminal: Terminal,
        document: Document,
        *,
        format: str = "table",
        columns: Sequence[str] = (),
        quiet: bool = False,
    ) -> None:
        self._terminal = terminal
        self._document = document
        self._columns = columns
        self.format = "id" if quiet else format
        """`table`, `json`, `yaml`, `name` or `id`."""

    @property
    def for_people(self) -> bool:
        return self.format == "table"

    def document(self, value: Any) -> bool:  # noqa: ANN401 - any JSON document
        """Print something as JSON or YAML, if that is wanted."""
        if self.format == "json":
            encoded = msgspec.json.format(msgspec.json.encode(value), indent=2)
            self._terminal.out(encoded.decode())
        elif self.format == "yaml":
            import yaml

            plain = msgspec.to_builtins(value)
            text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=False)
            self._terminal.out(text.rstrip("\n"))
        else:
            return False
        return True

    def records(self, records: Sequence[Record], columns: Sequence[str], names: Mapping[str, str] = NO_NAMES) -> None:
        """Print several records of one kind; a table has the wanted columns, or else these."""
        if self.document(records):
            return
        if self.format in ("id", "name"):
            for record in records:
                self.handle(record)
            return
        if records:
            self.table(self.wanted(columns), [self._cells(record, columns, names) for record in records])

    def record(self, record: Record, names: Mapping[str, str] = NO_NAMES) -> None:
        """Print all of one record."""
        if self.document(record):
            return
        if self.format in ("id", "name"):
            self.handle(record)
            return
        if self._columns:
            self.records([record], self._columns, names)
            return
        first = [field for field in _FIRST if field in record]
        rest = [field for field in record if field not in (*first, "revision")]
        self.fields({field: record[field] for field in (*first, *rest)}, names)

    def handle(self, record: Mapping[str, Any]) -> None:
        """Print by what a record is called in further commands: its name, or its id."""
        field = "name" if self.format == "name" and record.get("name") else "id"
        if (handle := record.get(field) or record.get("sequence")) is not None:
            self._terminal.out(str(handle))

    def fields(self, fields: Mapping[str, Any], names: Mapping[str, str] = NO_NAMES) -> None:
        """Print pairs, one below the other."""
        labels = {field: title(field).lower() for field in fields}
        width = max(map(len, labels.values()), default=0)
        for field, value in fields.items():
            if value in (None, "", [], {}):
                continue
            for number, line in enumerate(_lines(field, value, names)):
                label = labels[field] if number == 0 else ""
                self._terminal.out(f"{label:<{width}}  {line}")

    def wanted(self, columns: Sequence[str]) -> Sequence[str]:
        """The columns to show: those that were asked for, or else these, the name first."""
        if self._columns:
            return self._columns
        return sorted(columns, key=lambda column: column != "name")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table."""
        titles = [title(column) for column in columns]
        if len(set(titles)) < len(titles):  # such as a role by name and one by id
            titles = [column.replace("_", " ").upper() for column in columns]
        right = [_is_numeric([row[at] for row in rows]) for at in range(len(columns))]
        if self._terminal.stdout.isatty():
            self._rich_table(titles, rows, right)
            return
        for line in _aligned([titles, *rows], right):
            self._terminal.out(line)

    def _rich_table(self, titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name, is_right in zip(titles, right, strict=True):
            # An id that is broken in two cannot be copied.
            table.add_column(name, justify="right" if is_right else "left", overflow="fold", no_wrap=name == "ID")
        for row in rows:
            table.add_row(*(Text(cell, style=style_of(cell)) for cell in row))
        console_of(self._terminal).print(table)

    def _cells(self, record: Record, columns: Sequence[str], names: Mapping[str, str]) -> list[str]:
        return [text_of(column, record.get(column), names) for column in self.wanted(columns)]


def console_of(terminal: Terminal) -> "Console":
    """The output as rich knows it."""
    from rich.console import Console

    return Console(file=terminal.stdout, highlight=False, markup=False, emoji=False)


def title(column: str) -> str:
    """The head of a column: `image_id` is IMAGE, `memory_mib` is MEMORY MIB."""
    return stem_of(column).removesuffix("_bytes").replace("_", " ").upper()


def text_of(field: str, value: Any, names: Mapping[str, str] = NO_NAMES) -> str:  # noqa: ANN401 - any JSON value
    """A value for people: times are local, ids are names where they are known."""
    if value in (None, "", [], {}):
        return "-"
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(text_of(field, each, names) for each in cast("list[Any]", value))
        case {"subnet_id": _, "address": str(address)}:
            return address
        case dict():
            return ", ".join(f"{name}={text_of(name, each, names)}" for name, each in cast("Record", value).items())
        case str() if _is_time(field):
            return local(value)
        case int() if field.endswith("_bytes"):
            return size(value)
        case str():
            return names.get(value, value)
        case _:
            return str(value)


def local(time: str | datetime) -> str:
    """A time as a clock on this machine's wall shows it."""
    try:
        at = datetime.fromisoformat(time) if isinstance(time, str) else time
    except ValueError:
        return str(time)
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(count: float) -> str:
    """A number of bytes in the unit that fits."""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"


def seconds(count: float) -> str:
    """A duration: `0.2 s`, `3 min 5 s`."""
    if count < 60:
        return f"{count:.1f} s"
    minutes, rest = divmod(round(count), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def style_of(cell: str) -> str:
    """How a state is coloured."""
    if cell in _GOOD:
        return "green"
    if cell in _BAD:
        return "red"
    return "yellow" if cell in _BETWEEN else ""


def _lines(field: str, value: Any, names: Mapping[str, str], indent: str = "") -> Iterable[str]:  # noqa: ANN401
    if (alike := _rows_of(value)) is not None:
        columns = list(next(iter(alike.values())))
        heads = [("", *map(title, columns))]
        cells = [(name, *(text_of(key, each[key], names) for key in columns)) for name, each in alike.items()]
        right = [_is_numeric([row[at] for row in cells]) for at in range(len(columns) + 1)]
        yield from (indent + line for line in _aligned([*heads, *cells], right))
    elif isinstance(value, dict):
        for name, each in cast("Record", value).items():
            if isinstance(each, dict):
                yield f"{indent}{name}:"
                yield from _lines(name, each, names, indent + "  ")
            else:
                yield f"{indent}{name}: {text_of(name, each, names)}"
    elif isinstance(value, list) and any(isinstance(each, dict) for each in cast("list[Any]", value)):
        for each in cast("list[Any]", value):
            yield indent + text_of(field, each, names)
    elif isinstance(value, str) and "\n" in value:
        yield from value.splitlines()
    else:
        yield indent + text_of(field, value, names)


def _rows_of(value: Any) -> Mapping[str, Record] | None:  # noqa: ANN401 - any JSON value
    """The value, if it is several things of which the same is told."""
    if not isinstance(value, dict) or not value:
        return None
    told = cast("Record", value)
    keys = {tuple(cast("Record", each)) if isinstance(each, dict) else () for each in told.values()}
    return told if len(told) > 1 and len(keys) == 1 and () not in keys else None


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Iterator[str]:
    """The rows as lines with their cells one below the other; to the right where that is so."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(right))]
    for row in rows:
        cells = (
            f"{cell:>{width}}" if is_right else f"{cell:<{width}}"
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _is_time(field: str) -> bool:
    return field.endswith("_at") or field in ("at", "since", "until")


def _is_numeric(cells: Sequence[str]) -> bool:
    given = [cell for cell in cells if cell != "-"]
    return bool(given) and all(cell.replace(".", "", 1).isdigit() for cell in given)
