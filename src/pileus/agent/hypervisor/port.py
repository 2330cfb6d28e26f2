"""The port through which an agent reaches what runs its guests."""

from collections.abc import AsyncIterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import msgspec

from pileus.agent.hypervisor.appliance import Appliance
from pileus.agent.hypervisor.consoles import Consoles
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource, Told
from pileus.kernel.ids import InstanceId, PortId, VolumeId
from pileus.link.foreign import ForeignGuest
from pileus.link.guests import GuestSpec, Leaving

NOTHING_IN: Mapping[int, DiskSource] = MappingProxyType({})
"""Empty drives."""


class GuestState(StrEnum):
    """What a hypervisor says of a guest that it has."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    """It does not run; its memory is kept in a file, and its next start goes on from there."""
    SHUT_DOWN = "shut-down"
    """Ended in order: by the guest itself, or by us."""
    CRASHED = "crashed"
    """Ended otherwise: its process died or was killed."""


class HypervisorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a hypervisor is and can do."""

    name: str
    version: str
    accelerator: str
    """`kvm`, `tcg` or `simulated`."""
    accelerator_reason: str
    architecture: str
    traits: tuple[str, ...] = ()
    """What it can give to guests, by the names in `pileus.link.templates`."""


class GuestFound(msgspec.Struct, frozen=True, kw_only=True):
    """A guest as the hypervisor has it."""

    state: GuestState
    generation: int
    """Of the GuestSpec that it was last defined by."""
    cause: str = ""
    """Why it ended, in words, if it has."""
    vcpus: int = 0
    """How many vCPUs it has now; 0 if it does not run."""


class LayeredDisks(Protocol):
    """The disks of guests in layers, of which the agent keeps the order. Every call is idempotent.

    Raises Unavailable if the hypervisor does not answer, NotFound for a guest or disk that it does not have.
    """

    async def files(self, id: InstanceId) -> Mapping[VolumeId, str]:
        """The file that each disk is written to: now, of a guest that runs, else from its next start."""
        ...

    async def freeze(self, id: InstanceId) -> bool:
        """Have a running guest write everything to its file systems and hold them still; whether it could and did."""
        ...

    async def thaw(self, id: InstanceId) -> None:
        """Let the guest's file systems go on; a guest that cannot be asked has none that are held."""
        ...

    async def switch(self, id: InstanceId, disks: Mapping[VolumeId, DiskSource], *, memory: Path | None = None) -> None:
        """Have a running guest write to these new layers from one moment on, of all its disks the same.

        With `memory` it stops for as long as it takes to save what it has in memory at that moment.
        """
        ...

    async def merge(self, id: InstanceId, volume: VolumeId, layer: DiskSource, into: DiskSource) -> None:
        """Have a running guest's disk do without a layer, whose content goes into the one below it."""
        ...

    async def restore(self, id: InstanceId, disks: Mapping[VolumeId, DiskSource], memory: Path) -> None:
        """Have a guest that does not run go on from the memory that was saved, with these disks of that moment."""
        ...


class MirroredDisks(Protocol):
    """The disks of running guests on their way to other files. Every call is idempotent.

    Raises Unavailable if the hypervisor does not answer, NotFound for a guest or disk that it does not have.
    """

    async def mirrored(self, id: InstanceId) -> Mapping[VolumeId, str]:
        """The file to which each disk is being mirrored that is; nothing of a guest that does not run."""
        ...

    async def mirror(self, id: InstanceId, volume: VolumeId, to: DiskSource, told: Told) -> None:
        """Have what a disk is written to copied to an empty file that is there, and kept equal to it from then on.

        Comes back when it is equal. What lies below that file is not copied. Raises Conflict if the guest does not run,
        ends meanwhile, or the copying fails; there is no mirror then.
        """
        ...

    async def go_over(self, id: InstanceId, volume: VolumeId, to: DiskSource) -> None:
        """Have the guest use the mirror from one moment on, also from its next start, and the former file no more.

        Raises Conflict if the disk is not mirrored there, or not equal.
        """
        ...

    async def stop_mirroring(self, id: InstanceId, volume: VolumeId) -> None:
        """Have the disk mirrored no more; the guest goes on with what it has."""
        ...


