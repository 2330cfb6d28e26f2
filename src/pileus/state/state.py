"""The state of the cloud: every record in memory, every change in the log before anybody is told of it.

One asyncio process writes, so there are no locks: between reading and `apply` nothing else runs. `apply` checks a
transaction and changes memory at once, so that the next planner sees it; `durable` comes back when the log has it on
disk. Everything that is waiting then goes in one database transaction (group commit). No effect may leave the process
before: answers, messages to agents and woken reconcilers all wait for `durable`.
"""

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar, cast

import msgspec
import structlog

from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, PileusError, Stale, Unavailable
from pileus.state.kinds import Kind, project_of
from pileus.state.records import Record
from pileus.state.sharing import Shared
from pileus.state.store import Event, Store
from pileus.state.tables import Table

log = structlog.stdlib.get_logger()

R = TypeVar("R", bound=Record)

_NOTHING = msgspec.Raw(b"")


class Change(msgspec.Struct, frozen=True, gc=False):
    """One record put, or removed; its `revision` is the one that the change was made from."""

    record: Record
    removes: bool = False


def put(record: Record) -> Change:
    return Change(record)


def remove(record: Record) -> Change:
    return Change(record, removes=True)


class Origin(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who makes a change, asked for by what, from where."""

    actor: str
    operation: str
    request: str = ""
    source: str = ""
    task: str = ""


class View(Protocol):
    """Something kept in step with the records: a sum, an allocation. Changed at once with them, before the log."""

    def changed(self, kind: str, before: Record | None, after: Record | None) -> None: ...


Listener = Callable[[Sequence[Event]], None]
"""Is told of events when they are on disk. Must not block, and not raise."""


class _Group:
    """Events that go to disk together, and what waits for that."""

    __slots__ = ("events", "then", "waiting")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.then: list[Callable[[], None]] = []
        self.waiting: list[asyncio.Future[None]] = []

    def written(self) -> asyncio.Future[None]:
        """Is done when they are on disk; a future of one's own, so that who is cancelled cancels nobody else."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        return future

    def end(self, error: Exception | None = None) -> None:
        for each in self.waiting:
            if each.done():
                continue
            if error is None:
                each.set_result(None)
            else:
                each.set_exception(error)


class State:
    """All records, by kind. `async with opened(...)` gives one that is loaded and logging."""

    def __init__(self, kinds: Iterable[Kind[Any]], store: Store, clock: Clock, views: Sequence[View] = ()) -> None:
        self._tables: dict[str, Table[Any]] = {}
        self._kind_of: dict[type[Record], Kind[Any]] = {}
        for kind in kinds:
            self._tables[kind.name] = Table(kind)
            self._kind_of[kind.record] = kind
        self._store = store
        self._clock = clock
        self._views = list(views)
        self._listeners: list[Listener] = []
        self._sequence = 0
        self._group: _Group | None = None
        """What waits to be written."""
        self._writing: _Group | None = None
        self._wake = asyncio.Event()
        self._broken: PileusError | None = None
        self._breaks: asyncio.Future[PileusError] = asyncio.get_running_loop().create_future()
        self._encode = msgspec.json.Encoder().encode

    def table(self, kind: Kind[R]) -> Table[R]:
        return self._tables[kind.name]

    def __getitem__(self, kind: Kind[R]) -> Table[R]:
        return self._tables[kind.name]

    @property
    def kinds(self) -> list[Kind[Any]]:
        return [table.kind for table in self._tables.values()]

    def kind_of(self, record: Record) -> Kind[Any]:
        return self._kind_of[type(record)]

    @property
    def broken(self) -> PileusError | None:
        """Why the log can no longer be written; the process is about to end then."""
        return self._broken

    async def broken_by(self) -> PileusError:
        """Wait until the log can no longer be written, and say why."""
        return await self._breaks

    @property
    def store(self) -> Store:
        """Where the log is, for reading events."""
        return self._store

    @property
    def sequence(self) -> int:
        """Of the newest event, on disk or not."""
        return self._sequence

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tell this listener of every event from now on; call what is returned to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def load(self) -> None:
        """Read every record. What a kind no longer knows is an error, not a loss."""
        shared = Shared()
        async for batch in self._store.load():
            for stored in batch:
                table = self._tables.get(stored.kind)
                if table is None:
                    raise Conflict(f"the store has records of a kind that this Pileus does not know: {stored.kind}")
                record = table.kind.read(stored)
                shared.share(record)
                table.write(record.id, record)
                self._tell_views(stored.kind, None, record)
        self._sequence = await self._store.last_sequence()
        # A full collection over a loaded cloud stops everything for half a second; what is loaded hardly ever dies.
        gc.collect()
        gc.freeze()

    def apply(self, changes: Iterable[Change], origin: Origin) -> None:
        """Check a transaction and make it so in memory; all of it or, with an error, nothing. Await `durable` next.

        Raises:
            Stale: a record is not at the revision from which its change was made.
            Conflict: a unique key is taken.
            Unavailable: the log cannot be written any more.
        """
        if self._broken is not None:
            raise self._broken
        changes = list(changes)
        if not changes:
            return
        self._check(changes)
        at = self._clock.now()
        if self._group is None:
            self._group = _Group()
            self._wake.set()
        for change in changes:
            kind = self._kind_of[type(change.record)]
            after = (
                None if change.removes else msgspec.structs.replace(change.record, revision=change.record.revision + 1)
            )
            before = self._tables[kind.name].write(change.record.id, after)
            self._tell_views(kind.name, before, after)
            self._sequence += 1
            event = Event(
                sequence=self._sequence,
                at=at,
                actor=origin.actor,
                operation=origin.operation,
                request=origin.request,
                source=origin.source,
                task=origin.task,
                project=project_of(change.record),
                kind=kind.name,
                id=change.record.id,
                revision=change.record.revision + 1,
                version=kind.version,
                before=msgspec.Raw(self._encode(before)) if before is not None and kind.keeps_before else _NOTHING,
                after=msgspec.Raw(self._encode(after)) if after is not None else _NOTHING,
            )
            self._group.events.append(event)

    def tell(self, kind: str, id: str, what: bytes, origin: Origin, *, project: str = "") -> None:
        """Have it in the log what changed no record; nobody waits for it.

        Args:
            kind: what it is; of no kind of records.
            id: what it is about.
            what: the JSON of it. It goes where events have what was before: what is after would be kept as a record.
            origin: who, by what, from where.
            project: who may see it.
        """
        if self._broken is not None:
            return
        if self._group is None:
            self._group = _Group()
            self._wake.set()
        self._sequence += 1
        event = Event(
            sequence=self._sequence,
            at=self._clock.now(),
            actor=origin.actor,
            operation=origin.operation,
            request=origin.request,
            source=origin.source,
            project=project,
            kind=kind,
            id=id,
            revision=0,
            before=msgspec.Raw(what),
        )
        self._group.events.append(event)

    def _check(self, changes: Sequence[Change]) -> None:
        seen: set[tuple[str, str]] = set()
        claimed: dict[tuple[str, str, Any], str] = {}
        gone = {change.record.id for change in changes if change.removes}
        for change in changes:
            record = change.record
            kind = self._kind_of[type(record)]
            table = self._tables[kind.name]
            if (kind.name, record.id) in seen:
                raise ValueError(f"{kind.name} {record.id} twice in one transaction")
            seen.add((kind.name, record.id))
            current = table.find(record.id)
            if (current.revision if current is not None else 0) != record.revision:
                raise Stale(f"{kind.name} {record.id} was changed by somebody else in the meantime")
            if change.removes:
                if current is None:
                    raise Stale(f"{kind.name} {record.id} is gone already")
                continue
            for name, key_of in kind.unique.items():
                key = key_of(record)
                if key is None:
                    continue
                holder = claimed.get((kind.name, name, key)) or table.holder(name, key)
                if holder not in (None, record.id) and holder not in gone:
                    raise Conflict(
                        f"another {kind.name} has this {name.replace('_', ' ')} already", fields={name: "taken"}
                    )
                claimed[kind.name, name, key] = record.id

    @contextmanager
    def supposing(self) -> Generator[Callable[[Iterable[Change]], None]]:
        """Have views count changes that are only planned, for what is planned next to find less left.

        What is given is called with them. At the end all is taken back; nothing may be awaited before.
        """
        supposed: list[tuple[str, Record | None, Record | None]] = []

        def suppose(changes: Iterable[Change]) -> None:
            for change in changes:
                kind = self.kind_of(change.record)
                now = None if change.removes else change.record
                supposed.append((kind.name, self.table(kind).find(change.record.id), now))
                self._tell_views(*supposed[-1])

        try:
            yield suppose
        finally:
            for kind, before, now in reversed(supposed):
                self._tell_views(kind, now, before)

    def _tell_views(self, kind: str, before: Record | None, after: Record | None) -> None:
        for view in self._views:
            view.changed(kind, before, after)

    async def durable(self) -> None:
        """Come back when everything applied so far is on disk.

        Raises:
            Unavailable: the log could not be written. Memory is ahead of it now, so this process must end.
        """
        if self._broken is not None:
            raise self._broken
        group = self._group or self._writing
        if group is not None:
            await group.written()

    def when_durable(self, deed: Callable[[], None]) -> None:
        """Do this when everything applied so far is on disk, if it ever is. It must not block, and not raise."""
        group = self._group or self._writing
        if group is not None:
            group.then.append(deed)
        else:
            deed()

    async def commit(self, changes: Iterable[Change], origin: Origin) -> None:
        """`apply`, then `durable`."""
        self.apply(changes, origin)
        await self.durable()

    async def keep_log(self) -> None:
        """Write the log until cancelled. What it raises is the end of this process: memory is ahead of the disk."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._flush()

    async def _flush(self) -> None:
        group, self._group = self._group, None
        if group is None:
            return
        self._writing = group
        try:
            await self._store.append(group.events)
        except PileusError as refused:
            self._break(group, refused)
            raise
        except Exception as failed:
            self._break(group, Unavailable("the event log cannot be written", internal=repr(failed)))
            log.critical("event log cannot be written", exc_info=failed)
            raise
        finally:
            self._writing = None
        group.end()
        for listener in list(self._listeners):
            listener(group.events)
        for deed in group.then:
            deed()

    def _break(self, group: _Group, error: PileusError) -> None:
        self._broken = error
        if not self._breaks.done():
            self._breaks.set_result(error)
        for each in (group, self._group):
            if each is not None:
                each.end(error)


@asynccontextmanager
async def opened(
    kinds: Iterable[Kind[Any]], store: Store, clock: Clock, views: Sequence[View] = ()
) -> AsyncGenerator[State]:
    """A state over a store: opened, loaded, logging; written to the end and closed when left."""
    await store.open()
    try:
        state = State(kinds, store, clock, views)
        await state.load()
        writer = asyncio.create_task(state.keep_log(), name="event log")
        try:
            yield state
            await state.durable()
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
    finally:
        await store.close()


def kind_named(state: State, name: str) -> Kind[Record] | None:
    """The kind of this name, if there is one."""
    return next((cast("Kind[Record]", kind) for kind in state.kinds if kind.name == name), None)
