"""The port through which an agent reaches a storage pool."""

from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from pileus.kernel.ids import ImageId, VolumeId
from pileus.link.records import ImageSource, VolumeObserved, VolumeSpec


class DiskSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a hypervisor finds a volume."""

    kind: str
    """`file`, `block` (a device node) or `rbd`."""
    path: str
    format: str
    """`raw` or `qcow2`."""


class PoolUse(msgspec.Struct, frozen=True, kw_only=True):
    """How full a storage pool is, in bytes."""

    total_bytes: int
    free_bytes: int
    promised_bytes: int
    """What its volumes may grow to, all together."""


Fetch = Callable[[ImageSource], AsyncIterator[bytes]]
"""Brings an image's bytes from wherever it is."""

Told = Callable[[float], None]
"""Is told how far a copy is, between 0 and 1."""


class StoragePool(Protocol):
    """Keeps volumes, and the images that they are made from. Every call is idempotent: asking twice is asking once.

    Raises Unavailable if the pool cannot be reached, Conflict if it has no room.
    """

    async def ensure_image(self, image: ImageSource, fetch: Fetch, told: Told) -> None:
        """Have the image; its SHA-256 is checked before it counts, and nothing is left of a broken transfer."""
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
        """Have the volume, made from its image if it names one (which must be there), grown if it is smaller."""
        ...

    async def remove(self, id: VolumeId) -> None: ...

    async def list(self) -> dict[VolumeId, VolumeObserved]: ...

    async def source(self, id: VolumeId) -> DiskSource:
        """Where the hypervisor finds it. Raises NotFound."""
        ...

    async def use(self) -> PoolUse: ...
