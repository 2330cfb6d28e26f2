"""The writer of OVN's northbound database: keeps it what our records say, and puts right what others do to it.

A changed record becomes the difference of what it projects before and after; all that waits is written in one
transaction. The server tells us of changes that are not ours, and any of them has everything read and compared: as do
the start, a connection that was lost, a refusal, and now and then the clock. No copy of the database is kept.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from pileus.kernel.errors import TimedOut, Unavailable
from pileus.kernel.ids import HostId, PortId
from pileus.ovn.ovsdb import Ovsdb, TransactionRefused, now
from pileus.ovn.pending import Part, Pending, joined
from pileus.ovn.rows import TABLES, Difference, Fact, Key, facts_of, operations, row_id, selections
from pileus.ovn.view import NetworkRecord, View
from pileus.state.state import Change

log: structlog.stdlib.BoundLogger = structlog.get_logger()

T = TypeVar("T")

_DATABASE = "OVN_Northbound"
_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 5.0
_BETWEEN_COMPARISONS_S = 0.2
"""Somebody who writes all the time costs us so many readings of everything, and no more."""
_AT_ONCE = 200
"""How many owners or rows are worked through before others have their turn: some milliseconds."""
_PARTS_AT_ONCE = 1000
"""How many owners are written in one transaction: some 50 ms of ours, and as much of the server's."""
_BFD = {"bfd-min-rx": "200", "bfd-min-tx": "200", "bfd-mult": "3"}
"""How hosts watch their gateways, in milliseconds: a router moves to another after 0.6 s; by OVN's own figures, 3."""


