"""The volumes of a host: made as specified or not at all."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import structlog
from msgspec import structs

from pileus.agent.backup.contents import BackupContents
from pileus.agent.pools import Pools
from pileus.agent.records import Records, Removed, VolumeRecord
from pileus.agent.storage import found
from pileus.agent.storage.found import FoundDisks
from pileus.agent.storage.port import DiskSource, Fetch, Layering, StoragePool
from pileus.agent.turns import Turns
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, NotFound, PileusError, Stale, Unavailable
from pileus.kernel.ids import ImageId, VolumeId
from pileus.kernel.units import size_text
from pileus.link.images import ImageSource
from pileus.link.messages import Progress
from pileus.link.snapshots import VolumeOf, VolumeSpace
from pileus.link.volumes import FoundDisk, VolumeBackup, VolumeObserved, VolumeRemoval, VolumeSpec

Tell = Callable[[Progress], None]
"""Is told how far a request is; must return at once."""

AT_ONCE: Final = 4
"""Volumes that are copied at the same time: more would only slow each other down."""
WIPED_AT_ONCE: Final = 1
"""Volumes that are overwritten at the same time: the guests have the better claim to the disks."""
REMEMBERED: Final = timedelta(days=1)
"""How long a removal stays on record after it is finished."""

log = structlog.stdlib.get_logger()


class Volumes:
    """Makes, grows and removes volumes, and finishes what was interrupted."""

    def __init__(
        self,
        pools: Pools,
        records: Records[VolumeId, VolumeRecord | Removed],
        fetch: Fetch,
        contents: BackupContents,
        found_disks: FoundDisks,
        clock: Clock,
    ) -> None:
        self._pools = pools
        self.records = records
        self._fetch = fetch
        self._contents = contents
        self._found_disks = found_disks
        self._clock = clock
        self.turns = Turns()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._wiping = asyncio.Semaphore(WIPED_AT_ONCE)
        self.copied: list[ImageId] = []
        """The images that volumes are being made from, each as often as one is."""

    async def ensure(self, spec: VolumeSpec, tell: Tell) -> VolumeObserved:
        """Have the volume. If that fails, all is as it was before.

        Raises:
            Stale: a later generation is known, or this one has been removed.
            NotFound: there is no such storage pool here.
            Conflict: the pool has no room, or the image is not what it claims to be.
            Unavailable: the pool, or where the image comes from, cannot be reached.
        """
        if spec.found is None:
            self.pool(spec.pool)
        async with self.turns.of(spec.id):
            before = self.records.get(spec.id)
            if isinstance(before, Removed):
                before = await self._finish_removal(spec.id, before, tell)
            known = -1 if before is None else _generation(before)
            if known > spec.generation or (isinstance(before, Removed) and known == spec.generation):
                raise Stale(f"volume {spec.id} is at generation {known} on this host")
            used = isinstance(before, VolumeRecord) and (before.made or before.used)
            record = VolumeRecord(spec=_without_ticket(spec), used=used)
            if isinstance(before, VolumeRecord) and used:
                if before.spec.pool != spec.pool or before.move is not None:
                    raise Stale(f"volume {spec.id} is in storage pool {before.spec.pool}, or on its way elsewhere")
                record = structs.replace(record, left_in=before.left_in, secure=before.secure)
            await self.records.put(spec.id, record)
            try:
                async with self._slots:
                    observed = await self._make(spec, tell)
                await self.records.put(spec.id, structs.replace(record, made=True))
            except Exception:
                if isinstance(before, VolumeRecord) and used:
                    await self.records.put(spec.id, before)
                else:
                    await self._undo(spec)
                raise
            return observed

    async def _make(self, spec: VolumeSpec, tell: Tell) -> VolumeObserved:
        if spec.found is not None:
            return found.observed(spec)
        pool = self.pool(spec.pool)
        # A volume that is there needs its image no more, which may be gone.
        if spec.image is not None and spec.id not in await pool.list():
            return await self._make_of(spec.image, pool, spec, tell)
        if spec.backup is not None and spec.id not in await pool.list():
            await self._restore(pool, spec, spec.backup, tell)
        return await pool.ensure(spec, lambda part: tell(Progress(step="copying", fraction=part)))

    async def _make_of(self, image: ImageSource, pool: StoragePool, spec: VolumeSpec, tell: Tell) -> VolumeObserved:
        self.copied.append(image.id)
        try:
            await pool.ensure_image(image, self._fetch, lambda part: tell(Progress(step="image", fraction=part)))
            return await pool.ensure(spec, lambda part: tell(Progress(step="copying", fraction=part)))
        finally:
            self.copied.remove(image.id)

    async def _restore(self, pool: StoragePool, spec: VolumeSpec, backup: VolumeBackup, tell: Tell) -> None:
        size = (await self._contents.found(backup)).size_bytes
        if size > spec.size_bytes:
            raise Conflict(f"the backup is of {size_text(size)}, the volume has {size_text(spec.size_bytes)}")

        def told(part: float) -> None:
            tell(Progress(step="restoring", fraction=part))

        await pool.fill(spec, lambda: self._contents.read(backup, told))

    async def remove(self, removal: VolumeRemoval, tell: Tell) -> None:
        """Have the volume no more; one that is once to be overwritten is, also if it is asked for again without.

        One that is left keeps its data, where it is, and is nobody's of ours.

        Raises:
            Stale: a later generation is known.
            NotFound: there is no such storage pool here.
            Unavailable: the pool cannot be reached; the removal goes on by itself.
        """
        async with self.turns.of(removal.id):
            before = self.records.get(removal.id)
            place = _found(before)
            if place is None:
                self.pool(removal.pool)
            known = removal.generation if before is None else _generation(before)
            if isinstance(before, VolumeRecord) and known > removal.generation:
                raise Stale(f"volume {removal.id} is at generation {known} on this host")
            removed = Removed(
                generation=max(known, removal.generation),
                at=self._clock.now(),
                pool=removal.pool,
                secure=removal.secure or (isinstance(before, Removed) and before.secure),
                found=place,
                left=removal.left or (isinstance(before, Removed) and before.left),
                left_in=_copy_in(before),
            )
            await self.records.put(removal.id, removed)
            await self._finish_removal(removal.id, removed, tell)

    async def _undo(self, spec: VolumeSpec) -> None:
        """Leave nothing of a volume that could not be made, but let the same wish come again."""
        removed = Removed(
            generation=spec.generation - 1,
            at=self._clock.now(),
            pool=spec.pool,
            found=spec.found,
            left=spec.found is not None,
        )
        try:
            await self.records.put(spec.id, removed)
            await self._finish_removal(spec.id, removed, tell_nobody)
        except PileusError as why:
            log.warning("undo of a volume goes on later", volume=spec.id, why=str(why), internal=why.internal)

    async def _finish_removal(self, id: VolumeId, removed: Removed, tell: Tell) -> Removed:
        if removed.finished:
            return removed
        if removed.left:
            log.info("volume left where it is", volume=id)
        elif removed.found is not None:
            await self._found_disks.remove(removed.found, secure=removed.secure)
        else:
            await self.discard(id, removed.pool, tell, secure=removed.secure)
        if removed.left_in in self._pools:
            await self.discard(id, removed.left_in, tell, secure=removed.secure)
        finished = structs.replace(removed, finished=True, at=self._clock.now())
        await self.records.put(id, finished)
        return finished

    async def discard(self, id: VolumeId, pool: str, tell: Tell, *, secure: bool) -> None:
        """Have nothing of a volume in this pool any more.

        Raises:
            NotFound: there is no such pool.
            Unavailable: the pool cannot be reached.
        """
        holder = self.pool(pool)
        if not secure:
            await holder.remove(id)
            return
        async with self._wiping:
            await holder.wipe(id, lambda part: tell(Progress(step="overwriting", fraction=part)))
        log.info("volume overwritten and removed", volume=id, pool=pool)

    async def settle(self) -> None:
        """Finish or undo what was interrupted, and forget old removals."""
        for id, record in self.records.items():
            if self.turns.busy(id) or (isinstance(record, VolumeRecord) and record.made):
                continue
            async with self.turns.of(id):
                try:
                    await self._settle(id)
                except PileusError as why:
                    log.warning("volume not settled yet", volume=id, why=str(why), internal=why.internal)

    async def _settle(self, id: VolumeId) -> None:
        match self.records.get(id):
            case Removed(left=True, found=None, finished=True):
                pass  # its files are among those of our pool
            case Removed(finished=True) as removed:
                if self._clock.now() - removed.at > REMEMBERED:
                    await self.records.forget(id)
            case Removed() as removed:
                await self._finish_removal(id, removed, tell_nobody)
            case VolumeRecord(made=False, spec=VolumeSpec(found=FoundDisk())) as record:
                await self.records.put(id, structs.replace(record, made=True))
            case VolumeRecord(made=False, spec=spec) as record:
                pool = self.pool(spec.pool)
                if id in await pool.list():
                    await pool.ensure(spec, lambda _: None)
                    await self.records.put(id, structs.replace(record, made=True))
                elif not record.used:
                    # Whoever wanted it asks again; its image's ticket would no longer be good.
                    await self._undo(spec)
            case _:
                pass

    async def source(self, id: VolumeId, pool: str) -> DiskSource:
        """Where a hypervisor finds the volume.

        Raises:
            NotFound: there is no such volume or pool.
            Unavailable: it cannot be used at this moment.
        """
        if (place := self._found_at(id)) is not None:
            return found.source_of(place)
        record = self.records.get(id)
        if isinstance(record, VolumeRecord):
            pool = record.spec.pool  # which changes before its guest is told
            if record.move is not None and (record.move.at_rest or record.move.goes_over):
                raise Unavailable("the volume is being moved to another storage pool")
        holder = self.pool(pool)
        if (await holder.layering.layers(id)).merging:
            raise Unavailable("the volume's snapshots are being merged")
        return await holder.source(id)

    def layering(self, pool: str) -> Layering:
        """The snapshots of a pool's volumes.

        Raises:
            NotFound: there is no such pool.
        """
        return self.pool(pool).layering

    def is_moving(self, id: VolumeId) -> bool:
        """Whether a copy of the volume is, or is being made, in another pool, to become the volume."""
        record = self.records.get(id)
        return isinstance(record, VolumeRecord) and record.move is not None

    async def has(self, id: VolumeId, pool: str) -> bool:
        """Whether the volume is here."""
        return self._found_at(id) is not None or id in await self.pool(pool).list()

    async def space(self, volume: VolumeOf) -> VolumeSpace:
        """What the volume really takes of its pool.

        Raises:
            NotFound: there is no such volume or pool.
            Unavailable: the pool cannot be reached.
        """
        record = self.records.get(volume.id)
        if isinstance(record, VolumeRecord) and record.spec.found is not None:
            return VolumeSpace(allocated_bytes=found.observed(record.spec).allocated_bytes)
        pool = self.pool(volume.pool)
        there = (await pool.list()).get(volume.id)
        if there is None:
            raise NotFound(f"there is no volume {volume.id} on this host")
        return VolumeSpace(allocated_bytes=there.allocated_bytes, snapshots=await pool.layering.space(volume.id))

    async def in_layers(self) -> list[VolumeOf]:
        """Every volume that has snapshots, or had some whose space is not given back yet."""
        return [
            VolumeOf(id=id, pool=name)
            for name, pool in self._pools.items()
            for id in await pool.list()
            if self._is_in(id, name) and (await pool.layering.layers(id)).below
        ]

    async def observe(self) -> list[VolumeObserved]:
        """Every volume in every pool that can be reached, with or without a record."""
        every = (record for _, record in self.records.items() if isinstance(record, VolumeRecord))
        seen = [found.observed(record.spec) for record in every if record.spec.found is not None]
        for name, pool in self._pools.items():
            try:
                seen += [each for id, each in (await pool.list()).items() if self._is_in(id, name)]
            except PileusError as why:
                log.warning("storage pool not listed", pool=name, why=str(why), internal=why.internal)
        return seen

    def _found_at(self, id: VolumeId) -> FoundDisk | None:
        record = self.records.get(id)
        return record.spec.found if isinstance(record, VolumeRecord) else None

    def _is_in(self, id: VolumeId, pool: str) -> bool:
        """Whether what a pool has of this volume is the volume: neither on its way there, nor left there."""
        match self.records.get(id):
            case Removed(left=True):
                return False
            case VolumeRecord(spec=spec):
                return spec.pool == pool
            case _:
                return True

    def pool(self, name: str) -> StoragePool:
        """The pool of this name.

        Raises:
            NotFound: this host is to have no such pool.
            Unavailable: it is not to be had just now.
        """
        return self._pools.find(name)


def tell_nobody(_: Progress) -> None:
    """Nobody waits for this."""


def _generation(record: VolumeRecord | Removed) -> int:
    return record.spec.generation if isinstance(record, VolumeRecord) else record.generation


def _copy_in(record: VolumeRecord | Removed | None) -> str:
    """The pool in which there may be a further copy of a volume."""
    if record is None:
        return ""
    return record.move.to if isinstance(record, VolumeRecord) and record.move is not None else record.left_in


def _found(record: VolumeRecord | Removed | None) -> FoundDisk | None:
    """Where a volume was found that is in no pool of ours."""
    match record:
        case VolumeRecord(spec=spec):
            return spec.found
        case Removed():
            return record.found
        case None:
            return None


def _without_ticket(spec: VolumeSpec) -> VolumeSpec:
    """What may be written to a file: a ticket is a secret, and soon of no use."""
    return structs.replace(spec, image=structs.replace(spec.image, url="")) if spec.image else spec
