"""Pages of a collection: filters, sorting, and cursors that stay good while records come and go."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import msgspec

from pileus.kernel.errors import Invalid
from pileus.kernel.ids import ProjectId
from pileus.operations.declare import Noun, Operation
from pileus.operations.plan import Ask
from pileus.state.records import Record
from pileus.state.tables import Table

MAX_PAGE = 1000
_DEFAULT_PAGE = 100
_MOST_DIGITS = 18
"""More do not fit into 64 bits, and thousands are an attack."""


Test = Callable[[Any], bool]
"""Whether a record belongs in a page."""


class Page(msgspec.Struct, frozen=True):
    """Some records of a collection, and where the rest goes on."""

    items: list[Record]
    next: str | None
    """The cursor of the next page; None at the end."""


class _Query(msgspec.Struct, frozen=True, kw_only=True):
    limit: int
    after: list[Any] | None
    sort: str
    descending: bool
    equal: Mapping[str, str]
    labels: Mapping[str, str]
    everywhere: bool


def page(
    operation: Operation, noun: Noun[Any], ask: Ask, query: Mapping[str, str], table: Table[Any] | None = None
) -> Page:
    """The page of a collection that this query asks for. Raises Invalid, naming every wrong parameter.

    Args:
        operation: the list.
        noun: whose records.
        ask: who asks.
        query: what of.
        table: the records to choose from, instead of today's.
    """
    wanted = _read(operation, ask, query)
    table = ask.state.table(noun.kind) if table is None else table
    ids = _candidates(noun, table, ask, wanted)
    keep = _filter(operation, noun, ask, wanted)
    if wanted.sort == "created_at":
        found = list(islice(_in_order(table, ids, keep, wanted), wanted.limit + 1))
    else:
        found = _sorted(table, ids, keep, wanted)
    items = found[: wanted.limit]
    more = len(found) > wanted.limit
    return Page(items, _cursor(items[-1], wanted) if more else None)


def only_of(operation: Operation, noun: Noun[Any], ask: Ask, query: Mapping[str, str]) -> ProjectId | None:
    """The one project whose records a page is chosen from, or None for all. Raises Invalid as `page` does."""
    return ask.caller.project_id if noun.scope and not _read(operation, ask, query).everywhere else None


def _read(operation: Operation, ask: Ask, query: Mapping[str, str]) -> _Query:
    rest = dict(query)
    wrong: dict[str, str] = {}
    limit = number(rest.pop("limit", str(_DEFAULT_PAGE)))
    if limit is None or not 1 <= limit <= MAX_PAGE:
        wrong["limit"] = f"a number from 1 to {MAX_PAGE}"
    cursor = rest.pop("after", "")
    after = _position(cursor) if cursor else None
    sort = rest.pop("sort", "-created_at" if operation.newest_first else "created_at")
    if cursor and (after is None or len(after) != (1 if sort.endswith("created_at") else 2)):
        wrong["after"] = "not a cursor of this collection in this order"
    if sort.removeprefix("-") not in operation.sorts:
        wrong["sort"] = f"one of {', '.join(operation.sorts)}, with a - ahead for descending"
    everywhere = flag(rest.pop("all_projects", "false"))
    if everywhere is None:
        wrong["all_projects"] = "true or false"
    elif everywhere and not ask.caller.is_platform:
        wrong["all_projects"] = "only for administrators of the cloud"
    labels = {name.removeprefix("label."): rest.pop(name) for name in query if _is_label(name, operation)}
    wrong |= {name: "no such parameter" for name in rest if name not in operation.filters or name == "labels"}
    if wrong or limit is None:
        raise Invalid("some parameters are wrong", fields=wrong)
    return _Query(
        limit=limit,
        after=after,
        sort=sort.removeprefix("-"),
        descending=sort.startswith("-"),
        equal=rest,
        labels=labels,
        everywhere=bool(everywhere),
    )


def number(text: str) -> int | None:
    """A number as callers write it: some decimal digits; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def flag(text: str) -> bool | None:
    """A yes or no as callers write it; None for anything else."""
    return {"true": True, "1": True, "false": False, "0": False}.get(text)


