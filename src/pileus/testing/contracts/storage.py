"""What every storage driver owes an agent. A driver's own tests subclass this and bring the fixtures."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import ClassVar

import pytest
from msgspec import structs

from pileus.agent.storage.port import StoragePool
from pileus.kernel.errors import Conflict, Invalid, NotFound, Unavailable
from pileus.kernel.ids import ImageId, VolumeId, new_id
from pileus.kernel.units import KIB, MIB
from pileus.link.images import ImageSource
from pileus.link.volumes import VolumeSpec


class Wire:
    """Where images come from in these tests: counts how often, and can break off."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.fetched = 0
        self.breaks_after: int | None = None

    async def fetch(self, _: ImageSource) -> AsyncIterator[bytes]:
        self.fetched += 1
        step = 64 * KIB
        for start in range(0, len(self.content), step):
            if self.breaks_after is not None and start >= self.breaks_after:
                raise Unavailable("the line is dead")
            await asyncio.sleep(0)
            yield self.content[start : start + step]


class StoragePoolContract:
    """The promise. A subclass brings the fixtures below.

    * `pool`: the driver of a pool that is empty.
    * `another`: a function that makes a second driver of the same pool, as a restarted agent does.
    """

    size_bytes: ClassVar[int] = 2 * MIB

    @pytest.fixture
    def wire(self) -> Wire:
        return Wire(bytes(range(256)) * 1024 + bytes(512 * KIB) + b"the end".ljust(4 * KIB, b"."))

    @pytest.fixture
    def image(self, wire: Wire) -> ImageSource:
        return ImageSource(
            id=ImageId(new_id()),
            sha256=hashlib.sha256(wire.content).hexdigest(),
            size_bytes=len(wire.content),
            virtual_size_bytes=len(wire.content),
            format="raw",
            url="",
        )

    def volume(self, *, image: ImageSource | None = None) -> VolumeSpec:
        return VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=self.size_bytes, image=image)

    # Volumes.

    async def test_a_medium_is_read_by_guests_until_it_is_withdrawn_also_without_its_image(
        self, pool: StoragePool, another: Callable[[], Awaitable[StoragePool]], wire: Wire, image: ImageSource
    ) -> None:
        with pytest.raises(NotFound):
            await pool.offer(image.id)
        await pool.ensure_image(structs.replace(image, format="iso"), wire.fetch, lambda _: None)
        assert await pool.media() == frozenset()
        offered = await pool.offer(image.id)
        assert await pool.offer(image.id) == offered
        await pool.remove_image(image.id)
        later = await another()
        assert await later.media() == {image.id}
        assert await later.offer(image.id) == offered
        for _ in range(2):
            await later.withdraw(image.id)
            assert await later.media() == frozenset()
        with pytest.raises(NotFound):
            await later.offer(image.id)

    async def test_an_image_is_told_of_with_when_it_was_last_asked_for_until_it_is_removed(
        self, pool: StoragePool, another: Callable[[], Awaitable[StoragePool]], wire: Wire, image: ImageSource
    ) -> None:
        assert await pool.cached() == {}
        await pool.ensure_image(image, wire.fetch, _nobody)
        first = (await (await another()).cached())[image.id]
        assert (first.allocated_bytes > 0, first.offered) == (True, False)
        await pool.ensure_image(image, wire.fetch, _nobody)
        await pool.offer(image.id)
        then = (await pool.cached())[image.id]
        assert (then.used_at >= first.used_at, then.offered) == (True, True)
        await pool.remove_image(image.id)
        assert await pool.cached() == {}

    async def test_a_volume_is_as_it_was_asked_for(self, pool: StoragePool) -> None:
        volume = self.volume()
        made = await pool.ensure(volume, _nobody)
        assert (made.id, made.generation, made.size_bytes) == (volume.id, 1, self.size_bytes)
        assert await pool.list() == {volume.id: made}

    async def test_asking_twice_is_asking_once(self, pool: StoragePool) -> None:
        volume = self.volume()
        assert await pool.ensure(volume, _nobody) == await pool.ensure(volume, _nobody)

    async def test_a_volume_is_grown_and_never_shrunk(self, pool: StoragePool) -> None:
        volume = self.volume()
        await pool.ensure(volume, _nobody)
        larger = structs.replace(volume, generation=2, size_bytes=2 * self.size_bytes)
        assert (await pool.ensure(larger, _nobody)).size_bytes == 2 * self.size_bytes
        smaller = structs.replace(volume, generation=3)
        assert (await pool.ensure(smaller, _nobody)).size_bytes == 2 * self.size_bytes
        assert (await pool.list())[volume.id].generation == 3

    async def test_a_removed_volume_is_gone_and_removing_it_again_is_fine(self, pool: StoragePool) -> None:
        volume = self.volume()
        await pool.ensure(volume, _nobody)
        for _ in range(2):
            await pool.remove(volume.id)
            assert not await pool.list()
        with pytest.raises(NotFound):
            await pool.source(volume.id)

    async def test_an_overwritten_volume_is_gone_as_a_removed_one_and_that_can_be_asked_again(
        self, pool: StoragePool, another: Callable[[], Awaitable[StoragePool]]
    ) -> None:
        volume, other, told = self.volume(), self.volume(), list[float]()
        await pool.ensure(volume, _nobody)
        kept = await pool.ensure(other, _nobody)
        await pool.wipe(volume.id, told.append)
        assert told == sorted(told)
        assert told[-1] == 1.0
        await (await another()).wipe(volume.id, _nobody)
        assert await pool.list() == {other.id: kept}
        assert (await pool.ensure(volume, _nobody)).size_bytes == self.size_bytes

    async def test_the_hypervisor_is_told_where_a_volume_is(self, pool: StoragePool) -> None:
        one, two = self.volume(), self.volume()
        await pool.ensure(one, _nobody)
        await pool.ensure(two, _nobody)
        source = await pool.source(one.id)
        assert source == await pool.source(one.id)
        assert source != await pool.source(two.id)
        assert source.kind in {"file", "block", "rbd"}
        assert source.format in {"raw", "qcow2"}

    async def test_volumes_outlive_the_agent(
        self, pool: StoragePool, another: Callable[[], Awaitable[StoragePool]]
    ) -> None:
        made = await pool.ensure(self.volume(), _nobody)
        assert await (await another()).list() == {made.id: made}

    async def test_a_volume_counts_as_promised_in_full(self, pool: StoragePool) -> None:
        before = (await pool.use()).promised_bytes
        volume = self.volume()
        await pool.ensure(volume, _nobody)
        use = await pool.use()
        assert use.promised_bytes - before == self.size_bytes
        assert 0 <= use.free_bytes <= use.total_bytes
        await pool.remove(volume.id)
        assert (await pool.use()).promised_bytes == before

    async def test_what_the_pool_cannot_hold_is_refused_and_leaves_nothing(self, pool: StoragePool) -> None:
        too_large = (await pool.use()).total_bytes * 2 // self.size_bytes * self.size_bytes
        with pytest.raises(Conflict):
            await pool.ensure(structs.replace(self.volume(), size_bytes=too_large), _nobody)
        assert not await pool.list()

    async def test_a_volume_that_cannot_grow_stays_as_it_was(self, pool: StoragePool) -> None:
        volume = self.volume()
        made = await pool.ensure(volume, _nobody)
        too_large = (await pool.use()).total_bytes * 2 // self.size_bytes * self.size_bytes
        with pytest.raises(Conflict):
            await pool.ensure(structs.replace(volume, generation=2, size_bytes=too_large), _nobody)
        assert await pool.list() == {volume.id: made}

    async def test_an_id_that_is_none_is_refused(self, pool: StoragePool) -> None:
        for evil in ("../evil", "/etc/passwd", "", ".", "a" * 36):
            with pytest.raises(Invalid):
                await pool.ensure(structs.replace(self.volume(), id=VolumeId(evil)), _nobody)
            with pytest.raises(Invalid):
                await pool.remove(VolumeId(evil))
            with pytest.raises(Invalid):
                await pool.wipe(VolumeId(evil), _nobody)
            with pytest.raises(Invalid):
                await pool.source(VolumeId(evil))
            with pytest.raises(Invalid):
                await pool.remove_image(ImageId(evil))
            with pytest.raises(Invalid):
                await pool.offer(ImageId(evil))
            with pytest.raises(Invalid):
                await pool.withdraw(ImageId(evil))

    # Images.

    async def test_a_volume_is_made_from_an_image(self, pool: StoragePool, image: ImageSource, wire: Wire) -> None:
        await pool.ensure_image(image, wire.fetch, _nobody)
        made = await pool.ensure(self.volume(image=image), _nobody)
        assert made.size_bytes == self.size_bytes

    async def test_a_volume_of_an_image_that_is_not_there_is_refused(
        self, pool: StoragePool, image: ImageSource
    ) -> None:
        with pytest.raises(NotFound):
            await pool.ensure(self.volume(image=image), _nobody)
        assert not await pool.list()

    async def test_a_volume_smaller_than_its_image_is_refused(
        self, pool: StoragePool, image: ImageSource, wire: Wire
    ) -> None:
        await pool.ensure_image(image, wire.fetch, _nobody)
        with pytest.raises(Conflict):
            await pool.ensure(structs.replace(self.volume(image=image), size_bytes=512), _nobody)
        assert not await pool.list()

    async def test_an_image_is_fetched_once(
        self,
        pool: StoragePool,
        another: Callable[[], Awaitable[StoragePool]],
        image: ImageSource,
        wire: Wire,
    ) -> None:
        await pool.ensure_image(image, wire.fetch, _nobody)
        await pool.ensure_image(image, wire.fetch, _nobody)
        await (await another()).ensure_image(image, wire.fetch, _nobody)
        assert wire.fetched == 1

    async def test_an_image_wanted_by_many_at_once_is_fetched_once(
        self, pool: StoragePool, image: ImageSource, wire: Wire
    ) -> None:
        await asyncio.gather(*(pool.ensure_image(image, wire.fetch, _nobody) for _ in range(8)))
        assert wire.fetched == 1

    async def test_a_broken_transfer_is_told_and_can_be_repeated(
        self, pool: StoragePool, image: ImageSource, wire: Wire
    ) -> None:
        wire.breaks_after = 100 * KIB
        with pytest.raises(Unavailable):
            await pool.ensure_image(image, wire.fetch, _nobody)
        with pytest.raises(NotFound):
            await pool.ensure(self.volume(image=image), _nobody)
        wire.breaks_after = None
        await pool.ensure_image(image, wire.fetch, _nobody)
        await pool.ensure(self.volume(image=image), _nobody)

    async def test_an_image_that_is_not_the_promised_one_is_refused(
        self, pool: StoragePool, image: ImageSource, wire: Wire
    ) -> None:
        honest = wire.content
        for forged in (b"!" + honest[1:], honest[:-1], honest + b"!", b""):
            wire.content = forged
            with pytest.raises(Conflict):
                await pool.ensure_image(image, wire.fetch, _nobody)
            with pytest.raises(NotFound):
                await pool.ensure(self.volume(image=image), _nobody)
        wire.content = honest
        await pool.ensure_image(image, wire.fetch, _nobody)

    async def test_progress_goes_up_to_one(self, pool: StoragePool, image: ImageSource, wire: Wire) -> None:
        told = list[float]()
        await pool.ensure_image(image, wire.fetch, told.append)
        assert told == sorted(told)
        assert told[-1] == 1.0
        assert told[0] >= 0.0

    async def test_volumes_stay_when_their_image_is_removed(
        self, pool: StoragePool, image: ImageSource, wire: Wire
    ) -> None:
        await pool.ensure_image(image, wire.fetch, _nobody)
        volume = self.volume(image=image)
        made = await pool.ensure(volume, _nobody)
        for _ in range(2):
            await pool.remove_image(image.id)
        assert await pool.ensure(volume, _nobody) == made
        with pytest.raises(NotFound):
            await pool.ensure(self.volume(image=image), _nobody)


def _nobody(_: float) -> None:
    """Nobody wants to know how far it is."""
