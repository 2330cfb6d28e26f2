"""Why a host will do or not, in words with numbers."""

from collections.abc import Callable
from enum import StrEnum

import msgspec

from pileus.kernel.units import MIB, size_text
from pileus.scheduler.ledger import HostLedger
from pileus.scheduler.model import Capacity, Demand, Domain, GroupPolicy, HostView


class Hindrance(StrEnum):
    """What about a host stands against a demand."""

    SERVICE = "service"
    POOL = "pool"
    ZONE = "zone"
    TRAITS = "traits"
    NOT_ASKED_FOR = "not-asked-for"
    EXCLUDED = "excluded"
    GROUP = "group"
    STORAGE = "storage"
    TOO_SMALL = "too-small"
    VCPUS = "vcpus"
    MEMORY = "memory"
    DISK = "disk"


ROOM = frozenset({Hindrance.TOO_SMALL, Hindrance.VCPUS, Hindrance.MEMORY, Hindrance.DISK})
"""What a smaller demand would not meet."""


class Obstacle(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    kind: Hindrance
    words: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be said about one host and one demand."""

    host: HostView
    obstacles: tuple[Obstacle, ...]
    """All that stands against the host; it fits if there is nothing."""
    free: Capacity
    load: float
    in_project: int
    """How many instances of the project are on the host."""
    in_group: int
    """How many members of the group are in the host's failure domain."""

    @property
    def fits(self) -> bool:
        return not self.obstacles

    @property
    def hindrances(self) -> frozenset[Hindrance]:
        return frozenset(obstacle.kind for obstacle in self.obstacles)

    @property
    def words(self) -> str:
        """Why not; or, for a host that fits, what its rank comes from."""
        if self.obstacles:
            return "; ".join(obstacle.words for obstacle in self.obstacles)
        parts = [f"fits: load {self.load:.0%}", f"{self.in_project} of the project's instances"]
        parts += [f"{self.in_group} of the group's"] if self.in_group else []
        parts += [f"avoided as {' and '.join(sorted(self.host.roles))}"] if self.host.roles else []
        return ", ".join(parts)


class Kin(msgspec.Struct, frozen=True):
    """How many members of the demand's group there are."""

    here: int
    """In the failure domain of the host in question."""
    anywhere: int


Filter = Callable[[Demand, HostLedger, Kin], Obstacle | None]
"""Says what stands against a host, or None if nothing of its kind does."""


def in_service(_: Demand, host: HostLedger, __: Kin) -> Obstacle | None:
    why = host.view.out_of_service
    return None if why is None else Obstacle(kind=Hindrance.SERVICE, words=f"out of service: {why}")


def in_the_pool(demand: Demand, host: HostLedger, _: Kin) -> Obstacle | None:
    if host.view.pool == demand.pool:
        return None
    return Obstacle(kind=Hindrance.POOL, words=f"in pool {host.view.pool_name}, not {demand.pool_name}")


def in_the_zone(demand: Demand, host: HostLedger, _: Kin) -> Obstacle | None:
    if demand.zone is None or host.view.zone == demand.zone:
        return None
    return Obstacle(kind=Hindrance.ZONE, words=f"in zone {host.view.zone or '(none)'}, not {demand.zone}")


def with_the_traits(demand: Demand, host: HostLedger, _: Kin) -> Obstacle | None:
    if demand.traits <= host.view.traits:
        return None
    return Obstacle(kind=Hindrance.TRAITS, words=f"lacks {', '.join(sorted(demand.traits - host.view.traits))}")


def among_those_asked_for(demand: Demand, host: HostLedger, _: Kin) -> Obstacle | None:
    if not demand.only or host.view.id in demand.only:
        return None
    return Obstacle(kind=Hindrance.NOT_ASKED_FOR, words="not one of the hosts asked for")


def not_excluded(demand: Demand, host: HostLedger, _: Kin) -> Obstacle | None:
    return Obstacle(kind=Hindrance.EXCLUDED, words="excluded") if host.view.id in demand.excluded else None


def as_the_group_wants(demand: Demand, _: HostLedger, kin: Kin) -> Obstacle | None:
    group = demand.group
    if group is None:
        return None
    where = "on it" if group.domain is Domain.HOST else f"in its {group.domain}"
    if group.policy is GroupPolicy.ANTI_AFFINITY and kin.here:
        return Obstacle(kind=Hindrance.GROUP, words=f"{kin.here} of group {group.name}, to be kept apart, {where}")
    if group.policy is GroupPolicy.AFFINITY and kin.anywhere and not kin.here:
        words = f"none of group {group.name}, to be kept together, {where}; {kin.anywhere} elsewhere"
        return Obstacle(kind=Hindrance.GROUP, words=words)
    return None


def with_the_storage(demand: Demand, host: HostLedger, _: Kin) -> Obstacle | None:
    room = host.view.room_in(demand.storage_pool)
    if not demand.disk_mib or (room is not None and not room.closed):
        return None
    why = room.closed if room is not None else "not on it"
    return Obstacle(kind=Hindrance.STORAGE, words=f"{_place(demand)}: {why}")


def large_enough(demand: Demand, host: HostLedger, _: Kin) -> Obstacle | None:
    """Whether the host would do if it were empty."""
    largest = msgspec.structs.replace(host.largest, disk_mib=_whole_disk(demand, host))
    if (
        demand.vcpus <= largest.vcpus
        and demand.memory_mib <= largest.memory_mib
        and demand.disk_mib <= largest.disk_mib
    ):
        return None
    return Obstacle(kind=Hindrance.TOO_SMALL, words=f"too small: {largest.words} in all, {demand.size.words} asked")


def vcpus_free(demand: Demand, host: HostLedger, _: Kin) -> Obstacle | None:
    asked, promised, whole = demand.vcpus, host.promised_vcpus, host.promisable.vcpus
    if promised + asked <= whole or asked > host.largest.vcpus or not asked:
        return None
    taken = _promised(host.view.cpu_overcommit, str(promised), str(whole))
    return Obstacle(kind=Hindrance.VCPUS, words=f"{max(whole - promised, 0)} of {asked} vCPUs free ({taken})")


def memory_free(demand: Demand, host: HostLedger, _: Kin) -> Obstacle | None:
    asked, promised, whole = demand.memory_mib, host.promised_memory_mib, host.promisable.memory_mib
    if promised + asked <= whole or asked > host.largest.memory_mib or not asked:
        return None
    taken = _promised(host.view.memory_overcommit, _size(promised), _size(whole))
    words = f"{_size(max(whole - promised, 0))} of {_size(asked)} of memory free ({taken})"
    return Obstacle(kind=Hindrance.MEMORY, words=words)


def disk_free(demand: Demand, host: HostLedger, _: Kin) -> Obstacle | None:
    room = host.view.room_in(demand.storage_pool)
    asked, promised = demand.disk_mib, host.promised_in(demand.storage_pool)
    if room is None or promised + asked <= room.promisable_mib or asked > room.promisable_mib or not asked:
        return None
    whole = room.promisable_mib
    taken = _promised(room.overcommit, _size(promised), _size(whole))
    words = f"{_size(max(whole - promised, 0))} of {_size(asked)} of {_place(demand)} free ({taken})"
    return Obstacle(kind=Hindrance.DISK, words=words)


def _place(demand: Demand) -> str:
    return f"storage pool {demand.storage_pool}" if demand.storage_pool else "disk"


def _whole_disk(demand: Demand, host: HostLedger) -> int:
    room = host.view.room_in(demand.storage_pool)
    # Where there is nothing of a pool, that is what is said, and not that it is too small.
    return room.promisable_mib if room is not None and not room.closed else demand.disk_mib


FILTERS: tuple[Filter, ...] = (
    in_service,
    in_the_pool,
    in_the_zone,
    with_the_traits,
    among_those_asked_for,
    not_excluded,
    as_the_group_wants,
    with_the_storage,
    large_enough,
    vcpus_free,
    memory_free,
    disk_free,
)


def judge(demand: Demand, host: HostLedger, kin: Kin, *, in_project: int) -> Verdict:
    """All that is to be said about one host."""
    return Verdict(
        host=host.view,
        obstacles=tuple(found for each in FILTERS if (found := each(demand, host, kin)) is not None),
        free=host.free(demand.storage_pool),
        load=host.load,
        in_project=in_project,
        in_group=kin.here,
    )


def _promised(ratio: float, promised: str, whole: str) -> str:
    overcommitted = f"{ratio:g}:1 overcommitted, " if ratio != 1 else ""
    return f"{overcommitted}{promised} of {whole} promised"


def _size(mib: int) -> str:
    return size_text(mib * MIB)
