"""A host's network in memory. It outlives its agent as a real switch does: hand the same one to the next agent."""

from collections.abc import Mapping

import msgspec

from pileus.agent.faults import Faults
from pileus.agent.network.port import MetadataListener, Plug
from pileus.kernel.errors import NotFound, Unavailable
from pileus.kernel.ids import InstanceId, NetworkId, PortId
from pileus.link.guests import NicSpec, PortTraffic

WIRES = ("external", "lan", "line-2", "line-b")
"""The physical networks of a simulated host."""


class PluggedPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port as the simulated switch has it."""

    instance: InstanceId
    nic: NicSpec
    plug: Plug


class SimulatedNetwork:
    """Plugs ports that nothing flows through."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.ports: dict[PortId, PluggedPort] = {}
        self.served: dict[NetworkId, int] = {}
        self.wires: tuple[str, ...] = WIRES
        self.passed: dict[PortId, PortTraffic] = {}
        """What is to be said of the traffic of ports."""
        self._listener: MetadataListener | None = None
        self._lost = False

    async def plug(self, instance: InstanceId, nic: NicSpec) -> Plug:
        await self._before("plug")
        # The last part of an id is its random one; a device's name has 15 characters at most.
        plug = Plug(device=f"tap{nic.port[-11:]}", offload=True)
        self.ports[nic.port] = PluggedPort(instance=instance, nic=nic, plug=plug)
        self.faults.after("network.plug")
        return plug

    async def unplug(self, port: PortId) -> None:
        await self._before("unplug")
        self.ports.pop(port, None)
        self.faults.after("network.unplug")

    async def list(self) -> dict[PortId, Plug]:
        await self._before("list")
        return {id: port.plug for id, port in self.ports.items()}

    async def physical_networks(self) -> tuple[str, ...]:
        # It is asked with every report, and is no moment of any deed.
        if self._lost:
            raise Unavailable("the switch does not answer")
        return self.wires

    async def traffic(self, port: PortId) -> PortTraffic:
        await self._before("traffic")
        if port not in self.ports:
            raise NotFound(f"there is no port {port} on this host")
        return self.passed.get(port, PortTraffic())

    async def serve(self, networks: Mapping[NetworkId, int], listener: MetadataListener) -> None:
        await self._before("serve")
        self.served = dict(networks)
        self._listener = listener
        self.faults.after("network.serve")

    async def close(self) -> None:
        self._listener = None

    async def ask(self, port: PortId, path: str, *, method: str = "GET") -> tuple[int, str, bytes]:
        """What the guest at this port is answered at 169.254.169.254."""
        plugged = self.ports.get(port)
        if plugged is None or self._listener is None or plugged.nic.network not in self.served:
            raise NotFound("nobody answers there")
        return await self._listener.answer(plugged.nic.network, plugged.nic.addresses[0], method, path)

    def lose(self) -> None:
        """The switch answers no more."""
        self._lost = True

    def come_back(self) -> None:
        self._lost = False

    async def _before(self, call: str) -> None:
        await self.faults.before(f"network.{call}")
        if self._lost:
            raise Unavailable("the switch does not answer")
