"""Snapshots in a directory, with what is in them, and those of the simulated pool."""

import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

from pileus.agent.storage import volumefolder
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.simulated import SimulatedStorage
from pileus.kernel.errors import Conflict, Unavailable
from pileus.kernel.ids import SnapshotId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import KIB, MIB
from pileus.link.volumes import VolumeCopy, VolumeSpec
from pileus.testing.contracts.layering import LayeringContract

needs_qemu = pytest.mark.skipif(
    not all(shutil.which(each) for each in ("qemu-img", "qemu-io")), reason="qemu-img and qemu-io are not installed"
)


class TestSimulatedLayering(LayeringContract):
    @pytest.fixture
    def pool(self) -> SimulatedStorage:
        return SimulatedStorage()


@needs_qemu
class TestDirectoryLayering(LayeringContract):
    @pytest.fixture
    def pool(self, tmp_path: Path) -> DirectoryPool:
        return DirectoryPool.open(tmp_path / "pool")


@needs_qemu
class TestContent:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "pool"

    @pytest.fixture
    def pool(self, folder: Path) -> DirectoryPool:
        return DirectoryPool.open(folder)

    @pytest.fixture
    async def volume(self, pool: DirectoryPool) -> VolumeId:
        made = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=8 * MIB)
        await pool.ensure(made, nobody)
        return made.id

    @pytest.mark.parametrize("secure", [True, False])
    async def test_a_layer_that_is_let_go_of_is_overwritten_if_that_is_wanted(
        self, pool: DirectoryPool, folder: Path, volume: VolumeId, monkeypatch: pytest.MonkeyPatch, secure: bool
    ) -> None:
        overwritten: list[str] = []

        def note(file: Path, *_: object) -> None:
            overwritten.append(file.name)

        monkeypatch.setattr(volumefolder, "wipe", note)
        snapshot, to = await taken(pool, volume), new_id()
        await write(pool, volume, 1, at=MIB)
        await pool.layering.secure(volume, secure)
        await pool.layering.revert(volume, snapshot, to)
        assert overwritten == ([f"{snapshot}.qcow2"] if secure else [])
        assert [file.name for file in (folder / "volumes" / volume).glob("*.qcow2")] == [f"{to}.qcow2"]

    async def test_a_snapshot_reads_as_the_volume_was_whatever_was_written_since(
        self, pool: DirectoryPool, volume: VolumeId
    ) -> None:
        await write(pool, volume, 1, at=MIB)
        first = await taken(pool, volume)
        await write(pool, volume, 2, at=MIB)
        await write(pool, volume, 3, at=2 * MIB)
        second = await taken(pool, volume)
        await write(pool, volume, 4, at=MIB)
        assert await read(pool, volume, first) == {MIB: 1}
        assert await read(pool, volume, second) == {MIB: 2, 2 * MIB: 3}
        await forgotten(pool, volume, first)
        assert await read(pool, volume, second) == {MIB: 2, 2 * MIB: 3}
        await pool.layering.revert(volume, second, new_id())
        await forgotten(pool, volume, second)
        assert blocks(Path((await pool.source(volume)).path)) == {MIB: 2, 2 * MIB: 3}

    async def test_a_snapshot_takes_what_is_written_since(self, pool: DirectoryPool, volume: VolumeId) -> None:
        snapshot = await taken(pool, volume)
        before = (await pool.layering.space(volume))[snapshot]
        await write(pool, volume, 5, at=0, length=2 * MIB)
        assert 2 * MIB <= (await pool.layering.space(volume))[snapshot] - before < 3 * MIB

    async def test_a_volume_grows_over_its_snapshots_and_stays_as_large(
        self, pool: DirectoryPool, volume: VolumeId
    ) -> None:
        snapshot = await taken(pool, volume)
        grown = VolumeSpec(id=volume, generation=2, size_bytes=16 * MIB)
        assert (await pool.ensure(grown, nobody)).size_bytes == 16 * MIB
        await write(pool, volume, 6, at=12 * MIB)
        await forgotten(pool, volume, snapshot)
        disk = Path((await pool.source(volume)).path)
        assert (disk.stat().st_size, blocks(disk)) == (16 * MIB, {12 * MIB: 6})

    async def test_room_for_everything_to_be_written_anew_is_kept(
        self, pool: DirectoryPool, volume: VolumeId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await write(pool, volume, 7, at=0, length=4 * MIB)
        free = os.statvfs_result((4096, 4096, 4096, 1536, 1536, 0, 0, 0, 0, 255))  # 6 MiB, of which 4 are unwritten
        monkeypatch.setattr(os, "statvfs", Mock(return_value=free))
        with pytest.raises(Conflict, match="room"):
            await pool.layering.lay(volume, SnapshotId(new_id()))
        assert not (await pool.layering.layers(volume)).below

    async def test_a_layer_that_was_never_noted_is_not_there(
        self, pool: DirectoryPool, volume: VolumeId, folder: Path
    ) -> None:
        left = folder / "volumes" / volume / f"{new_id()}.qcow2"
        left.write_bytes(b"half a layer")
        snapshot = await taken(pool, volume)
        assert {each.name for each in left.parent.glob("*.qcow2")} == {f"{snapshot}.qcow2"}

    async def test_a_merge_that_was_broken_off_is_done_again(self, pool: DirectoryPool, volume: VolumeId) -> None:
        await write(pool, volume, 1, at=MIB)
        snapshot = await taken(pool, volume)
        await write(pool, volume, 2, at=MIB)
        await pool.layering.forget(volume, snapshot)
        await pool.layering.begin_merge(volume, snapshot)
        await pool.layering.merge(volume)  # and here the power goes
        again = DirectoryPool.open(Path((await pool.source(volume)).path).parents[2])
        await again.layering.merge(volume)
        await again.layering.end_merge(volume)
        assert blocks(Path((await again.source(volume)).path)) == {MIB: 2}

    @pytest.mark.parametrize("harm", ["backing", "format", "data file"])
    async def test_an_overlay_that_a_guest_has_turned_on_the_hosts_files_is_not_followed(
        self, pool: DirectoryPool, volume: VolumeId, tmp_path: Path, harm: str
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_bytes(b"s" * MIB)
        await taken(pool, volume)
        layer = (await pool.source(volume)).path
        if harm == "backing":
            await run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(secret), layer)
        elif harm == "format":
            await run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "disk.raw", layer)
        else:
            await run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={secret}", layer, "8M")
        snapshot = next(iter((await pool.layering.layers(volume)).frozen))
        await pool.layering.forget(volume, SnapshotId(snapshot))
        await pool.layering.begin_merge(volume, snapshot)
        with pytest.raises(Conflict):
            await pool.layering.merge(volume)
        assert b"s" not in Path(layer).with_name("disk.raw").read_bytes()

    async def test_layers_whose_order_is_lost_are_not_guessed(self, pool: DirectoryPool, volume: VolumeId) -> None:
        await taken(pool, volume)
        note = Path((await pool.source(volume)).path).with_name("volume.json")
        note.write_bytes(b"nothing")
        with pytest.raises(Unavailable):
            await pool.source(volume)


