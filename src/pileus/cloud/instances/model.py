"""What an instance is, and which states it may pass through. No I/O."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from pileus.kernel.errors import Conflict
from pileus.kernel.ids import FlavorId, HostId, ImageId, KeypairId, PoolId, ProjectId, ServerGroupId, VolumeId
from pileus.link.guests import BOOT_ORDER, BootDevice, Restart, Watchdog
from pileus.link.templates import FRAMES, Frame, GuestTemplate
from pileus.state.kinds import Kind
from pileus.state.records import Record


class InstanceState(StrEnum):
    BUILDING = "building"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    """Its CPUs stand still, its memory stays."""
    SUSPENDED = "suspended"
    """It does not run; its memory is kept on its host's disk, and it goes on from there."""
    STARTING = "starting"
    STOPPING = "stopping"
    REBOOTING = "rebooting"
    PAUSING = "pausing"
    SUSPENDING = "suspending"
    RESUMING = "resuming"
    RESIZING = "resizing"
    REBUILDING = "rebuilding"
    REVERTING = "reverting"
    """It becomes what it was at a snapshot."""
    DELETING = "deleting"
    DELETED = "deleted"
    """Its guest is gone from its host; its disk and its addresses are kept for a while, so that it can be had back."""
    UNDELETING = "undeleting"


_S = InstanceState
ALLOWED: Mapping[InstanceState, frozenset[InstanceState]] = {
    _S.BUILDING: frozenset({_S.RUNNING, _S.STOPPED}),
    _S.RUNNING: frozenset(
        {
            _S.STOPPED,
            _S.STOPPING,
            _S.REBOOTING,
            _S.PAUSING,
            _S.SUSPENDING,
            _S.REBUILDING,
            _S.REVERTING,
            _S.DELETING,
        }
    ),
    _S.STOPPED: frozenset({_S.RUNNING, _S.STARTING, _S.RESIZING, _S.REBUILDING, _S.REVERTING, _S.DELETING}),
    _S.PAUSED: frozenset({_S.STOPPED, _S.STOPPING, _S.RESUMING, _S.SUSPENDING, _S.REVERTING, _S.DELETING}),
    _S.SUSPENDED: frozenset({_S.STOPPED, _S.STOPPING, _S.RESUMING, _S.DELETING}),
    _S.STARTING: frozenset({_S.RUNNING, _S.STOPPED}),
    _S.STOPPING: frozenset({_S.STOPPED, _S.RUNNING, _S.PAUSED}),
    _S.REBOOTING: frozenset({_S.RUNNING, _S.STOPPED}),
    _S.PAUSING: frozenset({_S.PAUSED, _S.RUNNING}),
    _S.SUSPENDING: frozenset({_S.SUSPENDED, _S.RUNNING, _S.PAUSED}),
    _S.RESUMING: frozenset({_S.RUNNING, _S.PAUSED, _S.SUSPENDED}),
    _S.RESIZING: frozenset({_S.STOPPED}),
    _S.REBUILDING: frozenset({_S.RUNNING, _S.STOPPED}),
    _S.REVERTING: frozenset({_S.RUNNING, _S.STOPPED}),
    _S.DELETING: frozenset({_S.DELETED}),
    _S.DELETED: frozenset({_S.UNDELETING, _S.DELETING}),
    _S.UNDELETING: frozenset({_S.STOPPED, _S.DELETED}),
}
WITH_GUEST = frozenset({_S.RUNNING, _S.STOPPED, _S.PAUSED, _S.SUSPENDED})
"""The states in which its host has a guest of it, and no task is at work on that."""
SETTLED = frozenset({*WITH_GUEST, _S.DELETED})
"""The states in which no task is at work on the instance."""