class Hypervisor(Protocol):
    """Runs guests. Every call is idempotent: asking twice is asking once.

    Raises Unavailable if the hypervisor does not answer, NotFound for a guest that it does not have.
    Guests go on running when whoever holds this port goes away.
    """

    @property
    def consoles(self) -> Consoles:
        """What is in front of its guests."""
        ...

    @property
    def layers(self) -> LayeredDisks:
        """The layers of their disks."""
        ...

    @property
    def mirrors(self) -> MirroredDisks:
        """Their disks on their way elsewhere."""
        ...

    @property
    def appliance(self) -> Appliance:
        """What looks into the disks of those that do not run."""
        ...

    async def facts(self) -> HypervisorFacts: ...

    async def define(
        self,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
        media: Mapping[int, DiskSource] = NOTHING_IN,
        config_drive: DiskSource | None = None,
    ) -> None:
        """Make the guest known, or change it to this; a running guest goes on as it is until its next start.

        `media` are what is in its drives, by their numbers. Its config drive it can only read; it takes the place of
        no disk, drive or other device.

        A guest of the template `as-found` is there already, made by others: from now on it is ours, and keeps its
        devices and its name. Raises NotFound if there is no such guest.
        """
        ...

    async def change_media(self, guest: GuestSpec, media: Mapping[int, DiskSource]) -> None:
        """Have these media in the drives of a running guest, and the other drives empty.

        As by the pin that opens a drive: the guest is not asked whether it is reading. One that does not run has them
        at its next start.
        """
        ...

    async def change_disks(self, guest: GuestSpec, disks: Mapping[VolumeId, DiskSource]) -> None:
        """Plug in, unplug and enlarge disks of a running guest until they are as specified; what it boots from stays.

        A guest that does not run has them at its next start, so that there is nothing to do. Raises Conflict if a
        guest does not let go of a disk in time: it may do so later, and asking again is right; and if the guest's
        template has disks that cannot be plugged in or unplugged: then they come with its next start.
        """
        ...

    async def change_limits(self, guest: GuestSpec) -> None:
        """Have a running guest take no more of its host than is specified; one that does not run starts with that."""
        ...

    async def change_nics(self, guest: GuestSpec, plugs: Mapping[PortId, Plug]) -> None:
        """Plug in and unplug network interfaces of a running guest until they are as specified.

        A guest that does not run has them at its next start, so that there is nothing to do. Raises Conflict if a
        guest does not let go of one in time: it may do so later, and asking again is right.
        """
        ...

    async def change_size(self, guest: GuestSpec) -> None:
        """Give a running guest its vCPUs and its memory, up to the most that it was started with.

        A guest that does not run has them at its next start, so that there is nothing to do. Raises Conflict if it was
        started with less as its most, or if the guest does not let go of what it has too much in time.
        """
        ...

    async def start(self, id: InstanceId) -> None:
        """Start the guest; one that was suspended goes on where it was."""
        ...

    async def shut_down(self, id: InstanceId) -> None:
        """Ask the guest to end, as by its power button; comes back at once, the guest may take its time or refuse."""
        ...

    async def stop(self, id: InstanceId) -> None:
        """End the guest now, as by pulling the plug."""
        ...

    async def pause(self, id: InstanceId) -> None:
        """Stop the CPUs of a running guest; its memory stays. Raises Conflict if it does not run."""
        ...

    async def resume(self, id: InstanceId) -> None:
        """Let the CPUs of a paused guest go on, as if no time had passed. Raises Conflict if it does not run."""
        ...

    async def suspend(self, id: InstanceId) -> None:
        """Keep the memory of a running or paused guest in a file, and end it; if that fails it goes on as it was.

        Raises Conflict if it does not run.
        """
        ...

    async def forget_memory(self, id: InstanceId) -> None:
        """Have a suspended guest be one that was shut down: its next start is a fresh one."""
        ...

    async def reboot(self, id: InstanceId, *, hard: bool) -> None:
        """Restart a running guest: by asking it, or (hard) as by the reset button."""
        ...

    async def set_password(self, id: InstanceId, user: str, password: str) -> None:
        """Have a running guest change a user's password, through the agent in it.

        Raises Conflict if it does not run, has no agent that answers, or refuses.
        """
        ...

    async def undefine(self, id: InstanceId) -> None:
        """Stop the guest and forget it; its disks are left alone."""
        ...

    async def leave(self, id: InstanceId, leaving: Leaving) -> None:
        """Have the guest go on, running or not, as one of others: nothing of it is ours any more, and its disks stay.

        One that was taken over is what it was found as. One that we made can be started without us. Nothing is done to
        one that is not ours, or that is not there.
        """
        ...

    async def list(self) -> dict[InstanceId, GuestFound]:
        """Every guest of Pileus that it has, running or not; those of others are not its business."""
        ...

    async def foreign(self) -> Sequence[ForeignGuest]:
        """Every guest that it has and that is not of Pileus; they are looked at and left alone."""
        ...

    def changes(self) -> AsyncIterator[InstanceId]:
        """The guests whose state changed, as it happens; ends when the hypervisor is lost (look again then)."""
        ...

    async def close(self) -> None:
        """Let go of what is open; guests go on."""
        ...
