"""What an agent was told, kept as one JSON file for each guest and volume: it outlives agent, controller and power.

A file is replaced in one step and holds either what ought to be, or that it must no longer be (`Removed`): there is no
moment at which both or neither are true.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import structlog

from pileus.kernel.errors import Unavailable
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import InstanceId, PortId, SnapshotId, StoragePoolId, VolumeId, check_id, is_id
from pileus.link.copies import Copy
from pileus.link.guests import GuestSpec, Leaving, Power
from pileus.link.snapshots import SnapshotObserved, SnapshotSpec
from pileus.link.storagepools import StoragePoolSpec
from pileus.link.volumes import FoundDisk, VolumeSpec

R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")
Id = TypeVar("Id", bound=str)
log = structlog.stdlib.get_logger()


class GuestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="guest"):
    """A guest that ought to be on this host."""

    spec: GuestSpec
    power: Power
    """What it is to be now: as specified, until it shuts itself down."""
    since: datetime
    cause: str = ""
    """Why it is so, if nobody asked for it."""
    made: bool = False
    """Whether it has been brought to this specification; if not, that is still to be done."""
    resized: bool = False
    """Whether its size is another than at the last specification; a running guest is to be given that."""
    boot: str = ""
    """The boot of the host in which it was last brought up."""
    former_ports: tuple[PortId, ...] = ()
    """Of earlier generations, not yet unplugged."""

    @property
    def ports(self) -> tuple[PortId, ...]:
        """Every port that may be plugged for it."""
        return (*(nic.port for nic in self.spec.nics), *self.former_ports)


class VolumeMoving(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A volume that is on its way to another pool, and until it goes over is where it was."""

    to: str
    generation: int
    """Of the volume when it is there."""
    secure: bool = False
    """Whether what is left here is overwritten then."""
    since: datetime
    """When that was last asked for."""
    at_rest: bool = False
    """Whether all of it is there, and nobody may use it, so that this stays so."""
    goes_over: bool = False
    """Whether its guest may be using the copy already: then what the guest uses is what counts."""


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="volume"):
    """A volume that ought to be on this host."""

    spec: VolumeSpec
    made: bool = False
    """Whether it has been brought to this specification."""
    used: bool = False
    """Whether it has been whole at an earlier specification: then it holds data, and no failure may undo it."""
    move: VolumeMoving | None = None
    left_in: str = ""
    """The pool in which a copy of it is yet to be removed that is not the volume, or no more."""
    secure: bool = False
    """Whether that copy is overwritten."""


class Removed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="removed"):
    """Something that must no longer be. It stays on record for a while, so that a late wish does not bring it back."""

    generation: int
    """Wishes up to this one are late."""
    at: datetime
    finished: bool = False
    """Whether everything it had is gone."""
    ports: tuple[PortId, ...] = ()
    """What may still be plugged for it."""
    pool: str = ""
    """Where it is, if it is a volume."""
    left_in: str = ""
    """The pool in which a further copy of it is, if it is a volume."""
    secure: bool = False
    """Whether its data is overwritten, if it is a volume."""
    leaving: Leaving | None = None
    """How it goes on without us, if it is a guest that does."""
    found: FoundDisk | None = None
    """Where it was found, if it is a volume that is in no pool."""
    left: bool = False
    """Whether its data stays, if it is a volume: then this is kept for good, or it would count as ours again."""


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="snapshot"):
    """A snapshot that ought to be on this host."""

    spec: SnapshotSpec
    observed: SnapshotObserved | None = None
    """As it was taken; None until it is."""


class PoolRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="storage-pool"):
    """A storage pool that this host is to serve."""

    spec: StoragePoolSpec
    accepted: bool = False
    """Whether it was ever opened here: what is at its place without its marker is then something else."""


_Guest = GuestRecord | Removed
_Volume = VolumeRecord | Removed
_Snapshot = SnapshotRecord | Removed


def on_record(folder: Path, decode: Callable[[bytes], T]) -> dict[str, T]:
    """What an agent, which may be running, keeps in one folder of its records, by id.

    What cannot be read has just gone, or the agent sets it aside: it is left out.
    """
    found: dict[str, T] = {}
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, msgspec.DecodeError):
            found[file.stem] = decode(file.read_bytes())
    return found


