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

    Everything is summed in integers and is a function of the facts, the claims and the last report, in whatever order
    they came: giving back what was taken restores the load exactly.
    """

    __slots__ = (
        "_counted_disk",
        "_counted_memory",
        "_counted_vcpus",
        "_half_disk",
        "_half_memory",
        "_half_vcpus",
        "_in_use",
        "bit",
        "claims",
        "free_disk_mib",
        "free_memory_mib",
        "free_vcpus",
        "largest",
        "last_report",
        "load",
        "promisable",
        "slot",
        "step",
        "view",
    )

    def __init__(self, view: HostView, weights: Weights) -> None:
        self.claims: dict[str, Demand] = {}
        self.last_report: Load | None = None
        self.slot = -1
        self.bit = 0
        self.load = 0.0
        self.step = 0
        self.describe(view, weights)

    def copy(self) -> "HostLedger":
        twin = HostLedger.__new__(HostLedger)
        for name in self.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.claims = self.claims.copy()
        return twin

    def describe(self, view: HostView, weights: Weights) -> None:
        """Take new facts; claims and the last report stay."""
        self.view = view
        self.promisable = promisable = view.promisable
        # Overcommitted against others, never against itself: 4 vCPUs on 2 threads would only wait for each other.
        self.largest = Capacity(
            vcpus=min(promisable.vcpus, view.physical.vcpus),
            memory_mib=min(promisable.memory_mib, view.physical.memory_mib),
            disk_mib=promisable.disk_mib,
        )
        whole = 2 * (weights.cpu + weights.memory + weights.disk)
        self._half_vcpus = weights.cpu / whole / promisable.vcpus if promisable.vcpus else 0.0
        self._half_memory = weights.memory / whole / promisable.memory_mib if promisable.memory_mib else 0.0
        self._half_disk = weights.disk / whole / promisable.disk_mib if promisable.disk_mib else 0.0
        self.recount(weights)

    def report(self, load: Load | None, weights: Weights) -> None:
        self.last_report = load
        self.recount(weights)

    def recount(self, weights: Weights) -> None:
        """Sum up from the claims and the last report."""
        self.free_vcpus = self.promisable.vcpus
        self.free_memory_mib = self.promisable.memory_mib
        self.free_disk_mib = self.promisable.disk_mib
        self._counted_vcpus = self._counted_memory = self._counted_disk = 0
        self._in_use = 0.0
        if (seen := self.last_report) is not None:
            used = weights.cpu * seen.cpu + weights.memory * seen.memory + weights.disk * seen.disk
            self._in_use = used / (weights.cpu + weights.memory + weights.disk) / 2
        for claim, demand in self.claims.items():
            self._count(claim, demand, 1)
        self._weigh()

    def take(self, claim: str, demand: Demand) -> None:
        self.claims[claim] = demand
        self._count(claim, demand, 1)
        self._weigh()

    def give_back(self, claim: str) -> Demand:
        demand = self.claims.pop(claim)
        self._count(claim, demand, -1)
        self._weigh()
        return demand

    def _count(self, claim: str, demand: Demand, sign: int) -> None:
        vcpus, memory_mib, disk_mib = sign * demand.vcpus, sign * demand.memory_mib, sign * demand.disk_mib
        self.free_vcpus -= vcpus
        self.free_memory_mib -= memory_mib
        self.free_disk_mib -= disk_mib
        # Half for being promised, and half for being in use unless the report has it already.
        halves = 1 if self.last_report is not None and claim in self.last_report.instances else 2
        self._counted_vcpus += halves * vcpus
        self._counted_memory += halves * memory_mib
        self._counted_disk += halves * disk_mib

    def _weigh(self) -> None:
        self.load = (
            self._in_use
            + self._counted_vcpus * self._half_vcpus
            + self._counted_memory * self._half_memory
            + self._counted_disk * self._half_disk
        )
        self.step = min(int(self.load * LOAD_STEPS), LOAD_STEPS - 1)

    def has_room(self, vcpus: int, memory_mib: int, disk_mib: int) -> bool:
        """Whether so much is free. None of something always fits, also where more is promised than there is now."""
        largest = self.largest
        return (
            (vcpus <= self.free_vcpus or not vcpus)
            and (memory_mib <= self.free_memory_mib or not memory_mib)
            and (disk_mib <= self.free_disk_mib or not disk_mib)
            and vcpus <= largest.vcpus
            and memory_mib <= largest.memory_mib
        )

    @property
    def free(self) -> Capacity:
        """What may still be promised; negative where the host has shrunk below what it has promised."""
        return Capacity(vcpus=self.free_vcpus, memory_mib=self.free_memory_mib, disk_mib=self.free_disk_mib)


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
