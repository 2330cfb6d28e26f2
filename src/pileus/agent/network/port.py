"""The port through which an agent connects its guests to the networks."""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from pileus.kernel.ids import InstanceId, NetworkId, PortId
from pileus.link.guests import NicSpec, PortTraffic


class Plug(msgspec.Struct, frozen=True, kw_only=True):
    """The host's end of a guest's network interface."""

    device: str
    """The name of the tap device, which the hypervisor opens."""
    offload: bool
    """Whether the guest may leave checksums and segmentation to the host."""


class MetadataListener(Protocol):
    """What answers guests at 169.254.169.254."""

    async def answer(self, network: NetworkId, address: str, method: str, path: str) -> tuple[int, str, bytes]:
        """The answer for the guest that has this address in this network: HTTP status, content type, body."""
        ...


class HostNetwork(Protocol):
    """Connects guests. Every call is idempotent: asking twice is asking once. Raises Unavailable if the switch is."""

    async def plug(self, instance: InstanceId, nic: NicSpec) -> Plug:
        """Have the device, plugged into its network and closed to the host's own stack."""
        ...

    async def unplug(self, port: PortId) -> None: ...

    async def list(self) -> dict[PortId, Plug]: ...

    async def physical_networks(self) -> tuple[str, ...]:
        """The names of the wires outside that the host has a bridge on, sorted."""
        ...

    async def traffic(self, port: PortId) -> PortTraffic:
        """What has passed the port since it was plugged in. Raises NotFound if it is not."""
        ...

    async def serve(self, networks: Mapping[NetworkId, int], listener: MetadataListener) -> None:
        """Answer metadata and DNS for exactly these networks (with their MTU) on this host; called on each change."""
        ...

    async def close(self) -> None:
        """Let go of sockets; what guests need to go on stays."""
        ...
