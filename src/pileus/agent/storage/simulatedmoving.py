"""Moves of simulated volumes from one storage pool to another."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pileus.agent.storage.layers import Layers
from pileus.agent.storage.port import DiskSource, Told, VolumeContents
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import VolumeId, check_id
from pileus.link.volumes import VolumeObserved

if TYPE_CHECKING:
    from pileus.agent.storage.simulated import SimulatedStorage


class _Carried(VolumeContents, frozen=True, kw_only=True):
    """A simulated volume with what is in it, which no file holds."""

    content: bytes
    kept: Mapping[str, bytes]
    """What was in it at each of its snapshots."""


class SimulatedMoving:
    """Gives and takes simulated volumes, with what is in them at once, whoever is to fill them."""

    def __init__(self, pool: "SimulatedStorage") -> None:
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
