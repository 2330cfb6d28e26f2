"""What a new instance's disks are made from: an image, the ISO that it is installed from, a snapshot, or a backup."""

import msgspec

from pileus.cloud.backups.model import BACKUPS, BackedUpVolume, Backup, BackupState
from pileus.cloud.images.model import GuestNeeds, Image
from pileus.cloud.images.operations.noun import image_with_data
from pileus.cloud.snapshots.model import SNAPSHOTS, Snapshot, SnapshotState
from pileus.cloud.volumes.model import VOLUMES, Volume
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import ImageId, ProjectId
from pileus.link.templates import FRAMES, GuestTemplate
from pileus.operations.plan import Ask
from pileus.state.state import Change, put


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance is made from, and what that needs."""

    words: str
    """Such as `image mini`."""
    image_id: ImageId | None
    needs: GuestNeeds | None
    template: GuestTemplate
    least_gib: int
    """How large the disk has to be that the instance boots from."""
    min_memory_mib: int = 0
    vcpus: int | None = None
    """As many as the instance had that the snapshot or backup is of; None if nobody knows."""
    memory_mib: int | None = None
    medium: Image | None = None
    """The ISO that it is installed from, on an empty disk."""
    snapshot: Snapshot | None = None
    backup: Backup | None = None
    volumes: tuple[Volume | BackedUpVolume, ...] = ()
    """Those of the snapshot or backup, the one to boot from first: each is copied."""

    @property
    def disk_image_id(self) -> ImageId | None:
        """The image that the disk is a copy of, if it is one of an image."""
        return self.image_id if self.medium is None and self.kept is None else None

    @property
    def kept(self) -> Snapshot | Backup | None:
        """What it is a copy of, which is on one host."""
        return self.snapshot or self.backup

    @property
    def changes(self) -> tuple[Change, ...]:
        """What it is held for the instance with."""
        if self.backup is not None:
            return (put(self.backup.to(BackupState.RESTORING)),)
        return (put(self.snapshot.to(SnapshotState.COPYING)),) if self.snapshot is not None else ()


def origin_of(ask: Ask, image_id: str | None, snapshot_id: str | None, backup_id: str | None) -> Origin:
    """The image, snapshot or backup of which one is named. Raises NotFound, or Conflict if it cannot be used."""
    if backup_id is not None:
        return _of_backup(ask.see(BACKUPS, backup_id, "backup_id", of=ProjectId(ask.caller.project_id)))
    if snapshot_id is not None:
        return _of_snapshot(ask, ask.see(SNAPSHOTS, snapshot_id, "snapshot_id", of=ProjectId(ask.caller.project_id)))
    image = image_with_data(ask, image_id or "")
    return Origin(
        words=f"image {image.name}",
        image_id=ImageId(image.id),
        needs=image.needs,
        template=image.template,
        least_gib=max(image.min_disk_gib, 1) if image.is_medium else image.least_gib,
        min_memory_mib=image.min_memory_mib,
        medium=image if image.is_medium else None,
    )


def _of_snapshot(ask: Ask, snapshot: Snapshot) -> Origin:
    snapshot.to(SnapshotState.COPYING)
    volumes = tuple(ask.state[VOLUMES].get(id) for id in snapshot.volume_ids)
    return Origin(
        words=f"snapshot {snapshot.name}",
        image_id=snapshot.image_id,
        needs=volumes[0].needs,
        template=snapshot.template or GuestTemplate.LINUX,
        least_gib=volumes[0].size_gib,
        vcpus=snapshot.vcpus or None,
        memory_mib=snapshot.memory_mib or None,
        snapshot=snapshot,
        volumes=volumes,
    )


def _of_backup(backup: Backup) -> Origin:
    backup.to(BackupState.RESTORING)
    was = backup.instance
    return Origin(
        words=f"backup {backup.name}",
        image_id=was.image_id if was is not None else backup.volumes[0].image_id,
        needs=backup.volumes[0].needs,
        template=was.template if was is not None else GuestTemplate.LINUX,
        least_gib=backup.volumes[0].size_gib,
        vcpus=was.vcpus if was is not None else None,
        memory_mib=was.memory_mib if was is not None else None,
        backup=backup,
        volumes=backup.volumes,
    )


def check_disks(origin: Origin, template: GuestTemplate) -> None:
    """Raises Conflict if a guest of this template has no room for so many disks."""
    most = FRAMES[template].disks
    if len(origin.volumes) > most:
        raise Conflict(
            f"{origin.words} is of {len(origin.volumes)} volumes, a guest of template {template} has room for {most}",
            fields={"template": "too few disks"},
        )
