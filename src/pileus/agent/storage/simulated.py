"""A storage pool in memory. It outlives its agent as a real one does: hand the same one to the next agent."""

import hashlib

from pileus.agent.faults import Faults
from pileus.agent.storage.port import DiskSource, Fetch, PoolUse, Told
from pileus.agent.turns import Turns
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import ImageId, VolumeId, check_id
from pileus.kernel.units import TIB, size_text
from pileus.link.records import ImageSource, VolumeObserved, VolumeSpec


class SimulatedStorage:
    """Keeps volumes that have a size and no content."""

    def __init__(self, faults: Faults | None = None, *, total_bytes: int = TIB, fetches: bool = True) -> None:
        """A pool of this size. With `fetches` off it takes every image on trust, without asking for its bytes."""
        self.faults = faults or Faults()
        self.volumes: dict[VolumeId, VolumeObserved] = {}
        self.images: dict[ImageId, ImageSource] = {}
        self.offered: set[ImageId] = set()
        self._total_bytes = total_bytes
        self._fetches = fetches
        self._turns = Turns()

    async def ensure_image(self, image: ImageSource, fetch: Fetch, told: Told) -> None:
        check_id(image.id)
        await self.faults.before("storage.ensure_image")
        async with self._turns.of(image.id):
            if image.id in self.images:
                return
            if self._fetches:
                await _check(image, fetch, told)
            self.images[image.id] = image
        self.faults.after("storage.ensure_image")

    async def remove_image(self, id: ImageId) -> None:
        check_id(id)
        await self.faults.before("storage.remove_image")
        self.images.pop(id, None)
        self.faults.after("storage.remove_image")

    async def offer(self, id: ImageId) -> DiskSource:
        check_id(id)
        await self.faults.before("storage.offer")
        if id not in self.images and id not in self.offered:
            raise NotFound(f"the storage pool has no image {id}")
        self.offered.add(id)
        self.faults.after("storage.offer")
        return DiskSource(kind="file", path=f"/simulated/{id}.iso", format="raw")

    async def withdraw(self, id: ImageId) -> None:
        check_id(id)
        await self.faults.before("storage.withdraw")
        self.offered.discard(id)
        self.faults.after("storage.withdraw")

    async def media(self) -> frozenset[ImageId]:
        await self.faults.before("storage.media")
        return frozenset(self.offered)

    async def ensure(self, volume: VolumeSpec, told: Told) -> VolumeObserved:
        check_id(volume.id)
        await self.faults.before("storage.ensure")
        known = self.volumes.get(volume.id)
        if known is None and volume.image is not None:
            self._check_image(volume, volume.image)
        size = max(volume.size_bytes, known.size_bytes if known else 0)
        if size - (known.size_bytes if known else 0) > self._total_bytes - self._promised():
            raise Conflict(f"the storage pool has no room for {size_text(volume.size_bytes)}")
        observed = VolumeObserved(id=volume.id, generation=volume.generation, size_bytes=size)
        self.volumes[volume.id] = observed
        told(1.0)
        self.faults.after("storage.ensure")
        return observed

    async def remove(self, id: VolumeId) -> None:
        check_id(id)
        await self.faults.before("storage.remove")
        self.volumes.pop(id, None)
        self.faults.after("storage.remove")

    async def list(self) -> dict[VolumeId, VolumeObserved]:
        await self.faults.before("storage.list")
        return dict(self.volumes)

    async def source(self, id: VolumeId) -> DiskSource:
        check_id(id)
        await self.faults.before("storage.source")
        if id not in self.volumes:
            raise NotFound(f"the storage pool has no volume {id}")
        return DiskSource(kind="file", path=f"/simulated/{id}", format="raw")

    async def use(self) -> PoolUse:
        await self.faults.before("storage.use")
        return PoolUse(total_bytes=self._total_bytes, free_bytes=self._total_bytes, promised_bytes=self._promised())

    def _promised(self) -> int:
        return sum(volume.size_bytes for volume in self.volumes.values())

    def _check_image(self, volume: VolumeSpec, image: ImageSource) -> None:
        if image.id not in self.images:
            raise NotFound(f"the storage pool has no image {image.id}")
        if image.virtual_size_bytes > volume.size_bytes:
            raise Conflict(
                f"the image needs {size_text(image.virtual_size_bytes)}, the volume has {size_text(volume.size_bytes)}"
            )


async def _check(image: ImageSource, fetch: Fetch, told: Told) -> None:
    digest, size = hashlib.sha256(), 0
    async for piece in fetch(image):
        digest.update(piece)
        size += len(piece)
        if size > image.size_bytes:
            break
        told(size / image.size_bytes)
    if size != image.size_bytes or digest.hexdigest() != image.sha256:
        raise Conflict("the image that arrived is not the one that was promised")
