"""What every storage driver owes an agent of packing. A driver's own tests subclass this and bring the fixtures."""

import hashlib

import pytest

from pileus.agent.storage.port import StoragePool
from pileus.kernel.errors import Invalid, NotFound
from pileus.kernel.ids import ImageId, SnapshotId, VolumeId, new_id
from pileus.kernel.units import MIB
from pileus.link.volumes import VolumeSpec


class PackingContract:
    """The promise. A subclass brings the fixture `pool`, a storage pool with nothing in it."""

    @pytest.fixture
    async def volume(self, pool: StoragePool) -> VolumeId:
        made = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=8 * MIB)
        await pool.ensure(made, _nobody)
        return made.id

    @pytest.fixture
    async def snapshot(self, pool: StoragePool, volume: VolumeId) -> SnapshotId:
        snapshot = SnapshotId(new_id())
        await pool.layering.lay(volume, snapshot)
        await pool.layering.confirm(volume, snapshot)
        return snapshot

    async def test_what_is_packed_is_as_was_said_and_stays_until_it_is_discarded(
        self, pool: StoragePool, volume: VolumeId, snapshot: SnapshotId
    ) -> None:
        image, told = ImageId(new_id()), list[float]()
        packed = await pool.packing.pack(image, volume, snapshot, told.append)
        assert (packed.virtual_size_bytes, told[-1]) == (8 * MIB, 1.0)
        await pool.layering.forget(volume, snapshot)
        assert await pool.packing.pack(image, volume, snapshot, _nobody) == packed
        assert await pool.packing.packed() == {image: packed}
        content = b"".join([piece async for piece in pool.packing.read(image, 0)])
        assert (len(content), hashlib.sha256(content).hexdigest()) == (packed.size_bytes, packed.sha256)
        assert b"".join([piece async for piece in pool.packing.read(image, 100)]) == content[100:]
        for _ in range(2):
            await pool.packing.discard(image)
            assert await pool.packing.packed() == {}
        with pytest.raises(NotFound):
            await anext(aiter(pool.packing.read(image, 0)))

    async def test_what_is_not_there_is_not_packed(
        self, pool: StoragePool, volume: VolumeId, snapshot: SnapshotId
    ) -> None:
        image = ImageId(new_id())
        with pytest.raises(NotFound):
            await pool.packing.pack(image, volume, SnapshotId(new_id()), _nobody)
        with pytest.raises(NotFound):
            await pool.packing.pack(image, VolumeId(new_id()), snapshot, _nobody)
        with pytest.raises(Invalid):
            await pool.packing.pack(ImageId("../elsewhere"), volume, snapshot, _nobody)
        assert await pool.packing.packed() == {}


def _nobody(_: float) -> None:
    """Nobody wants to know how far it is."""
