"""The backups of a host's volumes: read from their snapshots into a place, looked through, and read back.

Of a volume that was backed up before, and whose snapshot of that time is still there, only what has changed since is
read: everything else is named as it was named then. What is named is looked for first, and read if it is not there.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from msgspec import structs

from pileus.agent.backup.chunks import CHUNK_BYTES, Damaged
from pileus.agent.backup.contents import BackupContents
from pileus.agent.backup.manifest import Index, KeptVolume, Manifest
from pileus.agent.backup.store import BackupStore, length_of
from pileus.agent.snapshots import Snapshots
from pileus.agent.storage.port import Moment, Pieces
from pileus.agent.turns import Turns
from pileus.agent.volumes import Tell, Volumes
from pileus.kernel.clock import Clock
from pileus.kernel.errors import Conflict, NotFound, PileusError
from pileus.kernel.ids import BackupId, ProjectId, SnapshotId, VolumeId, check_id
from pileus.kernel.units import MIB
from pileus.link.backups import BackupChecked, BackupObserved, BackupOf, BackupRestore, BackupSpec, VolumeToBackUp
from pileus.link.messages import Progress
from pileus.link.snapshots import VolumeOf
from pileus.link.volumes import VolumeBackup

AT_ONCE: Final = 1
"""Backups that are written or looked through at the same time: the guests have the better claim to the disks."""
READ_AT_MOST: Final = 200 * MIB
"""What is read for backups in a second, in bytes."""

_ZEROES: Final = bytes(CHUNK_BYTES)

log = structlog.stdlib.get_logger()


class Backups:
    """Makes, looks through and removes backups, and tidies up after what was interrupted."""

    def __init__(
        self,
        snapshots: Snapshots,
        volumes: Volumes,
        contents: BackupContents,
        clock: Clock,
        *,
        read_at_most: int = READ_AT_MOST,
    ) -> None:
        self._snapshots = snapshots
        self._volumes = volumes
        self._contents = contents
        self._clock = clock
        self._read_at_most = read_at_most
        self._turns = Turns()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._unwanted: set[BackupId] = set()
        """Those that are to be removed, so that it is no use to go on writing them."""
        self._given_up: set[str] = set()
        """What volumes are not to become any more."""

    async def ensure(self, spec: BackupSpec, tell: Tell) -> BackupObserved:
        """Have the backup. If that fails, there is none; what was written of it is used when it is asked for again.

        Raises:
            NotFound: there is no such place here, or no such snapshot of a volume.
            Conflict: the place has no room, or the backup has been asked to be removed.
            Unavailable: pool or place cannot be reached.
        """
        check_id(spec.id)
        store = self._contents.store(spec.place)
        # The slot first: what waits for one can be removed meanwhile.
        async with self._slots, self._turns.of(spec.id):
            manifest = await store.find(spec.project, spec.id)
            if manifest is None:
                writing = _Writing(self._snapshots, store, spec, self._check, self._read_at_most)
                async with store.writing(spec.project, spec.id):
                    manifest = await writing.write(self._clock, tell)
                log.info("backup written", backup=spec.id, read=manifest.read_bytes, stored=manifest.stored_bytes)
            return _observed(manifest)

    async def check(self, wish: BackupOf, tell: Tell) -> BackupChecked:
        """Read everything that is in a backup again. Chunks that are damaged are taken out of use.

        Raises:
            NotFound: there is no such backup or place.
            Unavailable: the place cannot be reached.
        """
        store = self._contents.store(wish.place)
        async with self._slots, self._turns.of(wish.id):
            manifest = await store.find(wish.project, wish.id)
            if manifest is None:
                raise NotFound(f"there is no backup {wish.id} in this storage pool")
            indexes, lost = await _indexes(store, manifest)
            bad = await self._damaged(
                store, wish, {each for index in indexes.values() for each in index.values()}, tell
            )
            damaged = lost | {id for id, index in indexes.items() if bad.intersection(index.values())}
            others = await _needing(store, wish, bad)
            await store.set_aside(wish.project, bad)
        if damaged:
            log.error("backup is damaged", backup=wish.id, chunks=len(bad), others=others)
        return BackupChecked(id=wish.id, damaged=tuple(sorted(damaged)), others=tuple(sorted(others)))

    async def remove(self, removal: BackupOf) -> None:
        """Have the backup no more, and nothing that it alone needed; if it is being written, that ends.

        Raises:
            NotFound: there is no such place here.
            Unavailable: the place cannot be reached.
        """
        store = self._contents.store(removal.place)
        self._unwanted.add(removal.id)
        try:
            async with self._turns.of(removal.id):
                await store.discard(removal.project, removal.id)
        finally:
            self._unwanted.discard(removal.id)
        await self._sweep(store, removal.project)

    async def prepare(self, wish: BackupRestore, tell: Tell) -> None:
        """Have everything ready that volumes are to become; of none of them, if one cannot be.

        Raises:
            NotFound: there is no such backup, volume or pool.
            Conflict: the backup is damaged, a pool has no room, or this has been given up.
            Unavailable: pool or place cannot be reached.
        """
        async with self._slots, self._turns.of(wish.to):
            try:
                for number, each in enumerate(wish.volumes):
                    kept = await self._contents.found(each.backup)
                    pieces = self._pieces(wish, each.backup, number, tell)
                    pool = self._volumes.pool(each.volume.pool)
                    await pool.prepare(each.volume.id, wish.to, pieces, room_bytes=kept.data_bytes)
            except Exception:
                await self._drop(wish)
                raise

    def _pieces(self, wish: BackupRestore, source: VolumeBackup, number: int, tell: Tell) -> Pieces:
        def told(part: float) -> None:
            if wish.to in self._given_up:
                raise Conflict("the restoring is not wanted any more")
            tell(Progress(step="restoring", fraction=(number + part) / len(wish.volumes)))

        return lambda: self._contents.read(source, told)

    async def drop(self, wish: BackupRestore) -> None:
        """Have nothing ready any more that volumes were to become, unless they have; if it is being made, that ends.

        Raises:
            NotFound: there is no such pool.
            Unavailable: a pool cannot be reached.
        """
        self._given_up.add(wish.to)
        try:
            async with self._turns.of(wish.to):
                await self._drop(wish)
        finally:
            self._given_up.discard(wish.to)

    async def _drop(self, wish: BackupRestore) -> None:
        for each in wish.volumes:
            await self._volumes.pool(each.volume.pool).drop(each.volume.id, wish.to)

    async def settle(self) -> None:
        """Remove what no backup needs, wherever nobody is writing."""
        for name, store in self._contents.stores.items():
            try:
                for project in await store.unfinished():
                    await self._sweep(store, project)
            except PileusError as why:
                log.warning("place for backups not swept yet", place=name, why=str(why), internal=why.internal)

    async def _sweep(self, store: BackupStore, project: ProjectId) -> None:
        try:
            await store.sweep(project)
        except Conflict as why:
            # The backup is gone all the same; its space is not, until the one that is damaged is deleted.
            log.warning("backups not swept yet", project=project, why=str(why), internal=why.internal)

    async def _damaged(self, store: BackupStore, wish: BackupOf, digests: set[str], tell: Tell) -> set[str]:
        bad: set[str] = set()
        for count, digest in enumerate(sorted(digests), 1):
            self._check(wish.id)
            try:
                await store.chunk(wish.project, digest)
            except (Damaged, NotFound) as why:
                log.error("chunk of a backup is damaged or lost", project=wish.project, chunk=digest, why=str(why))
                bad.add(digest)
            tell(Progress(step="verifying", fraction=count / len(digests)))
        return bad

    def _check(self, id: BackupId) -> None:
        if id in self._unwanted:
            raise Conflict("the backup is not wanted any more")


class _Writing:
    """One backup while it is written."""

    def __init__(
        self,
        snapshots: Snapshots,
        store: BackupStore,
        spec: BackupSpec,
        check: Callable[[BackupId], None],
        read_at_most: int,
    ) -> None:
        self._snapshots = snapshots
        self._store = store
        self._spec = spec
        self._check = check
        self._read_at_most = read_at_most
        self._begun = time.monotonic()
        self._present: set[str] = set()
        self._read_bytes = 0
        self._stored_bytes = 0

    async def write(self, clock: Clock, tell: Tell) -> Manifest:
        spec = self._spec
        self._present = await self._store.present(spec.project)
        kept: list[KeptVolume] = []
        indexes: dict[VolumeId, Index] = {}
        for volume in spec.volumes:
            since, base = await self._base(volume)
            snapshot = SnapshotId(spec.id)
            before = None if since is None else SnapshotId(since)
            async with self._snapshots.reading(VolumeOf(id=volume.id, pool=volume.pool), snapshot, before) as moment:
                index = await self._copy(moment, base if moment.is_compared else {}, tell)
            described = KeptVolume(
                id=volume.id,
                size_bytes=moment.size_bytes,
                data_bytes=0,
                index_sha256="",
                since=since if moment.is_compared else None,
            )
            data_bytes = sum(length_of(described, number) for number in index)
            kept.append(structs.replace(described, data_bytes=data_bytes))
            indexes[volume.id] = index
        manifest = Manifest(
            id=spec.id,
            project=spec.project,
            at=clock.now(),
            volumes=tuple(kept),
            read_bytes=self._read_bytes,
            stored_bytes=self._stored_bytes,
            record=spec.record,
        )
        return await self._store.publish(manifest, indexes)

    async def _base(self, volume: VolumeToBackUp) -> tuple[BackupId | None, Index]:
        """What to compare with: the chunks of an earlier backup, if that is there and can be read."""
        if volume.since is None:
            return None, {}
        try:
            manifest = await self._store.find(self._spec.project, volume.since)
            if manifest is not None and (before := manifest.of(volume.id)) is not None:
                return volume.since, await self._store.index(manifest, before)
        except Conflict as why:
            log.warning("backup cannot be compared with", backup=volume.since, why=str(why), internal=why.internal)
        return None, {}

    async def _copy(self, moment: Moment, base: Index, tell: Tell) -> Index:
        numbers = _touched(moment)
        index = {number: digest for number, digest in base.items() if number not in numbers}
        # What the earlier backup has lost is read again.
        numbers |= {number for number, digest in index.items() if digest not in self._present}
        for count, number in enumerate(sorted(numbers), 1):
            self._check(self._spec.id)
            start = number * CHUNK_BYTES
            content = await moment.read(start, min(CHUNK_BYTES, moment.size_bytes - start))
            index.pop(number, None)
            if content != _ZEROES[: len(content)]:
                index[number], stored = await self._store.keep(self._spec.project, content, self._present)
                self._stored_bytes += stored
            self._read_bytes += len(content)
            tell(Progress(step="reading", fraction=count / len(numbers)))
            await self._keep_pace()
        return index

    async def _keep_pace(self) -> None:
        ahead_s = self._read_bytes / self._read_at_most - (time.monotonic() - self._begun)
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)


def _touched(moment: Moment) -> set[int]:
    """The numbers of the chunks that are to be read."""
    return {
        number
        for start, end in moment.changed
        for number in range(start // CHUNK_BYTES, -(-min(end, moment.size_bytes) // CHUNK_BYTES))
    }


async def _indexes(store: BackupStore, manifest: Manifest) -> tuple[Mapping[VolumeId, Index], set[VolumeId]]:
    """Of a backup's volumes, and the volumes of which it is damaged or lost."""
    found: dict[VolumeId, Index] = {}
    lost: set[VolumeId] = set()
    for volume in manifest.volumes:
        try:
            found[volume.id] = await store.index(manifest, volume)
        except Conflict:
            lost.add(volume.id)
    return found, lost


async def _needing(store: BackupStore, wish: BackupOf, bad: set[str]) -> set[BackupId]:
    """The other backups of the project that need one of these chunks."""
    others: set[BackupId] = set()
    for manifest in await store.every(wish.project) if bad else []:
        indexes, _ = await _indexes(store, manifest)
        if manifest.id != wish.id and any(bad.intersection(index.values()) for index in indexes.values()):
            others.add(manifest.id)
    return others


def _observed(manifest: Manifest) -> BackupObserved:
    return BackupObserved(
        id=manifest.id,
        read_bytes=manifest.read_bytes,
        stored_bytes=manifest.stored_bytes,
        data_bytes=sum(volume.data_bytes for volume in manifest.volumes),
        compared=tuple(volume.id for volume in manifest.volumes if volume.since is not None),
    )
