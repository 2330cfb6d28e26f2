"""Images that are packed of simulated volumes."""

import hashlib
import struct
from collections.abc import AsyncIterator, Mapping

from pileus.agent.faults import Faults
from pileus.agent.storage.port import Told
from pileus.agent.storage.simulatedlayering import SimulatedLayering
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import ImageId, SnapshotId, VolumeId, check_id
from pileus.link.images import ImagePacked
from pileus.link.volumes import VolumeObserved


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