class Medium(msgspec.Struct, frozen=True, kw_only=True):
    """An ISO image in a drive of an instance. The image may be deleted; what is in the drive stays there."""

    image_id: ImageId
    drive: int = 0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much of its host an instance may take; 0 is as much as there is."""

    cpu_percent: int = 0
    """Of the time of a CPU, for each of its vCPUs."""
    disk_iops: int = 0
    """Operations per second, for each of its volumes."""
    disk_bytes_per_s: int = 0
    disk_burst_iops: int = 0
    """What a volume may do for `disk_burst_s` seconds when it was idle before."""
    disk_burst_bytes_per_s: int = 0
    disk_burst_s: int = 0
    network_mbit: int = 0
    """In each direction, for each of its ports that has no limit of its own."""

    @property
    def words(self) -> str:
        """What is limited, for people; empty if nothing is."""
        return ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(self).items() if value)


class Instance(Record, frozen=True, kw_only=True):
    """A virtual machine."""

    project_id: ProjectId
    name: str
    description: str = ""
    labels: Mapping[str, str] = msgspec.field(default_factory=dict[str, str])
    state: InstanceState = InstanceState.BUILDING
    state_reason: str = ""
    """Why it is in this state, if nobody asked for it."""
    vcpus: int
    memory_mib: int
    max_vcpus: int | None = None
    """Up to how many it can be given while it runs; None for no more than it has."""
    max_memory_mib: int | None = None
    """Up to how much it can be given while it runs; None for no more than it has. It is promised all of it."""
    disk_gib: int
    flavor_id: FlavorId | None = None
    image_id: ImageId | None
    """What it was made from, or what that was made from of which it is a copy; None if nobody knows."""
    pool_id: PoolId
    host_id: HostId
    zone: str = ""
    server_group_id: ServerGroupId | None = None
    keypair_ids: tuple[KeypairId, ...] = ()
    addresses: tuple[str, ...] = ()
    """Of its ports, in their order."""
    floating_addresses: tuple[str, ...] = ()
    protected: bool = False
    """Whether it is refused to be deleted."""
    generation: int = 1
    """Of what the host was told; every change of it adds one."""
    attached_volume_ids: tuple[VolumeId, ...] = ()
    """Of the volumes besides the one that it boots from, in the order in which they were attached."""
    busy_with: str = ""
    """What a task is changing about it, in words, while it keeps its state; empty if none is."""
    restart: Restart = Restart.ON_FAILURE
    """Whether its guest is started again when that ends by itself."""
    watchdog: Watchdog = Watchdog.RESET
    deleted_at: datetime | None = None
    """Since when it is deleted, or on its way there, and can still be had back."""
    template: GuestTemplate = GuestTemplate.LINUX
    """The set of devices that its guest is given."""
    media: tuple[Medium, ...] = ()
    """What is in its drives."""
    boot_order: tuple[BootDevice, ...] = BOOT_ORDER
    """What its firmware tries, in this order, from its next start."""
    limits: Limits | None = None
    """None if it has never had any."""
    config_drive: bool = False
    """Whether its guest can read what metadata answers from a disk as well."""

    @property
    def frame(self) -> Frame:
        """What fits into its guest."""
        return FRAMES[self.template]

    @property
    def bandwidth_mbit(self) -> int | None:
        """What a port of it passes that has no limit of its own; None for no limit."""
        return (self.limits.network_mbit if self.limits is not None else 0) or None

    @property
    def promised_memory_mib(self) -> int:
        """What its host has to have for it: a guest alone decides whether it gives back what it could have had."""
        return self.max_memory_mib or self.memory_mib

    def must_be_ours(self, what: str) -> None:
        """Raises Conflict if it was taken over as it was, and this is about devices that are not ours."""
        if self.template is GuestTemplate.AS_FOUND:
            raise Conflict(f"instance {self.name} was taken over as it was: {what}")

    def busy(
        self, doing: str, *, among: Sequence[InstanceState] = (InstanceState.RUNNING, InstanceState.STOPPED)
    ) -> "Instance":
        """The same instance while a task changes something about it, or Conflict if it must not be changed now."""
        if self.state not in among:
            raise Conflict(f"instance {self.name} is {self.state}: it must be {', '.join(among[:-1])} or {among[-1]}")
        self._must_be_free()
        return msgspec.structs.replace(self, busy_with=doing, generation=self.generation + 1)

    def at_rest(self) -> "Instance":
        """The same instance with no task at work on it any more."""
        return msgspec.structs.replace(self, busy_with="")

    def newer(self) -> "Instance":
        """The same instance, which its host must take for newer than whatever it was told meanwhile."""
        return msgspec.structs.replace(self, generation=self.generation + 1)

    def to(self, state: InstanceState, *, reason: str = "") -> "Instance":
        """The same instance in its next state, or Conflict if there is no such way."""
        self._must_be_free()
        return self.found(state, reason=reason)

    def found(self, state: InstanceState, *, reason: str = "") -> "Instance":
        """The same instance in a state that nobody asked for, which it may also come to while it is busy."""
        if state not in ALLOWED[self.state]:
            raise Conflict(f"instance {self.name} is {self.state} and cannot become {state}")
        return msgspec.structs.replace(self, state=state, state_reason=reason)

    def _must_be_free(self) -> None:
        if self.busy_with:
            raise Conflict(f"instance {self.name} is being changed: {self.busy_with}")


def _with_volumes(instance: dict[str, Any]) -> dict[str, Any]:
    """Version 2 knows volumes that are attached."""
    return {**instance, "attached_volume_ids": (), "busy_with": ""}


def _since_version_3(instance: dict[str, Any]) -> dict[str, Any]:
    """Version 3 does without a time of start, which nobody had ever set.

    It knows what recovers a guest, templates and media.
    """
    kept = {name: value for name, value in instance.items() if name != "started_at"}
    most = {"max_vcpus": None, "max_memory_mib": None, "config_drive": False}
    devices = {"template": "linux", "media": (), "boot_order": ("disk", "cdrom"), "limits": None}
    return {**kept, "restart": "on-failure", "watchdog": "none", "deleted_at": None, **devices, **most}


def _counts(instance: Instance) -> Mapping[str, int]:
    """A deleted instance takes nothing but its disk, which counts as a volume."""
    if instance.state is InstanceState.DELETED:
        return {}
    return {"instances": 1, "vcpus": instance.vcpus, "memory_mib": instance.promised_memory_mib}


INSTANCES = Kind(
    "instance",
    Instance,
    indexes={
        "project": lambda instance: instance.project_id,
        "host_id": lambda instance: instance.host_id,
        "server_group": lambda instance: instance.server_group_id,
        "image": lambda instance: instance.image_id,
        "deleted": lambda instance: True if instance.state is InstanceState.DELETED else None,
    },
    counts=_counts,
    upgrades=(_with_volumes, _since_version_3),
)


class FirstBootData(Record, frozen=True, kw_only=True):
    """What an instance is told at its first boot, under the instance's id. It may hold secrets of its owner."""

    project_id: ProjectId
    hostname: str
    public_keys: tuple[tuple[str, str], ...] = ()
    """Pairs of name and OpenSSH public key."""
    user_data: str = ""
    """Base64."""


FIRST_BOOTS = Kind("first_boot", FirstBootData, keeps_before=False, secret=True)


class PasswordChange(Record, frozen=True, kw_only=True):
    """A password that is being set in the disk of an instance, under the instance's id; gone when that is over."""

    project_id: ProjectId
    user: str
    hash: str
    """As in shadow(5)."""


PASSWORD_CHANGES = Kind("password_change", PasswordChange, keeps_before=False, secret=True)
