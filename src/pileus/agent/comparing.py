"""How a guest as its hypervisor has it compares with its record. Pure."""

from collections.abc import Mapping
from typing import Final

from pileus.agent.hypervisor.port import GuestFound, GuestState
from pileus.agent.records import GuestRecord, Removed
from pileus.link.guests import GuestObserved, GuestSpec, Power, Restart

FINAL_ENDS: Final[Mapping[Restart, frozenset[GuestState]]] = {
    Restart.ALWAYS: frozenset[GuestState](),
    Restart.ON_FAILURE: frozenset({GuestState.SHUT_DOWN}),
    Restart.NEVER: frozenset({GuestState.SHUT_DOWN, GuestState.CRASHED}),
}
"""How a guest may end that is then left so."""


def generation_of(record: GuestRecord | Removed) -> int:
    return record.spec.generation if isinstance(record, GuestRecord) else record.generation


def size_of(spec: GuestSpec) -> tuple[int, int]:
    """vCPUs, and memory in MiB."""
    return spec.vcpus, spec.memory_mib


def is_up(found: GuestFound | None) -> bool:
    # A guest is paused by its hypervisor when its disk fails: it has not ended.
    return found is not None and found.state in {GuestState.RUNNING, GuestState.PAUSED}


def is_suspended(found: GuestFound | None) -> bool:
    return found is not None and found.state is GuestState.SUSPENDED


def differs(record: GuestRecord, found: GuestFound) -> bool:
    return (
        not record.made
        or found.generation != record.spec.generation
        or power_of(found, record.power) is not record.power
    )


def lacks_vcpus(record: GuestRecord, found: GuestFound) -> bool:
    """Whether a guest has let go of vCPUs that it is to keep: too late, after it was no longer to lose them."""
    return (
        record.made
        and found.generation == record.spec.generation
        and found.state is GuestState.RUNNING
        and found.vcpus < record.spec.vcpus
    )


def power_of(found: GuestFound | None, wanted: Power) -> Power:
    """A guest's power; one that its hypervisor has paused, and nobody else, counts as running."""
    if is_suspended(found):
        return Power.SUSPENDED
    if found is None or not is_up(found):
        return Power.STOPPED
    return Power.PAUSED if wanted is Power.PAUSED and found.state is GuestState.PAUSED else Power.RUNNING


def observed(record: GuestRecord, power: Power, cause: str) -> GuestObserved:
    return GuestObserved(
        id=record.spec.id, generation=record.spec.generation, power=power, since=record.since, cause=cause
    )


def as_observed(record: GuestRecord, found: GuestFound | None) -> GuestObserved:
    """What is told of a guest; why it is so is in its record if it is as it ought to be."""
    power = power_of(found, record.power)
    if power is record.power:
        return observed(record, power, record.cause)
    return observed(record, power, found.cause if found is not None else "it is not made yet")


def why_ended(found: GuestFound) -> str:
    crashed = found.state is GuestState.CRASHED
    return found.cause or ("it crashed" if crashed else "the guest shut itself down")
