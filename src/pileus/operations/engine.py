"""The engine behind all operations: authorise, validate, plan, quota, commit, start the workflow, answer.

It knows nothing of HTTP but statuses; `http.py` brings requests here and takes answers back.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
from pydantic import ValidationError

from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, Forbidden, Invalid, NotFound, PileusError, Stale
from pileus.kernel.ids import ProjectId, TaskId, is_id
from pileus.operations.caller import Caller
from pileus.operations.declare import AT, Answer, Noun, Operation
from pileus.operations.idempotency import KeptAnswer, fingerprint, kept, key_id
from pileus.operations.listing import Page, flag, only_of, page
from pileus.operations.plan import Ask, Plan, ShownChange, ShownPlan
from pileus.operations.references import references
from pileus.operations.usage import Limits, Usage
from pileus.state.history import History, moment_of
from pileus.state.records import Record
from pileus.state.state import Change, Origin, State, put
from pileus.workflow.engine import Engine
from pileus.workflow.task import Task

_encode = msgspec.json.Encoder().encode

_MAX_KEY = 255


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request, out of its HTTP clothes."""

    operation: Operation
    noun: Noun[Any]
    caller: Caller
    target: str = ""
    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: bytes = b""


@dataclass
class Performer:
    """Performs operations. One for a controller."""

    state: State
    engine: Engine[Any]
    clock: Clock
    usage: Usage
    limits: Limits
    views: Mapping[type, Any]
    history: History
    nouns: Mapping[str, Noun[Any]]
    """By what references call them."""
    services: Mapping[type, Any] = field(default_factory=dict[type, Any])

    def authorise(self, operation: Operation, caller: Caller) -> None:
        """Raises Forbidden if the caller's roles, or what is left of them, do not permit this operation."""
        if operation.least is None or caller.may(operation.id):
            return
        if caller.held_back_by:
            raise Forbidden(f"this takes the permission {operation.id}: {caller.held_back_by}")
        if caller.role is None:
            raise Forbidden(f"this takes the permission {operation.id}, which none of your roles in this project has")
        raise Forbidden(f"this takes the role {operation.least}, you are {caller.role} in this project")

    def ask(self, caller: Caller, *, dry_run: bool = False) -> Ask:
        return Ask(state=self.state, caller=caller, now=self.clock.now(), views=self.views, dry_run=dry_run)

    def target(self, request: Request, ask: Ask) -> Record:
        """The record that the path names. Raises NotFound if it is not there or not for this caller."""
        found = self.state.table(request.noun.kind).find(request.target)
        if found is None or not request.noun.visible(ask, found):
            raise NotFound(f"there is no {request.noun.name.replace('_', ' ')} {request.target}")
        match = request.headers.get("if-match")
        if match and not {"*", str(found.revision)} & {each.strip(' "') for each in match.split(",")}:
            raise Stale(f"it is at revision {found.revision}, not {match}")
        return found

    async def target_then(self, request: Request, ask: Ask) -> Record:
        """The record that the path names, as it was at the moment `at`: for who may see it by today's rights.

        Raises:
            NotFound: it was not there, or is not for this caller.
            Invalid: the moment is none that the log knows.
        """
        past = await self.history.at(_moment(request.query))
        found = await past.find(request.noun.kind, request.target)
        if found is None or not visible_then(request.noun, ask)(ask, found):
            raise NotFound(f"there was no {request.noun.name.replace('_', ' ')} {request.target} then")
        return found

    def wish(self, operation: Operation, body: bytes) -> Any:  # noqa: ANN401 - the operation's wish type
        """The body, as the operation's wish. Raises Invalid, naming every wrong field."""
        try:
            return operation.wish.validate_json(body or b"{}")
        except ValidationError as wrong:
            fields = {".".join(map(str, each["loc"])) or "body": _said(each["msg"]) for each in wrong.errors()}
            raise Invalid("some fields are wrong", fields=fields) from None

    async def perform(self, request: Request) -> Answer:
        """Do one operation. Raises PileusError."""
        operation = request.operation
        self.authorise(operation, request.caller)
        if operation.reads:
            return await self._read(request)
        dry_run = _flag(request.query, "dry_run")
        ask = self.ask(request.caller, dry_run=dry_run)
        # What was done already is looked up before anything else: a record that was deleted is no longer there.
        key, print_ = ("", "") if dry_run else self.key_of(request)
        if key and (answer := kept(self.state, key, print_)) is not None:
            await self.state.durable()
            headers = {"idempotency-replayed": "true"}
            return Answer(status=answer.status, body=answer.body.encode(), headers=headers)
        try:
            planned = self._planned(request, ask)
            plan = planned if isinstance(planned, Plan) else await planned
        except NotFound as first:
            raise self._missing(first, request, ask) from None
        if dry_run:
            self.usage.check(plan.changes, self.state, self.limits)
            return Answer(status=200, body=_encode(self.shown(plan)))
        return await self.commit(plan, request, key=key, print_=print_)

    def _planned(self, request: Request, ask: Ask) -> Plan | Awaitable[Plan]:
        operation = request.operation
        arguments: list[Any] = [ask]
        # A record is looked up before the body is read: who may not see it learns nothing of the body's rules.
        if operation.takes_record:
            arguments.append(self.target(request, ask))
        if operation.wish is not None:
            arguments.append(self.wish(operation, request.body))
        elif request.body.strip() not in (b"", b"{}"):
            raise Invalid("this takes no body", fields={"body": "must be empty"})
        assert operation.planner is not None, "special operations are performed by their route"
        return operation.planner(*arguments)

    def _missing(self, first: NotFound, request: Request, ask: Ask) -> NotFound:
        """What a planner did not find, with all the rest of what the request names and this caller does not see."""
        wish = request.operation.wish
        if wish is None or not first.fields:
            return first
        details, fields = [first.detail], dict(first.fields)
        for at, name, id in references(wish, msgspec.json.decode(request.body)):
            noun = self.nouns.get(name)
            if noun is None or not is_id(id) or {at, at.partition(".")[0]} & fields.keys():
                continue
            found = self.state.table(noun.kind).find(id)
            if found is None or not noun.visible(ask, found):
                details.append(f"there is no {noun.name.replace('_', ' ')} {id}")
                fields[at] = "not found"
        return NotFound("; ".join(details), fields=fields)

    def plan_together(self, requests: Iterable[Request], *, dry_run: bool) -> list[Plan | PileusError]:
        """What each of these would do if those before it were done: with what they take of hosts, addresses and quota.

        In the place of a plan stands why there is none.
        """
        plans: list[Plan | PileusError] = []
        touched: set[str] = set()
        with self.state.supposing() as suppose:
            for request in requests:
                try:
                    self.authorise(request.operation, request.caller)
                    plan = self._planned(request, self.ask(request.caller, dry_run=dry_run))
                    assert isinstance(plan, Plan), "only what undoes reads the log"
                    if twice := next((each.record for each in plan.changes if each.record.id in touched), None):
                        what = self.state.kind_of(twice).name.replace("_", " ")
                        raise Conflict(f"another one of this request takes {what} {getattr(twice, 'name', twice.id)}")
                    self.usage.check(plan.changes, self.state, self.limits)
                except PileusError as refused:
                    plans.append(refused)
                else:
                    touched.update(each.record.id for each in plan.changes)
                    suppose(plan.changes)
                    plans.append(plan)
        return plans

    async def commit(self, plan: Plan, request: Request, *, key: str = "", print_: str = "") -> Answer:
        """Make a plan so: quota, one transaction with its task, its workflow started once that is on disk."""
        caller, operation = request.caller, request.operation
        origin = Origin(actor=caller.actor, operation=operation.id, request=caller.request, source=caller.source)
        self.usage.check(plan.changes, self.state, self.limits)
        changes: list[Change] = list(plan.changes)
        task: Task | None = None
        if plan.begin is not None:
            subject = _subject(plan)
            project = ProjectId(getattr(subject, "project_id", "") or caller.project_id)
            task = self.engine.task_for(
                plan.begin, project=project, subject=subject, origin=origin, now=self.clock.now()
            )
            changes.append(put(task))
            origin = msgspec.structs.replace(origin, task=task.id)
        answer = self._answer(operation, plan, task)
        if key:
            changes.append(
                put(
                    KeptAnswer(
                        id=key,
                        created_at=self.clock.now(),
                        project_id=caller.project_id,
                        fingerprint=print_,
                        status=answer.status,
                        body=answer.body.decode(),
                    )
                )
            )
        if changes:
            self.state.apply(changes, origin)
            if task is not None:
                # From here on it is promised. The caller may go away: the task must start all the same.
                self.state.when_durable(partial(self.engine.launch, TaskId(task.id)))
        # Also if nothing has changed: what was answered from may not be on disk yet.
        await self.state.durable()
        return answer

    def _answer(self, operation: Operation, plan: Plan, task: Task | None) -> Answer:
        """What the caller is going to get: the record as this commit leaves it."""
        shown: Any = plan.answers
        changed = isinstance(shown, Record) and any(change.record is shown for change in plan.changes)
        if isinstance(shown, Record) and changed:
            shown = msgspec.structs.replace(shown, revision=shown.revision + 1)
        if task is not None:
            body = {"task_id": task.id} if shown is None else {"task_id": task.id, operation.noun: shown}
            return Answer(status=202, body=_encode(body), headers={"pileus-task": task.id})
        if shown is None:
            return Answer(status=204)
        headers = {"etag": f'"{shown.revision}"'} if isinstance(shown, Record) else {}
        return Answer(status=operation.status, body=_encode(shown), headers=headers)

    async def _read(self, request: Request) -> Answer:
        ask = self.ask(request.caller)
        if request.operation.reads == "list":
            body = _encode(await self._page(request, ask))
            headers: dict[str, str] = {}
        else:
            if wrong := [name for name in request.query if name != AT.name]:
                raise Invalid("some parameters are wrong", fields=dict.fromkeys(wrong, "no such parameter"))
            found = await self.target_then(request, ask) if request.query else self.target(request, ask)
            body = _encode(found)
            headers = {"etag": f'"{found.revision}"'}
        # What was read may not be on disk yet; until it is, nobody is told.
        await self.state.durable()
        return Answer(status=200, body=body, headers=headers)

    async def _page(self, request: Request, ask: Ask) -> Page:
        operation, noun, query = request.operation, request.noun, request.query
        if AT.name not in query:
            return page(operation, noun, ask, query)
        moment = _moment(query)
        query = {name: value for name, value in query.items() if name != AT.name}
        project = only_of(operation, noun, ask, query)
        past = await self.history.at(moment)
        table = await past.table(noun.kind, project, noun.scope)
        seen = copy(noun)
        seen.visible = visible_then(noun, ask)
        return page(operation, seen, ask, query, table)

    def key_of(self, request: Request) -> tuple[str, str]:
        """Under which its answer is kept, and what tells it from others under that; empty if it is not kept."""
        key = request.headers.get("idempotency-key", "")
        if not key:
            return "", ""
        if len(key) > _MAX_KEY or not key.isprintable():
            raise Invalid(
                "some headers are wrong", fields={"Idempotency-Key": f"up to {_MAX_KEY} printable characters"}
            )
        return key_id(request.caller, key), fingerprint(request.operation.id, request.target, request.body)

    def shown(self, plan: Plan) -> ShownPlan:
        """A plan as people see it."""
        return ShownPlan(
            summary=plan.summary,
            changes=[self._shown(change) for change in plan.changes],
            because=plan.because,
            workflow=plan.begin.workflow.name if plan.begin else None,
            undo=plan.undo,
        )

    def _shown(self, change: Change) -> ShownChange:
        record = change.record
        kind = self.state.kind_of(record)
        before = self.state.table(kind).find(record.id)
        # That a secret record changes is no secret; what it holds stays one, in a preview too.
        now: dict[str, Any] = {} if kind.secret else msgspec.to_builtins(record)
        if change.removes:
            action, fields = "remove", dict[str, Any]()
        elif before is None:
            action, fields = "create", now
        else:
            was: dict[str, Any] = msgspec.to_builtins(before)
            action, fields = "change", {name: value for name, value in now.items() if was.get(name) != value}
        name = str(getattr(record, "name", ""))
        return ShownChange(action=action, kind=kind.name, id=record.id, name=name, fields=fields)


