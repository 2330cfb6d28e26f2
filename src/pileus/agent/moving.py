"""Volumes of a host that move from one storage pool to another, used or not: wholly there in the end, or wholly here.

The record of the volume says which pool it is in, and the one write that changes this is the move. Before it there is a
copy that nobody counts on, which is thrown away if anything fails; after it there is a former one, which is removed. A
guest that runs goes on meanwhile: QEMU copies what it writes to, and keeps both equal until the guest goes over.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Final

import structlog
from msgspec import structs

from pileus.agent.comparing import is_up
from pileus.agent.making import Making
from pileus.agent.records import VolumeMoving, VolumeRecord
from pileus.agent.snapshots import Snapshots
from pileus.agent.storage.port import DiskSource, StoragePool, Told
from pileus.agent.volumes import Tell, Volumes, tell_nobody
from pileus.kernel.errors import Conflict, NotFound, PileusError, Stale, Unavailable
from pileus.kernel.ids import InstanceId, VolumeId
from pileus.link.guests import Power
from pileus.link.messages import Progress
from pileus.link.moves import VolumeMove
from pileus.link.snapshots import VolumeOf

AT_ONCE: Final = 2
"""Volumes that are copied at the same time: the guests have the better claim to the disks."""
PATIENCE: Final = timedelta(hours=1)
"""After this, a copy that nobody has asked for again is nobody's."""

log = structlog.stdlib.get_logger()


