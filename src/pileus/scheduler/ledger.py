"""The running account of one host and of one family of instances, from which the fleet answers."""

from collections.abc import Mapping

from pileus.kernel.ids import HostId
from pileus.scheduler.bitsets import BitSliced
from pileus.scheduler.model import Capacity, Demand, HostView, Load, Weights

LOAD_STEPS = 256
"""Loads are compared in steps of 1/256: two hosts nearer than this are equally light."""


class HostLedger:
    """A host's facts, what is promised there, and the load that follows.

    **Load.** There are two estimates of how far a resource will be used: the share of it that is *promised*, which is
    right if every guest takes all it may, and the share that is *in use*: the last report plus, in full, what has been
    promised to instances which that report does not cover yet. Adding them would count every guest twice. The greater
    of the two would hide that of two hosts promised alike one is idle and one is busy. So the load is their mean: it
    follows real use, weighs what is promised, and goes up by the whole share at once when an instance is promised, so
    that a burst of creates between two reports spreads. Without any report it is the promised share.

    It is reckoned as the promised share plus a correction by the report: half of how much the measured use differs from
    the share promised to the guests which the report covers. Promises are summed in integers, and the result depends on
    the facts, the claims and the last report in whatever order they came: giving back restores the load exactly.
    """

    __slots__ = (
        "_correction",
        "_per_mib_of_disk",
        "_per_mib_of_memory",
        "_per_vcpu",
        "_weights",
        "claims",
        "id",
        "largest",
        "last_report",
        "left_out",
        "load",
        "promisable",
        "promised_disk_mib",
        "promised_memory_mib",
        "promised_storage_mib",
        "promised_vcpus",
        "slot",
        "step",
        "view",
    )

    def __init__(self, view: HostView, weights: Weights) -> None:
        self.id = view.id
        self.claims: dict[str, Demand] = {}
        self.promised_vcpus = self.promised_memory_mib = self.promised_disk_mib = 0
        self.promised_storage_mib: dict[str, int] = {}
        """In storage pools besides its own disk."""
        self.last_report: Load | None = None
        self.load = 0.0
        self.step = 0
        self.slot = -1
        """Which bit stands for the host; given by the index."""
        self.left_out = False
        """Whether a set of hosts with room is without this one because it was found full."""
        self._weights = weights
        self.describe(view)

    def copy(self) -> "HostLedger":
        twin = HostLedger.__new__(HostLedger)
        for name in self.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.claims = self.claims.copy()
        twin.promised_storage_mib = self.promised_storage_mib.copy()
        twin.left_out = False
        return twin

    def describe(self, view: HostView) -> None:
        """Take new facts; claims and the last report stay."""
        self.view = view
        self.promisable = promisable = view.promisable
        # Overcommitted against others, never against itself: 4 vCPUs on 2 threads would only wait for each other.
        self.largest = Capacity(
            vcpus=min(promisable.vcpus, view.physical.vcpus),
            memory_mib=min(promisable.memory_mib, view.physical.memory_mib),
            disk_mib=promisable.disk_mib,
        )
        weights = self._weights
        total = weights.cpu + weights.memory + weights.disk
        self._per_vcpu = weights.cpu / total / promisable.vcpus if promisable.vcpus else 0.0
        self._per_mib_of_memory = weights.memory / total / promisable.memory_mib if promisable.memory_mib else 0.0
        self._per_mib_of_disk = weights.disk / total / promisable.disk_mib if promisable.disk_mib else 0.0
        self.report(self.last_report)

    def report(self, load: Load | None) -> None:
        """Take what was measured, or forget it."""
        self.last_report = load
        self._correction = 0.0
        if load is not None:
            weights = self._weights
            used = weights.cpu * load.cpu + weights.memory * load.memory + weights.disk * load.disk
            unseen = [self.claims[claim] for claim in self.claims.keys() - load.instances]
            seen = (
                (self.promised_vcpus - sum(demand.vcpus for demand in unseen)) * self._per_vcpu
                + (self.promised_memory_mib - sum(demand.memory_mib for demand in unseen)) * self._per_mib_of_memory
                + (self.promised_disk_mib - sum(_on_own_disk(demand) for demand in unseen)) * self._per_mib_of_disk
            )
            self._correction = (used / (weights.cpu + weights.memory + weights.disk) - seen) / 2
        self._weigh()

    def take(self, claim: str, demand: Demand) -> None:
        self.claims[claim] = demand
        self.promised_vcpus += demand.vcpus
        self.promised_memory_mib += demand.memory_mib
        self._count_disk(demand, demand.disk_mib)
        self._weigh_after(claim)

    def give_back(self, claim: str) -> Demand:
        demand = self.claims.pop(claim)
        self.promised_vcpus -= demand.vcpus
        self.promised_memory_mib -= demand.memory_mib
        self._count_disk(demand, -demand.disk_mib)
        self._weigh_after(claim)
        return demand

    def _count_disk(self, demand: Demand, mib: int) -> None:
        if demand.storage_pool:
            self.promised_storage_mib[demand.storage_pool] = self.promised_in(demand.storage_pool) + mib
        else:
            self.promised_disk_mib += mib

    def promised_in(self, storage_pool: str) -> int:
        """What is promised in a storage pool, in MiB; on the host's own disk for the empty name."""
        return self.promised_storage_mib.get(storage_pool, 0) if storage_pool else self.promised_disk_mib

    def _weigh_after(self, claim: str) -> None:
        """Weigh after a claim has come or gone."""
        if self.last_report is not None and claim in self.last_report.instances:
            self.report(self.last_report)
        else:
            self._weigh()

    def _weigh(self) -> None:
        self.load = load = (
            self.promised_vcpus * self._per_vcpu
            + self.promised_memory_mib * self._per_mib_of_memory
            + self.promised_disk_mib * self._per_mib_of_disk
            + self._correction
        )
        self.step = int(load * LOAD_STEPS) if load < 1 else LOAD_STEPS - 1

    def has_room(self, vcpus: int, memory_mib: int, disk_mib: int, storage_pool: str = "") -> bool:
        """Whether so much is free. None of something always fits, also where more is promised than there is now."""
        whole, largest = self.promisable, self.largest
        return (
            (self.promised_vcpus + vcpus <= whole.vcpus or not vcpus)
            and (self.promised_memory_mib + memory_mib <= whole.memory_mib or not memory_mib)
            and (not disk_mib or self._has_disk(disk_mib, storage_pool))
            and vcpus <= largest.vcpus
            and memory_mib <= largest.memory_mib
        )

    def _has_disk(self, mib: int, storage_pool: str) -> bool:
        if not storage_pool:
            return self.promised_disk_mib + mib <= self.promisable.disk_mib and not self.view.disk_closed
        room = self.view.storage.get(storage_pool)
        return room is not None and not room.closed and self.promised_in(storage_pool) + mib <= room.promisable_mib

    @property
    def bit(self) -> int:
        """The host as a set of one. Not kept: ten thousand such sets are seven megabytes."""
        return 1 << self.slot

    def free(self, storage_pool: str = "") -> Capacity:
        """What may still be promised; negative where the host has shrunk below what it has promised.

        Of disk, in a storage pool, or on its own disk for the empty name.
        """
        room = self.view.room_in(storage_pool)
        whole = self.promisable
        return Capacity(
            vcpus=whole.vcpus - self.promised_vcpus,
            memory_mib=whole.memory_mib - self.promised_memory_mib,
            disk_mib=room.promisable_mib - self.promised_in(storage_pool) if room is not None else 0,
        )


def _on_own_disk(demand: Demand) -> int:
    return 0 if demand.storage_pool else demand.disk_mib


class Tally:
    """How many instances of one family (a project, a group) are in each failure domain."""

    __slots__ = ("members", "numbers")

    def __init__(self, universe: int) -> None:
        self.members: dict[str, int] = {}
        self.numbers = BitSliced(universe)

    def copy(self) -> "Tally":
        twin = Tally(0)
        twin.members = self.members.copy()
        twin.numbers = self.numbers.copy()
        return twin

    def add(self, domain: str, hosts: int, number: int) -> None:
        """Count `number` more (or fewer) in a domain, which consists of the set `hosts`."""
        before = self.members.get(domain, 0)
        after = before + number
        if after:
            self.members[domain] = after
        else:
            self.members.pop(domain, None)
        self.numbers.move(hosts, before, after)

    def renumber(self, universe: int, hosts: Mapping[HostId, HostLedger]) -> None:
        """Write the numbers anew after the hosts have got other places; for a tally by host."""
        self.numbers = BitSliced(universe)
        for domain, number in self.members.items():
            self.numbers.move(hosts[HostId(domain)].bit, 0, number)
