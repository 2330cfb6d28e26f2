"""The snapshots of a host's volumes: taken of running guests, at one moment for all disks, and merged away again.

A guest that runs is moved to new layers and lets go of old ones by QEMU itself; what no guest uses is done in files.
What is to become of a disk is noted before QEMU is told, and QEMU is asked afterwards what it uses: whoever dies when,
no guest is ever started on a layer that is behind what it has written.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from msgspec import structs

from pileus.agent.comparing import is_up
from pileus.agent.hypervisor.port import GuestState, Hypervisor
from pileus.agent.making import Making
from pileus.agent.records import Records, Removed, SnapshotRecord
from pileus.agent.storage.layers import Layers
from pileus.agent.storage.port import DiskSource, Moment
from pileus.agent.turns import Turns
from pileus.agent.volumes import REMEMBERED, Tell, Volumes, tell_nobody
from pileus.kernel.errors import Conflict, PileusError, Stale, Unavailable
from pileus.kernel.ids import InstanceId, SnapshotId, VolumeId
from pileus.link.guests import Power
from pileus.link.messages import Progress
from pileus.link.snapshots import (
    Consistency,
    SnapshotObserved,
    SnapshotRemoval,
    SnapshotRevert,
    SnapshotSpec,
    VolumeOf,
)

FREEZE_S: Final = 10.0
"""How long a guest may take to hold its file systems still."""

log = structlog.stdlib.get_logger()

_Users = Mapping[VolumeId, InstanceId]


class Snapshots:
    """Takes, removes and goes back to snapshots, and finishes what was interrupted."""

    def __init__(
        self, making: Making, volumes: Volumes, records: Records[SnapshotId, SnapshotRecord | Removed]
    ) -> None:
        self._making = making
        self._hypervisor: Hypervisor = making.hypervisor
        self._volumes = volumes
        self._records = records
        self._turns = Turns()
        self._looked_at_all = False
        self._being_read = Counter[VolumeId]()
        self._frozen: set[InstanceId] = set()
        """Guests that could not be told that their file systems may go on."""

    async def ensure(self, spec: SnapshotSpec, tell: Tell) -> SnapshotObserved:
        """Have the snapshot. If that fails, all is as it was before.

        Raises:
            Stale: it has been removed.
            NotFound: a volume or pool is not here.
            Conflict: there is no room, or memory is asked for of a guest that does not run.
            Unavailable: hypervisor or pool do not answer.
        """
        async with self._turns.of(spec.id), self.holding(spec.volumes) as users:
            record = self._records.get(spec.id)
            if isinstance(record, Removed):
                raise Stale(f"snapshot {spec.id} was removed from this host")
            if record is not None and record.observed is not None:
                return record.observed
            await self._records.put(spec.id, SnapshotRecord(spec=spec))
            try:
                observed = await self._take(spec, users, tell)
            except Exception:
                await self._undo(spec, users)
                raise
            await self._records.put(spec.id, SnapshotRecord(spec=spec, observed=observed))
            log.info("snapshot taken", snapshot=spec.id, consistency=observed.consistency)
            return observed

    async def remove(self, removal: SnapshotRemoval, tell: Tell) -> None:
        """Have the snapshot no more. Its volumes stay what they are, and their guests run on.

        Raises:
            NotFound: a pool is not here.
            Unavailable: hypervisor or pool do not answer; what is left goes on by itself.
        """
        async with self._turns.of(removal.id):
            if not isinstance(self._records.get(removal.id), Removed):
                await self._records.put(removal.id, Removed(generation=1, at=self._making.clock.now()))
            self._looked_at_all = False  # should this be interrupted
            try:
                async with self.holding(removal.volumes) as users:
                    await self._take_away(removal.id, removal.volumes, users, tell)
            except Conflict:
                if not removal.later:
                    raise
                await self._forget(removal)
            await self._records.put(removal.id, Removed(generation=1, at=self._making.clock.now(), finished=True))

    async def revert(self, wish: SnapshotRevert, tell: Tell) -> None:
        """Have the volumes be what they were; their guest is stopped at once if it runs.

        Raises:
            NotFound: there is no such snapshot of a volume.
            Conflict: a volume is used by another guest that runs.
            Unavailable: hypervisor or pool do not answer.
        """
        async with self._turns.of(wish.id), self.holding(wish.volumes) as users:
            if not await self._is_reverted(wish):
                for guest in sorted(set(users.values())):
                    if guest != wish.guest and await self._is_up(guest):
                        raise Conflict("a guest that runs is using a volume")
                    tell(Progress(step="stopping"))
                    await self._hypervisor.stop(guest)
                tell(Progress(step="reverting"))
                for volume in wish.volumes:
                    layering = self._volumes.layering(volume.pool)
                    await layering.secure(volume.id, volume.secure)
                    await layering.revert(volume.id, wish.id, wish.to)
                    await self._merge(volume, users, tell)
            if wish.memory and wish.guest is not None and not await self._is_up(wish.guest):
                tell(Progress(step="loading memory"))
                await self._go_on(wish.guest, wish)

    async def exchange(self, volumes: Sequence[VolumeOf], to: str) -> None:
        """Have volumes be what was prepared under this id; the snapshots that they had are gone.

        Raises:
            NotFound: nothing was prepared, or there is no such volume or pool.
            Conflict: a guest that runs uses one of them.
            Unavailable: hypervisor or pool do not answer.
        """
        async with self._turns.of(to), self.holding(volumes) as users:
            for guest in sorted(set(users.values())):
                if await self._is_up(guest):
                    raise Conflict("a guest that runs is using a volume")
            for volume in volumes:
                await self._volumes.layering(volume.pool).secure(volume.id, volume.secure)
                await self._volumes.pool(volume.pool).exchange(volume.id, to)

    @asynccontextmanager
    async def reading(
        self, volume: VolumeOf, snapshot: SnapshotId, since: SnapshotId | None
    ) -> AsyncGenerator[Moment, None]:
        """Read what a volume was, compared with another snapshot if there is one; its guest is free to do anything.

        Layers of the volume that are to be merged meanwhile are merged afterwards.

        Raises:
            NotFound: there is no such snapshot, volume or pool.
            Unavailable: the pool does not answer.
        """
        async with AsyncExitStack() as open_while:
            async with self.holding((volume,)):
                self._being_read[volume.id] += 1
                open_while.callback(self._was_read, volume.id)
                layering = self._volumes.layering(volume.pool)
                moment = await open_while.enter_async_context(layering.reading(volume.id, snapshot, since))
            yield moment

    def _was_read(self, volume: VolumeId) -> None:
        self._being_read[volume] -= 1
        if not self._being_read[volume]:
            del self._being_read[volume]

    @asynccontextmanager
    async def unmerged(self, volume: VolumeId) -> AsyncGenerator[None, None]:
        """Leave the layers of a volume as they are meanwhile; what is to be merged is merged afterwards."""
        self._being_read[volume] += 1
        try:
            yield
        finally:
            self._was_read(volume)

    async def settle(self) -> None:
        """Finish the merges that were interrupted, let no guest be held still, and forget old removals."""
        for id, record in self._records.items():
            if isinstance(record, Removed):
                if record.finished and self._making.clock.now() - record.at > REMEMBERED:
                    await self._records.forget(id)
            elif record.observed is None and not self._turns.busy(id):
                # Whoever wanted it asks again, or has it removed.
                await self._release(record.spec)
        for guest in tuple(self._frozen):
            async with self._making.turns.of(guest):
                await self._thaw(guest)
        if not self._looked_at_all:
            self._looked_at_all = await self._finish_merges()

    # Taking.

    async def _take(self, spec: SnapshotSpec, users: _Users, tell: Tell) -> SnapshotObserved:
        up = [guest for guest in sorted(set(users.values())) if await self._is_up(guest)]
        if spec.memory and not up:
            raise Conflict("the guest does not run: it has no memory to keep")
        laid: dict[VolumeId, DiskSource] = {}
        for volume in spec.volumes:
            laid[volume.id] = await self._volumes.layering(volume.pool).lay(volume.id, spec.id)
        consistency = Consistency.AT_REST
        for guest in up:
            tell(Progress(step="saving memory" if spec.memory else "switching disks"))
            consistency = await self._switch(spec, guest, {id: each for id, each in laid.items() if users[id] == guest})
        for volume in spec.volumes:
            await self._volumes.layering(volume.pool).confirm(volume.id, spec.id)
        layering = self._volumes.layering(spec.volumes[0].pool)
        return SnapshotObserved(
            id=spec.id,
            consistency=consistency,
            memory_bytes=await layering.memory_bytes(spec.id) if spec.memory else 0,
        )

    async def _switch(self, spec: SnapshotSpec, guest: InstanceId, laid: Mapping[VolumeId, DiskSource]) -> Consistency:
        """Have the guest write to the new layers, unless it does so already."""
        files = await self._hypervisor.layers.files(guest)
        if all(files.get(id) == source.path for id, source in laid.items()):
            # By an attempt of which it is not known any more how the guest had taken it.
            return Consistency.MEMORY if spec.memory else Consistency.CRASH
        if spec.memory:
            memory = await self._volumes.layering(spec.volumes[0].pool).memory(spec.id)
            await self._hypervisor.layers.switch(guest, laid, memory=memory)
            return Consistency.MEMORY
        frozen = await self._freeze(guest)
        try:
            await self._hypervisor.layers.switch(guest, laid)
        finally:
            if frozen:
                await self._thaw(guest)
        return Consistency.FILE_SYSTEMS if frozen else Consistency.CRASH

    async def _freeze(self, guest: InstanceId) -> bool:
        found = await self._making.find(guest)
        if found is None or found.state is not GuestState.RUNNING:
            return False
        try:
            async with asyncio.timeout(FREEZE_S):
                return await self._hypervisor.layers.freeze(guest)
        except (TimeoutError, PileusError) as why:
            log.info("guest does not hold its file systems", guest=guest, why=str(why))
            await self._thaw(guest)
            return False

    async def _thaw(self, guest: InstanceId) -> None:
        """Let a guest's file systems go on: now, or as soon as that can be told to it."""
        try:
            await self._hypervisor.layers.thaw(guest)
            self._frozen.discard(guest)
        except PileusError as why:
            self._frozen.add(guest)
            log.warning("guest not thawed yet", guest=guest, why=str(why), internal=why.internal)

    async def _undo(self, spec: SnapshotSpec, users: _Users) -> None:
        """Leave nothing of a snapshot that could not be taken, but let the same wish come again."""
        self._looked_at_all = False
        try:
            await self._take_away(spec.id, spec.volumes, users, tell_nobody)
            await self._records.forget(spec.id)
        except PileusError as why:
            log.warning("undo of a snapshot goes on later", snapshot=spec.id, why=str(why), internal=why.internal)

    async def _release(self, spec: SnapshotSpec) -> None:
        if spec.guest is None:
            return
        async with self._making.turns.of(spec.guest):
            if await self._is_up(spec.guest):
                await self._thaw(spec.guest)

    # Removing.

    async def _take_away(self, id: SnapshotId, volumes: Sequence[VolumeOf], users: _Users, tell: Tell) -> None:
        for volume in volumes:
            if not await self._volumes.has(volume.id, volume.pool):
                continue
            layering = self._volumes.layering(volume.pool)
            await layering.secure(volume.id, volume.secure)
            if (await layering.layers(volume.id)).unconfirmed == id:
                await self._decide(volume, id, users)
            await layering.forget(volume.id, id)
            await self._merge(volume, users, tell)
            await layering.forget_memory(id)

    async def _forget(self, removal: SnapshotRemoval) -> None:
        """Let go of a snapshot whose layers cannot be merged yet, as those of a guest that is suspended."""
        for volume in removal.volumes:
            async with self._turns.of(_turn_of(volume.id)):
                layering = self._volumes.layering(volume.pool)
                if (await layering.layers(volume.id)).unconfirmed == removal.id:
                    raise Unavailable("it is not known yet whether a guest writes to the layer over it")
                await layering.forget(volume.id, removal.id)

    async def _decide(self, volume: VolumeOf, id: SnapshotId, users: _Users) -> None:
        """Find out whether a layer that was laid has come into use."""
        layering, guest = self._volumes.layering(volume.pool), users.get(volume.id)
        if guest is not None and await self._is_up(guest):
            laid = await layering.source(volume.id, id)
            if (await self._hypervisor.layers.files(guest)).get(volume.id) != laid.path:
                await layering.take_back(volume.id, id)
                return
        # Of a guest that has ended nobody can tell: what it may have written there is merged.
        await layering.confirm(volume.id, id)

    async def _merge(self, volume: VolumeOf, users: _Users, tell: Tell) -> None:
        """Merge what no snapshot needs any more; later, if the volume is being read, or on its way elsewhere."""
        # Two jobs on one disk are one too many: the end of one would be taken for that of the other.
        if self._being_read[volume.id] or self._volumes.is_moving(volume.id):
            self._looked_at_all = False
            return
        layering = self._volumes.layering(volume.pool)
        while (layer := (layers := await layering.layers(volume.id)).to_merge()) is not None:
            tell(Progress(step="merging"))
            await layering.begin_merge(volume.id, layer)
            await self._merge_one(volume, layers, layer, users.get(volume.id))
            await layering.end_merge(volume.id)

    async def _merge_one(self, volume: VolumeOf, layers: Layers, layer: str, guest: InstanceId | None) -> None:
        layering = self._volumes.layering(volume.pool)
        if guest is not None and layer in layers.chain(layers.active):
            above = await layering.source(volume.id, layer)
            below = await layering.source(volume.id, layers.below[layer])
            if await self._is_up(guest):
                await self._hypervisor.layers.merge(guest, volume.id, above, below)
                return
            if layer == layers.active and (await self._hypervisor.layers.files(guest)).get(volume.id) == below.path:
                return  # it went over before it ended, and what it wrote since is below
        await layering.merge(volume.id)

    async def _finish_merges(self) -> bool:
        """Whether nothing is left to be merged."""
        done = True
        for volume in await self._volumes.in_layers():
            try:
                async with self.holding((volume,)) as users:
                    if (await self._volumes.layering(volume.pool).layers(volume.id)).unconfirmed == "":
                        await self._merge(volume, users, tell_nobody)
                    done = done and not self._being_read[volume.id] and not self._volumes.is_moving(volume.id)
            except PileusError as why:
                log.warning("layers not merged yet", volume=volume.id, why=str(why), internal=why.internal)
                done = False
        return done

    # Going back.

    async def _is_reverted(self, wish: SnapshotRevert) -> bool:
        layers = [await self._volumes.layering(volume.pool).layers(volume.id) for volume in wish.volumes]
        return all(wish.to == each.active for each in layers)

    async def _go_on(self, guest: InstanceId, wish: SnapshotRevert) -> None:
        record = self._making.known(guest)
        disks = {disk.volume: await self._volumes.source(disk.volume, disk.pool) for disk in record.spec.disks}
        # Before it runs: nobody is to stop it again because it was stopped before.
        await self._making.records.put(guest, structs.replace(record, power=Power.RUNNING, boot=self._making.boot))
        memory = await self._volumes.layering(wish.volumes[0].pool).memory(wish.id)
        await self._hypervisor.layers.restore(guest, disks, memory)

    # Who is concerned.

    @asynccontextmanager
    async def holding(self, volumes: Sequence[VolumeOf]) -> AsyncGenerator[_Users, None]:
        """The guests that have these volumes, by volume, kept as they are meanwhile."""
        async with AsyncExitStack() as held:
            for id in sorted({volume.id for volume in volumes}):
                await held.enter_async_context(self._turns.of(_turn_of(id)))
            users = await self._hold_guests(volumes, held)
            for guest in set(users.values()):
                found = await self._making.find(guest)
                if found is not None and found.state is GuestState.SUSPENDED:
                    raise Conflict("a guest is suspended: what it has in memory goes with its disks as they are")
            yield users

    async def _hold_guests(self, volumes: Sequence[VolumeOf], held: AsyncExitStack) -> _Users:
        """Hold the guests that have these volumes; who has one may have changed before all are held."""
        users = self._users(volumes)
        while True:
            async with AsyncExitStack() as meanwhile:
                for guest in sorted(set(users.values())):
                    await meanwhile.enter_async_context(self._making.turns.of(guest))
                if (now := self._users(volumes)) == users:
                    held.push_async_exit(meanwhile.pop_all())
                    return users
                users = now

    def _users(self, volumes: Sequence[VolumeOf]) -> dict[VolumeId, InstanceId]:
        ids = {volume.id for volume in volumes}
        return {disk.volume: spec.id for spec in self._making.specs() for disk in spec.disks if disk.volume in ids}

    async def _is_up(self, guest: InstanceId) -> bool:
        return is_up(await self._making.find(guest))


def _turn_of(volume: VolumeId) -> str:
    return f"volume {volume}"
