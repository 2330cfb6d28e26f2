"""What controller and agent say to each other: desired records downwards, facts and observations upwards.

The controller sends *desired records* (`GuestSpec`, `VolumeSpec`), never scripts. One may arrive twice or late: it
carries a generation, and an agent keeps the highest one it has seen.
"""

from datetime import datetime
from enum import StrEnum

import msgspec

from pileus.kernel.ids import (
    BackupId,
    HostId,
    ImageId,
    InstanceId,
    NetworkId,
    PortId,
    ProjectId,
    SnapshotId,
    StoragePoolId,
    VolumeId,
)

DISK_SLOTS = 16
"""How many disks a guest may have, with the one that it boots from."""
KEPT_FREE = 0.05
"""The part of a storage pool that promises more than it has in which nothing new is made."""
NIC_SLOTS = 8
"""How many network interfaces a guest may have."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Anything that crosses the link."""


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


class Method(StrEnum):
    """The names of the requests, notices and streams of the link, with who sends them."""

    HELLO = "hello"  # agent: Hello -> Welcome, first of all on a new connection
    REPORT = "report"  # agent: HostReport, a notice every 2 s
    GUEST_OBSERVED = "guest.observed"  # agent: GuestObserved, a notice whenever a guest changes by itself
    CERTIFICATE_RENEW = "certificate.renew"  # agent: with a signing request, when its certificate is due
    VOLUME_ENSURE = "volume.ensure"  # controller: VolumeSpec -> VolumeObserved
    VOLUME_SPACE = "volume.space"  # controller: VolumeOf -> VolumeSpace
    VOLUME_REMOVE = "volume.remove"  # controller: VolumeRemoval -> None
    MOVE_COPY = "move.copy"  # controller: VolumeMoveCopy -> None
    MOVE_SWITCH = "move.switch"  # controller: VolumeMove -> None
    MOVE_UNDO = "move.undo"  # controller: VolumeMove -> None
    MEDIUM_ENSURE = "medium.ensure"  # controller: MediumSpec -> None
    SNAPSHOT_ENSURE = "snapshot.ensure"  # controller: SnapshotSpec -> SnapshotObserved
    SNAPSHOT_REMOVE = "snapshot.remove"  # controller: SnapshotRemoval -> None
    SNAPSHOT_REVERT = "snapshot.revert"  # controller: SnapshotRevert -> None
    BACKUP_ENSURE = "backup.ensure"  # controller: BackupSpec -> BackupObserved
    BACKUP_CHECK = "backup.check"  # controller: BackupOf -> BackupChecked
    BACKUP_REMOVE = "backup.remove"  # controller: BackupOf -> None
    RESTORE_PREPARE = "restore.prepare"  # controller: BackupRestore -> None
    RESTORE_DROP = "restore.drop"  # controller: BackupRestore -> None
    RESTORE_EXCHANGE = "restore.exchange"  # controller: BackupRestore -> None
    IMAGES_CACHED = "images.cached"  # controller: Message -> ImageCopies
    IMAGE_BRING = "image.bring"  # controller: ImageBring -> None
    IMAGES_DROP = "images.drop"  # controller: ImagesDrop -> None
    IMAGE_PACK = "image.pack"  # controller: ImagePack -> ImagePacked
    IMAGE_SEND = "image.send"  # controller: ImageSend -> None
    IMAGE_FORGET = "image.forget"  # controller: ImageForget -> None
    GUEST_ENSURE = "guest.ensure"  # controller: GuestSpec -> GuestObserved
    GUEST_REMOVE = "guest.remove"  # controller: GuestRemoval -> None
    GUEST_REBOOT = "guest.reboot"  # controller: GuestReboot -> GuestObserved
    GUEST_PASSWORD = "guest.password"  # noqa: S105 - no secret; controller: GuestPassword -> None
    DISK_PASSWORD = "disk.password"  # noqa: S105 - no secret; controller: DiskPassword -> None
    CONSOLE = "console"  # controller: a stream; ConsoleRequest
    PORT_TRAFFIC = "port.traffic"  # controller: TrafficAsked -> PortTraffic
    FOREIGN_GUESTS = "guests.foreign"  # controller: Message -> ForeignGuests
    COPIES_KEPT = "copies.kept"  # controller: Message -> CopiesKept
    COPIES_UPDATE = "copies.update"  # controller: CopiesUpdate -> None
    RECALL = "recall"  # controller: Recall -> Recalled
    CONSOLE_LOG = "console.log"  # controller: a stream, to be read to its end; ConsoleLogRequest
    SCREENSHOT = "screenshot"  # controller: a stream, to be read to its end; ScreenshotRequest
    SCREEN_ACCESS = "screen.access"  # controller: ScreenPassword -> None
    INVENTORY = "inventory"  # controller: None -> Inventory
    STORAGE_POOLS = "storage.pools"  # controller: StoragePools -> StoragePoolsObserved


