"""The disks of simulated guests on their way to other files."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import structs

from pileus.agent.storage.port import DiskSource, Told
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId, VolumeId

if TYPE_CHECKING:
    from pileus.agent.hypervisor.simulated import SimulatedHypervisor


class SimulatedMirrors:
    """Mirrors disks of guests that are nothing but their state (a MirroredDisks)."""

    def __init__(self, hypervisor: "SimulatedHypervisor") -> None:
        self._hypervisor = hypervisor
        self.to: dict[tuple[InstanceId, VolumeId], str] = {}
        """The file to which each disk is mirrored that is."""

    async def mirrored(self, id: InstanceId) -> Mapping[VolumeId, str]:
        await self._hypervisor.before("mirrored")
        return {volume: path for (guest, volume), path in self.to.items() if guest == id}

    async def mirror(self, id: InstanceId, volume: VolumeId, to: DiskSource, told: Told) -> None:
        await self._hypervisor.before("mirror")
        guest = self._hypervisor.up(id)
        if volume not in guest.plugged:
            raise Conflict("the guest has no such disk")
        self.to[id, volume] = to.path
        told(1.0)
        self._hypervisor.faults.after("hypervisor.mirror")

    async def go_over(self, id: InstanceId, volume: VolumeId, to: DiskSource) -> None:
        await self._hypervisor.before("go_over")
        guest = self._hypervisor.up(id)
        if guest.written.get(volume) != to.path:
            if self.to.pop((id, volume), None) != to.path:
                raise Conflict("the disk is not mirrored there")
            self._hypervisor.guests[id] = structs.replace(
                guest, written={**guest.written, volume: to.path}, disks={**guest.disks, volume: to}
            )
        self._hypervisor.faults.after("hypervisor.go_over")

    async def stop_mirroring(self, id: InstanceId, volume: VolumeId) -> None:
        await self._hypervisor.before("stop_mirroring")
        self.to.pop((id, volume), None)
        self._hypervisor.faults.after("hypervisor.stop_mirroring")

    def end(self, id: InstanceId) -> None:
        """The guest's process is no more, and its mirrors with it."""
        for guest, volume in list(self.to):
            if guest == id:
                del self.to[guest, volume]
