"""The audit: who did or tried what, when, from where, and what came of it."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import msgspec

from pileus.cloud.events.operations import WHICH, events, position, which
from pileus.cloud.events.refusals import Refused
from pileus.kernel.errors import Invalid
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Parameter
from pileus.operations.idempotency import KEPT_ANSWERS
from pileus.state.state import State
from pileus.state.store import REFUSAL, Event, EventFilter, Result

_MOST = 1000
_BATCH = 500
_DONE = "done"

_WHAT = (
    *(parameter for parameter in WHICH if parameter.name not in ("after", "kind")),
    Parameter(name="operation", about="Only this operation, with its steps, such as `instance.delete`"),
    Parameter(name="noun", about="Only operations of this noun, such as `instance`"),
    Parameter(name="source", about="Only from this address"),
    Parameter(
        name="result",
        about="Only what was `done`, or only what was `refused`",
        schema={"type": "string", "enum": ["done", "refused"]},
    ),
)


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One change that somebody made, or attempt that was refused."""

    sequence: int
    at: datetime
    actor: str
    operation: str
    result: str
    """`done`, or the code of the refusal."""
    source: str
    kind: str
    """Of the record; of a refusal, the operation's noun."""
    id: str
    project: str
    request: str
    detail: str = ""
    """What a refusal said."""
    tried: str = ""
    """As whom somebody tried to sign in."""
    why: str = ""
    """Why they were not let in, where they were not told."""
    times: int = 1
    """How often it was tried within a minute, from the same place."""


class Audit(msgspec.Struct, frozen=True):
    """Some entries, the newest first."""

    items: Sequence[AuditEntry]
    before: int | None
    """What to give as `before` for those that are older; None at the end."""


@events.special(
    "GET",
    "/audit",
    least=Role.ADMIN,
    answers=Audit,
    parameters=(
        *_WHAT,
        Parameter(name="before", about="Only before this sequence number", schema={"type": "integer", "minimum": 1}),
        Parameter(name="limit", about="How many at most", schema={"type": "integer", "minimum": 1, "maximum": _MOST}),
    ),
)
async def audit(exchange: Exchange) -> Answer:
    """List who did or tried what, when, from where, and what came of it; the newest first."""
    wrong: dict[str, str] = {}
    before = position(exchange, wrong, "before", (1 << 62) - 1, least=1)
    limit = position(exchange, wrong, "limit", 100, least=1, most=_MOST)
    where = _where(exchange, wrong)
    await exchange.ask.state.durable()  # what was refused a moment ago belongs in here too
    found = await exchange.ask.state.store.latest(before, limit, where)
    shown = Audit([_entry(event) for event in found], found[-1].sequence if len(found) == limit else None)
    return Answer(status=200, body=msgspec.json.encode(shown))


@events.special("GET", "/export", least=Role.ADMIN, parameters=_WHAT)
async def export(exchange: Exchange) -> Answer:
    """Export the audit as JSON lines, the oldest first."""
    where = _where(exchange, {})
    state = exchange.ask.state
    await state.durable()
    return Answer(status=200, media_type="application/jsonl", stream=_lines(state, where, state.sequence))


async def _lines(state: State, where: EventFilter, upto: int) -> AsyncIterator[bytes]:
    after = 0
    while found := await state.store.events(after, _BATCH, where):
        wanted = [event for event in found if event.sequence <= upto]
        yield b"".join(msgspec.json.encode(_entry(event)) + b"\n" for event in wanted)
        after = found[-1].sequence
        if after >= upto:
            return


def _where(exchange: Exchange, wrong: dict[str, str]) -> EventFilter:
    """Raises Invalid if anything is `wrong`, here or already."""
    result = exchange.query("result")
    if result not in ("", Result.DONE, Result.REFUSED):
        wrong["result"] = "done or refused"
        which(exchange, wrong)
        raise Invalid("some parameters are wrong", fields=wrong)
    return msgspec.structs.replace(
        which(exchange, wrong),
        without_kind=KEPT_ANSWERS.name,  # kept for whoever repeats a request: nobody did anything to anything
        operation=exchange.query("operation"),
        noun=exchange.query("noun"),
        source=exchange.query("source"),
        result=Result(result) if result else Result.ANY,
    )


def _entry(event: Event) -> AuditEntry:
    if event.kind != REFUSAL:
        result, kind, refused = _DONE, event.kind, Refused(code="", detail="")
    else:
        refused = msgspec.json.decode(event.before, type=Refused)
        result, kind = refused.code, event.operation.partition(".")[0]
    return AuditEntry(
        sequence=event.sequence,
        at=event.at,
        actor=event.actor,
        operation=event.operation,
        result=result,
        source=event.source,
        kind=kind,
        id=event.id,
        project=event.project,
        request=event.request,
        detail=refused.detail,
        tried=refused.tried,
        why=refused.why,
        times=refused.times,
    )
