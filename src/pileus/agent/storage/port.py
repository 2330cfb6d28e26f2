"""The port through which an agent reaches a storage pool."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol

import msgspec

from pileus.agent.backup.port import BackupPlace
from pileus.agent.storage.layers import Layers
from pileus.kernel.ids import ImageId, SnapshotId, VolumeId
from pileus.link.images import ImagePacked, ImageSource
from pileus.link.storagepools import PoolUse, StoragePoolSpec
from pileus.link.volumes import VolumeObserved, VolumeSpec


class DiskSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a hypervisor finds a volume."""

    kind: str
    """`file`, `block` (a device node) or `rbd`."""
    path: str
    format: str
    """`raw` or `qcow2`."""


class CachedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image that a pool has a copy of."""

    allocated_bytes: int
    used_at: datetime
    """When it was brought, or last asked for."""
    offered: bool = False
    """Whether it is a medium, too, whose space is that of the image."""


Fetch = Callable[[ImageSource], AsyncIterator[bytes]]
"""Brings an image's bytes from wherever it is."""

Pieces = Callable[[], AsyncIterator[tuple[int, bytes]]]
"""Brings what is to be in a volume: pieces with where they begin, in bytes; all else is zeroes."""

Told = Callable[[float], None]
"""Is told how far a copy is, between 0 and 1."""


class Moment(Protocol):
    """What a volume was at a snapshot, open for reading."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def is_compared(self) -> bool:
        """Whether `changed` is what may have changed since another snapshot; else it is all that is in it."""
        ...

    @property
    def changed(self) -> Sequence[tuple[int, int]]:
        """Where to read: beginnings and ends in bytes, in their order. All else is as it was, or is zeroes."""
        ...

    async def read(self, start: int, length: int) -> bytes:
        """Raises Unavailable if it cannot be read."""
        ...


class Layering(Protocol):
    """Keeps what volumes were at a moment, as layers; see `layers.py`. Every call is idempotent.

    Raises NotFound for a volume or snapshot that is not there, Unavailable if the pool cannot be reached.
    """

    async def layers(self, id: VolumeId) -> Layers: ...

    async def lay(self, id: VolumeId, snapshot: SnapshotId) -> DiskSource:
        """Lay a new layer over what is written to now, which is the snapshot from then on, and say where it is.

        It is unconfirmed until whoever uses the volume writes there. Raises Conflict if there is no room, or a snapshot
        of the volume is under way.
        """
        ...

    async def confirm(self, id: VolumeId, snapshot: SnapshotId) -> None: ...

    async def take_back(self, id: VolumeId, snapshot: SnapshotId) -> None:
        """Undo `lay`, if it is not confirmed: for when nobody has written to the new layer."""
        ...

    async def revert(self, id: VolumeId, snapshot: SnapshotId, to: str) -> None:
        """Have the volume be what it was, under a new layer of the name `to`; nobody may be using it."""
        ...

    async def forget(self, id: VolumeId, snapshot: SnapshotId) -> None:
        """Have the snapshot no more; layers that it alone needed are left to be merged."""
        ...

    async def secure(self, id: VolumeId, wanted: bool) -> None:
        """From now on, have the volume's layers overwritten, or not, before the space of one is given back."""
        ...

    async def begin_merge(self, id: VolumeId, layer: str) -> None:
        """Note that this layer is being merged into the one below it, by `merge` or by whoever uses the volume."""
        ...

    async def merge(self, id: VolumeId) -> None:
        """Do the merge that is noted; nobody may be using these layers. Raises Conflict if that fails."""
        ...

    async def end_merge(self, id: VolumeId) -> None:
        """Note that the merge is done; the layer is gone."""
        ...

    async def source(self, id: VolumeId, layer: str) -> DiskSource:
        """Where a layer is."""
        ...

    def reading(
        self, id: VolumeId, snapshot: SnapshotId, since: SnapshotId | None
    ) -> AbstractAsyncContextManager[Moment]:
        """Read what the volume was, compared with another snapshot if that is there.

        From when it is open until it is closed none of the volume's layers may be merged.
        """
        ...

    async def memory(self, snapshot: SnapshotId) -> Path:
        """Where the memory of a guest is kept, or is to be, that belongs to a snapshot."""
        ...

    async def memory_bytes(self, snapshot: SnapshotId) -> int: ...

    async def forget_memory(self, snapshot: SnapshotId) -> None: ...

    async def space(self, id: VolumeId) -> Mapping[SnapshotId, int]:
        """What each snapshot takes, in bytes."""
        ...


class Packing(Protocol):
    """Makes disk images of volumes. Every call is idempotent. Raises Unavailable if the pool cannot be reached."""

    async def pack(self, image: ImageId, volume: VolumeId, snapshot: SnapshotId, told: Told) -> ImagePacked:
        """Have a volume packed as it was at a snapshot, under the image's id; it stays so without either.

        Raises NotFound if one of them is not there, Conflict if there is no room.
        """
        ...

    async def packed(self) -> dict[ImageId, ImagePacked]:
        """All that is packed."""
        ...

    def read(self, image: ImageId, start: int) -> AsyncIterator[bytes]:
        """What was packed, from this byte on. Raises NotFound."""
        ...

    async def discard(self, image: ImageId) -> None:
        """Have it packed no more."""
        ...


