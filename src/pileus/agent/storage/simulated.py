"""A storage pool in memory. It outlives its agent as a real one does: hand the same one to the next agent."""

import hashlib
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from pileus.agent.backup.simulated import SimulatedPlace
from pileus.agent.faults import Faults
from pileus.agent.storage.layers import Layers
from pileus.agent.storage.port import CachedImage, DiskSource, Fetch, Moment, Pieces, StoragePool, Told, VolumeContents
from pileus.agent.turns import Turns
from pileus.kernel.errors import Conflict, NotFound, Unavailable
from pileus.kernel.ids import ImageId, SnapshotId, StoragePoolId, VolumeId, check_id
from pileus.kernel.units import TIB, size_text
from pileus.link.images import ImagePacked, ImageSource
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


class SimulatedMoment:
    """What a simulated volume was at a snapshot (a Moment)."""

    def __init__(self, size_bytes: int, content: bytes, before: bytes | None) -> None:
        self.size_bytes = size_bytes
        self.is_compared = before is not None
        end = max(len(content), len(before or b""))
        self.changed: Sequence[tuple[int, int]] = [(0, end)] if end and content != before else []
        self._content = content

    async def read(self, start: int, length: int) -> bytes:
        return self._content[start : start + length].ljust(length, b"\0")


class SimulatedLayering:
    """The layers of simulated volumes: how they lie on each other, and what was in them when they were frozen."""

    def __init__(
        self, faults: Faults, volumes: Mapping[VolumeId, VolumeObserved], contents: dict[VolumeId, bytes], root: str
    ) -> None:
        self.faults = faults
        self._contents = contents
        self._root = root
        self.kept: dict[tuple[VolumeId, str], bytes] = {}
        self.of: dict[VolumeId, Layers] = {}
        """The layers of each volume that has more than its base."""
        self.secured: set[VolumeId] = set()
        """The volumes whose layers are overwritten before their space is given back."""
        self._volumes = volumes

    async def layers(self, id: VolumeId) -> Layers:
        if id not in self._volumes:
            raise NotFound(f"the storage pool has no volume {id}")
        return self.of.get(id, Layers())

    async def lay(self, id: VolumeId, snapshot: SnapshotId) -> DiskSource:
        layers = await self.layers(id)
        if snapshot not in layers.frozen:
            if layers.unconfirmed or layers.merging:
                raise Conflict("another snapshot of the volume is under way")
            await self._become("lay", id, layers.taken(snapshot))
            self.kept[id, snapshot] = self._contents.get(id, b"")
        return self.file(id, snapshot)

    async def confirm(self, id: VolumeId, snapshot: SnapshotId) -> None:
        layers = await self.layers(id)
        await self._become("confirm", id, layers.confirmed() if layers.unconfirmed == snapshot else layers)

    async def take_back(self, id: VolumeId, snapshot: SnapshotId) -> None:
        layers = await self.layers(id)
        await self._become("take_back", id, layers.untaken() if layers.unconfirmed == snapshot else layers)

    async def revert(self, id: VolumeId, snapshot: SnapshotId, to: str) -> None:
        layers = await self.layers(id)
        if layers.active != to:
            self._contents[id] = self.kept.get((id, snapshot), b"")
        await self._become("revert", id, layers if layers.active == to else layers.reverted(snapshot, to))

    async def forget(self, id: VolumeId, snapshot: SnapshotId) -> None:
        await self._become("forget", id, (await self.layers(id)).without(snapshot))

    async def secure(self, id: VolumeId, wanted: bool) -> None:
        await self.layers(id)
        if wanted == (id in self.secured):
            return
        await self.faults.before("layering.secure")
        if wanted:
            self.secured.add(id)
        else:
            self.secured.discard(id)
        self.faults.after("layering.secure")

    async def begin_merge(self, id: VolumeId, layer: str) -> None:
        await self._become("begin_merge", id, (await self.layers(id)).begun(layer))

    async def merge(self, id: VolumeId) -> None:
        await self._become("merge", id, await self.layers(id))

    async def end_merge(self, id: VolumeId) -> None:
        layers = await self.layers(id)
        await self._become("end_merge", id, layers.merged() if layers.merging else layers)

    async def source(self, id: VolumeId, layer: str) -> DiskSource:
        await self.layers(id)
        return self.file(id, layer)

    def file(self, id: VolumeId, layer: str) -> DiskSource:
        """Where a layer would be."""
        path = f"{self._root}/{id}" + (f"/{layer}" if layer else "")
        return DiskSource(kind="file", path=path, format="qcow2" if layer else "raw")

    @asynccontextmanager
    async def reading(
        self, id: VolumeId, snapshot: SnapshotId, since: SnapshotId | None
    ) -> AsyncGenerator[Moment, None]:
        frozen = (await self.layers(id)).frozen
        (await self.layers(id)).of(snapshot)
        before = self.kept.get((id, since), b"") if since is not None and since in frozen else None
        yield SimulatedMoment(self._volumes[id].size_bytes, self.kept.get((id, snapshot), b""), before)

    async def memory(self, snapshot: SnapshotId) -> Path:
        return Path("/simulated", snapshot)

    async def memory_bytes(self, snapshot: SnapshotId) -> int:  # noqa: ARG002 - there is none
        return 0

    async def forget_memory(self, snapshot: SnapshotId) -> None:
        """There is none."""

    async def space(self, id: VolumeId) -> Mapping[SnapshotId, int]:
        return {SnapshotId(snapshot): 0 for snapshot in (await self.layers(id)).frozen}

    async def _become(self, call: str, id: VolumeId, layers: Layers) -> None:
        await self.faults.before(f"layering.{call}")
        if layers == Layers():
            self.of.pop(id, None)
        else:
            self.of[id] = layers
        self.faults.after(f"layering.{call}")