class Moves:
    """Moves volumes between the pools of a host, and finishes or undoes what was interrupted."""

    def __init__(self, making: Making, snapshots: Snapshots, volumes: Volumes) -> None:
        self._making = making
        self._mirrors = making.hypervisor.mirrors
        self._snapshots = snapshots
        self._volumes = volumes
        self._records = volumes.records
        self._turns = volumes.turns
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._copying: dict[VolumeId, asyncio.Task[None]] = {}
        self._given_up: set[VolumeId] = set()
        """Those that are to stay where they are, so that it is no use to go on copying them."""

    async def copy(self, wish: VolumeMove, tell: Tell) -> None:
        """Have all of the volume in the other pool, ready to be switched to; if that fails, nothing of it.

        Raises:
            NotFound: there is no such volume or pool.
            Stale: it was taken back, or a later generation is known.
            Conflict: the pool has no room, its guest is suspended or ended meanwhile, or it was taken back meanwhile.
            Unavailable: hypervisor or pool do not answer.
        """
        # The slot first: what waits for one can be taken back meanwhile.
        async with self._slots, self._turns.of(wish.id):
            if self._is_past_return(wish):
                return
            self._check(wish)
            try:
                await self._have_copy(wish, tell)
            except Exception:
                await self._undo_now_or_later(wish.id)
                raise

    async def switch(self, wish: VolumeMove, tell: Tell) -> None:
        """Have the volume be in the other pool, where it was copied to, and nothing of it in its old one.

        A copy that was lost with its guest is made again.

        Raises:
            NotFound: there is no such volume or pool.
            Conflict, Unavailable: as for `copy`; asking again is right.
        """
        async with self._turns.of(wish.id):
            while self._known(wish.id).spec.pool != wish.to:
                self._check(wish)
                if not await self._go_over(wish.id):
                    await self._have_copy(wish, tell)
            await self._clear(wish.id, tell)

    async def undo(self, wish: VolumeMove) -> None:
        """Have the volume stay where it is, and nothing of it in the other pool; if it is being copied, that ends.

        Raises:
            Stale: it is in the other pool, or goes over.
            Unavailable: hypervisor or pool do not answer; asking again is right.
        """
        self._given_up.add(wish.id)
        try:
            if (working := self._copying.get(wish.id)) is not None:
                working.cancel()
            async with self._turns.of(wish.id):
                record = self._records.get(wish.id)
                if not isinstance(record, VolumeRecord):
                    return
                if self._is_past_return(wish):
                    raise Stale(f"volume {wish.id} is in storage pool {wish.to} already")
                await self._undo(wish.id)
                record = self._known(wish.id)
                if record.spec.generation < wish.generation:
                    # What asks for the same again is late.
                    spec = structs.replace(record.spec, generation=wish.generation)
                    await self._records.put(wish.id, structs.replace(record, spec=spec))
        finally:
            self._given_up.discard(wish.id)

    async def settle(self) -> None:
        """Go on with what cannot be undone, and undo what nobody asks for any more; remove what was left behind."""
        for id, record in self._records.items():
            if not isinstance(record, VolumeRecord) or self._turns.busy(id):
                continue
            if record.move is None and not record.left_in:
                continue
            async with self._turns.of(id):
                try:
                    await self._settle(id)
                except PileusError as why:
                    log.warning("move of a volume not settled yet", volume=id, why=str(why), internal=why.internal)

    async def _settle(self, id: VolumeId) -> None:
        record = self._records.get(id)
        if not isinstance(record, VolumeRecord):
            return
        if record.move is not None and record.move.goes_over:
            await self._go_over(id)
        elif record.move is not None and self._making.clock.now() - record.move.since > PATIENCE:
            log.warning("copy of a volume is nobody's", volume=id, pool=record.move.to)
            await self._undo(id)
        await self._clear(id, tell_nobody)

    # Copying.

    async def _have_copy(self, wish: VolumeMove, tell: Tell) -> None:
        """Have a copy that is equal, and stays so."""
        await self._clear(wish.id, tell_nobody)
        record = self._known(wish.id)
        if record.left_in:
            raise Unavailable(f"what is left of the volume in storage pool {record.left_in} cannot be removed yet")
        moving = VolumeMoving(
            to=wish.to,
            generation=wish.generation,
            secure=wish.secure,
            since=self._making.clock.now(),
            at_rest=record.move is not None and record.move.at_rest and record.move.to == wish.to,
        )
        await self._records.put(wish.id, structs.replace(record, move=moving))
        if wish.id in self._given_up:
            raise Conflict("the volume is to stay where it is")
        working = self._copying[wish.id] = asyncio.ensure_future(self._copy(wish, tell))
        try:
            await working
        except asyncio.CancelledError:
            if wish.id in self._given_up:
                raise Conflict("the volume is to stay where it is") from None
            raise
        finally:
            del self._copying[wish.id]

    async def _copy(self, wish: VolumeMove, tell: Tell) -> None:
        def told(part: float) -> None:
            tell(Progress(step="copying", fraction=part))

        source, target = self._volumes.pool(wish.pool), self._volumes.pool(wish.to)
        async with self._snapshots.holding((VolumeOf(id=wish.id, pool=wish.pool),)) as users:
            guest = users.get(wish.id)
            if guest is None or not await self._is_up(guest):
                if guest is not None and self._making.known(guest).power is not Power.STOPPED:
                    raise Unavailable("the guest that has the volume is being started again")
                await self._copy_at_rest(wish.id, source, target, told)
                return
        async with self._snapshots.unmerged(wish.id):
            await self._mirror(wish.id, guest, source, target, told)

    async def _copy_at_rest(self, id: VolumeId, source: StoragePool, target: StoragePool, told: Told) -> None:
        record = self._known(id)
        assert record.move is not None
        if not record.move.at_rest:
            await target.moving.receive(id, await source.moving.contents(id), told)
            # Before anybody could use it again.
            copied = structs.replace(record.move, at_rest=True)
            await self._records.put(id, structs.replace(record, move=copied))

    async def _mirror(
        self, id: VolumeId, guest: InstanceId, source: StoragePool, target: StoragePool, told: Told
    ) -> None:
        contents, to = await source.moving.contents(id), await _written_in(target, id)
        there = (await self._mirrors.mirrored(guest)).get(id)
        if to is None or there != to.path:
            if there is not None:
                await self._mirrors.stop_mirroring(guest, id)
            to = await target.moving.receive(id, contents, told, filled=False)
        await self._mirrors.mirror(guest, id, to, told)

    # Going over, and not.

    async def _go_over(self, id: VolumeId) -> bool:
        """Have the volume be where its copy is; whether there is one that is equal. If not, it stays where it is."""
        record = self._known(id)
        if (move := record.move) is None:
            return False
        async with self._snapshots.holding((VolumeOf(id=id, pool=record.spec.pool),)) as users:
            guest, to = users.get(id), await _written_in(self._volumes.pool(move.to), id)
            if to is None or not await self._is_equal(id, move, guest, to):
                here = structs.replace(move, at_rest=False, goes_over=False)
                await self._records.put(id, structs.replace(record, move=here))
                return False
            await self._records.put(id, structs.replace(record, move=structs.replace(move, goes_over=True)))
            if guest is not None and await self._is_up(guest):
                await self._mirrors.go_over(guest, id, to)
            spec = structs.replace(record.spec, pool=move.to, generation=move.generation)
            there = VolumeRecord(spec=spec, made=True, used=True, left_in=record.spec.pool, secure=move.secure)
            await self._records.put(id, there)
        log.info("volume moved", volume=id, pool=move.to)
        return True

    async def _is_equal(self, id: VolumeId, move: VolumeMoving, guest: InstanceId | None, to: DiskSource) -> bool:
        """Whether all that is in the volume is in its copy, too."""
        up = guest is not None and await self._is_up(guest)
        if move.at_rest or guest is None:
            return move.at_rest and not up
        if move.goes_over and (await self._making.hypervisor.layers.files(guest)).get(id) == to.path:
            return True  # it went over, whatever became of it since
        return (await self._mirrors.mirrored(guest)).get(id) == to.path

    async def _undo_now_or_later(self, id: VolumeId) -> None:
        try:
            await self._undo(id)
        except PileusError as why:
            log.warning("undo of a volume's move goes on later", volume=id, why=str(why), internal=why.internal)

    async def _undo(self, id: VolumeId) -> None:
        record = self._known(id)
        if record.move is not None:
            if (guest := self._user_of(id)) is not None:
                with suppress(NotFound):
                    await self._mirrors.stop_mirroring(guest, id)
            await self._records.put(id, structs.replace(record, move=None, left_in=record.move.to, secure=False))
        await self._clear(id, tell_nobody)

    async def _clear(self, id: VolumeId, tell: Tell) -> None:
        """Remove the copy that is not the volume, if there is one and its pool is to be had; else it is for later."""
        record = self._known(id)
        if not record.left_in:
            return
        try:
            self._volumes.pool(record.left_in)
        except PileusError as why:
            log.warning("copy of a volume not removed yet", volume=id, pool=record.left_in, why=str(why))
            return
        await self._volumes.discard(id, record.left_in, tell, secure=record.secure)
        await self._records.put(id, structs.replace(record, left_in="", secure=False))

    # What is known.

    def _known(self, id: VolumeId) -> VolumeRecord:
        record = self._records.get(id)
        if not isinstance(record, VolumeRecord):
            raise NotFound(f"there is no volume {id} on this host")
        return record

    def _check(self, wish: VolumeMove) -> None:
        """Raises Stale, NotFound or Conflict if this is not to be done."""
        record = self._known(wish.id)
        if record.spec.generation >= wish.generation:
            raise Stale(f"volume {wish.id} is at generation {record.spec.generation} on this host")
        if record.spec.pool != wish.pool:
            raise NotFound(f"volume {wish.id} is not in storage pool {wish.pool}")
        if record.spec.found is not None or not record.made:
            raise Conflict("the volume is not a whole one of a pool")

    def _is_past_return(self, wish: VolumeMove) -> bool:
        record = self._known(wish.id)
        return record.spec.pool == wish.to or (record.move is not None and record.move.goes_over)

    def _user_of(self, id: VolumeId) -> InstanceId | None:
        return next((spec.id for spec in self._making.specs() for disk in spec.disks if disk.volume == id), None)

    async def _is_up(self, guest: InstanceId) -> bool:
        return is_up(await self._making.find(guest))


async def _written_in(pool: StoragePool, id: VolumeId) -> DiskSource | None:
    """Where what a pool has of a volume is written to; None if it has nothing of it."""
    try:
        return await pool.layering.source(id, (await pool.layering.layers(id)).active)
    except NotFound:
        return None