class VolumeContents(msgspec.Struct, frozen=True, kw_only=True):
    """All that a volume is made of, for another pool to take."""

    generation: int
    size_bytes: int
    layers: Layers
    files: Mapping[str, DiskSource]
    """Where each layer is."""
    secure: bool = False
    """Whether its layers are overwritten before their space is given back."""


class Moving(Protocol):
    """Takes volumes from other pools, with all their layers. Every call is idempotent.

    Raises NotFound for a volume that is not there, Unavailable if the pool cannot be reached.
    """

    async def contents(self, id: VolumeId) -> VolumeContents: ...

    async def receive(self, id: VolumeId, contents: VolumeContents, told: Told, *, filled: bool = True) -> DiskSource:
        """Have a new copy of a volume of another pool, or nothing of it if that fails; say where it is written to.

        Nobody may be using a copy that is there already. Unless it is to be `filled`, what is written to is left empty,
        for whoever uses the volume to fill it; the other layers must not be written to meanwhile, and with `filled`
        nothing of it. Raises Conflict if there is no room.
        """
        ...


class StoragePool(Protocol):
    """Keeps volumes, the images that they are made from, and backups. Every call is idempotent.

    Raises Unavailable if the pool cannot be reached, Conflict if it has no room.
    """

    @property
    def layering(self) -> Layering:
        """The snapshots of its volumes."""
        ...

    @property
    def moving(self) -> Moving:
        """Its volumes on their way to and from other pools."""
        ...

    @property
    def place(self) -> BackupPlace:
        """Where it keeps backups, of volumes in other pools."""
        ...

    @property
    def packing(self) -> Packing:
        """Images that are made of its volumes."""
        ...

    async def ensure_image(self, image: ImageSource, fetch: Fetch, told: Told) -> None:
        """Have the image; its SHA-256 is checked before it counts, and nothing is left of a broken transfer."""
        ...

    async def cached(self) -> dict[ImageId, CachedImage]:
        """The images that are here, whole."""
        ...

    async def remove_image(self, id: ImageId) -> None: ...

    async def offer(self, id: ImageId) -> DiskSource:
        """Have an image readable by guests, as the medium in a drive, and say where; it stays so without the image.

        Raises NotFound if neither is here.
        """
        ...

    async def withdraw(self, id: ImageId) -> None:
        """Have the medium no more; the image stays."""
        ...

    async def media(self) -> frozenset[ImageId]:
        """The images that guests can read."""
        ...

    async def ensure(self, volume: VolumeSpec, told: Told) -> VolumeObserved:
        """Have the volume, made from its image or as a copy if it names one (which must be there), grown if smaller."""
        ...

    async def fill(self, volume: VolumeSpec, pieces: Pieces) -> VolumeObserved:
        """Have the volume, made of these pieces if it is not there; there is none if what brings them raises."""
        ...

    async def prepare(self, id: VolumeId, to: str, pieces: Pieces, *, room_bytes: int) -> None:
        """Have what the volume is to become ready beside it, under this id; nothing, if what brings it raises."""
        ...

    async def drop(self, id: VolumeId, to: str) -> None:
        """Have what was prepared no more, unless the volume has become it."""
        ...

    async def exchange(self, id: VolumeId, to: str) -> None:
        """Have the volume be what was prepared, without layers and as large as it was; nobody may be using it.

        Raises NotFound if nothing was prepared under this id, Conflict if that is larger than the volume.
        """
        ...

    async def remove(self, id: VolumeId) -> None: ...

    async def wipe(self, id: VolumeId, told: Told) -> None:
        """Have the volume no more, and what is allocated to it and its layers overwritten before that is given back.

        It is not listed any more from the beginning; one that was interrupted is gone on with when asked again.
        """
        ...

    async def list(self) -> dict[VolumeId, VolumeObserved]: ...

    async def source(self, id: VolumeId) -> DiskSource:
        """Where the hypervisor finds it. Raises NotFound."""
        ...

    async def use(self) -> PoolUse: ...

    def overcommit(self, ratio: float) -> None:
        """From now on, promise to volumes so many times what there is for them; at first, as much as there is."""
        ...


class Backings(Protocol):
    """Opens what is behind storage pools that come and go while the agent runs."""

    async def open(self, spec: StoragePoolSpec, *, accepted: bool) -> StoragePool:
        """The pool; one that was not accepted before is marked as this one's.

        Raises:
            Unavailable: it is not to be had on this host, or is another pool's; the detail says why.
        """
        ...

    def missing(self, spec: StoragePoolSpec) -> str:
        """Why a pool that was opened is not to be had any more, in words; empty if it is. Must return at once."""
        ...

    async def retire(self, spec: StoragePoolSpec) -> None:
        """Be nobody's pool any more: no volume is in it, and what else it keeps can be had again.

        Raises:
            Unavailable: it cannot be reached.
        """
        ...