def visible_then(noun: Noun[Any], ask: Ask) -> Callable[[Ask, Any], bool]:
    """Whether a caller may see a record of the past: by what it was, and, if it is still there, by what it is.

    So a right that somebody was given holds for the past too, and one that was taken away is gone for the past too.
    """
    today = ask.state.table(noun.kind)

    def visible(ask: Ask, then: Record) -> bool:
        now = today.find(then.id)
        return noun.visible(ask, then) and (now is None or noun.visible(ask, now))

    return visible


def _moment(query: Mapping[str, str]) -> datetime:
    moment = moment_of(query[AT.name])
    if moment is None:
        raise Invalid("some parameters are wrong", fields={AT.name: "a time such as 2026-01-31T12:00:00Z"})
    return moment


def _subject(plan: Plan) -> Record:
    """What a plan's task is about: what it answers with, or else the first record that it changes."""
    if isinstance(plan.answers, Record):
        return plan.answers
    return plan.changes[0].record


def _said(message: str) -> str:
    """What is wrong with a field, without how pydantic files it."""
    return message.removeprefix("Value error, ")


def _flag(query: Mapping[str, str], name: str) -> bool:
    wrong = {each: "no such parameter" for each in query if each != name}
    value = flag(query.get(name, "false"))
    if value is None:
        wrong[name] = "true or false"
    if wrong:
        raise Invalid("some parameters are wrong", fields=wrong)
    return bool(value)


