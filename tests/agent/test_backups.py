"""Backups of volumes in a directory, with what is in them, and the places that they lie in."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from pileus.agent.agent import Agent, Engines
from pileus.agent.backup.chunks import CHUNK_BYTES, Damaged, decoded, digest_of, encoded
from pileus.agent.backup.directory import DirectoryPlace
from pileus.agent.backup.simulated import SimulatedPlace
from pileus.agent.host import Machine, SimulatedHost
from pileus.agent.hypervisor.simulated import SimulatedHypervisor
from pileus.agent.network.simulated import SimulatedNetwork
from pileus.agent.packing import Read
from pileus.agent.records import AgentRecords
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.port import Told
from pileus.agent.storage.volumefolder import VolumeFolder
from pileus.kernel.clock import FrozenClock
from pileus.kernel.errors import Conflict, NotFound, Unavailable
from pileus.kernel.ids import BackupId, ProjectId, SnapshotId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import KIB, MIB
from pileus.link.backups import BackupObserved, BackupOf, BackupRestore, BackupSpec, VolumeRestore, VolumeToBackUp
from pileus.link.images import ImageSource
from pileus.link.messages import Progress
from pileus.link.snapshots import SnapshotRemoval, SnapshotRevert, SnapshotSpec, VolumeOf
from pileus.link.volumes import VolumeBackup, VolumeSpec
from pileus.testing.contracts.backups import BackupPlaceContract

needs_qemu = pytest.mark.skipif(
    not all(shutil.which(each) for each in ("qemu-img", "qemu-io")), reason="qemu-img and qemu-io are not installed"
)
SIZE = 16 * MIB


class TestSimulatedPlace(BackupPlaceContract):
    @pytest.fixture
    def place(self) -> SimulatedPlace:
        return SimulatedPlace()


class TestDirectoryPlace(BackupPlaceContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> DirectoryPlace:
        return DirectoryPlace.open(tmp_path / "place")


@pytest.mark.parametrize("content", [b"", b"word" * 1000, bytes(range(256)) * 4096, b"\0" * CHUNK_BYTES])
def test_a_chunk_is_read_as_it_was_written_or_not_at_all(content: bytes) -> None:
    kept, digest = encoded(content), digest_of(content)
    assert decoded(kept, digest) == content
    for at in {0, 4, len(kept) // 2, len(kept) - 1}:
        harmed = bytearray(kept)
        harmed[at] ^= 1
        with suppress(Damaged):
            # A bit may be flipped without harm, as where a copy is taken from a repetition.
            assert decoded(bytes(harmed), digest) == content
    for short in (kept[:3], kept[: len(kept) // 2], b""):
        with pytest.raises(Damaged):
            decoded(short, digest)


class Bench:
    """An agent with a real pool and a real place; nothing runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = DirectoryPool.open(folder / "pool")
        self.project = ProjectId(new_id())
        self.volume = VolumeId(new_id())
        self.records = AgentRecords(folder / "records")
        self.records.load()
        self.told: list[Progress] = []
        self.agent = self.another()

    def another(self) -> Agent:
        """An agent that is started over the same files."""
        self.pool = DirectoryPool.open(self.folder / "pool")
        engines = Engines(
            hypervisor=SimulatedHypervisor(),
            network=SimulatedNetwork(),
            pools={"local": self.pool, "vault": DirectoryPool.open(self.folder / "vault")},
            host=SimulatedHost(Machine(name="host-1", vcpus=8, memory_mib=16_384, disk_mib=100_000)),
            fetch=no_images,
            send=nowhere,
        )
        self.agent = Agent(engines, self.records, FrozenClock())
        return self.agent

    @property
    def place(self) -> Path:
        return self.folder / "vault" / "backups"

    @property
    def chunks(self) -> list[Path]:
        return sorted(each for each in (self.place / self.project / "chunks").rglob("*") if each.is_file())

    async def write(self, value: int, at: int, length: int = 64 * KIB) -> None:
        """Write as QEMU does."""
        source = await self.pool.source(self.volume)
        await run("qemu-io", "-f", source.format, "-c", f"write -P {value} {at} {length}", source.path)

    async def freeze(self) -> BackupId:
        id = BackupId(new_id())
        of = SnapshotSpec(id=SnapshotId(id), volumes=(VolumeOf(id=self.volume),))
        await self.agent.ensure_snapshot(of, self.told.append)
        return id

    async def back_up(self, since: BackupId | None = None) -> BackupObserved:
        return await self.write_out(await self.freeze(), since)

    async def write_out(self, id: BackupId, since: BackupId | None = None) -> BackupObserved:
        volumes = (VolumeToBackUp(id=self.volume, since=since),)
        spec = BackupSpec(id=id, place="vault", project=self.project, volumes=volumes)
        return await self.agent.ensure_backup(spec, self.told.append)

    async def let_go(self, id: BackupId) -> None:
        """The snapshot of a backup, with which the next one is not to be compared."""
        removal = SnapshotRemoval(id=SnapshotId(id), volumes=(VolumeOf(id=self.volume),))
        await self.agent.remove_snapshot(removal, self.told.append)

    def restoring(self, id: BackupId, *, secure: bool = False) -> BackupRestore:
        source = VolumeBackup(id=id, place="vault", project=self.project, volume=self.volume)
        one = VolumeRestore(volume=VolumeOf(id=self.volume, secure=secure), backup=source)
        return BackupRestore(to=new_id(), volumes=(one,))

    @property
    def disk(self) -> Path:
        return self.folder / "pool" / "volumes" / self.volume / "disk.raw"

    @property
    def files(self) -> set[str]:
        """What there is of the volume."""
        return {each.name for each in self.disk.parent.iterdir()}

    def named(self, id: BackupId) -> BackupOf:
        return BackupOf(id=id, place="vault", project=self.project)

    async def restored(self, id: BackupId, size: int = SIZE) -> bytes:
        source = VolumeBackup(id=id, place="vault", project=self.project, volume=self.volume)
        spec = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=size, backup=source)
        await self.agent.ensure_volume(spec, self.told.append)
        return Path((await self.pool.source(spec.id)).path).read_bytes()


