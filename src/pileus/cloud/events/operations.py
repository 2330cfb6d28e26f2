"""What one may read of the event log."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.events.feed import Feed
from pileus.cloud.events.undo import Undoing, sequence_of
from pileus.cloud.identity.tokens import still_good
from pileus.kernel.errors import Invalid
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun, Parameter
from pileus.operations.listing import flag, number
from pileus.operations.permissions import Permissions
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Wire
from pileus.state.history import moment_of
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.store import Event, EventFilter

_KEEPALIVE_S = 15.0
_MOST = 1000
_END = (1 << 62) - 1


class EventRecord(Record, frozen=True, kw_only=True):
    """Stands for events where nouns have records: they are read from the log."""


EVENTS = Kind("event", EventRecord)


class ShownEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change of one record."""

    sequence: int
    at: datetime
    actor: str
    operation: str
    request: str = ""
    source: str = ""
    task: str = ""
    project: str = ""
    kind: str
    id: str
    revision: int
    before: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """The record as it was; not there if there was none, or if it is a secret."""
    after: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """The record as it is now; not there if it is deleted, or if it is a secret."""


class Events(msgspec.Struct, frozen=True):
    """Some events, in the order that was asked for."""

    items: list[ShownEvent]
    next: int
    """The sequence number to go on after; with the newest first, before."""


class Undo(Wire):
    sequence: Annotated[int, Field(ge=1, le=1 << 62)] | None = None
    """Of any event of the request."""
    id: Id | None = None
    """Instead: of the request itself, or of a task that it began."""

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.sequence is None) == (self.id is None):
            raise ValueError("give sequence, or id")
        return self


class Undone(msgspec.Struct, frozen=True, kw_only=True):
    """What was undone."""

    summary: str
    records: int
    """How many were changed for it."""


WHICH = (
    Parameter(name="after", about="Only events behind this sequence number", schema={"type": "integer", "minimum": 0}),
    Parameter(name="kind", about="Only of records of this kind"),
    Parameter(name="id", about="Only of this record"),
    Parameter(name="task", about="Only of this task"),
    Parameter(name="actor", about="Only by this actor, such as `user:<id>`"),
    Parameter(
        name="since", about="Only from this time on (RFC 3339)", schema={"type": "string", "format": "date-time"}
    ),
    Parameter(name="until", about="Only before this time (RFC 3339)", schema={"type": "string", "format": "date-time"}),
    Parameter(name="all_projects", about="Of every project; for administrators", schema={"type": "boolean"}),
)

events = Noun(
    EVENTS,
    plural="events",
    columns=("sequence", "at", "actor", "operation", "kind", "id"),
    about="The event log: every change, who made it, what was before. It is the audit trail too.",
)


@events.special(
    "GET",
    "",
    verb="list",
    least=Role.READER,
    answers=Events,
    parameters=(
        *WHICH,
        Parameter(name="newest_first", about="Begin with the newest", schema={"type": "boolean"}),
        Parameter(
            name="before",
            about="Only before this sequence number; with the newest first",
            schema={"type": "integer", "minimum": 1},
        ),
        Parameter(name="limit", about="How many at most", schema={"type": "integer", "minimum": 1, "maximum": _MOST}),
    ),
)
async def list_events(exchange: Exchange) -> Answer:
    """List events, the oldest first, or the newest."""
    wrong: dict[str, str] = {}
    after = position(exchange, wrong, "after", 0)
    before = position(exchange, wrong, "before", _END, least=1)
    limit = position(exchange, wrong, "limit", 100, least=1, most=_MOST)
    newest_first = flag(exchange.query("newest_first", "false"))
    if newest_first is None:
        wrong["newest_first"] = "true or false"
    elif exchange.query("after" if newest_first else "before"):
        wrong["after" if newest_first else "before"] = "goes with the other order"
    where = which(exchange, wrong)
    store = exchange.ask.state.store
    found = await (store.latest(before, limit, where) if newest_first else store.events(after, limit, where))
    edge = before if newest_first else after
    shown = Events([_shown(event, exchange) for event in found], found[-1].sequence if found else edge)
    return Answer(status=200, body=msgspec.json.encode(shown))


