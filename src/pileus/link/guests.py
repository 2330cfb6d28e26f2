"""What controller and agent say to each other of guests: as they ought to be, and as they are."""

from datetime import datetime
from enum import StrEnum

from pileus.kernel.ids import ImageId, InstanceId, NetworkId, PortId, ProjectId, VolumeId
from pileus.link.messages import Message

DISK_SLOTS = 16
"""How many disks a guest may have, with the one that it boots from."""
NIC_SLOTS = 8
"""How many network interfaces a guest may have."""


class Power(StrEnum):
    """Whether a guest is to run, or does."""

    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    """Its CPUs stand still, its memory stays."""
    SUSPENDED = "suspended"
    """It does not run; its memory is kept on the host's disk, and it goes on from there."""


class Restart(StrEnum):
    """Whether a guest that ended by itself is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    """If it crashed; not if it shut itself down."""
    NEVER = "never"


class Watchdog(StrEnum):
    """What becomes of a guest that starts its watchdog and then no longer feeds it."""

    NONE = "none"
    """It is given no watchdog."""
    RESET = "reset"
    POWEROFF = "poweroff"
    """It is ended, which counts as a crash: its restart policy says what follows."""


class BootDevice(StrEnum):
    """What a guest's firmware looks for a system on."""

    DISK = "disk"
    """The one in slot 0."""
    CDROM = "cdrom"
    """The media in its drives."""
    NETWORK = "network"
    """Its first network card, by PXE."""


BOOT_ORDER = (BootDevice.DISK, BootDevice.CDROM)
"""If nobody says otherwise: a disk that is still empty is passed over."""


class DiskLimits(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What one disk may do, reads and writes together; 0 is as much as it can."""

    iops: int = 0
    """Operations per second."""
    bytes_per_s: int = 0


class GuestDisk(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume of a guest."""

    volume: VolumeId
    pool: str = "local"
    serial: str = ""
    slot: int = 0
    """Where it is plugged in, also after the next start; what is in slot 0 is what the guest boots from."""
    size_bytes: int = 0
    """As large as the guest is to see it; 0 for as large as it is."""
    limits: DiskLimits | None = None
    """What it may do besides what its guest may; None for one that nobody has ever limited."""
    target: str = ""
    """As the guest's definition calls it, if it was found there."""


class GuestMedium(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An image in a drive of a guest."""

    image: ImageId
    drive: int = 0
    pool: str = "local"


class NicSpec(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A port of a network, as a guest's network interface."""

    port: PortId
    network: NetworkId
    mac: str
    addresses: tuple[str, ...]
    """IPv4 and IPv6 addresses, without prefix length."""
    mtu: int
    slot: int | None = None
    """Where it is plugged in, also after the next start; None for its place among the guest's ports."""


class TrafficAsked(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What has passed a guest's network interface?"""

    port: PortId


class PortTraffic(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What has passed a guest's network interface since it was plugged in, as the guest sees it."""

    sent_bytes: int = 0
    sent_packets: int = 0
    received_bytes: int = 0
    received_packets: int = 0
    dropped_packets: int = 0
    """On their way to the guest, which did not take them in time."""


class FirstBoot(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What the metadata service and the config drive tell the guest."""

    hostname: str
    public_keys: tuple[tuple[str, str], ...] = ()
    """Pairs of key name and OpenSSH public key."""
    user_data: str = ""
    """As given by the owner, at most 64 KiB; base64 if it is not UTF-8 text."""
    user_data_base64: bool = False
    availability_zone: str = ""


class GuestLimits(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How much of its host a guest may take; 0 is as much as there is."""

    cpu_percent: int = 0
    """Of the time of a CPU, for each of its vCPUs."""
    disk_iops: int = 0
    """Operations per second, for each of its disks."""
    disk_bytes_per_s: int = 0
    disk_burst_iops: int = 0
    """What a disk may do for `disk_burst_s` seconds when it was idle before."""
    disk_burst_bytes_per_s: int = 0
    disk_burst_s: int = 0


class GuestSpec(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A guest as it ought to be on a host."""

    id: InstanceId
    generation: int
    name: str
    project: ProjectId
    vcpus: int
    memory_mib: int
    max_vcpus: int = 0
    """Up to how many it may be given while it runs; 0 for no more than it has."""
    max_memory_mib: int = 0
    """Up to how much it may be given while it runs; 0 for no more than it has."""
    power: Power
    disks: tuple[GuestDisk, ...]
    nics: tuple[NicSpec, ...]
    first_boot: FirstBoot
    restart: Restart = Restart.ON_FAILURE
    watchdog: Watchdog = Watchdog.NONE
    media: tuple[GuestMedium, ...] = ()
    boot: tuple[BootDevice, ...] = BOOT_ORDER
    """What its firmware tries, in this order, when it is next started."""
    limits: GuestLimits | None = None
    """None for a guest that nobody has ever limited."""
    template: str = "linux"
    """The set of devices it is given: `linux` is virtio throughout."""
    config_drive: bool = False
    """Whether it can read what metadata answers from a disk as well."""
    found_macs: tuple[str, ...] = ()
    """The MAC addresses of the network interfaces that it was found with: they are left alone."""


class Leaving(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How a guest goes on without us."""

    bridge: str = ""
    """What its interfaces are on from its next start, of those that we made; without one, on nothing."""


class GuestRemoval(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A guest that must no longer be; what it had besides its volumes goes with it."""

    id: InstanceId
    generation: int
    leaving: Leaving | None = None
    """Whether it goes on, running or not, as a guest of others; else it is ended."""


class GuestReboot(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Restart a running guest: by asking it, or at once as by the reset button."""

    id: InstanceId
    hard: bool = False


class GuestPassword(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Have a running guest change a user's password. Kept nowhere."""

    id: InstanceId
    user: str
    password: str


class DiskPassword(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Change a user's password in the disk that a stopped guest boots from. Kept nowhere."""

    id: InstanceId
    user: str
    hash: str
    """As in shadow(5)."""


class GuestObserved(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A guest as it is."""

    id: InstanceId
    generation: int
    power: Power
    since: datetime
    cause: str = ""
    """Why it is so, in words, if nobody asked for it: `the guest shut itself down`, `killed by signal 9`."""
