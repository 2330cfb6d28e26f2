"""Using the consoles of instances."""

from typing import Protocol

from pileus.cloud.instances.model import Instance, InstanceState
from pileus.cloud.instances.operations.noun import instances
from pileus.kernel.errors import Conflict
from pileus.operations.caller import Role
from pileus.operations.declare import Socket


class Consoles(Protocol):
    """Brings callers to the serial consoles of guests."""

    async def join(self, socket: Socket, instance: Instance) -> None:
        """Carry bytes both ways until either side closes. Raises Unavailable."""
        ...


@instances.socket("/{id}/console", least=Role.MEMBER)
async def console(socket: Socket, instance: Instance) -> None:
    """Use an instance's serial console: what is sent is typed, what comes back is what it shows."""
    consoles: Consoles = socket.services[Consoles]
    if instance.state is not InstanceState.RUNNING:
        raise Conflict(f"instance {instance.name} is {instance.state}: it has no console now")
    await consoles.join(socket, instance)
