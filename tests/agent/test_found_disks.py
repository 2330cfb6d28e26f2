"""Disks that were found: removed as files, and never anything else."""

from pathlib import Path

from pileus.agent.storage.found import FilesAsFound
from pileus.link.volumes import FoundDisk


async def test_a_file_is_removed_where_it_is_also_behind_a_link(tmp_path: Path) -> None:
    file, link = tmp_path / "disk.raw", tmp_path / "link.raw"
    file.write_bytes(b"data" * 1024)
    link.symlink_to(file)
    disks = FilesAsFound()
    await disks.remove(FoundDisk(path=str(link)), secure=False)
    await disks.remove(FoundDisk(path=str(link)), secure=False)
    assert not file.exists()
    assert not link.is_symlink()


async def test_what_is_to_be_overwritten_is_and_goes(tmp_path: Path) -> None:
    file, other = tmp_path / "disk.raw", tmp_path / "other"
    file.write_bytes(b"secret" * 1024)
    other.hardlink_to(file)
    await FilesAsFound().remove(FoundDisk(path=str(file)), secure=True)
    assert not file.exists()
    assert b"secret" not in other.read_bytes()


async def test_a_device_is_left_as_it_is(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(b"data")
    await FilesAsFound().remove(FoundDisk(path=str(device), kind="block"), secure=True)
    assert device.read_bytes() == b"data"
