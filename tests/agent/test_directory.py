"""A storage pool in a directory keeps the promises of its port, and those of its own."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from msgspec import structs

from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.port import StoragePool
from pileus.agent.storage.sparse import clone
from pileus.kernel.errors import Conflict, Invalid, Unavailable
from pileus.kernel.ids import ImageId, new_id
from pileus.kernel.units import GIB, KIB, MIB
from pileus.link.images import ImageSource
from pileus.link.volumes import VolumeSpec
from pileus.testing.contracts.storage import StoragePoolContract, Wire

from .conftest import a_volume


class TestDirectoryPool(StoragePoolContract):
    @pytest.fixture
    def pool(self, tmp_path: Path) -> DirectoryPool:
        return DirectoryPool.open(tmp_path / "pool")

    @pytest.fixture
    def another(self, tmp_path: Path) -> Callable[[], Awaitable[StoragePool]]:
        async def again() -> StoragePool:
            return DirectoryPool.open(tmp_path / "pool")

        return again


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pool"


@pytest.fixture
def pool(folder: Path) -> DirectoryPool:
    return DirectoryPool.open(folder)


def image_of(file: Path, *, format: str, virtual_size_bytes: int) -> tuple[ImageSource, Wire]:
    content = file.read_bytes()
    image = ImageSource(
        id=ImageId(new_id()),
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        virtual_size_bytes=virtual_size_bytes,
        format=format,
        url="",
    )
    return image, Wire(content)


def qemu_img(*arguments: str | Path) -> None:
    try:
        subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("qemu-img is not installed")


async def content_of(pool: StoragePool, volume: VolumeSpec) -> bytes:
    return Path((await pool.source(volume.id)).path).read_bytes()


async def test_a_new_volume_is_empty_and_takes_no_room(pool: DirectoryPool) -> None:
    volume = a_volume()
    made = await pool.ensure(volume, _nobody)
    assert made.allocated_bytes < 64 * KIB
    assert (await pool.list())[volume.id].size_bytes == GIB


async def test_a_volume_has_its_images_content_and_its_holes(pool: DirectoryPool, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(b"a" * MIB + bytes(16 * MIB) + b"z" * MIB)
    image, wire = image_of(file, format="raw", virtual_size_bytes=18 * MIB)
    await pool.ensure_image(image, wire.fetch, _nobody)
    volume = VolumeSpec(id=a_volume().id, generation=1, size_bytes=20 * MIB, image=image)
    made = await pool.ensure(volume, _nobody)
    assert await content_of(pool, volume) == file.read_bytes() + bytes(2 * MIB)
    assert made.allocated_bytes < 4 * MIB


async def test_a_qcow2_image_becomes_a_raw_volume(pool: DirectoryPool, folder: Path, tmp_path: Path) -> None:
    raw, packed = tmp_path / "raw", tmp_path / "qcow2"
    raw.write_bytes(os.urandom(MIB) + bytes(7 * MIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, packed)
    image, wire = image_of(packed, format="qcow2", virtual_size_bytes=8 * MIB)
    await pool.ensure_image(image, wire.fetch, _nobody)
    volume = VolumeSpec(id=a_volume().id, generation=1, size_bytes=8 * MIB, image=image)
    await pool.ensure(volume, _nobody)
    assert await content_of(pool, volume) == raw.read_bytes()
    assert (await pool.source(volume.id)).format == "raw"
    assert [file.name for file in (folder / "images" / image.id).iterdir()].count("arrived.qcow2") == 0


async def test_an_image_that_names_another_file_is_refused(pool: DirectoryPool, tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", tmp_path / "backed", "8M")
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", tmp_path / "split", "8M")
    for name in ("backed", "split"):
        image, wire = image_of(tmp_path / name, format="qcow2", virtual_size_bytes=8 * MIB)
        with pytest.raises(Conflict, match="another file"):
            await pool.ensure_image(image, wire.fetch, _nobody)


async def test_a_raw_image_that_looks_like_qcow2_stays_raw(pool: DirectoryPool, tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", tmp_path / "backed", "8M")
    size = (tmp_path / "backed").stat().st_size
    image, wire = image_of(tmp_path / "backed", format="raw", virtual_size_bytes=size)
    await pool.ensure_image(image, wire.fetch, _nobody)
    volume = VolumeSpec(id=a_volume().id, generation=1, size_bytes=size, image=image)
    await pool.ensure(volume, _nobody)
    assert await content_of(pool, volume) == (tmp_path / "backed").read_bytes()
    assert (await pool.source(volume.id)).format == "raw"


async def test_an_image_that_is_no_disk_or_another_size_is_refused(pool: DirectoryPool, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"not a disk" * 1000)
    qemu_img("create", "-f", "qcow2", tmp_path / "huge", "100T")
    for name in ("text", "huge"):
        image, wire = image_of(tmp_path / name, format="qcow2", virtual_size_bytes=8 * MIB)
        with pytest.raises(Conflict):
            await pool.ensure_image(image, wire.fetch, _nobody)


async def test_an_unknown_format_is_refused(pool: DirectoryPool, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"x")
    image, wire = image_of(tmp_path / "text", format="vmdk,file.filename=/etc/shadow", virtual_size_bytes=1)
    with pytest.raises(Invalid):
        await pool.ensure_image(image, wire.fetch, _nobody)


async def test_nothing_is_left_of_a_transfer_that_broke_off(pool: DirectoryPool, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(os.urandom(3 * MIB))
    image, wire = image_of(tmp_path / "image", format="raw", virtual_size_bytes=3 * MIB)
    wire.breaks_after = 2 * MIB
    with pytest.raises(Unavailable):
        await pool.ensure_image(image, wire.fetch, _nobody)
    assert _files_below(folder) == []


async def test_nothing_is_left_of_a_transfer_that_was_cancelled(pool: DirectoryPool, folder: Path) -> None:
    begun = asyncio.Event()

    async def fetch(_: ImageSource) -> AsyncIterator[bytes]:
        yield bytes(MIB)
        begun.set()
        await asyncio.Event().wait()

    image = ImageSource(
        id=ImageId(new_id()), sha256="0" * 64, size_bytes=GIB, virtual_size_bytes=GIB, format="raw", url=""
    )
    async with asyncio.TaskGroup() as tasks:
        fetching = tasks.create_task(pool.ensure_image(image, fetch, _nobody))
        await begun.wait()
        fetching.cancel()
    assert _files_below(folder) == []


async def test_what_a_power_cut_left_is_removed_when_the_pool_is_opened(pool: DirectoryPool, folder: Path) -> None:
    kept = await pool.ensure(a_volume(), _nobody)
    half = folder / "scratch" / new_id()
    half.mkdir()
    (half / "disk.raw").write_bytes(b"half")
    again = DirectoryPool.open(folder)
    assert list((folder / "scratch").iterdir()) == []
    assert (await again.list()).keys() == {kept.id}


async def test_a_pool_promises_no_more_than_it_has(pool: DirectoryPool) -> None:
    free = (await pool.use()).free_bytes
    half = structs.replace(a_volume(), size_bytes=free // 5 * 3)
    await pool.ensure(half, _nobody)
    with pytest.raises(Conflict, match="room"):
        await pool.ensure(structs.replace(a_volume(), size_bytes=half.size_bytes), _nobody)
    await pool.remove(half.id)
    await pool.ensure(structs.replace(a_volume(), size_bytes=half.size_bytes), _nobody)


async def test_two_volumes_at_once_do_not_count_on_the_same_room(pool: DirectoryPool) -> None:
    size = (await pool.use()).free_bytes // 5 * 3
    wishes = (pool.ensure(structs.replace(a_volume(), size_bytes=size), _nobody) for _ in range(4))
    outcomes = await asyncio.gather(*wishes, return_exceptions=True)
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 3
    assert len(await pool.list()) == 1


async def test_disks_are_for_their_owner_and_the_way_to_them_is_open(pool: DirectoryPool, folder: Path) -> None:
    volume = a_volume()
    await pool.ensure(volume, _nobody)
    disk = Path((await pool.source(volume.id)).path)
    assert disk.stat().st_mode & 0o777 == 0o600
    for way in (disk.parent, disk.parent.parent, folder):
        assert way.stat().st_mode & 0o777 == 0o711
    assert (folder / "images").stat().st_mode & 0o777 == 0o700


async def test_a_volume_whose_note_is_broken_is_still_there(pool: DirectoryPool, folder: Path) -> None:
    volume = a_volume()
    await pool.ensure(volume, _nobody)
    (folder / "volumes" / volume.id / "volume.json").write_text("{")
    assert (await pool.list())[volume.id].generation == 0
    assert (await pool.ensure(volume, _nobody)).generation == 1


def test_a_copy_that_is_stopped_ends(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(64 * KIB))
    clone(source, target, _nobody, lambda: False)
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(FileExistsError):
        clone(source, target, _nobody, lambda: False)


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _nobody(_: float) -> None:
    """Nobody wants to know how far it is."""
