"""What is the least that would have to change for a demand to fit?"""

from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

from pileus.kernel.ids import HostId
from pileus.scheduler.model import Capacity, Demand, Domain, GroupPolicy
from pileus.scheduler.verdicts import ROOM, Hindrance, Verdict


class Change(StrEnum):
    """The kinds of change, the smallest first.

    Asking differently costs nobody anything; a host comes back without a guest being touched; making room moves guests
    or stops them; a smaller machine is not the one that was wanted; a new host has to be bought.
    """

    SOFTEN = "soften"
    WIDEN = "widen"
    ZONE = "zone"
    RESTORE = "restore"
    FREE = "free"
    SHRINK = "shrink"
    TRAITS = "traits"
    ADD_HOST = "add-host"


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One change that would be enough by itself."""

    change: Change
    words: str
    host: HostId | None = None
    """The host that the demand would then fit on; None for a host yet to come."""
    capacity: Capacity | None = None
    """How much to free, or the size that would fit, or what the new host must have at least."""


def advise(demand: Demand, verdicts: Sequence[Verdict]) -> list[Advice]:
    """For each kind of change the least one that would make the demand fit, the smallest kind first.

    Empty if no single change is enough: a group to be kept together on a host that is also in the wrong zone.
    """
    least: dict[Change, tuple[float, Advice]] = {}
    for verdict in verdicts:
        for cost, option in _options(demand, verdict):
            if option.change not in least or cost < least[option.change][0]:
                least[option.change] = cost, option
    advice = [least[change][1] for change in Change if change in least]
    return [*advice, _add_host(demand)] if _a_new_host_would_do(demand, verdicts) else advice


def _options(demand: Demand, verdict: Verdict) -> Iterator[tuple[float, Advice]]:
    """What would make this one host do, each with its cost; costs of one kind are comparable."""
    host, hindrances = verdict.host, verdict.hindrances
    if len(hindrances) == 1 and (asked_otherwise := _otherwise(demand, verdict, *hindrances)) is not None:
        yield asked_otherwise
    if hindrances <= ROOM and hindrances:
        lacking = _lacking(demand, verdict.free)
        words = f"free {lacking.words} on {host.name}"
        yield _share(lacking, host.promisable), Advice(change=Change.FREE, words=words, host=host.id, capacity=lacking)
    if hindrances <= ROOM | {Hindrance.TOO_SMALL} and hindrances:
        fitting = _fitting(demand, verdict)
        if fitting.vcpus > 0 and fitting.memory_mib > 0:
            words = f"ask for {fitting.words}, which fits on {host.name}"
            cost = _share(_lacking(demand, fitting), demand.size)
            yield cost, Advice(change=Change.SHRINK, words=words, host=host.id, capacity=fitting)


def _otherwise(demand: Demand, verdict: Verdict, hindrance: Hindrance) -> tuple[float, Advice] | None:
    """What to change about the one thing that stands against a host, if it is not a matter of room."""
    host, cost = verdict.host, verdict.load
    match hindrance:
        case Hindrance.GROUP if demand.group is not None:
            change, words = Change.SOFTEN, f"make the {demand.group.policy} of group {demand.group.name} soft"
        case Hindrance.NOT_ASKED_FOR:
            change, words = Change.WIDEN, f"let it go to {host.name} as well"
        case Hindrance.ZONE:
            change, words = Change.ZONE, f"ask for zone {host.zone}" if host.zone else "ask for no zone"
        case Hindrance.SERVICE:
            change, words = Change.RESTORE, f"take {host.name} back into service"
        case Hindrance.TRAITS:
            missing = demand.traits - host.traits
            change, words = Change.TRAITS, f"do without {', '.join(sorted(missing))}, on {host.name}"
            cost += len(missing)
        case _:
            return None
    return cost, Advice(change=change, words=words, host=host.id)


def _lacking(demand: Demand, free: Capacity) -> Capacity:
    """How much more than `free` it takes."""
    return Capacity(
        vcpus=max(demand.vcpus - free.vcpus, 0) if demand.vcpus else 0,
        memory_mib=max(demand.memory_mib - free.memory_mib, 0) if demand.memory_mib else 0,
        disk_mib=max(demand.disk_mib - free.disk_mib, 0) if demand.disk_mib else 0,
    )


def _fitting(demand: Demand, verdict: Verdict) -> Capacity:
    """As much of what is asked as the host has left."""
    free, physical = verdict.free, verdict.host.physical
    return Capacity(
        vcpus=max(min(demand.vcpus, free.vcpus, physical.vcpus), 0),
        memory_mib=max(min(demand.memory_mib, free.memory_mib, physical.memory_mib), 0),
        disk_mib=max(min(demand.disk_mib, free.disk_mib), 0),
    )


def _share(part: Capacity, whole: Capacity) -> float:
    """How large a part is of the whole, all three resources together."""
    pairs = ((part.vcpus, whole.vcpus), (part.memory_mib, whole.memory_mib), (part.disk_mib, whole.disk_mib))
    return sum(some / all_ for some, all_ in pairs if all_)


def _add_host(demand: Demand) -> Advice:
    zone = f" in zone {demand.zone}" if demand.zone is not None else ""
    traits = f" that has {', '.join(sorted(demand.traits))}" if demand.traits else ""
    group = demand.group
    apart = group is not None and group.policy is GroupPolicy.ANTI_AFFINITY and group.domain is not Domain.HOST
    domain = f", in a {group.domain} that has none of group {group.name}" if group is not None and apart else ""
    words = f"add a host{traits} to pool {demand.pool_name}{zone}{domain}, with at least {demand.size.words}"
    return Advice(change=Change.ADD_HOST, words=words, capacity=demand.size)


def _a_new_host_would_do(demand: Demand, verdicts: Sequence[Verdict]) -> bool:
    """Not if the host is named, must be where members of the group are, or could not be where none are."""
    group = demand.group
    if demand.only:
        return False
    if group is None:
        return True
    if group.policy is GroupPolicy.AFFINITY:
        return not any(verdict.in_group for verdict in verdicts)
    if group.policy is GroupPolicy.ANTI_AFFINITY and group.domain is Domain.ZONE and demand.zone is not None:
        return not any(verdict.in_group and verdict.host.zone == demand.zone for verdict in verdicts)
    return True
