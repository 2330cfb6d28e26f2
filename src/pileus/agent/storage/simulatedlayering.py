"""The layers of simulated volumes, and what was in them."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pileus.agent.faults import Faults
from pileus.agent.storage.layers import Layers
from pileus.agent.storage.port import DiskSource, Moment
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import SnapshotId, VolumeId
from pileus.link.volumes import VolumeObserved


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