class ImageSource(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Where an agent gets an image that it does not have yet."""

    id: ImageId
    sha256: str
    size_bytes: int
    virtual_size_bytes: int
    format: str
    """`raw` or `qcow2`."""
    url: str
    """HTTPS, with a ticket in it; path only, if it is to be had from the controller that sent this."""


class VolumeCopy(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a volume is a copy of: another one of the same pool, as it was at a snapshot."""

    volume: VolumeId
    snapshot: SnapshotId


class VolumeBackup(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a volume is restored from: a volume as it is in a backup."""

    id: BackupId
    place: str
    project: ProjectId
    volume: VolumeId


class FoundDisk(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A disk that somebody made without us, and that stays where it was found."""

    path: str
    kind: str = "file"
    """`file` or `block` (a device node)."""
    format: str = "raw"
    target: str = ""
    """As the definition of the guest calls it that it was found with; empty when that guest has it no more."""


class VolumeSpec(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume as it ought to be on a host."""

    id: VolumeId
    generation: int
    size_bytes: int
    pool: str = "local"
    """The name of the storage pool on the host."""
    image: ImageSource | None = None
    """What it is a copy of when it is made; empty without."""
    copy_of: VolumeCopy | None = None
    """What it is a copy of when it is made, instead of an image."""
    backup: VolumeBackup | None = None
    """What it is restored from when it is made, instead of an image."""
    found: FoundDisk | None = None
    """Where it is, if it is in no pool of ours: nothing is made, and it is what it is."""


class VolumeRemoval(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume that must no longer be."""

    id: VolumeId
    generation: int
    pool: str = "local"
    secure: bool = False
    """Whether its data is to be overwritten before its space is given back."""
    left: bool = False
    """Whether its data is to stay where it is, for others."""


class VolumeObserved(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A volume as it is."""

    id: VolumeId
    generation: int
    size_bytes: int
    allocated_bytes: int = 0


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


class MediumSpec(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An image that is to be ready on a host for the drives of its guests."""

    image: ImageSource
    pool: str = "local"


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


class ConsoleKind(StrEnum):
    """The consoles that a guest has."""

    SERIAL = "serial"
    """A serial port: text."""
    VNC = "vnc"
    """Screen, keyboard and mouse, by RFB (RFC 6143)."""


class ConsoleRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Open a console of a guest."""

    id: InstanceId
    kind: ConsoleKind = ConsoleKind.SERIAL


class ScreenPassword(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Let whoever is brought to a guest's screen in by this password, and by none before."""

    id: InstanceId
    password: str
    """At most 8 characters: RFB takes no more."""
    good_for_s: int


class ScreenshotRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a guest's screen shows, as PNG."""

    id: InstanceId


class ConsoleLogRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a guest has said on its serial console."""

    id: InstanceId
    last_bytes: int


class Progress(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How far a request is. `fraction` is between 0 and 1, or None where nobody can tell."""

    step: str
    fraction: float | None = None
    detail: str = ""


class Load(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How much of a host is in use, each between 0 and 1, measured."""

    cpu: float
    memory: float
    disk: float


class HostFacts(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a host is."""

    name: str
    hypervisor: str
    """`libvirt` or `simulated`."""
    accelerator: str
    """`kvm`, `tcg` or `simulated`."""
    accelerator_reason: str
    """Why this accelerator, in words."""
    architecture: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    version: str
    datapath: str = ""
    addresses: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    physical_networks: tuple[str, ...] = ()
    """The wires outside of the cloud that it has a bridge on, by name."""


class PoolUse(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How full a storage pool is, in bytes."""

    total_bytes: int
    free_bytes: int
    """What can really be written yet."""
    promised_bytes: int = 0
    """What its volumes may grow to, all together."""
    unfilled_bytes: int = 0
    """How much of that may yet be written."""

    def promisable_bytes(self, overcommit: float) -> int:
        """What may be promised in all: so many times what there is for volumes, with what they have of it already."""
        there_is = self.free_bytes + self.promised_bytes - self.unfilled_bytes
        # Rounded down, but 100 times 1.15 is 115, whatever the floating point unit says.
        return max(0, int(there_is * overcommit + 1e-6))

    @property
    def has_room(self) -> bool:
        """Whether anything new may be written: a rest is kept for what is there already."""
        return self.free_bytes > KEPT_FREE * self.total_bytes


class PoolObserved(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A storage pool on a host, as it is."""

    name: str
    id: StoragePoolId | None = None
    """None for one that the host has by its configuration, and was not told of yet."""
    reason: str = ""
    """Why it is not to be had there, in words; empty if it is."""
    use: PoolUse | None = None
    """None if it is not to be had."""


class HostReport(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a host measures, every 2 s."""

    at: datetime
    load: Load
    running_guests: int
    physical_networks: tuple[str, ...] | None = None
    """As in its facts, which follow; None while the switch does not answer."""
    pools: tuple[PoolObserved, ...] = ()
    """As they were when they were last looked at, some seconds ago."""


class Inventory(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Everything of Pileus that is on a host."""

    guests: tuple[GuestObserved, ...] = ()
    volumes: tuple[VolumeObserved, ...] = ()


class Hello(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The first thing an agent says on a new connection."""

    facts: HostFacts
    inventory: Inventory
    pools: tuple[PoolObserved, ...] = ()


class Welcome(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The controller's answer to a hello."""

    host: HostId
    report_every_s: float = 2.0
    orphans: tuple[InstanceId, ...] = ()
    """Guests of the inventory that the controller has no record of: to be left alone, and told of by the doctor."""
