"""What was on a volume is overwritten before its space is given back, whatever interrupts that."""

import os
from pathlib import Path

import pytest
from msgspec import structs

from pileus.agent.storage import wiping
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.wiping import wipe, wipe_folder
from pileus.kernel.errors import Unavailable
from pileus.kernel.units import KIB, MIB
from pileus.link.volumes import VolumeRemoval

from .conftest import HostBench, a_volume

SECRET = b"a secret of some length. " * 4000


class Disk:
    """Sees what is in a file whenever a part of it is cut off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cuts: list[bytes] = []
        self._really = os.ftruncate
        monkeypatch.setattr(os, "ftruncate", self._cut)

    def _cut(self, file: int, length: int) -> None:
        self.cuts.append(os.pread(file, os.fstat(file).st_size - length, length))
        self._really(file, length)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiping, "_PIECE", 16 * KIB)
    monkeypatch.setattr(wiping, "_ZEROES", memoryview(bytes(16 * KIB)))
    monkeypatch.setattr(wiping, "_BATCH", 32 * KIB)


def a_file(path: Path) -> Path:
    """With data at its beginning, behind a hole, and up to its end."""
    with path.open("wb") as file:
        for start in (0, 4 * MIB, 8 * MIB):
            file.seek(start)
            file.write(SECRET)
    return path


@pytest.mark.usefixtures("small_steps")
def test_nothing_is_cut_off_a_file_that_is_not_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, told = a_file(tmp_path / "disk.raw"), list[float]()
    size, disk = file.stat().st_size, Disk(monkeypatch)
    wipe(file, told.append, lambda: False)
    assert len(disk.cuts) > 3
    assert sum(len(cut) for cut in disk.cuts) == size
    assert not any(any(cut) for cut in disk.cuts)
    assert file.stat().st_size == 0
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_holes_are_not_filled(tmp_path: Path) -> None:
    file = a_file(tmp_path / "disk.raw")
    os.truncate(file, 1 << 40)
    told = list[float]()
    wipe(file, told.append, lambda: False)
    assert len(told) < 10


@pytest.mark.usefixtures("small_steps")
def test_what_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    file = a_file(folder / "disk.raw")
    size = file.stat().st_size
    for _ in range(3):
        asked = iter([False] * 3)
        wipe_folder(folder, lambda _: None, lambda asked=asked: next(asked, True))
    assert 0 < file.stat().st_size < size
    wipe_folder(folder, lambda _: None, lambda: False)
    wipe_folder(folder, lambda _: None, lambda: False)
    assert not folder.exists()


async def test_a_pool_that_is_opened_again_keeps_what_is_yet_to_be_overwritten_and_lists_it_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, volume = DirectoryPool.open(tmp_path), a_volume()
    await pool.ensure(volume, lambda _: None)
    Path((await pool.source(volume.id)).path).write_bytes(SECRET)
    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", _fails)
        with pytest.raises(Unavailable):
            await pool.wipe(volume.id, lambda _: None)
    pool = DirectoryPool.open(tmp_path)
    assert await pool.list() == {}
    left = tmp_path / "wiping" / volume.id / "disk.raw"
    assert left.read_bytes()[: len(SECRET)] == SECRET
    seen = Disk(monkeypatch)
    await pool.wipe(volume.id, lambda _: None)
    assert seen.cuts
    assert not any(any(cut) for cut in seen.cuts)
    assert list((tmp_path / "wiping").iterdir()) == []


async def test_a_volume_is_overwritten_only_if_that_is_asked_for(bench: HostBench) -> None:
    agent, one, two = bench.agent(), a_volume(), a_volume()
    for volume in (one, two):
        await agent.ensure_volume(volume, bench.tell)
    await agent.remove_volume(VolumeRemoval(id=one.id, generation=1, secure=True), bench.tell)
    await agent.remove_volume(VolumeRemoval(id=two.id, generation=1), bench.tell)
    assert not bench.storage.volumes
    assert bench.storage.wiped == {one.id}
    assert (bench.told[-1].step, bench.told[-1].fraction) == ("overwriting", 1.0)


async def test_an_overwriting_that_failed_goes_on_by_itself_also_if_it_is_asked_for_without(bench: HostBench) -> None:
    agent, volume = bench.agent(), a_volume()
    await agent.ensure_volume(volume, bench.tell)
    removal = VolumeRemoval(id=volume.id, generation=1, secure=True)
    for wish in (removal, structs.replace(removal, secure=False)):
        bench.faults.fail("storage.wipe", Unavailable("not now"))
        with pytest.raises(Unavailable):
            await bench.agent().remove_volume(wish)
    assert bench.storage.volumes
    await bench.agent().reconcile()
    assert bench.storage.wiped == {volume.id}
    assert not bench.storage.volumes


async def test_a_volume_is_made_anew_only_after_the_old_one_is_overwritten(bench: HostBench) -> None:
    agent, volume = bench.agent(), a_volume()
    await agent.ensure_volume(volume, bench.tell)
    bench.faults.fail("storage.wipe", Unavailable("not now"))
    with pytest.raises(Unavailable):
        await agent.remove_volume(VolumeRemoval(id=volume.id, generation=1, secure=True))
    await agent.ensure_volume(structs.replace(volume, generation=2), bench.tell)
    assert bench.storage.wiped == {volume.id}
    assert bench.storage.volumes.keys() == {volume.id}


def _fails(*_: object) -> int:
    raise OSError("the disk is broken")
