"""What placement talks about: the facts of a host, a demand, a choice. Plain data without I/O."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from pileus.kernel.ids import HostId, PoolId, ProjectId, ServerGroupId
from pileus.kernel.units import MIB, size_text


class Capacity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An amount of each of the three things that are promised to instances."""

    vcpus: int = 0
    memory_mib: int = 0
    disk_mib: int = 0

    @property
    def words(self) -> str:
        """What there is any of, for a person: `2 vCPUs and 4 GiB of memory`."""
        parts = [f"{self.vcpus} vCPU{'s' if self.vcpus > 1 else ''}"] if self.vcpus else []
        parts += [f"{size_text(self.memory_mib * MIB)} of memory"] if self.memory_mib else []
        parts += [f"{size_text(self.disk_mib * MIB)} of disk"] if self.disk_mib else []
        return " and ".join((", ".join(parts[:-1]), parts[-1]) if len(parts) > 1 else parts) or "nothing"


class StorageRoom(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a host has of a storage pool besides its own disk."""

    promisable_mib: int = 0
    overcommit: float = 1.0
    """How many times what there is that is."""
    closed: str = ""
    """Why nothing new may be placed there, in words."""


class HostRole(StrEnum):
    """What a host carries for others; such a host gets instances only if nothing else fits."""

    GATEWAY = "gateway"
    LOAD_BALANCER = "load-balancer"


class Domain(StrEnum):
    """What fails as one. The wider ones contain the narrower: a rack stands in a room, a room in a zone."""

    HOST = "host"
    RACK = "rack"
    ROOM = "room"
    ZONE = "zone"


class GroupPolicy(StrEnum):
    """How the members of a group stand to each other; the soft ones are wishes."""

    ANTI_AFFINITY = "anti-affinity"
    SOFT_ANTI_AFFINITY = "soft-anti-affinity"
    AFFINITY = "affinity"
    SOFT_AFFINITY = "soft-affinity"


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler knows of a host, apart from its load and what is promised there."""

    id: HostId
    name: str
    pool: PoolId
    pool_name: str
    physical: Capacity
    """Threads, memory and local disk for guests: what the host itself needs is already taken off."""
    cpu_overcommit: float = 1.0
    """vCPUs promised per thread at most: 2.0 promises 96 vCPUs on 48 threads. Set by the pool, as is the next one."""
    memory_overcommit: float = 1.0
    disk_overcommit: float = 1.0
    disk_closed: str = ""
    """Why nothing new may be placed on its own disk, in words."""
    storage: Mapping[str, StorageRoom] = {}
    """Storage pools besides its own disk, by name."""
    zone: str = ""
    room: str = ""
    rack: str = ""
    traits: frozenset[str] = frozenset()
    roles: frozenset[HostRole] = frozenset()
    out_of_service: str | None = None
    """Why nothing may be placed here, in words (`in maintenance`); None while the host is in service."""

    @property
    def promisable(self) -> Capacity:
        """What may be promised in all; of disk, on its own one."""
        return Capacity(
            vcpus=_times(self.physical.vcpus, self.cpu_overcommit),
            memory_mib=_times(self.physical.memory_mib, self.memory_overcommit),
            disk_mib=_times(self.physical.disk_mib, self.disk_overcommit),
        )

    def room_in(self, storage_pool: str) -> StorageRoom | None:
        """What it has of a storage pool, or of its own disk for the empty name; None if nothing."""
        if storage_pool:
            return self.storage.get(storage_pool)
        own = self.promisable.disk_mib
        return StorageRoom(promisable_mib=own, overcommit=self.disk_overcommit, closed=self.disk_closed)

    def domain(self, kind: Domain) -> str:
        """The failure domain that the host is in, as a path, because racks of two rooms may have the same name.

        Hosts that do not say count as being in the same one: nobody knows that they are apart.
        """
        match kind:
            case Domain.HOST:
                return self.id
            case Domain.RACK:
                return f"{self.zone}/{self.room}/{self.rack}"
            case Domain.ROOM:
                return f"{self.zone}/{self.room}"
            case Domain.ZONE:
                return self.zone


def _times(amount: int, ratio: float) -> int:
    """Rounded down, but 100 times 1.15 is 115, whatever the floating point unit says."""
    return int(amount * ratio + 1e-6)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A host's measured use, as its agent reports it every 2 s; 1.0 is all of the physical resource."""

    cpu: float
    memory: float
    disk: float
    instances: frozenset[str] = frozenset()
    """The claims whose instances ran while this was measured: what they use is in the figures above."""


class GroupDemand(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The group that an instance is to be a member of."""

    id: ServerGroupId
    name: str
    policy: GroupPolicy = GroupPolicy.SOFT_ANTI_AFFINITY
    domain: Domain = Domain.HOST
    """What the members do not share, or share."""


class Demand(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one instance needs of a host."""

    vcpus: int
    memory_mib: int
    disk_mib: int = 0
    storage_pool: str = ""
    """Where its disk is to be; empty for the host's own."""
    project: ProjectId
    pool: PoolId
    pool_name: str
    zone: str | None = None
    traits: frozenset[str] = frozenset()
    group: GroupDemand | None = None
    only: frozenset[HostId] = frozenset()
    """If not empty, no other host will do."""
    excluded: frozenset[HostId] = frozenset()

    @property
    def size(self) -> Capacity:
        return Capacity(vcpus=self.vcpus, memory_mib=self.memory_mib, disk_mib=self.disk_mib)


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """How much each resource counts in a host's load; only their proportions matter."""

    cpu: float = 2.0
    memory: float = 2.0
    disk: float = 1.0


class Placement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The choice of a host. Nothing is promised yet."""

    host: HostId
    name: str
    load: float
    """The load that the host was chosen with, from 0 to 1, before this demand."""
