"""Shadows: records of guests that are not of Pileus, and in what they have changed since a look at them. No I/O."""

from collections.abc import Iterator
from typing import Any

import msgspec

from pileus.kernel.ids import HostId, InstanceId
from pileus.link.foreign import ForeignDisk, ForeignGuest, ForeignNic
from pileus.state.kinds import Kind
from pileus.state.records import Record


class Shadow(Record, frozen=True, kw_only=True):
    """A guest of somebody else's on one of our hosts, as it was when it was looked at. Nothing is done to it."""

    host_id: HostId
    uuid: str
    """By which its hypervisor knows it."""
    name: str
    running: bool
    """As it is now, as far as is known."""
    vcpus: int
    memory_mib: int
    machine: str
    firmware: str
    disks: tuple[ForeignDisk, ...]
    nics: tuple[ForeignNic, ...]
    obstacles: tuple[str, ...]
    """What stands in the way of taking it over, in sentences."""
    untouched: tuple[str, ...] = ()
    """What it has besides that stays as it is when it is taken over: we do not know how to change it."""
    generation: int = 0
    """Up to which its host takes a wish about it for late: it was ours before."""
    instance_id: InstanceId | None = None
    """What is being made of it, while it is taken over."""
    drift: tuple[str, ...] = ()
    """In what it is no longer as it was when it was looked at, in sentences."""


SHADOWS = Kind(
    "foreign_guest",
    Shadow,
    indexes={"host_id": lambda shadow: shadow.host_id},
    unique={"guest": lambda shadow: (shadow.host_id, shadow.uuid)},
)

GONE = "it is no longer there"

_COMPARED = ("name", "vcpus", "memory_mib", "machine", "firmware")


def looked_at(shadow: Shadow, guest: ForeignGuest) -> Shadow:
    """The shadow of a guest as it is now: what it was before is forgotten."""
    return msgspec.structs.replace(shadow, **seen(guest), drift=())


def seen(guest: ForeignGuest) -> dict[str, Any]:
    """What a shadow keeps of its guest, by field."""
    return {name: value for name, value in msgspec.structs.asdict(guest).items() if name != "id"}


def drifted(shadow: Shadow, guest: ForeignGuest | None) -> Shadow:
    """The same shadow, with in what its guest has changed since; None is a guest that is no longer there."""
    if guest is None:
        return msgspec.structs.replace(shadow, running=False, drift=(GONE,))
    return msgspec.structs.replace(shadow, running=guest.running, drift=tuple(_differences(shadow, guest)))


def _differences(shadow: Shadow, guest: ForeignGuest) -> Iterator[str]:
    for field in _COMPARED:
        was, now = getattr(shadow, field), getattr(guest, field)
        if was != now:
            yield f"{field} was {was}, is {now}"
    disks = {each.target: each for each in shadow.disks}, {each.target: each for each in guest.disks}
    nics = {each.mac: each for each in shadow.nics}, {each.mac: each for each in guest.nics}
    for what, (before, after) in (("disk", disks), ("interface", nics)):
        yield from (f"{what} {key} is new" for key in after.keys() - before.keys())
        yield from (f"{what} {key} is gone" for key in before.keys() - after.keys())
        yield from (f"{what} {key} has changed" for key in before.keys() & after.keys() if before[key] != after[key])
