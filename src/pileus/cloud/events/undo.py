"""Undoing what a request did, from the event log.

The records of one request changed in one transaction, and are put back in one. What they are put back to is in the
log; whether they may be is asked of today's operations: the planner that would make the change by hand is asked first,
and what it refuses is refused here. Then the records become exactly what they were, ids included.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
from pydantic import BaseModel, ValidationError

from pileus.cloud.floatingips.model import FloatingIp
from pileus.cloud.floatingips.operations import FloatingIpAssociate, associate
from pileus.cloud.networks.addresses import Addresses, held
from pileus.cloud.networks.model import Network
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import made_at
from pileus.operations.caller import Caller
from pileus.operations.declare import Noun, Operation
from pileus.operations.plan import Ask, Plan, Reason
from pileus.state.history import read_after, read_before
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import Change, State, kind_named, put
from pileus.state.store import Event, EventFilter
from pileus.workflow.task import TASKS

_AROUND = 1000
"""Events of one request, at most; they lie next to each other."""

_CLOCKS = timedelta(minutes=5)
"""By how much clocks of controllers may differ."""
_LONGEST = timedelta(days=1)
"""After it was asked for, a request may still be writing: an upload takes its time."""

_MADE_OF_RECORDS = frozenset(
    {
        "flavor",
        "floating_ip",
        "grant",
        "keypair",
        "network",
        "network_share",
        "pool",
        "project",
        "reservation",
        "router",
        "security_group",
        "security_rule",
        "server_group",
        "subnet",
    }
)
"""Kinds that are nothing besides their records and what is projected from those: only they can be made again."""

_BY_OTHERS: Mapping[str, frozenset[str]] = {
    "floating_ip": frozenset({"port_id", "fixed_address", "router_id"}),
    "instance": frozenset({"floating_addresses"}),
}
"""By kind, the fields that change with other operations than the noun's `change`, and are records only all the same."""

_GOES_ALONG = frozenset({"token", "kept_answer"})
"""Kinds that are of no use without the secret that the log does not keep; they stay gone."""


class Undoing:
    """Knows the operations by which each kind is made, changed and removed."""

    def __init__(self, nouns: Iterable[Noun[Any]], authorise: Callable[[Operation, Caller], None]) -> None:
        self._nouns = {noun.kind.name: noun for noun in nouns}
        self._operations = {each.id: each for noun in self._nouns.values() for each in noun.declared}
        self._authorise = authorise

    async def plan(self, ask: Ask, sequence: int) -> Plan:
        """The plan that undoes the request that this event is of.

        Raises:
            NotFound: there is no such event any more, or it is not for this caller.
            Forbidden: the caller may not do what it takes.
            Conflict: it cannot be undone; the detail and the reasons say why.
        """
        events = await _request_of(ask, sequence)
        if not events or not all(self._may_know(ask, event) for event in events):
            raise NotFound(f"there is no event {sequence}")
        first = events[0]
        if first.task:
            raise Conflict(
                f"{first.operation} went to hosts by a task, which the log cannot take back: do the reverse by its own "
                f"operation; `pileus task show {first.task}` says what was done",
                because={_named(event): _by_a_task(event) for event in events if event.kind != TASKS.name},
            )
        if not first.request:
            raise Conflict(f"{first.operation} was nobody's request: the cloud did it by itself, and would again")
        # From here to the commit nothing else runs, so that what is looked at is what is changed.
        reversal = _Reversal(ask, self._nouns, self._operations, self._authorise, events)
        try:
            return reversal.plan()
        except _ChangedSince as later:
            raise Conflict(str(later), because=await _later_changes(ask.state, later)) from None

    def _may_know(self, ask: Ask, event: Event) -> bool:
        return ask.caller.is_platform or event.project in ("", ask.caller.project_id)


class _ChangedSince(Exception):
    """A later change is in the way."""

    def __init__(self, event: Event, what: str) -> None:
        super().__init__(f"{_named(event)} has changed since: {what}")
        self.event = event


