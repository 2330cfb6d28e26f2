"""What a backup consists of: its manifest, and for each volume an index of its chunks. Pure."""

import hashlib
from collections.abc import Mapping
from datetime import datetime

import msgspec

from pileus.agent.backup.chunks import Damaged
from pileus.kernel.ids import BackupId, ProjectId, VolumeId
from pileus.link.copies import Copy


class KeptVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume in a backup."""

    id: VolumeId
    size_bytes: int
    data_bytes: int
    """Of its chunks together, before they were compressed."""
    index_sha256: str
    since: BackupId | None = None
    """The backup with which it was compared, so that only what had changed was read; None if all of it was read."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A backup: it is there as soon as this is, which is written last."""

    format: int = 1
    id: BackupId
    project: ProjectId
    at: datetime
    volumes: tuple[KeptVolume, ...]
    read_bytes: int
    """Read from the volumes to make it."""
    stored_bytes: int
    """By which the place became fuller."""
    record: Copy | None = None
    """What the controller knows of it, for one that has lost everything."""

    def of(self, volume: VolumeId) -> KeptVolume | None:
        """This volume in it; None if it is not."""
        return next((each for each in self.volumes if each.id == volume), None)


Index = Mapping[int, str]
"""The names of a volume's chunks by their number; one that is not in it is nothing but zeroes."""


def encoded_index(index: Index) -> bytes:
    return msgspec.msgpack.encode({number: bytes.fromhex(digest) for number, digest in sorted(index.items())})


def decoded_index(kept: bytes, sha256: str) -> Index:
    """The index that should have this hash.

    Raises:
        Damaged: it has not.
    """
    if hash_of(kept) != sha256:
        raise Damaged("an index has another content")
    return {number: digest.hex() for number, digest in msgspec.msgpack.decode(kept, type=dict[int, bytes]).items()}


def hash_of(kept: bytes) -> str:
    return hashlib.sha256(kept).hexdigest()
