"""The disks of simulated guests, switched and merged."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from pileus.agent.hypervisor.port import GuestState
from pileus.agent.hypervisor.simulatedguest import UP, plugged, written
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import InstanceId, VolumeId

if TYPE_CHECKING:
    from pileus.agent.hypervisor.simulated import SimulatedHypervisor


class SimulatedLayers:
    """Switches and merges the disks of simulated guests."""

    def __init__(self, hypervisor: "SimulatedHypervisor") -> None:
        self._hypervisor = hypervisor
        self.frozen: set[InstanceId] = set()
        """Guests whose file systems are held."""
        self.saved: set[Path] = set()
        """Where the memory of guests is."""

    async def files(self, id: InstanceId) -> Mapping[VolumeId, str]:
        await self._hypervisor.before("files")
        guest = self._hypervisor.guest(id)
        return dict(guest.written) if guest.state in UP else written(guest)

    async def freeze(self, id: InstanceId) -> bool:
        await self._hypervisor.before("freeze")
        self._hypervisor.up(id)
        if id not in self._hypervisor.deaf:
            self.frozen.add(id)
        self._hypervisor.faults.after("hypervisor.freeze")
        return id not in self._hypervisor.deaf

    async def thaw(self, id: InstanceId) -> None:
        await self._hypervisor.before("thaw")
        self.frozen.discard(id)
        self._hypervisor.faults.after("hypervisor.thaw")

    async def switch(self, id: InstanceId, disks: Mapping[VolumeId, DiskSource], *, memory: Path | None = None) -> None:
        await self._hypervisor.before("switch")
        guest = self._hypervisor.up(id)
        now = {volume: source.path for volume, source in disks.items()}
        self._hypervisor.guests[id] = structs.replace(
            guest, written={**guest.written, **now}, disks={**guest.disks, **disks}
        )
        if memory is not None:
            self.saved.add(memory)
        self._hypervisor.faults.after("hypervisor.switch")

    async def merge(self, id: InstanceId, volume: VolumeId, layer: DiskSource, into: DiskSource) -> None:
        await self._hypervisor.before("merge")
        guest = self._hypervisor.up(id)
        if guest.written[volume] == layer.path:
            self._hypervisor.guests[id] = structs.replace(
                guest, written={**guest.written, volume: into.path}, disks={**guest.disks, volume: into}
            )
        self._hypervisor.faults.after("hypervisor.merge")

    async def restore(self, id: InstanceId, disks: Mapping[VolumeId, DiskSource], memory: Path) -> None:
        await self._hypervisor.before("restore")
        if memory not in self.saved:
            raise NotFound("the memory that was saved is not there")
        guest = self._hypervisor.guest(id)
        if guest.state not in UP:
            defined = structs.replace(guest, disks=dict(disks), plugged=plugged(guest.spec))
            self._hypervisor.guests[id] = structs.replace(defined, written=written(defined))
            self._hypervisor.become(id, GuestState.RUNNING)
        self._hypervisor.faults.after("hypervisor.restore")