class _Carried(VolumeContents, frozen=True, kw_only=True):
    """A simulated volume with what is in it, which no file holds."""

    content: bytes
    kept: Mapping[str, bytes]
    """What was in it at each of its snapshots."""


class SimulatedMoving:
    """Gives and takes simulated volumes, with what is in them at once, whoever is to fill them."""

    def __init__(self, pool: SimulatedStorage) -> None:
        self._pool = pool

    async def contents(self, id: VolumeId) -> VolumeContents:
        check_id(id)
        pool = self._pool
        await pool.faults.before("moving.contents")
        layers = await pool.layering.layers(id)
        if layers.merging or layers.unconfirmed:
            raise Unavailable("something else of the volume is under way")
        return _Carried(
            generation=pool.volumes[id].generation,
            size_bytes=pool.volumes[id].size_bytes,
            layers=layers,
            files={layer: pool.layering.file(id, layer) for layer in ("", *layers.below)},
            secure=id in pool.layering.secured,
            content=pool.contents.get(id, b""),
            kept={snapshot: pool.layering.kept.get((id, snapshot), b"") for snapshot in layers.frozen},
        )

    async def receive(self, id: VolumeId, contents: VolumeContents, told: Told, *, filled: bool = True) -> DiskSource:
        del filled
        check_id(id)
        assert isinstance(contents, _Carried)
        pool = self._pool
        await pool.faults.before("moving.receive")
        if id not in pool.volumes:
            pool.check_room(contents.size_bytes)
        pool.volumes[id] = VolumeObserved(id=id, generation=contents.generation, size_bytes=contents.size_bytes)
        pool.contents[id] = contents.content
        pool.layering.kept.update({(id, snapshot): kept for snapshot, kept in contents.kept.items()})
        pool.layering.of.pop(id, None)
        if contents.layers != Layers():
            pool.layering.of[id] = contents.layers
        if contents.secure:
            pool.layering.secured.add(id)
        told(1.0)
        pool.faults.after("moving.receive")
        return pool.layering.file(id, contents.layers.active)


class SimulatedPacking:
    """Images of simulated volumes: as large as these, with nothing in them."""

    def __init__(self, faults: Faults, volumes: Mapping[VolumeId, VolumeObserved], layering: SimulatedLayering) -> None:
        self.faults = faults
        self.files: dict[ImageId, bytes] = {}
        """What is packed."""
        self._volumes = volumes
        self._layering = layering
        self._sizes: dict[ImageId, int] = {}

    async def pack(self, image: ImageId, volume: VolumeId, snapshot: SnapshotId, told: Told) -> ImagePacked:
        check_id(image)
        if image not in self.files:
            await self.faults.before("packing.pack")
            (await self._layering.layers(volume)).of(snapshot)
            self._sizes[image] = self._volumes[volume].size_bytes
            self.files[image] = _empty_qcow2(self._sizes[image])
            self.faults.after("packing.pack")
        told(1.0)
        return (await self.packed())[image]

    async def packed(self) -> dict[ImageId, ImagePacked]:
        return {
            id: ImagePacked(
                size_bytes=len(data),
                virtual_size_bytes=self._sizes[id],
                sha256=hashlib.sha256(data).hexdigest(),
            )
            for id, data in self.files.items()
        }

    async def read(self, image: ImageId, start: int) -> AsyncIterator[bytes]:
        if image not in self.files:
            raise NotFound(f"image {image} is not packed on this host")
        yield self.files[image][start:]

    async def discard(self, image: ImageId) -> None:
        await self.faults.before("packing.discard")
        self.files.pop(image, None)
        self.faults.after("packing.discard")


def _empty_qcow2(size: int) -> bytes:
    """The header of an image of this size, which nobody here looks behind."""
    return struct.pack(">4sIQIIQI", b"QFI\xfb", 3, 0, 0, 16, size, 0).ljust(1024, b"\0")


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