@dataclass
class PlainExchange:
    """An `Exchange`, over a request whose body has not been read."""

    performer: Performer
    request: Request
    chunks: Callable[[], AsyncIterator[bytes]]

    @property
    def ask(self) -> Ask:
        return self.performer.ask(self.request.caller)

    @property
    def caller(self) -> Caller:
        return self.request.caller

    @property
    def services(self) -> Mapping[type, Any]:
        return self.performer.services

    @property
    def target(self) -> str:
        return self.request.target

    def query(self, name: str, default: str = "") -> str:
        return self.request.query.get(name, default)

    def header(self, name: str) -> str:
        return self.request.headers.get(name.lower(), "")

    def body(self) -> AsyncIterator[bytes]:
        return self.chunks()

    async def commit(self, plan: Plan, *, once: bytes | None = None) -> Answer:
        key, print_ = self._key(once)
        return await self.performer.commit(plan, self.request, key=key, print_=print_)

    async def answered(self, once: bytes) -> Answer | None:
        key, print_ = self._key(once)
        if not key or (answer := kept(self.performer.state, key, print_)) is None:
            return None
        await self.performer.state.durable()
        return Answer(status=answer.status, body=answer.body.encode(), headers={"idempotency-replayed": "true"})

    async def perform(
        self, verb: str, part: str, *, target: str = "", body: bytes = b"", dry_run: bool = False
    ) -> Answer:
        key = self.header("idempotency-key")
        one = self._part(verb, target, body)
        query = {"dry_run": "true"} if dry_run else {}
        headers = {"idempotency-key": f"{key}:{part}"} if key else {}
        return await self.performer.perform(msgspec.structs.replace(one, query=query, headers=headers))

    def plan_together(
        self, verb: str, asked: Iterable[tuple[str, bytes]], *, dry_run: bool = False
    ) -> list[Plan | PileusError]:
        parts = (self._part(verb, target, body) for target, body in asked)
        return self.performer.plan_together(parts, dry_run=dry_run)

    def shown(self, plan: Plan) -> ShownPlan:
        return self.performer.shown(plan)

    def _part(self, verb: str, target: str, body: bytes) -> Request:
        noun = self.request.noun
        operation = next(each for each in noun.declared if each.verb == verb)
        return Request(operation=operation, noun=noun, caller=self.request.caller, target=target, body=body)

    def _key(self, once: bytes | None) -> tuple[str, str]:
        if once is None:
            return "", ""
        return self.performer.key_of(msgspec.structs.replace(self.request, body=once))