def _is_label(name: str, operation: Operation) -> bool:
    return name.startswith("label.") and "labels" in operation.filters


def _candidates(noun: Noun[Any], table: Table[Any], ask: Ask, wanted: _Query) -> Sequence[str]:
    """The fewest sorted ids, by an index, among which everything wanted is."""
    for name, value in wanted.equal.items():
        if value and name in noun.kind.indexes:  # what has no value is in no index
            return table.ids_by(name, value)
    if noun.scope and not wanted.everywhere:
        return table.ids_by(noun.scope, ask.caller.project_id)
    return table.ids


def _filter(operation: Operation, noun: Noun[Any], ask: Ask, wanted: _Query) -> Test | None:
    """What a record must pass; None if there is nothing to ask. Made for the query: a page may look at every record."""
    tests: list[Test] = []
    if noun.scope and not wanted.everywhere:
        tests.append(_is_of(noun, ask.caller.project_id))
    if not (noun.visible is Ask.may_see and ask.caller.is_platform):
        tests.append(partial(noun.visible, ask))
    tests += [_equal(name, value) for name, value in wanted.equal.items()]
    tests += [_labelled(name, value) for name, value in wanted.labels.items()]
    if operation.hides is not None and operation.hides[0] not in wanted.equal:
        tests.append(_other_than(*operation.hides))
    if len(tests) > 1:
        return lambda record: all(test(record) for test in tests)
    return tests[0] if tests else None


def _is_of(noun: Noun[Any], project: str) -> Test:
    """Whether a record is of the project, or of several of which it is one."""
    projects = noun.kind.many.get(noun.scope)
    if projects is None:
        return lambda record: record.project_id == project
    return lambda record: project in projects(record)


def _equal(name: str, value: str) -> Test:
    def test(record: Any) -> bool:  # noqa: ANN401 - a record of the noun's kind
        found = getattr(record, name)
        return (found if isinstance(found, str) else str(_plain(found))) == value

    return test


def _other_than(name: str, value: str) -> Test:
    return lambda record: getattr(record, name) != value


def _labelled(name: str, value: str) -> Test:
    return lambda record: record.labels.get(name) == value


def _plain(value: Any) -> Any:  # noqa: ANN401 - any field
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value


def _in_order(table: Table[Any], ids: Sequence[str], keep: Test | None, wanted: _Query) -> Iterator[Any]:
    after = wanted.after[-1] if wanted.after else None
    if wanted.descending:
        end = len(ids) if after is None else bisect_left(ids, after)
        positions = range(end - 1, -1, -1)
    else:
        positions = range(0 if after is None else bisect_right(ids, after), len(ids))
    records = map(table.get, map(ids.__getitem__, positions))
    return records if keep is None else filter(keep, records)


def _sorted(table: Table[Any], ids: Sequence[str], keep: Test | None, wanted: _Query) -> list[Any]:
    records = map(table.get, ids)
    kept = records if keep is None else filter(keep, records)
    places = [(_place(record, wanted.sort), record.id) for record in kept]
    places.sort(reverse=wanted.descending)
    if wanted.after is not None:
        last = tuple(wanted.after)
        try:
            places = [place for place in places if (place < last if wanted.descending else place > last)]
        except TypeError:
            wrong = {"after": "not a cursor of this collection in this order"}
            raise Invalid("some parameters are wrong", fields=wrong) from None
    return [table.get(id) for _, id in places[: wanted.limit + 1]]


def _place(record: Any, field: str) -> str | int | float:  # noqa: ANN401
    value = getattr(record, field)
    if value is None:
        return ""
    return value if isinstance(value, int | float) else str(value)


def _cursor(last: Any, wanted: _Query) -> str:  # noqa: ANN401
    position = [last.id] if wanted.sort == "created_at" else [_place(last, wanted.sort), last.id]
    return urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def _position(cursor: str) -> list[str | int | float] | None:
    try:
        position = msgspec.json.decode(
            urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=list[str | int | float]
        )
    except (ValueError, msgspec.MsgspecError):
        return None
    return position if 1 <= len(position) <= 2 and isinstance(position[-1], str) else None