def nobody(_: float) -> None:
    """Nobody wants to know how far it is."""


async def taken(pool: DirectoryPool, volume: VolumeId) -> SnapshotId:
    snapshot = SnapshotId(new_id())
    await pool.layering.lay(volume, snapshot)
    await pool.layering.confirm(volume, snapshot)
    return snapshot


async def forgotten(pool: DirectoryPool, volume: VolumeId, snapshot: SnapshotId) -> None:
    await pool.layering.forget(volume, snapshot)
    while (layer := (await pool.layering.layers(volume)).to_merge()) is not None:
        await pool.layering.begin_merge(volume, layer)
        await pool.layering.merge(volume)
        await pool.layering.end_merge(volume)


async def write(pool: DirectoryPool, volume: VolumeId, value: int, *, at: int, length: int = 64 * KIB) -> None:
    """Write as QEMU does."""
    source = await pool.source(volume)
    await run("qemu-io", "-f", source.format, "-c", f"write -P {value} {at} {length}", source.path)


async def read(pool: DirectoryPool, volume: VolumeId, snapshot: SnapshotId) -> dict[int, int]:
    """What a copy of a snapshot holds."""
    moment = VolumeCopy(volume=volume, snapshot=snapshot)
    copy = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=16 * MIB, copy_of=moment)
    await pool.ensure(copy, nobody)
    return blocks(Path((await pool.source(copy.id)).path))


def blocks(disk: Path) -> dict[int, int]:
    """The blocks of 64 KiB that are not zero, each by its first byte."""
    content = disk.read_bytes()
    return {at: content[at] for at in range(0, len(content), 64 * KIB) if content[at]}
