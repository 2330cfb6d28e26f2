"""What a message between controller and agent is, and the names of all that they ask and tell each other.

What is said of a noun is in the module of its name. The controller sends *desired records* (`GuestSpec`, `VolumeSpec`),
never scripts. One may arrive twice or late: it carries a generation, and an agent keeps the highest one it has seen.
"""

from enum import StrEnum

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Anything that crosses the link."""


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


class Progress(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How far a request is. `fraction` is between 0 and 1, or None where nobody can tell."""

    step: str
    fraction: float | None = None
    detail: str = ""
