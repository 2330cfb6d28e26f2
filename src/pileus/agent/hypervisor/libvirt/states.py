"""What libvirt says of a guest, in our words. Pure.

The numbers are virDomainState, virDomainShutoffReason and virDomainEventType of libvirt's ABI
(https://libvirt.org/html/libvirt-libvirt-domain.html).
"""

from enum import Enum, IntEnum

import msgspec

from pileus.agent.hypervisor.port import GuestState


class DomainState(IntEnum):
    """virDomainState."""

    NOSTATE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4  # on its way: its process is still there
    SHUTOFF = 5
    CRASHED = 6
    PMSUSPENDED = 7


class Shutoff(IntEnum):
    """virDomainShutoffReason: why a domain does not run. It is forgotten when libvirtd restarts."""

    UNKNOWN = 0
    SHUTDOWN = 1
    DESTROYED = 2
    CRASHED = 3
    MIGRATED = 4
    SAVED = 5
    FAILED = 6
    FROM_SNAPSHOT = 7
    DAEMON = 8

    @classmethod
    def _missing_(cls, value: object) -> "Shutoff":  # noqa: ARG003 - a later libvirt may know more reasons
        return cls.UNKNOWN


class Pause(IntEnum):
    """virDomainPausedReason, as far as anybody has to be told."""

    IO_ERROR = 5


class Lifecycle(IntEnum):
    """virDomainEventType."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    SUSPENDED = 3
    RESUMED = 4
    STOPPED = 5
    SHUTDOWN = 6
    PMSUSPENDED = 7
    CRASHED = 8


class Order(Enum):
    """How we told a guest to end."""

    SHUT_DOWN = "shut down"
    STOP = "stop"


class Recalled(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver has seen of a guest, and libvirt may have forgotten."""

    running: bool = False
    """It ran when it was last looked at, and has not been heard to end."""
    ended: Shutoff = Shutoff.UNKNOWN
    """Why it ended, as heard when it did."""
    ordered: Order | None = None
    """That we told it to end, since it was last started."""


CHANGES = frozenset(
    {
        Lifecycle.UNDEFINED,
        Lifecycle.STARTED,
        Lifecycle.SUSPENDED,
        Lifecycle.RESUMED,
        Lifecycle.STOPPED,
        Lifecycle.PMSUSPENDED,
        Lifecycle.CRASHED,
    }
)
"""The events after which a guest's state is another."""

_STATES = {
    DomainState.NOSTATE: GuestState.RUNNING,
    DomainState.RUNNING: GuestState.RUNNING,
    DomainState.BLOCKED: GuestState.RUNNING,
    DomainState.SHUTDOWN: GuestState.RUNNING,
    DomainState.PAUSED: GuestState.PAUSED,
    DomainState.PMSUSPENDED: GuestState.PAUSED,
}

_ENDS = {
    Shutoff.UNKNOWN: (GuestState.SHUT_DOWN, ""),
    Shutoff.SHUTDOWN: (GuestState.SHUT_DOWN, "the guest shut itself down"),
    Shutoff.DESTROYED: (GuestState.SHUT_DOWN, "stopped by force"),
    Shutoff.CRASHED: (GuestState.CRASHED, "its QEMU process crashed or was killed"),
    Shutoff.MIGRATED: (GuestState.SHUT_DOWN, "moved to another host"),
    Shutoff.SAVED: (GuestState.SHUT_DOWN, "saved to disk"),
    Shutoff.FAILED: (GuestState.CRASHED, "it could not be started"),
    Shutoff.FROM_SNAPSHOT: (GuestState.SHUT_DOWN, "reverted to a snapshot that was taken while it was off"),
    Shutoff.DAEMON: (GuestState.CRASHED, "libvirt could not take hold of its QEMU process again"),
}

_UNWATCHED = (GuestState.CRASHED, "its QEMU process ended while libvirt was down")


def judge(state: DomainState, reason: int, recalled: Recalled) -> tuple[GuestState, str]:
    """A guest's state, and why it is so if nobody asked for it. The meaning of a reason depends on the state."""
    if state in _STATES:
        halted = state is DomainState.PAUSED and reason == Pause.IO_ERROR
        return _STATES[state], "halted: a disk of it has failed or has no room left" if halted else ""
    if state is DomainState.CRASHED:
        return GuestState.CRASHED, "its operating system crashed"
    why = Shutoff(reason) or recalled.ended
    if recalled.ordered is Order.STOP or (recalled.ordered is Order.SHUT_DOWN and why is Shutoff.SHUTDOWN):
        return GuestState.SHUT_DOWN, ""
    return _UNWATCHED if why is Shutoff.UNKNOWN and recalled.running else _ENDS[why]


def recall(before: Recalled, event: Lifecycle, detail: int) -> Recalled:
    """What to remember after an event."""
    match event:
        case Lifecycle.STARTED:
            return Recalled(running=True)
        case Lifecycle.STOPPED:
            # virDomainEventStoppedDetailType counts the same reasons from 0, and calls a crash a failure.
            why = Shutoff(detail + 1)
            ended = Shutoff.CRASHED if why is Shutoff.FAILED and before.running else why
            return msgspec.structs.replace(before, running=False, ended=ended)
        case _:
            return before
