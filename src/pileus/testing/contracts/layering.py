"""What every storage driver owes an agent of snapshots. A driver's own tests subclass this and bring the fixtures."""

import pytest

from pileus.agent.storage.layers import BASE, Layers
from pileus.agent.storage.port import StoragePool
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import SnapshotId, VolumeId, new_id
from pileus.kernel.units import MIB
from pileus.link.volumes import VolumeCopy, VolumeSpec


class LayeringContract:
    """The promise. A subclass brings the fixture `pool`, a storage pool with nothing in it."""

    @pytest.fixture
    async def volume(self, pool: StoragePool) -> VolumeId:
        made = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=8 * MIB)
        await pool.ensure(made, _nobody)
        return made.id

    async def test_a_volume_begins_without_layers(self, pool: StoragePool, volume: VolumeId) -> None:
        assert await pool.layering.layers(volume) == Layers()
        assert await pool.layering.space(volume) == {}

    async def test_what_is_written_after_a_snapshot_goes_elsewhere(self, pool: StoragePool, volume: VolumeId) -> None:
        snapshot, before = SnapshotId(new_id()), await pool.source(volume)
        for _ in range(2):
            laid = await pool.layering.lay(volume, snapshot)
            assert laid != before
            assert await pool.source(volume) == laid
        for _ in range(2):
            await pool.layering.confirm(volume, snapshot)
        assert (await pool.layering.layers(volume)).frozen.keys() == {snapshot}
        assert (await pool.layering.space(volume)).keys() == {snapshot}

    async def test_a_snapshot_that_is_taken_back_leaves_nothing(self, pool: StoragePool, volume: VolumeId) -> None:
        snapshot, before = SnapshotId(new_id()), await pool.source(volume)
        await pool.layering.lay(volume, snapshot)
        for _ in range(2):
            await pool.layering.take_back(volume, snapshot)
        assert await pool.layering.layers(volume) == Layers()
        assert await pool.source(volume) == before

    async def test_what_is_confirmed_is_not_taken_back(self, pool: StoragePool, volume: VolumeId) -> None:
        snapshot = await _taken(pool, volume)
        await pool.layering.take_back(volume, snapshot)
        assert snapshot in (await pool.layering.layers(volume)).frozen

    async def test_two_snapshots_are_not_taken_at_once(self, pool: StoragePool, volume: VolumeId) -> None:
        await pool.layering.lay(volume, SnapshotId(new_id()))
        with pytest.raises(Conflict):
            await pool.layering.lay(volume, SnapshotId(new_id()))

    async def test_going_back_twice_is_going_back_once(self, pool: StoragePool, volume: VolumeId) -> None:
        snapshot, to = await _taken(pool, volume), new_id()
        for _ in range(2):
            await pool.layering.revert(volume, snapshot, to)
            assert (await pool.layering.layers(volume)).active == to
        assert (await pool.source(volume)) == await pool.layering.source(volume, to)

    async def test_when_the_last_snapshot_is_merged_the_volume_is_as_it_began(
        self, pool: StoragePool, volume: VolumeId
    ) -> None:
        before = await pool.source(volume)
        first, second = await _taken(pool, volume), await _taken(pool, volume)
        for snapshot in (first, second):
            await pool.layering.forget(volume, snapshot)
            layer = (await pool.layering.layers(volume)).to_merge()
            assert layer is not None
            await pool.layering.begin_merge(volume, layer)
            for _ in range(2):
                await pool.layering.merge(volume)
            for _ in range(2):
                await pool.layering.end_merge(volume)
        assert await pool.layering.layers(volume) == Layers()
        assert await pool.source(volume) == before

    async def test_a_copy_is_made_of_a_snapshot_and_outlives_it(self, pool: StoragePool, volume: VolumeId) -> None:
        snapshot = await _taken(pool, volume)
        moment = VolumeCopy(volume=volume, snapshot=snapshot)
        copy = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=8 * MIB, copy_of=moment)
        await pool.ensure(copy, _nobody)
        await pool.remove(volume)
        assert (await pool.list()).keys() == {copy.id}

    async def test_what_is_not_there_is_not_found(self, pool: StoragePool, volume: VolumeId) -> None:
        nowhere, never = VolumeId(new_id()), SnapshotId(new_id())
        for asked in (pool.layering.layers(nowhere), pool.layering.lay(nowhere, never)):
            with pytest.raises(NotFound):
                await asked
        with pytest.raises(NotFound):
            await pool.layering.revert(volume, never, new_id())
        copy = VolumeCopy(volume=volume, snapshot=never)
        with pytest.raises(NotFound):
            await pool.ensure(
                VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=8 * MIB, copy_of=copy), _nobody
            )

    async def test_layers_go_with_their_volume(self, pool: StoragePool, volume: VolumeId) -> None:
        await _taken(pool, volume)
        await pool.remove(volume)
        assert not await pool.list()
        with pytest.raises(NotFound):
            await pool.layering.layers(volume)

    async def test_layers_go_with_a_volume_that_is_overwritten(self, pool: StoragePool, volume: VolumeId) -> None:
        await _taken(pool, volume)
        await pool.wipe(volume, _nobody)
        assert not await pool.list()
        with pytest.raises(NotFound):
            await pool.layering.layers(volume)

    async def test_a_volume_with_secured_layers_is_what_it_is_and_lets_go_of_them(
        self, pool: StoragePool, volume: VolumeId
    ) -> None:
        snapshot, to = await _taken(pool, volume), new_id()
        for wanted in (True, True, False, True):
            await pool.layering.secure(volume, wanted)
        await pool.layering.revert(volume, snapshot, to)
        assert (await pool.layering.layers(volume)).chain(to) == [to, BASE]
        assert (await pool.source(volume)) == await pool.layering.source(volume, to)
        with pytest.raises(NotFound):
            await pool.layering.secure(VolumeId(new_id()), True)


async def _taken(pool: StoragePool, volume: VolumeId) -> SnapshotId:
    snapshot = SnapshotId(new_id())
    await pool.layering.lay(volume, snapshot)
    await pool.layering.confirm(volume, snapshot)
    return snapshot


def _nobody(_: float) -> None:
    """Nobody wants to know how far it is."""