class OvnNorthbound:
    """Writes to the database at `remote` (`unix:PATH` or `tcp:HOST:PORT`). See `pileus.ovn.port.Northbound`."""

    def __init__(self, remote: str, *, compare_every_s: float = 3600.0) -> None:
        self._remote = remote
        self._compare_every_s = compare_every_s
        self._pending = Pending(View())
        self._connection: Ovsdb | None = None
        self._work = asyncio.Event()
        self._comparing_is_due = True
        self._bfd_is_due = False
        self._updates_of_ours: int | None = None
        """How many updates came while a transaction of ours was under way; None while none is."""
        self._asked = _Waiters()
        self._on_hosts = _Waiters()
        self._up: set[str] = set()
        """The rows of the ports that are connected."""
        self._coming_up: dict[str, set[asyncio.Future[None]]] = {}

    def load(self, records: Iterable[NetworkRecord], *, gateways: Sequence[HostId] = ()) -> None:
        self._pending = Pending(View(records, gateways=gateways))
        self.compare()

    def changed(self, changes: Iterable[Change]) -> None:
        self._pending.take(changes)
        self._ask()

    def gateways_are(self, hosts: Sequence[HostId]) -> None:
        self._pending.gateways_are(hosts)
        self._ask()

    def compare(self) -> None:
        self._comparing_is_due = True
        self._ask()

    async def settled(self, *, timeout_s: float = 10.0) -> None:
        await self._within(timeout_s, self._asked.reaching(self._asked.last), "the network is not written")

    async def realized(self, *, timeout_s: float = 10.0) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await self.settled(timeout_s=timeout_s)
        if self._connection is None:
            raise self._unreachable()
        self._on_hosts.last += 1
        mine = self._on_hosts.last
        there = self._on_hosts.reaching(mine)
        await self._connection.transact([{"op": "update", "table": "NB_Global", "where": [], "row": {"nb_cfg": mine}}])
        await self._within(deadline - loop.time(), there, "the network is not at work on every host")

    async def up(self, port: PortId, *, timeout_s: float = 10.0) -> None:
        row = row_id("Logical_Switch_Port", port)
        if row in self._up:
            return
        future = asyncio.get_running_loop().create_future()
        waiting = self._coming_up.setdefault(row, set())
        waiting.add(future)
        try:
            await self._within(timeout_s, future, "the port is not connected on its host")
        finally:
            waiting.discard(future)
            if not waiting:
                self._coming_up.pop(row, None)

    async def run(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                connection = await Ovsdb.connect(self._remote, _DATABASE)
            except Unavailable as failed:
                log.warning("northbound database not reachable", remote=self._remote, cause=failed.internal)
            else:
                retry_s = _FIRST_RETRY_S
                try:
                    await self._keep(connection)
                except (Unavailable, TransactionRefused) as lost:
                    log.warning("northbound database lost", remote=self._remote, cause=lost.internal or lost.detail)
                finally:
                    self._connection = None
                    self._updates_of_ours = None
                    await connection.close()
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, _LAST_RETRY_S)

    async def _keep(self, connection: Ovsdb) -> None:
        """Read and compare everything, then write what changes, until the connection is lost."""
        loop = asyncio.get_running_loop()
        connection.when_lost(self._work.set)
        self._up.clear()
        await connection.monitor(TABLES_OF_OURS, self._ours_changed, initial=False)
        await connection.monitor(TABLES_OF_OVN, self._state_changed)
        self._connection = connection
        self._comparing_is_due, compared_at, first = True, -_BETWEEN_COMPARISONS_S, True
        while not connection.lost:
            self._work.clear()
            if self._bfd_is_due:
                self._bfd_is_due = False
                await self._set_bfd(connection)
            elif self._comparing_is_due and loop.time() >= compared_at + _BETWEEN_COMPARISONS_S:
                await self._compare_everything(connection, first=first)
                compared_at, first = loop.time(), False
            elif (self._pending or self._asked.behind) and not self._comparing_is_due:
                asked = self._asked.last
                self._comparing_is_due |= not await self._write(connection, self._pending.pop())
                self._asked.reach(asked)
            else:
                due = _BETWEEN_COMPARISONS_S if self._comparing_is_due else self._compare_every_s
                with suppress(TimeoutError):
                    async with asyncio.timeout(compared_at + due - loop.time()):
                        await self._work.wait()
                self._comparing_is_due |= loop.time() >= compared_at + self._compare_every_s
        raise self._unreachable()

    async def _set_bfd(self, connection: Ovsdb) -> None:
        change = [["options", "delete", ["set", list(_BFD)]], ["options", "insert", ["map", list(_BFD.items())]]]
        await connection.transact([{"op": "mutate", "table": "NB_Global", "where": [], "mutations": change}])

    async def _compare_everything(self, connection: Ovsdb, *, first: bool) -> None:
        """Read what is there, and write the difference from what is wanted."""
        self._comparing_is_due = False
        asked = self._asked.last
        # What is compared is what was wanted at this moment; what changes from here on is pending on top of that.
        unexpected = not (first or self._pending)
        self._pending.clear()
        owners = list(self._pending.view.owners())
        found = await self._read_everything(connection)
        parts: list[Part] = []
        async for owner in _in_turns(owners):
            wanted = self._pending.written_by(owner)
            written = tuple(there for fact in wanted if (there := found.pop(fact.key, None)) is not None)
            if written != tuple(wanted):
                parts.append(Part(owner, written, wanted))
        foreign = list(found.values())
        if (foreign or parts) and unexpected:
            log.warning(
                "northbound database differed from the records",
                removed=dict(Counter(fact.table for fact in foreign)),
                restored=dict(Counter(part.owner.kind.value for part in parts)),
            )
        await self._write(connection, parts, foreign)
        self._asked.reach(asked)

    async def _read_everything(self, connection: Ovsdb) -> dict[Key, Fact]:
        results = await connection.transact(selections())
        rows = ((table, row) for table, result in zip(TABLES, results, strict=True) for row in result["rows"])
        return {fact.key: fact async for table, row in _in_turns(rows) for fact in facts_of(table, row)}

    async def _write(self, connection: Ovsdb, parts: Sequence[Part], foreign: Sequence[Fact] = ()) -> bool:
        """Write this, in one transaction unless it is very much; says whether nothing of it was refused."""
        written = await self._write_once(connection, (), foreign)  # first: a stranger may have a name that ours need
        for at in range(0, len(parts), _PARTS_AT_ONCE):
            written &= await self._write_once(connection, parts[at : at + _PARTS_AT_ONCE])
        return written

    async def _write_once(self, connection: Ovsdb, parts: Sequence[Part], foreign: Sequence[Fact] = ()) -> bool:
        """Write in one transaction; if that is refused in ever smaller ones: one bad record harms only itself."""
        change = joined(parts)
        change = Difference(gone=[*foreign, *change.gone], come=change.come, changed=change.changed)
        if not change:
            return True
        self._updates_of_ours = 0
        try:
            await connection.transact(operations(change))
        except TransactionRefused as refused:
            log.error(
                "northbound database refused a transaction",
                cause=refused.internal,
                owners=[f"{part.owner.kind} {part.owner.id}" for part in parts[:5]],
                count=len(parts),
            )
        else:
            self._comparing_is_due |= self._updates_of_ours > 1
            return True
        finally:
            self._updates_of_ours = None
        if len(parts) > 1:
            half = len(parts) // 2
            await self._write_once(connection, parts[:half])
            await self._write_once(connection, parts[half:])
        return False

    def _ask(self) -> None:
        self._asked.last += 1
        self._work.set()

    def _ours_changed(self, updates: Mapping[str, Any]) -> None:
        """Tables of ours changed: by the transaction that is under way, of which one update tells, or by others."""
        if not updates:
            return
        if self._updates_of_ours is None:
            self._comparing_is_due = True
            self._work.set()
        else:
            self._updates_of_ours += 1

    def _state_changed(self, updates: Mapping[str, Mapping[str, Any]]) -> None:
        for id, update in updates.get("Logical_Switch_Port", {}).items():
            if "delete" in update:
                self._up.discard(id)
            elif now(update).get("up") is True:
                self._up.add(id)
                for waiting in self._coming_up.get(id, ()):
                    if not waiting.done():
                        waiting.set_result(None)
            elif "up" in now(update):
                self._up.discard(id)
        for update in updates.get("NB_Global", {}).values():
            state = now(update)
            if "modify" not in update and "delete" not in update:
                self._bfd_is_due = not _BFD.items() <= dict(state["options"][1]).items()
                self._work.set()
            self._on_hosts.last = max(self._on_hosts.last, state.get("nb_cfg", 0))
            if "hv_cfg" in state:
                self._on_hosts.reach(state["hv_cfg"])

    async def _within(self, timeout_s: float, what: "asyncio.Future[None]", otherwise: str) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await what
        except TimeoutError as late:
            if self._connection is None:
                raise self._unreachable() from late
            raise TimedOut(f"{otherwise} after {timeout_s:g} s") from late

    def _unreachable(self) -> Unavailable:
        return Unavailable("the network's database cannot be reached", internal=self._remote)


TABLES_OF_OURS = {table: list(columns) for table, columns in TABLES.items()}
TABLES_OF_OVN = {"Logical_Switch_Port": ["up"], "NB_Global": ["nb_cfg", "hv_cfg", "options"]}


async def _in_turns(many: Iterable[T]) -> AsyncIterator[T]:
    """Each of these; others have their turn now and then."""
    for at, each in enumerate(many, 1):
        yield each
        if at % _AT_ONCE == 0:
            await asyncio.sleep(0)


class _Waiters:
    """Those who wait until a counter has reached a number."""

    def __init__(self) -> None:
        self.last = 0
        """The highest number that somebody may wait for."""
        self._reached = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def behind(self) -> bool:
        return self._reached < self.last

    def reaching(self, number: int) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if number <= self._reached:
            future.set_result(None)
        else:
            self._waiting.append((number, future))
        return future

    def reach(self, number: int) -> None:
        self._reached = number
        while self._waiting and self._waiting[0][0] <= number:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
