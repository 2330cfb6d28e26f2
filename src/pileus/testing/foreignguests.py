"""Guests that somebody made on simulated hosts without Pileus."""

from typing import Any

import msgspec

from pileus.kernel.ids import new_id
from pileus.link.foreign import ForeignDisk, ForeignGuest, ForeignNic
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fleet import SimulatedAgent
from pileus.testing.requests import made

DISK = ForeignDisk(target="vda", bus="virtio", path="/srv/old.qcow2", format="qcow2", size_bytes=1 << 30)
DATA = ForeignDisk(target="vdb", path="/srv/data.raw", format="raw", size_bytes=(5 << 30) + 1)
NIC = ForeignNic(mac="52:54:00:00:00:01", kind="bridge", source="br0", model="virtio")


def other(host: SimulatedAgent, name: str = "old", **more: Any) -> ForeignGuest:  # noqa: ANN401 - its fields
    """A guest that somebody made on a host without us."""
    guest = ForeignGuest(id=new_id(), name=name, running=True, vcpus=2, memory_mib=2048, disks=(DISK,), nics=(NIC,))
    guest = msgspec.structs.replace(guest, **more)
    host.hypervisor.others[guest.id] = guest
    return guest


def become(host: SimulatedAgent, guest: ForeignGuest, **changes: Any) -> None:  # noqa: ANN401 - its fields
    """Have it changed by its owner."""
    host.hypervisor.others[guest.id] = msgspec.structs.replace(guest, **changes)


async def shadows(cloud: SimulatedCloud, host: SimulatedAgent, **more: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Have them shadowed: all that the host has, or the one that is named."""
    return (await made(cloud.client, "foreign-guests", host_id=host.id, **more))["items"]
