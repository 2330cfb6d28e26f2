"""Passwords in the disks of simulated guests."""

from typing import TYPE_CHECKING

from pileus.agent.hypervisor.simulatedguest import UP
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId

if TYPE_CHECKING:
    from pileus.agent.hypervisor.simulated import SimulatedHypervisor


class SimulatedAppliance:
    """Sets the passwords of simulated guests that do not run."""

    def __init__(self, hypervisor: "SimulatedHypervisor") -> None:
        self._hypervisor = hypervisor
        self.hashes: dict[tuple[str, str], str] = {}
        """By path of a disk and user, those that were set."""
        self.users: dict[InstanceId, frozenset[str]] = {}
        """Those that a guest's system has, where it does not have every one."""

    async def set_password(self, id: InstanceId, disk: DiskSource, user: str, hash: str) -> None:
        await self._hypervisor.before("set_password_in_disk")
        if self._hypervisor.guest(id).state in UP:
            raise Conflict("the disk is used by its guest")
        if user not in self.users.get(id, {user}):
            raise Conflict("the system on its disk has no such user")
        self.hashes[disk.path, user] = hash
        self._hypervisor.faults.after("hypervisor.set_password_in_disk")

    async def sweep(self) -> None:
        pass
