"""A client of ovsdb-server: RFC 7047 on asyncio.

The library of Open vSwitch is a poll loop with a JSON parser in Python: it wants a thread of its own, and takes seconds
of processor time for what is read here in a tenth of one. What Pileus needs of the protocol is this page.
"""

import asyncio
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from pileus.kernel.errors import PileusError, TimedOut, Unavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger()

Json = Any  # OVSDB's notation: lists of lists of atoms

_READ_AT_ONCE = 1 << 18
_ANSWER_WITHIN_S = 30.0
_OPEN = ord("{")


class TransactionRefused(PileusError):
    """The database refused a transaction, as a whole; `internal` has its reason."""

    code, title = "transaction-refused", "The database refused a transaction"


class Ovsdb:
    """One connection to one database. When it is lost it is over: every call raises Unavailable; make another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, database: str, remote: str) -> None:
        self._reader, self._writer = reader, writer
        self._database, self._remote = database, remote
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._told: dict[str, Callable[[Mapping[str, Json]], None]] = {}
        self._task = asyncio.create_task(self._receive(), name=f"ovsdb {database}")

    @classmethod
    async def connect(cls, remote: str, database: str, *, timeout_s: float = 5.0) -> "Ovsdb":
        """Connect to `unix:PATH` or `tcp:HOST:PORT`.

        Raises:
            Unavailable: nobody answers there within `timeout_s` seconds.
        """
        kind, _, address = remote.partition(":")
        try:
            async with asyncio.timeout(timeout_s):
                if kind == "unix":
                    reader, writer = await asyncio.open_unix_connection(address, limit=_READ_AT_ONCE)
                else:
                    host, _, port = address.rpartition(":")
                    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), limit=_READ_AT_ONCE)
        except (OSError, TimeoutError) as failed:
            raise Unavailable(f"the database {database} does not answer", internal=f"{remote}: {failed}") from failed
        return cls(reader, writer, database, remote)

    @property
    def lost(self) -> bool:
        return self._task.done()

    def when_lost(self, call: Callable[[], object]) -> None:
        self._task.add_done_callback(lambda _: call())

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        with suppress(OSError):
            await self._writer.wait_closed()

    async def transact(self, operations: Sequence[Json]) -> list[Mapping[str, Json]]:
        """Do all operations or none, and return their results.

        Raises:
            TransactionRefused: nothing was done.
            Unavailable: the connection is or was lost; whether something was done is not known.
        """
        results = await self._call("transact", [self._database, *operations])
        for at, result in enumerate(results):
            if result and "error" in result:
                reason = f"{result['error']}: {result.get('details', '')}"
                operation = operations[at] if at < len(operations) else "commit"
                raise TransactionRefused("the database refused a transaction", internal=f"{reason}: {operation}")
        return results

    async def monitor(
        self,
        tables: Mapping[str, Sequence[str]],
        told: Callable[[Mapping[str, Json]], None],
        *,
        initial: bool = True,
    ) -> None:
        """Call `told` with the `<table-updates2>` (ovsdb-server(7), 4.1.14) of these columns, now and on each change.

        Of a large set these have what came and went; those of RFC 7047 have all of it, before and after. Updates by a
        transaction of this connection are told before `transact` returns.
        """
        name = str(next(self._ids))
        self._told[name] = told
        select = {"initial": initial}
        requests = {table: [{"columns": columns, "select": select}] for table, columns in tables.items()}
        told(await self._call("monitor_cond", [self._database, name, requests]))  # no update comes before this answer

    async def _call(self, method: str, parameters: Json) -> Json:
        if self.lost:
            raise self._unavailable()
        id = next(self._ids)
        answer = self._waiting[id] = asyncio.get_running_loop().create_future()
        try:
            self._send({"method": method, "params": parameters, "id": id})
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                await self._writer.drain()
                return await answer
        except TimeoutError as late:
            raise TimedOut(f"the database {self._database} did not answer", internal=self._remote) from late
        except ConnectionError as lost:
            raise self._unavailable() from lost
        finally:
            self._waiting.pop(id, None)

    def _send(self, message: Json) -> None:
        self._writer.write(msgspec.json.encode(message))

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"the connection to the database {self._database} is lost", internal=self._remote)

    async def _receive(self) -> None:
        messages = Messages()
        try:
            while data := await self._reader.read(_READ_AT_ONCE):
                for message in messages.complete(data):
                    self._take(msgspec.json.decode(message))
        except (OSError, msgspec.DecodeError) as failed:
            log.warning("database connection failed", database=self._database, remote=self._remote, error=str(failed))
        finally:
            self._writer.close()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(self._unavailable())

    def _take(self, message: Json) -> None:
        match message:
            case {"method": "echo", "params": parameters, "id": id}:
                self._send({"result": parameters, "error": None, "id": id})
            case {"method": "update2", "params": [name, updates]}:
                if name in self._told:
                    self._told[name](updates)
            case {"id": int(id), "error": None, "result": result}:
                if (answer := self._waiting.get(id)) is not None and not answer.done():
                    answer.set_result(result)
            case {"id": int(id), "error": error}:
                if (answer := self._waiting.get(id)) is not None and not answer.done():
                    refused = TransactionRefused("the database refused a request", internal=str(error))
                    answer.set_exception(refused)
            case _:
                log.warning("database said something unknown", database=self._database)


def now(update: Mapping[str, Json]) -> Mapping[str, Json]:
    """The columns of a `<row-update2>` that are new or changed; sets and maps of one that changed are what did."""
    row = update.get("initial") or update.get("insert") or update.get("modify")
    return row or {}


class Messages:
    """Cuts a stream of JSON objects, which nothing separates, where the braces are balanced."""

    # One match for each brace that is not in a string. Possessive, so that what is incomplete fails at once.
    _BRACE = re.compile(rb'(?:[^"{}]++|"(?:[^"\\]++|\\.)*+")*+[{}]', re.DOTALL)

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._seen = 0
        self._depth = 0

    def complete(self, data: bytes) -> list[bytes]:
        """The messages that are complete with this data."""
        self._buffer += data
        found: list[bytes] = []
        begin = 0
        while (brace := self._BRACE.match(self._buffer, self._seen)) is not None:
            self._seen = brace.end()
            self._depth += 1 if self._buffer[self._seen - 1] == _OPEN else -1
            if self._depth == 0:
                found.append(bytes(self._buffer[begin : self._seen]))
                begin = self._seen
            del brace  # a match holds the buffer, which must be free to change its size
        del self._buffer[:begin]
        self._seen -= begin
        return found
