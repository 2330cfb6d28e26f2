"""What one may read of the event log."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import msgspec

from pileus.cloud.events.feed import Feed
from pileus.kernel.errors import Invalid
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun, Parameter
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.store import Event, EventFilter

_KEEPALIVE_S = 15.0
_MOST = 1000


class EventRecord(Record, frozen=True, kw_only=True):
    """Stands for events where nouns have records: they are read from the log."""


EVENTS = Kind("event", EventRecord)


class Events(msgspec.Struct, frozen=True):
    """Some events, oldest first."""

    items: list[Event]
    next: int
    """The sequence number to go on after."""


_WHICH = (
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
        *_WHICH,
        Parameter(name="limit", about="How many at most", schema={"type": "integer", "minimum": 1, "maximum": _MOST}),
    ),
)
async def list_events(exchange: Exchange) -> Answer:
    """List events, oldest first."""
    after = _number(exchange, "after", 0, least=0)
    limit = _number(exchange, "limit", 100, least=1, most=_MOST)
    found = await exchange.ask.state.store.events(after, limit, _where(exchange))
    shown = Events([_shown(event, exchange) for event in found], found[-1].sequence if found else after)
    return Answer(status=200, body=msgspec.json.encode(shown))


@events.special("GET", "/follow", least=Role.READER, parameters=_WHICH)
async def follow(exchange: Exchange) -> Answer:
    """Follow the log as it is written: server-sent events, to be resumed with `Last-Event-ID` or `after`."""
    feed: Feed = exchange.services[Feed]
    resumed = exchange.header("last-event-id")
    newest = exchange.ask.state.sequence
    after = int(resumed) if resumed.isascii() and resumed.isdigit() else _number(exchange, "after", newest, least=0)
    where = _where(exchange)
    return Answer(
        status=200,
        media_type="text/event-stream",
        stream=_stream(feed, after, where, exchange),
        headers={"x-accel-buffering": "no"},
    )


async def _stream(feed: Feed, after: int, where: EventFilter, exchange: Exchange) -> AsyncIterator[bytes]:
    yield b": pileus\n\n"
    follower = feed.follow(after, where)
    try:
        while True:
            try:
                async with asyncio.timeout(_KEEPALIVE_S):
                    found = await follower.next()
            except TimeoutError:
                yield b": still here\n\n"
                continue
            for event in found:
                body = msgspec.json.encode(_shown(event, exchange))
                yield b"id: %d\nevent: %s\ndata: %s\n\n" % (event.sequence, event.kind.encode(), body)
    finally:
        follower.close()


def _shown(event: Event, exchange: Exchange) -> Event:
    """An event as its reader may see it: that a secret was changed is no secret, what it is stays one."""
    feed: Feed = exchange.services[Feed]
    return feed.shown(event)


def _number(exchange: Exchange, name: str, default: int, *, least: int, most: int = 1 << 62) -> int:
    text = exchange.query(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise Invalid("some parameters are wrong", fields={name: f"a number from {least} on"})
    return int(text)


def _where(exchange: Exchange) -> EventFilter:
    caller = exchange.caller
    everywhere = exchange.query("all_projects") in ("1", "true")
    if everywhere and not caller.is_platform:
        raise Invalid("some parameters are wrong", fields={"all_projects": "only for administrators of the cloud"})
    return EventFilter(
        projects=None if everywhere else frozenset({caller.project_id}),
        kind=exchange.query("kind"),
        id=exchange.query("id"),
        task=exchange.query("task"),
        actor=exchange.query("actor"),
        since=_time(exchange, "since"),
        until=_time(exchange, "until"),
    )


def _time(exchange: Exchange, name: str) -> datetime | None:
    text = exchange.query(name)
    if not text:
        return None
    try:
        time: Any = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise Invalid("some parameters are wrong", fields={name: "a time such as 2026-01-31T12:00:00Z"})
    return time