class _Reversal:
    """One request, on its way back."""

    def __init__(
        self,
        ask: Ask,
        nouns: Mapping[str, Noun[Any]],
        operations: Mapping[str, Operation],
        authorise: Callable[[Operation, Caller], None],
        events: Sequence[Event],
    ) -> None:
        self._ask = ask
        self._nouns = nouns
        self._operations = operations
        self._authorise = authorise
        self._events = events
        self._changes: dict[str, Change] = {}
        self._because: list[Reason] = []
        self._refused: list[tuple[Event, Conflict | _ChangedSince]] = []
        self._back = {event.id for event in events if not bytes(event.after)}
        """The ids of records that come back."""

    def plan(self) -> Plan:
        first = self._events[0]
        if (done_by := self._operations.get(first.operation)) is not None:
            self._authorise(done_by, self._ask.caller)
        for event in self._events:
            try:
                self._put_back(event)
            except (Conflict, _ChangedSince) as why:
                self._refused.append((event, why))
        if self._refused:
            raise self._refusal()
        if not self._changes:
            raise Conflict("there is nothing left to undo")
        return Plan(
            summary=f"undo {first.operation} of {first.at:%Y-%m-%d %H:%M:%S} UTC",
            changes=tuple(self._changes.values()),
            because=tuple(self._because),
            undo="undo this change in its turn",
        )

    def _put_back(self, event: Event) -> None:
        kind = kind_named(self._ask.state, event.kind)
        if kind is None:
            raise Conflict(f"{event.kind} is no longer a kind of record")
        if kind.secret or event.kind in _GOES_ALONG:
            self._secret(kind, event)
        elif not bytes(event.after):
            self._make_again(kind, event)
        elif event.revision == 1:
            self._take_away(kind, event)
        else:
            self._change_back(kind, event)

    def _refusal(self) -> Exception:
        """What is in the way: of one record as it is, of several each with its own."""
        _, first = self._refused[0]
        if len(self._refused) == 1:
            return first
        return Conflict(
            f"{len(self._refused)} of {len(self._events)} records cannot be put back, so that none is: {_says(first)}",
            because={_named(event): _says(why) for event, why in self._refused},
        )

    def _secret(self, kind: Kind[Record], event: Event) -> None:
        if event.kind == "kept_answer" or (bytes(event.after) and event.revision == 1):
            return  # goes with what it belongs to
        if bytes(event.after):
            raise Conflict(f"a {_words(event.kind)} was changed: what it was is a secret that the log does not keep")
        what = f"{_words(kind.name)} stays gone: it is a secret that the log does not keep"
        self._because.append(Reason(about=_words(kind.name), says=what))

    def _operation(self, event: Event, verb: str) -> Operation:
        """The noun's own operation for this, if it changes nothing but records and the caller may do it."""
        noun = self._nouns.get(event.kind)
        found = next((each for each in noun.declared if each.verb == verb), None) if noun is not None else None
        if found is None or found.planner is None:
            raise Conflict(f"{_named(event)}: nobody can {verb} a {_words(event.kind)} by itself")
        self._authorise(found, self._ask.caller)
        if found.starts is not None:
            raise Conflict(f"{_named(event)}: {found.id} goes to hosts by a task; ask for that by its own operation")
        return found

    def _see(self, event: Event, record: Record) -> None:
        noun = self._nouns.get(event.kind)
        # Administrators of the cloud undo whole requests, in which others' keypairs may be.
        if noun is not None and not self._ask.caller.is_platform and not noun.visible(self._ask, record):
            raise NotFound(f"there is no event {event.sequence}")

    def _take_away(self, kind: Kind[Record], event: Event) -> None:
        if event.id in self._changes:
            return  # what it belongs to takes it along
        now = self._ask.state.table(kind).find(event.id)
        if now is None:
            raise _ChangedSince(event, "it is gone already")
        self._see(event, now)
        if now.revision != event.revision:
            raise _ChangedSince(event, "what was made is no longer as it was made")
        operation = self._operation(event, "delete")
        made_then = {each.id for each in self._events if each.revision == 1}
        for change in _planned(operation, self._ask, now).changes:
            of = self._ask.state.kind_of(change.record)
            if change.record.id not in made_then and not of.secret and of.name not in _GOES_ALONG:
                raise _ChangedSince(event, f"{_words(of.name)} {change.record.id} has come to belong to it")
            self._changes[change.record.id] = change

    def _change_back(self, kind: Kind[Record], event: Event) -> None:
        before, after = read_before(kind, event), read_after(kind, event)
        now = self._ask.state.table(kind).find(event.id)
        if now is None:
            raise _ChangedSince(event, "it is gone")
        self._see(event, now)
        fields = _differing(before, after)
        for name in fields:
            if getattr(now, name) != getattr(after, name):
                raise _ChangedSince(event, f"its {_words(name)} is another by now")
        if not fields:
            return
        back = {name: getattr(before, name) for name in fields}
        if not set(fields) <= _BY_OTHERS.get(event.kind, frozenset()):
            self._ask_planner(self._operation(event, "change"), event, now, back)
        elif isinstance(now, FloatingIp) and isinstance(before, FloatingIp) and before.port_id is not None:
            wanted = associate(self._ask, now, FloatingIpAssociate(port_id=before.port_id)).answers
            if not isinstance(wanted, FloatingIp) or wanted.fixed_address != before.fixed_address:
                raise _ChangedSince(event, "the port that it belonged to has other addresses")
        self._check_references(event, back)
        self._changes[event.id] = put(msgspec.structs.replace(now, **back))

    def _make_again(self, kind: Kind[Record], event: Event) -> None:
        if event.kind not in _MADE_OF_RECORDS:
            raise Conflict(f"{_named(event)} was more than its record, and that is gone")
        before = read_before(kind, event)
        self._see(event, before)
        if isinstance(before, Network) and before.is_physical:
            raise Conflict(f"{_named(event)} is {before.kind}: what it stands for is made by hand, with its subnet")
        if self._ask.state.table(kind).find(event.id) is not None:
            raise _ChangedSince(event, "it is there again")
        fields = {each.name: getattr(before, each.name) for each in msgspec.structs.fields(before)}
        depends = any(id in self._back and id != event.id for id in _ids(fields))
        operation = self._operation(event, "create")
        if not depends:  # a planner does not see what is about to come back
            self._ask_planner(operation, event, None, fields)
        self._check_references(event, fields)
        self._check_addresses(event, before)
        self._changes[event.id] = put(msgspec.structs.replace(before, revision=0))

    def _ask_planner(self, operation: Operation, event: Event, now: Record | None, fields: Mapping[str, Any]) -> None:
        """Have the operation that does this by hand refuse what it would refuse."""
        wish_type = operation.wish_type
        assert wish_type is not None, "what is created or changed is wished for"
        if now is not None and (others := set(fields) - set(wish_type.model_fields)):
            raise Conflict(f"{_named(event)}: {', '.join(map(_words, sorted(others)))} cannot be put back by itself")
        wish = _wish(wish_type, fields)
        _planned(operation, self._ask, *([] if now is None else [now]), wish)

    def _check_references(self, event: Event, fields: Mapping[str, Any]) -> None:
        state = self._ask.state
        for id in _ids(fields):
            if id != event.id and id not in self._back and not any(id in state.table(kind) for kind in state.kinds):
                raise Conflict(f"{_named(event)} refers to {id}, which is gone")

    def _check_addresses(self, event: Event, record: Record) -> None:
        addresses = self._ask.view(Addresses)
        for network, address in held(record):
            if addresses.holders(network, address):
                raise Conflict(f"{_named(event)} had the address {address}, which somebody else has by now")


