"""A storage pool in memory. It outlives its agent as a real one does: hand the same one to the next agent."""

import hashlib
from datetime import UTC, datetime

from pileus.agent.backup.simulated import SimulatedPlace
from pileus.agent.faults import Faults
from pileus.agent.storage.port import CachedImage, DiskSource, Fetch, Pieces, StoragePool, Told
from pileus.agent.storage.simulatedlayering import SimulatedLayering
from pileus.agent.storage.simulatedmoving import SimulatedMoving
from pileus.agent.storage.simulatedpacking import SimulatedPacking
from pileus.agent.turns import Turns
from pileus.kernel.errors import Conflict, NotFound, Unavailable
from pileus.kernel.ids import ImageId, StoragePoolId, VolumeId, check_id
from pileus.kernel.units import TIB, size_text
from pileus.link.images import ImageSource
from pileus.link.storagepools import PoolUse, StoragePoolSpec
from pileus.link.volumes import VolumeObserved, VolumeSpec


class SimulatedStorage:
    """Keeps volumes that have a size and no content."""

    def __init__(
        self,
        faults: Faults | None = None,
        *,
        total_bytes: int = TIB,
        fetches: bool = True,
        root: str = "/simulated",
    ) -> None:
        """A pool of this size, whose files would be below `root`.

        With `fetches` off it takes every image on trust, without asking for its bytes.
        """
        self.faults = faults or Faults()
        self.volumes: dict[VolumeId, VolumeObserved] = {}
        self.images: dict[ImageId, ImageSource] = {}
        self.used: dict[ImageId, datetime] = {}
        """When images were last asked for."""
        self.offered: set[ImageId] = set()
        self.wiped: set[VolumeId] = set()
        """The volumes that were overwritten when they were removed."""
        self.filled_bytes = 0
        """What is in use by others than its volumes, which have nothing in them."""
        self._total_bytes = total_bytes
        self._overcommit = 1.0
        self._fetches = fetches
        self._turns = Turns()
        self.place = SimulatedPlace(self.faults)
        self.contents: dict[VolumeId, bytes] = {}
        """What is in the volumes in which there is something, from their beginning."""
        self.prepared: dict[tuple[VolumeId, str], bytes] = {}
        """What volumes are to become."""
        self.became: dict[VolumeId, str] = {}
        self.layering = SimulatedLayering(self.faults, self.volumes, self.contents, root)
        self.moving = SimulatedMoving(self)
        self.packing = SimulatedPacking(self.faults, self.volumes, self.layering)

    async def ensure_image(self, image: ImageSource, fetch: Fetch, told: Told) -> None:
        check_id(image.id)
        await self.faults.before("storage.ensure_image")
        async with self._turns.of(image.id):
            self.used[image.id] = datetime.now(UTC)
            if image.id in self.images:
                return
            if self._fetches:
                await _check(image, fetch, told)
            self.images[image.id] = image
        self.faults.after("storage.ensure_image")

    async def cached(self) -> dict[ImageId, CachedImage]:
        return {
            id: CachedImage(allocated_bytes=image.virtual_size_bytes, used_at=self.used[id], offered=id in self.offered)
            for id, image in self.images.items()
        }

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
        if known is None and volume.copy_of is not None:
            (await self.layering.layers(volume.copy_of.volume)).of(volume.copy_of.snapshot)
        size = max(volume.size_bytes, known.size_bytes if known else 0)
        self.check_room(size - (known.size_bytes if known else 0))
        observed = VolumeObserved(id=volume.id, generation=volume.generation, size_bytes=size)
        self.volumes[volume.id] = observed
        if known is None:
            self.contents[volume.id] = volume.id.encode()
        told(1.0)
        self.faults.after("storage.ensure")
        return observed

    async def fill(self, volume: VolumeSpec, pieces: Pieces) -> VolumeObserved:
        check_id(volume.id)
        await self.faults.before("storage.fill")
        if volume.id not in self.volumes:
            content = bytearray()
            async for start, piece in pieces():
                content[start : start + len(piece)] = piece
            self.volumes[volume.id] = VolumeObserved(
                id=volume.id, generation=volume.generation, size_bytes=volume.size_bytes
            )
            self.contents[volume.id] = bytes(content)
        self.faults.after("storage.fill")
        return self.volumes[volume.id]

    async def prepare(self, id: VolumeId, to: str, pieces: Pieces, *, room_bytes: int) -> None:  # noqa: ARG002
        check_id(to)
        await self.faults.before("storage.prepare")
        if id not in self.volumes:
            raise NotFound(f"the storage pool has no volume {id}")
        if self.became.get(id) != to:
            content = bytearray()
            async for start, piece in pieces():
                content[start : start + len(piece)] = piece
            self.prepared[id, to] = bytes(content)
        self.faults.after("storage.prepare")

    async def drop(self, id: VolumeId, to: str) -> None:
        await self.faults.before("storage.drop")
        self.prepared.pop((id, to), None)
        self.faults.after("storage.drop")

    async def exchange(self, id: VolumeId, to: str) -> None:
        await self.faults.before("storage.exchange")
        if self.became.get(id) != to:
            if (id, to) not in self.prepared:
                raise NotFound("there is nothing prepared that the volume could become")
            self.contents[id] = self.prepared.pop((id, to))
            self.layering.of.pop(id, None)
            self.became[id] = to
        self.faults.after("storage.exchange")

    async def remove(self, id: VolumeId) -> None:
        check_id(id)
        await self.faults.before("storage.remove")
        self.volumes.pop(id, None)
        self.layering.of.pop(id, None)
        self.layering.secured.discard(id)
        self.contents.pop(id, None)
        self.faults.after("storage.remove")

    async def wipe(self, id: VolumeId, told: Told) -> None:
        check_id(id)
        await self.faults.before("storage.wipe")
        if self.volumes.pop(id, None) is not None:
            self.wiped.add(id)
        self.layering.of.pop(id, None)
        self.layering.secured.discard(id)
        self.contents.pop(id, None)
        told(1.0)
        self.faults.after("storage.wipe")

    async def list(self) -> dict[VolumeId, VolumeObserved]:
        await self.faults.before("storage.list")
        return dict(self.volumes)

    async def source(self, id: VolumeId) -> DiskSource:
        check_id(id)
        await self.faults.before("storage.source")
        if id not in self.volumes:
            raise NotFound(f"the storage pool has no volume {id}")
        return self.layering.file(id, (await self.layering.layers(id)).active)

    async def use(self) -> PoolUse:
        await self.faults.before("storage.use")
        promised = self._promised()
        free = self._total_bytes - self.filled_bytes
        return PoolUse(total_bytes=self._total_bytes, free_bytes=free, promised_bytes=promised, unfilled_bytes=promised)

    def overcommit(self, ratio: float) -> None:
        self._overcommit = ratio

    def check_room(self, growth_bytes: int) -> None:
        """Raises Conflict if it cannot promise so much more."""
        if growth_bytes > (self._total_bytes - self.filled_bytes) * self._overcommit - self._promised():
            raise Conflict(f"the storage pool has no room for {size_text(growth_bytes)}")

    def _promised(self) -> int:
        return sum(volume.size_bytes for volume in self.volumes.values())

    def _check_image(self, volume: VolumeSpec, image: ImageSource) -> None:
        if image.id not in self.images:
            raise NotFound(f"the storage pool has no image {image.id}")
        if image.virtual_size_bytes > volume.size_bytes:
            raise Conflict(
                f"the image needs {size_text(image.virtual_size_bytes)}, the volume has {size_text(volume.size_bytes)}"
            )


class SimulatedBackings:
    """Whatever is behind storage pools that come and go, in memory (a Backings). Any place is there, unless `away`."""

    def __init__(self, faults: Faults | None = None, *, total_bytes: int = TIB) -> None:
        """Pools of this size each."""
        self.pools: dict[StoragePoolId, SimulatedStorage] = {}
        self.away: dict[str, str] = {}
        """Why a pool is not to be had, by its name."""
        self._faults = faults
        self._total_bytes = total_bytes

    async def open(self, spec: StoragePoolSpec, *, accepted: bool) -> StoragePool:  # noqa: ARG002 - nobody else's
        if why := self.missing(spec):
            raise Unavailable(why)
        if spec.id not in self.pools:
            self.pools[spec.id] = SimulatedStorage(
                self._faults, total_bytes=self._total_bytes, fetches=False, root=f"/simulated/{spec.id}"
            )
        return self.pools[spec.id]

    def missing(self, spec: StoragePoolSpec) -> str:
        return self.away.get(spec.name, "")

    async def retire(self, spec: StoragePoolSpec) -> None:
        self.pools.pop(spec.id, None)


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