class Records(Generic[Id, R]):
    """Records by id: read from memory, written to a file each before they count."""

    def __init__(self, folder: Path | None, id: Callable[[str], Id], decode: Callable[[bytes], R]) -> None:
        """Records in this folder; in memory only without one."""
        self._folder = folder
        self._id = id
        self._decode = decode
        self._records: dict[Id, R] = {}

    def load(self) -> None:
        """Read all files. What cannot be read is set aside with the ending `.broken`, and said.

        Raises:
            OSError: the folder cannot be read or written.
        """
        if self._folder is None:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in sorted(self._folder.iterdir()):
            if file.name.startswith("."):  # what a power cut has left of a write
                file.unlink()
            elif file.suffix == ".json":
                self._read(file)

    def _read(self, file: Path) -> None:
        try:
            record = self._decode(file.read_bytes())
            if not is_id(file.stem):
                raise ValueError("its name is no id")
        except (msgspec.DecodeError, ValueError) as why:
            aside = file.with_suffix(".broken")
            log.error("record set aside, it cannot be read", file=str(file), aside=str(aside), why=str(why))
            file.replace(aside)
        else:
            self._records[self._id(file.stem)] = record

    def get(self, id: Id) -> R | None:
        return self._records.get(id)

    def items(self) -> list[tuple[Id, R]]:
        """All records as they are now."""
        return list(self._records.items())

    async def put(self, id: Id, record: R) -> None:
        """Keep this record from now on; when this returns, it has reached the disk.

        Raises:
            Invalid: the id is none, and could name a file elsewhere.
            Unavailable: the file cannot be written; the old record stands.
        """
        check_id(id)
        await _to_its_end(self._put(id, record))

    async def _put(self, id: Id, record: R) -> None:
        if self._folder is not None:
            data = msgspec.json.encode(record)
            try:
                await asyncio.to_thread(write_atomically, self._folder / f"{id}.json", data)
            except OSError as why:
                raise Unavailable("the host cannot keep its records", internal=str(why)) from why
        self._records[id] = record

    async def forget(self, id: Id) -> None:
        """Keep nothing of this id. A power cut may bring the record back."""
        self._records.pop(id, None)
        if self._folder is not None:
            await _to_its_end(asyncio.to_thread((self._folder / f"{id}.json").unlink, missing_ok=True))


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Do work; whoever is cancelled meanwhile is so when it has ended.

    A thread cannot be called back: an older record that it brings to the disk must not come after a newer one.
    """
    working = asyncio.ensure_future(work)
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait((working,))
        raise


def specs_of(guests: Records[InstanceId, GuestRecord | Removed]) -> list[GuestSpec]:
    """The guests that ought to be here."""
    return [record.spec for _, record in guests.items() if isinstance(record, GuestRecord)]


class AgentRecords:
    """Everything that an agent keeps."""

    def __init__(self, folder: Path | None) -> None:
        """Records below this folder; in memory only without one."""
        self.guests = Records(folder and folder / "guests", InstanceId, msgspec.json.Decoder[_Guest](_Guest).decode)
        self.copies = Records(folder and folder / "copies", str, msgspec.json.Decoder(Copy).decode)
        """Of the controller's records, which nothing here reads."""
        self.volumes = Records(folder and folder / "volumes", VolumeId, msgspec.json.Decoder[_Volume](_Volume).decode)
        self.snapshots = Records(
            folder and folder / "snapshots", SnapshotId, msgspec.json.Decoder[_Snapshot](_Snapshot).decode
        )
        self.pools = Records(folder and folder / "pools", StoragePoolId, msgspec.json.Decoder(PoolRecord).decode)

    def load(self) -> None:
        """Read all files; broken ones are set aside.

        Raises:
            OSError: the folder cannot be read or written.
        """
        self.guests.load()
        self.volumes.load()
        self.copies.load()
        self.snapshots.load()
        self.pools.load()
