"""The reference page of the API, `docs/reference/api.md`: `python -m pileus.client.reference` writes it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pileus.client.document import Document, Field, Noun, Operation, Shape, load

PATH = Path("docs/reference/api.md")

_HEAD = """\
# The REST API

Port 5870, TLS, JSON. The document that machines read is at `/openapi.json`; this page says the same for people.

- **Who asks**: `Authorization: Bearer <token>`; a token comes from `POST /v1/tokens/sign-in`. Administrators of the
  cloud may act in another project with `Pileus-Project: <id or name>`.
- **Lists** come in pages: `{"items": [...], "next": <cursor or null>}`. `limit` (up to 1000), `after` (the cursor),
  `sort` (a `-` ahead descends), and the filters that each list names; `label.<key>=<value>` where there are labels.
- **The past**: lists and records with `at=<RFC 3339 time>` are as they were at that moment, as far back as the event
  log goes; see [History](../history.md).
- **Changes** take `?dry_run=true`, which answers with the plan and does nothing; `Idempotency-Key`, with which a
  request that is sent again is done once; and, on a record, `If-Match` with its revision.
- **Tasks**: what takes time answers 202 with `task_id`. `GET /v1/tasks/{id}?wait_s=20&seen=<Pileus-Seen of the last
  answer>` waits for news.
- **Events**: `GET /v1/events/follow` is a stream of server-sent events, to be resumed with `Last-Event-ID`.
- **Errors** are `application/problem+json` (RFC 9457): a stable `type`, `detail`, every wrong field in `fields`, the
  reasons (such as each host's) in `because`, and the id of the request, which the log knows.

| status | type | |
|---|---|---|
| 400 | `invalid` | the request is wrong |
| 401 | `unauthenticated` | not signed in |
| 403 | `forbidden`, `quota-exceeded` | not allowed, or more than the project may have |
| 404 | `not-found` | it does not exist, or you may not know that it does |
| 409 | `conflict` | the state of the record forbids it now |
| 412 | `stale` | somebody else changed it first |
| 413 | `too-large` | the body is too large |
| 429 | `too-many` | too many requests |
| 503 | `unavailable`, `timed-out` | worth trying again |
| 507 | `no-capacity`, `no-room` | no host fits, or the disk of the controller is full |

This page is written by `python -m pileus.client.reference`.
"""


def written() -> str:
    """The page."""
    document = load()
    return "\n".join([_HEAD, *(part for noun in document.nouns.values() for part in _noun(document, noun))])


def _noun(document: Document, noun: Noun) -> Iterator[str]:
    yield f"## {noun.plural.replace('-', ' ').capitalize()}\n\n{noun.about}\n"
    for operation in noun.operations.values():
        yield "\n".join(_operation(operation))
    yield "\n".join(_record(document, noun))


_EVERYWHERE = ("limit", "after", "dry_run", "all_projects", "at")
"""Parameters that the page tells of once."""


def _operation(operation: Operation) -> Iterator[str]:
    yield f"### {operation.method} {operation.path}\n"
    yield f"{operation.about}. {operation.more}".rstrip()
    who = "Anybody" if operation.least == "nobody" else f"Role `{operation.least}`"
    begins = f"; starts the task `{operation.starts}`" if operation.starts else ""
    answers = ", ".join(status for status in operation.statuses if status != "default")
    yield f"\n{who}{begins}. Answers {answers}.\n"
    query = [field for field in operation.query if field.name not in _EVERYWHERE]
    if operation.verb == "list" and operation.noun != "event":
        names = ", ".join(f"`{field.name}`" for field in query if field.name != "sort")
        sorts = next((field.shape.choices for field in query if field.name == "sort"), ())
        yield f"Filters: {names or 'none'}. Sorts: {', '.join(f'`{each}`' for each in sorts if each[0] != '-')}.\n"
    elif query:
        yield from _table("parameter", query)
    if operation.body:
        yield from _table("field", operation.body, wished=True)


def _record(document: Document, noun: Noun) -> Iterator[str]:
    shape = document.record(noun.name)
    if shape is not None and shape.fields:
        yield f"### The record of {noun.name.replace('-', ' ')}\n"
        yield from _table("field", shape.fields)


def _table(head: str, fields: Sequence[Field], *, wished: bool = False) -> Iterator[str]:
    yield f"| {head} | type | |\n|---|---|---|"
    for field in fields:
        yield f"| `{field.name}` | {_type(field.shape)} | {_about(field, needed=wished and field.required)} |"
    yield ""


def _type(shape: Shape) -> str:
    if shape.choices:
        return " \\| ".join(f"`{each}`" for each in shape.choices)
    if shape.type == "array" and shape.items is not None:
        return f"list of {_type(shape.items)}"
    if shape.noun:
        return f"id of {shape.noun.replace('-', ' ')}"
    if shape.type == "object" and shape.fields:
        return "{" + ", ".join(f"`{field.name}`" for field in shape.fields) + "}"
    return "map" if shape.type == "object" else shape.type


def _about(field: Field, *, needed: bool) -> str:
    shape = field.shape
    parts = ["Required."] if needed else []
    if field.about:
        parts.append(f"{field.about.rstrip('.')}.")
    if shape.least is not None and shape.most is not None:
        parts.append(f"{shape.least} to {shape.most}.")
    if shape.longest is not None and not shape.noun:
        parts.append(f"Up to {shape.longest} characters.")
    if shape.default not in (None, "", [], {}):
        parts.append(f"By default `{shape.default}`.")
    return " ".join(parts).replace("\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    PATH.write_text(written())
