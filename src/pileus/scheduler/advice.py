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
    least: dict[Change, tuple[float, Verdict]] = {}
    for verdict in verdicts:
        for change, cost in _options(demand, verdict):
            if change not in least or cost < least[change][0]:
                least[change] = cost, verdict
    advice = [_advice(change, demand, least[change][1]) for change in Change if change in least]
    return [*advice, _add_host(demand)] if _a_new_host_would_do(demand, verdicts) else advice


_OTHERWISE = {
    Hindrance.GROUP: Change.SOFTEN,
    Hindrance.NOT_ASKED_FOR: Change.WIDEN,
    Hindrance.ZONE: Change.ZONE,
    Hindrance.SERVICE: Change.RESTORE,
    Hindrance.TRAITS: Change.TRAITS,
}
"""What to change if only this stands against a host."""


def _options(demand: Demand, verdict: Verdict) -> Iterator[tuple[Change, float]]:
    """What would make this one host do, each with its cost; costs of one kind are comparable."""
    kinds = [obstacle.kind for obstacle in verdict.obstacles]
    if len(kinds) == 1 and (change := _OTHERWISE.get(kinds[0])) is not None:
        missing = len(demand.traits - verdict.host.traits)
        yield change, missing + verdict.load
    elif kinds and all(kind in ROOM for kind in kinds):
        if Hindrance.TOO_SMALL not in kinds:
            yield Change.FREE, _share(_lacking(demand, verdict.free), verdict.host.physical)
        fitting = _fitting(demand, verdict)
        if fitting.vcpus > 0 and fitting.memory_mib > 0:
            yield Change.SHRINK, _share(_lacking(demand, fitting), demand.size)


def _advice(change: Change, demand: Demand, verdict: Verdict) -> Advice:
    host, capacity = verdict.host, None
    match change:
        case Change.SOFTEN:
            assert demand.group is not None, "only a group's policy can be softened"
            words = f"make the {demand.group.policy} of group {demand.group.name} soft"
        case Change.WIDEN:
            words = f"let it go to {host.name} as well"
        case Change.ZONE:
            words = f"ask for zone {host.zone}" if host.zone else "ask for no zone"
        case Change.RESTORE:
            words = f"take {host.name} back into service"
        case Change.FREE:
            capacity = _lacking(demand, verdict.free)
            words = f"free {capacity.words} on {host.name}"
        case Change.SHRINK:
            capacity = _fitting(demand, verdict)
            words = f"ask for {capacity.words}, which fits on {host.name}"
        case Change.TRAITS:
            words = f"do without {', '.join(sorted(demand.traits - host.traits))}, on {host.name}"
        case Change.ADD_HOST:
            return _add_host(demand)
    return Advice(change=change, words=words, host=host.id, capacity=capacity)


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
    storage = f", the disk in storage pool {demand.storage_pool}" if demand.storage_pool and demand.disk_mib else ""
    words = f"add a host{traits} to pool {demand.pool_name}{zone}{domain}, with at least {demand.size.words}{storage}"
    return Advice(change=Change.ADD_HOST, words=words, capacity=demand.size)


def _a_new_host_would_do(demand: Demand, verdicts: Sequence[Verdict]) -> bool:
    """Not if the host is named, must be where members of the group are, or could not be where none are."""
    group = demand.group
    if demand.only:
        return False
    if group is None:
        return True
    if group.policy is GroupPolicy.AFFINITY:
        return not any(verdict.in_group or Hindrance.GROUP in verdict.hindrances for verdict in verdicts)
    if group.policy is GroupPolicy.ANTI_AFFINITY and group.domain is Domain.ZONE and demand.zone is not None:
        return not any(verdict.in_group and verdict.host.zone == demand.zone for verdict in verdicts)
    return True
