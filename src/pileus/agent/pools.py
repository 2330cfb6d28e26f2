"""The storage pools of a host: those that it is configured with, and those that the controller has it serve.

The latter come and go while the agent runs. One that is not to be had (a disk that is not mounted, a folder of another
pool) is absent: nothing is read or written there, and the reason is told. It is looked for again and again.
"""

import asyncio
from collections.abc import Iterator, Mapping

import structlog
from msgspec import structs

from pileus.agent.records import PoolRecord, Records
from pileus.agent.storage.port import Backings, StoragePool
from pileus.kernel.errors import NotFound, PileusError, Unavailable
from pileus.kernel.ids import StoragePoolId
from pileus.link.storagepools import PoolObserved, StoragePools

log = structlog.stdlib.get_logger()


class Pools(Mapping[str, StoragePool]):
    """The storage pools that are to be had now, by name."""

    def __init__(
        self,
        configured: Mapping[str, StoragePool],
        records: Records[StoragePoolId, PoolRecord],
        backings: Backings,
    ) -> None:
        """Pools that the host has by its configuration, and those that are on record."""
        self._configured = configured
        self._records = records
        self._backings = backings
        self._opened: dict[StoragePoolId, StoragePool] = {}
        self._absent: dict[str, str] = {}
        self._looking = asyncio.Lock()
        self._observed: tuple[PoolObserved, ...] | None = None

    def __getitem__(self, name: str) -> StoragePool:
        try:
            return self.find(name)
        except PileusError as why:
            raise KeyError(name) from why

    def __iter__(self) -> Iterator[str]:
        names = [*self._configured, *(record.spec.name for _, record in self._records.items() if record.spec.backing)]
        return iter([name for name in names if name in self])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __len__(self) -> int:
        return len(list(iter(self)))

    def find(self, name: str) -> StoragePool:
        """The pool of this name.

        Raises:
            NotFound: this host is to have no such pool.
            Unavailable: it is not to be had just now; the detail says why.
        """
        if (configured := self._configured.get(name)) is not None:
            return configured
        spec = next((record.spec for _, record in self._records.items() if record.spec.name == name), None)
        if spec is None or spec.backing is None:
            raise NotFound(f"there is no storage pool {name!r} on this host")
        opened = self._opened.get(spec.id)
        why = self._absent.get(name, "it is not looked for yet") if opened is None else self._backings.missing(spec)
        if opened is None or why:
            raise Unavailable(f"storage pool {name!r} is not to be had on this host: {why}")
        return opened

    async def serve(self, wanted: StoragePools) -> tuple[PoolObserved, ...]:
        """Serve these pools and no others; one that has volumes in it stays.

        Raises:
            Unavailable: the host cannot keep its records.
        """
        async with self._looking:
            for spec in wanted.pools:
                known = self._records.get(spec.id)
                if known is None or known.spec != spec:
                    accepted = known is not None and known.accepted
                    await self._records.put(spec.id, PoolRecord(spec=spec, accepted=accepted))
            gone = {id for id, _ in self._records.items()} - {spec.id for spec in wanted.pools}
            for id in gone:
                await self._let_go(id)
        return await self.look()

    async def look(self) -> tuple[PoolObserved, ...]:
        """Look at every pool, and open those that have come; what is found."""
        async with self._looking:
            self._absent.clear()
            found = [await self._look_at(record) for _, record in self._records.items()]
            told = {each.name for each in found}
            others = [await _observed(name, None, pool) for name, pool in self._configured.items() if name not in told]
            self._observed = tuple(found + others)
            return self._observed

    async def observed(self) -> tuple[PoolObserved, ...]:
        """What was found last."""
        return await self.look() if self._observed is None else self._observed

    async def _look_at(self, record: PoolRecord) -> PoolObserved:
        spec = record.spec
        if spec.backing is None:
            pool = self._configured.get(spec.name)
            why = "" if pool is not None else "the host is not configured with it"
        else:
            pool = self._opened.get(spec.id)
            why = "" if pool is None else self._backings.missing(spec)
            if pool is None or why:
                pool, why = await self._open(record)
        if pool is None:
            self._absent[spec.name] = why
            return PoolObserved(name=spec.name, id=spec.id, reason=why)
        pool.overcommit(spec.overcommit)
        return await _observed(spec.name, spec.id, pool)

    async def _open(self, record: PoolRecord) -> tuple[StoragePool | None, str]:
        spec = record.spec
        was_here = self._opened.pop(spec.id, None) is not None
        try:
            pool = await self._backings.open(spec, accepted=record.accepted)
        except PileusError as why:
            if was_here:
                log.warning("storage pool lost", pool=spec.name, why=why.detail, internal=why.internal)
            return None, why.detail
        if not record.accepted:
            await self._records.put(spec.id, structs.replace(record, accepted=True))
        self._opened[spec.id] = pool
        log.info("storage pool opened", pool=spec.name)
        return pool, ""

    async def _let_go(self, id: StoragePoolId) -> None:
        record = self._records.get(id)
        assert record is not None
        spec, pool = record.spec, self._opened.get(id)
        if pool is not None:
            try:
                if await pool.list():
                    log.warning("storage pool stays, it has volumes", pool=spec.name)
                    return
                await self._backings.retire(spec)
            except PileusError as why:
                log.warning("storage pool stays for now", pool=spec.name, why=str(why), internal=why.internal)
                return
            del self._opened[id]
        await self._records.forget(id)
        log.info("storage pool let go", pool=spec.name)


async def _observed(name: str, id: StoragePoolId | None, pool: StoragePool) -> PoolObserved:
    try:
        return PoolObserved(name=name, id=id, use=await pool.use())
    except PileusError as why:
        return PoolObserved(name=name, id=id, reason=why.detail)
