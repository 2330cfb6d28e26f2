"""What a simulated hypervisor keeps of a guest, and what follows from that."""

import msgspec
from msgspec import structs

from pileus.agent.hypervisor.port import GuestState
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.ids import PortId, VolumeId
from pileus.link.foreign import ForeignDisk, ForeignGuest, ForeignNic
from pileus.link.guests import GuestLimits, GuestSpec, Leaving

UP = frozenset({GuestState.RUNNING, GuestState.PAUSED})
"""As long as it is in one of these states, it has what it was started with."""


class DefinedGuest(msgspec.Struct, frozen=True, kw_only=True):
    """A guest as the simulated hypervisor keeps it."""

    spec: GuestSpec
    disks: dict[VolumeId, DiskSource]
    plugs: dict[PortId, Plug]
    state: GuestState = GuestState.SHUT_DOWN
    cause: str = ""
    starts: int = 0
    plugged: dict[VolumeId, int] = {}
    """The disks that it has while it runs, each with its size in bytes as the guest sees it."""
    size: tuple[int, int] = (0, 0)
    """The vCPUs and the MiB of memory that it has while it runs."""
    most: tuple[int, int] = (0, 0)
    """Up to which it can be given more until its next start."""
    written: dict[VolumeId, str] = {}
    """The file that it writes to, of each of these disks."""
    media: dict[int, DiskSource] = {}
    inserted: dict[int, DiskSource] = {}
    """What is in its drives while it runs."""
    config_drive: DiskSource | None = None
    reads: DiskSource | None = None
    """The config drive that it has while it runs."""
    limits: GuestLimits | None = None
    """What it may take while it runs."""
    connected: frozenset[PortId] = frozenset()
    """The network interfaces that it has while it runs."""
    other: ForeignGuest | None = None
    """What it was before it was taken over."""


def most_of(guest: GuestSpec) -> tuple[int, int]:
    """The vCPUs and the MiB of memory up to which it can be given more when it is started so."""
    return max(guest.vcpus, guest.max_vcpus), max(guest.memory_mib, guest.max_memory_mib)


def left(guest: DefinedGuest, leaving: Leaving) -> ForeignGuest:
    """What somebody else sees of a guest that goes on without us."""
    running = guest.state in UP
    if guest.other is not None:
        return structs.replace(guest.other, running=running)
    disks = tuple(
        ForeignDisk(target=f"vd{chr(ord('a') + disk.slot)}", path=source.path, format=source.format)
        for disk in guest.spec.disks
        if (source := guest.disks.get(disk.volume)) is not None
    )
    kind = "bridge" if leaving.bridge else "ethernet"
    return ForeignGuest(
        id=guest.spec.id,
        name=guest.spec.name,
        running=running,
        vcpus=guest.spec.vcpus,
        memory_mib=guest.spec.memory_mib,
        disks=disks,
        nics=tuple(ForeignNic(mac=nic.mac, kind=kind, source=leaving.bridge) for nic in guest.spec.nics),
    )


def written(guest: DefinedGuest) -> dict[VolumeId, str]:
    """The file that it writes to from its next start, of each disk."""
    return {volume: source.path for volume, source in guest.disks.items()}


def plugged(guest: GuestSpec) -> dict[VolumeId, int]:
    """The disks that it has from its next start, each with its size in bytes."""
    return {disk.volume: disk.size_bytes for disk in guest.disks}


def connected(guest: GuestSpec) -> frozenset[PortId]:
    """The network interfaces that it has from its next start."""
    return frozenset(nic.port for nic in guest.nics)
