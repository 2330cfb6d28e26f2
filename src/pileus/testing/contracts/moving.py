"""What every storage driver owes an agent of volumes that move. A driver's own tests subclass this."""

import pytest

from pileus.agent.storage.layers import BASE
from pileus.agent.storage.port import StoragePool
from pileus.kernel.errors import NotFound, Unavailable
from pileus.kernel.ids import SnapshotId, VolumeId, new_id
from pileus.kernel.units import MIB
from pileus.link.volumes import VolumeSpec


class MovingContract:
    """The promise. A subclass brings the fixtures `pool` and `other`, storage pools with nothing in them."""

    @pytest.fixture
    async def volume(self, pool: StoragePool) -> VolumeId:
        """A volume that was kept at a moment."""
        made = VolumeSpec(id=VolumeId(new_id()), generation=3, size_bytes=8 * MIB)
        await pool.ensure(made, _nobody)
        await self.kept(pool, made.id)
        return made.id

    async def kept(self, pool: StoragePool, volume: VolumeId) -> SnapshotId:
        snapshot = SnapshotId(new_id())
        await pool.layering.lay(volume, snapshot)
        await pool.layering.confirm(volume, snapshot)
        return snapshot

    async def test_what_is_received_is_what_was_given_with_all_its_layers(
        self, pool: StoragePool, other: StoragePool, volume: VolumeId
    ) -> None:
        contents = await pool.moving.contents(volume)
        for filled in (False, True, True):
            written = await other.moving.receive(volume, contents, _nobody, filled=filled)
            assert written == await other.source(volume)
            assert written != await pool.source(volume)
            has = await other.moving.contents(volume)
            assert (has.generation, has.size_bytes, has.layers) == (3, 8 * MIB, contents.layers)
            assert has.files.keys() == contents.files.keys() == {BASE, contents.layers.active}
            assert has.files.items().isdisjoint(contents.files.items())

    async def test_a_volume_that_has_moved_goes_on_keeping_and_letting_go(
        self, pool: StoragePool, other: StoragePool, volume: VolumeId
    ) -> None:
        await other.moving.receive(volume, await pool.moving.contents(volume), _nobody)
        await pool.remove(volume)
        await self.kept(other, volume)
        for snapshot in list((await other.layering.layers(volume)).frozen):
            await other.layering.forget(volume, SnapshotId(snapshot))
            while (layer := (await other.layering.layers(volume)).to_merge()) is not None:
                await other.layering.begin_merge(volume, layer)
                await other.layering.merge(volume)
                await other.layering.end_merge(volume)
        assert not (await other.layering.layers(volume)).below
        assert (await other.list())[volume].size_bytes == 8 * MIB

    async def test_whether_it_is_overwritten_moves_with_it(
        self, pool: StoragePool, other: StoragePool, volume: VolumeId
    ) -> None:
        await pool.layering.secure(volume, True)
        await other.moving.receive(volume, await pool.moving.contents(volume), _nobody)
        assert (await other.moving.contents(volume)).secure

    async def test_what_is_not_there_or_is_being_changed_is_not_given(
        self, pool: StoragePool, volume: VolumeId
    ) -> None:
        with pytest.raises(NotFound):
            await pool.moving.contents(VolumeId(new_id()))
        await pool.layering.lay(volume, SnapshotId(new_id()))
        with pytest.raises(Unavailable):
            await pool.moving.contents(volume)


def _nobody(_: float) -> None:
    """Nobody wants to know how far it is."""