@events.special("GET", "/follow", least=Role.READER, parameters=WHICH)
async def follow(exchange: Exchange) -> Answer:
    """Follow the log as it is written: server-sent events, to be resumed with `Last-Event-ID` or `after`."""
    feed: Feed = exchange.services[Feed]
    wrong: dict[str, str] = {}
    resumed = number(exchange.header("last-event-id"))
    newest = exchange.ask.state.sequence
    after = resumed if resumed is not None else position(exchange, wrong, "after", newest)
    where = which(exchange, wrong)
    return Answer(
        status=200,
        media_type="text/event-stream",
        stream=_stream(feed, after, where, exchange),
        headers={"x-accel-buffering": "no"},
    )


@events.post("/undo", answers=Undone)
async def undo(ask: Ask, wish: Undo) -> Plan:
    """Undo what a request did: its records become what they were before, if nothing has come of them since.

    Any event of the request names it, its own id, or that of its task. What cannot be undone is told for each record.
    What went to hosts by a task is not undone: that has operations of its own.
    """
    plan = await ask.view(Undoing).plan(ask, wish.sequence or await sequence_of(ask, wish.id or ""))
    return msgspec.structs.replace(plan, answers=Undone(summary=plan.summary, records=len(plan.changes)))


async def _stream(feed: Feed, after: int, where: EventFilter, exchange: Exchange) -> AsyncIterator[bytes]:
    # An id without data: whoever is cut off before the first event knows where to go on.
    yield b"id: %d\n\n" % after
    follower = feed.follow(after, where)
    try:
        while True:
            try:
                async with asyncio.timeout(_KEEPALIVE_S):
                    found = await follower.next()
            except TimeoutError:
                found = []
            ask = exchange.ask
            if not still_good(ask.state, ask.view(Permissions), ask.caller, ask.now):
                return
            if not found:
                yield b": still here\n\n"
            for event in found:
                body = msgspec.json.encode(_shown(event, exchange))
                yield b"id: %d\nevent: %s\ndata: %s\n\n" % (event.sequence, event.kind.encode(), body)
    finally:
        follower.close()


def _shown(event: Event, exchange: Exchange) -> ShownEvent:
    """An event as its reader may see it: that a secret was changed is no secret, what it is stays one."""
    feed: Feed = exchange.services[Feed]
    seen = feed.shown(event)
    return ShownEvent(
        sequence=seen.sequence,
        at=seen.at,
        actor=seen.actor,
        operation=seen.operation,
        request=seen.request,
        source=seen.source,
        task=seen.task,
        project=seen.project,
        kind=seen.kind,
        id=seen.id,
        revision=seen.revision,
        before=seen.before if bytes(seen.before) else msgspec.UNSET,
        after=seen.after if bytes(seen.after) else msgspec.UNSET,
    )


def position(
    exchange: Exchange, wrong: dict[str, str], name: str, default: int, *, least: int = 0, most: int = 1 << 62
) -> int:
    text = exchange.query(name)
    if not text:
        return default
    found = number(text)
    if found is None or not least <= found <= most:
        wrong[name] = f"a number from {least} to {most}"
        return default
    return found


def which(exchange: Exchange, wrong: dict[str, str]) -> EventFilter:
    """Which events are asked for. Raises Invalid if anything is `wrong`, here or already."""
    caller = exchange.caller
    everywhere = flag(exchange.query("all_projects", "false"))
    if everywhere is None:
        wrong["all_projects"] = "true or false"
    elif everywhere and not caller.is_platform:
        wrong["all_projects"] = "only for administrators of the cloud"
    since, until = _time(exchange, wrong, "since"), _time(exchange, wrong, "until")
    if wrong:
        raise Invalid("some parameters are wrong", fields=wrong)
    return EventFilter(
        projects=None if everywhere else frozenset({caller.project_id}),
        kind=exchange.query("kind"),
        id=exchange.query("id"),
        task=exchange.query("task"),
        actor=exchange.query("actor"),
        since=since,
        until=until,
    )


def _time(exchange: Exchange, wrong: dict[str, str], name: str) -> datetime | None:
    text = exchange.query(name)
    if not text:
        return None
    if (time := moment_of(text)) is not None:
        return time
    wrong[name] = "a time such as 2026-01-31T12:00:00Z"
    return None