async def sequence_of(ask: Ask, id: str) -> int:
    """The number of the first event of a request, by its own id or by that of its task.

    Raises:
        NotFound: there is no such request or task any more, or it changed nothing, or is not for this caller.
    """
    await ask.state.durable()
    begun = made_at(id)
    for where in (
        EventFilter(task=id),
        # Nothing is in the log before it was asked for, and little long after; but no index knows of requests.
        EventFilter(request=id, since=begun - _CLOCKS, until=begun + _LONGEST),
    ):
        if found := await ask.state.store.events(0, 1, where):
            return found[0].sequence
    raise NotFound(f"the log has nothing of a request or task {id}")


async def _request_of(ask: Ask, sequence: int) -> list[Event]:
    """All events of the request that this event is of, in their order; none if the event is not kept."""
    store = ask.state.store
    await ask.state.durable()
    events = await store.events(max(0, sequence - _AROUND), 2 * _AROUND, EventFilter())
    place = next((place for place, event in enumerate(events) if event.sequence == sequence), None)
    if place is None:
        return []
    first = last = place
    while first > 0 and _together(events[first - 1], events[place]):
        first -= 1
    while last + 1 < len(events) and _together(events[last + 1], events[place]):
        last += 1
    if last - first >= _AROUND:
        raise Conflict(f"this request changed more than {_AROUND} records")
    return events[first : last + 1]


def _together(one: Event, other: Event) -> bool:
    # One transaction has one time; a request that went on as a task made several.
    return (one.request, one.operation, one.at) == (other.request, other.operation, other.at)


async def _later_changes(state: State, later: _ChangedSince) -> dict[str, str]:
    history = await state.store.history(later.event.kind, later.event.id)
    return {
        f"event {each.sequence}": f"{each.operation} by {each.actor}"
        for each in history
        if each.sequence > later.event.sequence
    }


def _says(why: Exception) -> str:
    return why.detail if isinstance(why, Conflict) else str(why)


def _by_a_task(event: Event) -> str:
    if not bytes(event.after):
        return "is gone from its host"
    return "was made on a host" if event.revision == 1 else "was changed on its host"


def _planned(operation: Operation, *arguments: Any) -> Plan:  # noqa: ANN401 - as its planner takes them
    assert operation.planner is not None
    plan = operation.planner(*arguments)
    assert isinstance(plan, Plan), "only what undoes reads the log"
    return plan


def _differing(before: Record, after: Record) -> list[str]:
    names = (field.name for field in msgspec.structs.fields(before))
    return [name for name in names if name != "revision" and getattr(before, name) != getattr(after, name)]


def _ids(fields: Mapping[str, Any]) -> Iterator[str]:
    """The ids that these fields refer to, by their names."""
    for name, value in fields.items():
        if name.endswith("_id") and value:
            yield value
        elif name.endswith("_ids"):
            yield from value


def _wish(wish_type: type[BaseModel], fields: Mapping[str, Any]) -> BaseModel:
    """A wish for these fields, as far as it takes them. Raises Conflict if it does not take their values any more."""
    known = {name: value for name, value in fields.items() if name in wish_type.model_fields}
    given = {name: value for name, value in known.items() if value not in (None, ())}
    try:
        return wish_type.model_validate_json(msgspec.json.encode(given))
    except ValidationError as wrong:
        raise Conflict(f"what it was is no longer allowed: {wrong.errors()[0]['msg']}") from None


def _named(event: Event) -> str:
    return f"{_words(event.kind)} {event.id}"


def _words(name: str) -> str:
    return name.replace("_", " ")