def no_images(_: ImageSource) -> AsyncIterator[bytes]:
    raise Unavailable("there are no images here")


async def nowhere(_path: str, _size_bytes: int, _read: Read, _told: Told) -> None:
    raise Unavailable("no images are sent from here")


def blocks(content: bytes) -> dict[int, int]:
    """The pieces of 64 KiB that are not zero, each by its first byte."""
    return {at: content[at] for at in range(0, len(content), 64 * KIB) if content[at]}


@needs_qemu
class TestBackups:
    @pytest.fixture
    async def bench(self, tmp_path: Path) -> Bench:
        bench = Bench(tmp_path)
        volume = VolumeSpec(id=bench.volume, generation=1, size_bytes=SIZE)
        await bench.agent.ensure_volume(volume, bench.told.append)
        return bench

    async def test_a_backup_holds_what_the_volume_was_and_only_what_is_in_it_is_read(self, bench: Bench) -> None:
        await bench.write(1, at=MIB)
        await bench.write(2, at=5 * MIB, length=2 * MIB)
        observed = await bench.back_up()
        await bench.write(3, at=MIB)
        assert (observed.read_bytes, observed.data_bytes, observed.compared) == (3 * MIB, 3 * MIB, ())
        assert 0 < observed.stored_bytes < MIB
        content = await bench.restored(observed.id)
        assert content == bytes(MIB) + b"\1" * 64 * KIB + bytes(4 * MIB - 64 * KIB) + b"\2" * 2 * MIB + bytes(9 * MIB)

    async def test_the_next_one_reads_only_what_has_changed_and_is_whole_by_itself(self, bench: Bench) -> None:
        await bench.write(1, at=0, length=8 * MIB)
        first = await bench.back_up()
        await bench.write(2, at=3 * MIB)
        await bench.write(0, at=5 * MIB, length=MIB)
        second = await bench.back_up(first.id)
        await bench.let_go(first.id)
        assert (first.read_bytes, second.read_bytes, second.compared) == (8 * MIB, 2 * MIB, (bench.volume,))
        await bench.agent.remove_backup(bench.named(first.id))
        expected = b"\1" * 3 * MIB + b"\2" * 64 * KIB + b"\1" * (2 * MIB - 64 * KIB) + bytes(MIB) + b"\1" * 2 * MIB
        assert await bench.restored(second.id) == expected + bytes(8 * MIB)

    async def test_what_is_the_same_is_kept_once(self, bench: Bench) -> None:
        await bench.write(7, at=0, length=8 * MIB)
        first = await bench.back_up()
        assert len(bench.chunks) == 1
        again = await bench.back_up()
        assert (again.read_bytes, again.stored_bytes) == (8 * MIB, 0)
        assert await bench.restored(again.id) == await bench.restored(first.id)

    async def test_a_volume_that_went_back_to_a_snapshot_is_compared_rightly(self, bench: Bench) -> None:
        await bench.write(1, at=0, length=4 * MIB)
        early = await bench.freeze()
        await bench.write(2, at=MIB)
        first = await bench.back_up()
        await bench.write(3, at=2 * MIB)
        back = SnapshotRevert(id=SnapshotId(early), to=new_id(), volumes=(VolumeOf(id=bench.volume),))
        await bench.agent.revert_to_snapshot(back, bench.told.append)
        await bench.write(4, at=6 * MIB)
        second = await bench.back_up(first.id)
        assert second.compared == (bench.volume,)
        assert second.read_bytes == 2 * MIB
        content = await bench.restored(second.id)
        assert content[: 4 * MIB] == b"\1" * 4 * MIB
        assert blocks(content[4 * MIB :]) == {2 * MIB: 4}

    async def test_a_volume_that_has_grown_is_compared_rightly(self, bench: Bench) -> None:
        await bench.write(1, at=15 * MIB, length=MIB)
        first = await bench.back_up()
        grown = VolumeSpec(id=bench.volume, generation=2, size_bytes=SIZE + 3 * MIB + 512 * KIB)
        await bench.agent.ensure_volume(grown, bench.told.append)
        await bench.write(2, at=SIZE + 3 * MIB + 256 * KIB)
        second = await bench.back_up(first.id)
        assert second.compared == (bench.volume,)
        content = await bench.restored(second.id, grown.size_bytes)
        assert blocks(content[SIZE:]) == {3 * MIB + 256 * KIB: 2}
        await bench.write(3, at=SIZE + 3 * MIB)
        larger = VolumeSpec(id=bench.volume, generation=3, size_bytes=SIZE + 8 * MIB)
        await bench.agent.ensure_volume(larger, bench.told.append)
        third = await bench.back_up(second.id)
        content = await bench.restored(third.id, larger.size_bytes)
        assert blocks(content[SIZE:]) == {3 * MIB: 3, 3 * MIB + 256 * KIB: 2}

    async def test_without_the_snapshot_of_the_earlier_one_everything_is_read(self, bench: Bench) -> None:
        await bench.write(1, at=0, length=4 * MIB)
        first = await bench.back_up()
        await bench.let_go(first.id)
        second = await bench.back_up(first.id)
        assert (second.read_bytes, second.stored_bytes, second.compared) == (4 * MIB, 0, ())

    async def test_snapshots_go_while_a_backup_is_read_and_their_layers_afterwards(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await bench.write(1, at=0, length=8 * MIB)
        early = await bench.freeze()
        await bench.write(2, at=2 * MIB)
        id = await bench.freeze()
        begun, gone, put = asyncio.Event(), asyncio.Event(), DirectoryPlace.put

        async def put_later(place: DirectoryPlace, name: str, data: bytes) -> None:
            if "/chunks/" in name:
                begun.set()
                await gone.wait()
            await put(place, name, data)

        monkeypatch.setattr(DirectoryPlace, "put", put_later)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.write_out(id))
            await begun.wait()
            await bench.let_go(early)
            assert (await bench.pool.layering.layers(bench.volume)).to_merge() is not None
            gone.set()
        content = await bench.restored(id)
        assert content[2 * MIB : 3 * MIB] == b"\2" * 64 * KIB + b"\1" * (MIB - 64 * KIB)
        await bench.agent.reconcile()
        assert (await bench.pool.layering.layers(bench.volume)).to_merge() is None

    async def test_what_a_backup_alone_needed_goes_with_it(self, bench: Bench) -> None:
        await bench.write(1, at=0)
        first = await bench.back_up()
        await bench.write(2, at=MIB)
        second = await bench.back_up(first.id)
        assert len(bench.chunks) == 2
        for _ in range(2):
            await bench.agent.remove_backup(bench.named(second.id))
        assert len(bench.chunks) == 1
        await bench.agent.remove_backup(bench.named(first.id))
        assert [each for each in bench.place.rglob("*") if each.is_file() and ".locks" not in each.parts] == []

    async def test_nothing_unaccounted_for_is_left_of_a_backup_whose_agent_was_killed(self, bench: Bench) -> None:
        for number in range(8):
            await bench.write(number + 1, at=number * MIB)
        id = await bench.freeze()
        begun = asyncio.Event()

        def tell(progress: Progress) -> None:
            if (progress.fraction or 0) >= 0.5:
                begun.set()

        spec = BackupSpec(id=id, place="vault", project=bench.project, volumes=(VolumeToBackUp(id=bench.volume),))
        killed = asyncio.ensure_future(bench.agent.ensure_backup(spec, tell))
        await begun.wait()
        killed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await killed
        (bench.chunks[0].parent / f".{bench.chunks[0].name}.half").write_bytes(b"half a chunk")
        assert bench.chunks
        await bench.another().reconcile()
        assert bench.chunks == []
        assert (await bench.write_out(id)).read_bytes == 8 * MIB

    async def test_nothing_is_swept_while_somebody_writes(self, bench: Bench) -> None:
        await bench.write(1, at=0)
        first = await bench.back_up()
        elsewhere = DirectoryPlace.open(bench.place)
        async with elsewhere.holding(bench.project, alone=False):
            await bench.agent.remove_backup(bench.named(first.id))
            await bench.agent.reconcile()
            assert len(bench.chunks) == 1
        await bench.agent.reconcile()
        assert bench.chunks == []

    async def test_a_flipped_bit_is_found_named_and_not_restored_and_the_next_backup_heals_it(
        self, bench: Bench
    ) -> None:
        await bench.write(1, at=0, length=4 * MIB)
        await bench.write(2, at=2 * MIB)
        first = await bench.back_up()
        await bench.write(3, at=6 * MIB)
        second = await bench.back_up(first.id)
        assert (await bench.agent.check_backup(bench.named(second.id), bench.told.append)).damaged == ()
        shared = next(each for each in bench.chunks if holds(each, b"\2" * 64 * KIB))
        harmed = bytearray(shared.read_bytes())
        harmed[-1] ^= 1
        shared.write_bytes(harmed)
        with pytest.raises(Conflict, match="damaged"):
            await bench.restored(first.id)
        assert len(await bench.pool.list()) == 1
        checked = await bench.agent.check_backup(bench.named(first.id), bench.told.append)
        assert (checked.damaged, checked.others) == ((bench.volume,), (second.id,))
        third = await bench.back_up(second.id)
        assert third.read_bytes == MIB
        for id in (first.id, second.id, third.id):
            assert (await bench.agent.check_backup(bench.named(id), bench.told.append)).damaged == ()

    async def test_a_backup_that_is_not_wanted_any_more_ends(self, bench: Bench) -> None:
        await bench.write(1, at=0, length=8 * MIB)
        id = await bench.freeze()
        begun = asyncio.Event()
        spec = BackupSpec(id=id, place="vault", project=bench.project, volumes=(VolumeToBackUp(id=bench.volume),))
        writing = asyncio.ensure_future(bench.agent.ensure_backup(spec, lambda _: begun.set()))
        await begun.wait()
        await bench.agent.remove_backup(bench.named(id))
        with pytest.raises(Conflict, match="not wanted"):
            await writing
        assert bench.chunks == []

    async def test_a_volume_becomes_what_it_was_and_its_layers_go(self, bench: Bench) -> None:
        await bench.write(1, at=0, length=2 * MIB)
        first = await bench.back_up()
        await bench.write(2, at=MIB, length=4 * MIB)
        grown = VolumeSpec(id=bench.volume, generation=2, size_bytes=SIZE + MIB)
        await bench.agent.ensure_volume(grown, bench.told.append)
        wish = bench.restoring(first.id)
        for _ in range(2):
            await bench.agent.prepare_restore(wish, bench.told.append)
        assert bench.files == {"disk.raw", f"{first.id}.qcow2", f"{wish.to}.raw", "volume.json"}
        for _ in range(2):
            await bench.agent.exchange_restored(wish)
        assert bench.files == {"disk.raw", "volume.json"}
        content = bench.disk.read_bytes()
        assert (len(content), content[: 2 * MIB], any(content[2 * MIB :])) == (SIZE + MIB, b"\1" * 2 * MIB, False)
        await bench.write(3, at=MIB)
        assert (await bench.back_up(first.id)).compared == ()

    async def test_what_was_prepared_and_is_given_up_leaves_the_volume_as_it_is(self, bench: Bench) -> None:
        await bench.write(1, at=0)
        first = await bench.back_up()
        await bench.write(2, at=0)
        before, wish = bench.files, bench.restoring(first.id)
        await bench.agent.prepare_restore(wish, bench.told.append)
        for _ in range(2):
            await bench.agent.drop_restore(wish)
        assert bench.files == before
        with pytest.raises(NotFound):
            await bench.agent.exchange_restored(wish)

    @pytest.mark.parametrize("secure", [True, False])
    async def test_an_exchange_that_was_broken_off_is_finished_before_anybody_uses_the_volume(
        self, bench: Bench, secure: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await bench.write(1, at=0)
        first = await bench.back_up()
        await bench.write(2, at=0)
        wish = bench.restoring(first.id, secure=secure)
        await bench.agent.prepare_restore(wish, bench.told.append)
        with monkeypatch.context() as patched:
            patched.setattr(VolumeFolder, "go_on", Mock(side_effect=OSError("the power is cut")))
            with pytest.raises(Unavailable):
                await bench.agent.exchange_restored(wish)
            with pytest.raises(Unavailable):
                await bench.pool.source(bench.volume)
        bench.another()
        assert bench.files == {"disk.raw", "volume.json"}
        assert blocks(bench.disk.read_bytes()) == {0: 1}
        await bench.agent.exchange_restored(wish)

    async def test_what_is_not_there_is_not_found(self, bench: Bench) -> None:
        nowhere = BackupOf(id=BackupId(new_id()), place="elsewhere", project=bench.project)
        for asked in (bench.agent.check_backup(nowhere, bench.told.append), bench.agent.remove_backup(nowhere)):
            with pytest.raises(NotFound):
                await asked
        with pytest.raises(NotFound):
            await bench.restored(BackupId(new_id()))
        with pytest.raises(NotFound):
            await bench.write_out(BackupId(new_id()))


def holds(chunk: Path, beginning: bytes) -> bool:
    return decoded(chunk.read_bytes(), chunk.name).startswith(beginning)
