"""Backups of a whole controller: what is in them, for whom, and that a fresh machine comes back by one."""

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.volumes.model import VOLUMES
from pileus.installation import archives
from pileus.installation.backups import back_up, last_backup, put_back
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.state.backup import copy
from pileus.state.rows import Damaged
from pileus.testing.cloud import simulated_cloud
from pileus.testing.requests import made, running, shown

KEYS = ("authority/authority.pem", "secrets.key", "ticket.key", "controller.json")


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
async def test_a_cloud_comes_back_on_a_fresh_machine_and_its_guests_have_not_noticed(
    tmp_path: Path, passphrase: str | None
) -> None:
    old, fresh, archive = tmp_path / "old", tmp_path / "fresh", tmp_path / "backup"
    async with simulated_cloud(old) as cloud:
        instance = await running(cloud, cloud.client)
        (old / "controller.json").write_text("{}")
        await back_up(old, archive, passphrase=passphrase)
        await made(cloud.client, "volumes", name="too late", size_gib=1)
        fleet = cloud.fleet
    assert archive.stat().st_mode & 0o777 == 0o600
    assert (last := last_backup(old)) is not None
    assert last.file == archive
    await put_back(archive, fresh, passphrase=passphrase)
    assert all((fresh / name).read_bytes() == (old / name).read_bytes() for name in KEYS)
    assert all((fresh / name).stat().st_mode & 0o777 == 0o600 for name in KEYS)
    [host] = [each for each in fleet.hosts if each.id == instance["host_id"]]
    async with simulated_cloud(fresh, fleet=fleet, image=False) as cloud:
        assert (await shown(cloud.client, f"instances/{instance['id']}"))["state"] == "running"
        assert cloud.state[INSTANCES].get(instance["id"]).state is InstanceState.RUNNING
        assert "too late" not in [each.name for each in cloud.state[VOLUMES]]
        assert host.hypervisor.guests[instance["id"]].starts == 1


async def test_a_backup_from_before_there_were_archives_still_restores(tmp_path: Path) -> None:
    old, fresh, archive = tmp_path / "old", tmp_path / "fresh", tmp_path / "state.db"
    async with simulated_cloud(old) as cloud:
        await cloud.state.durable()
        copy(old / "state.db", archive)
    await put_back(archive, fresh)
    assert [each.name for each in fresh.iterdir() if each.suffix == ".db"] == ["state.db"]
    assert not (fresh / "authority").exists()


async def test_what_was_there_is_kept_beside_and_a_configuration_stays(tmp_path: Path) -> None:
    old, other, archive = tmp_path / "old", tmp_path / "other", tmp_path / "backup"
    for data in (old, other):
        async with simulated_cloud(data, hosts=1):
            pass
    await back_up(old, archive)
    (other / "controller.json").write_text("{}")
    theirs = (other / "authority" / "authority.pem").read_bytes()
    await put_back(archive, other)
    assert (other / "authority" / "authority.pem").read_bytes() == (old / "authority" / "authority.pem").read_bytes()
    [kept] = other.glob("authority-replaced-*")
    assert (kept / "authority.pem").read_bytes() == theirs
    assert len(list(other.glob("secrets.key-replaced-*"))) == 1
    assert len(list(other.glob("state-replaced-*.db"))) == 1
    assert (other / "controller.json").read_text() == "{}"
    assert not list(other.glob(".restoring-*"))
    await put_back(archive, other)
    assert len(list(other.glob("authority-replaced-*"))) == 1, "what is the same already is not replaced"


async def test_nothing_is_restored_under_a_controller_that_runs(tmp_path: Path) -> None:
    data, archive = tmp_path / "data", tmp_path / "backup"
    async with simulated_cloud(data, hosts=1):
        await back_up(data, archive)
        before = (data / "secrets.key").read_bytes()
        with pytest.raises(Conflict, match="in use"):
            await put_back(archive, data)
        assert (data / "secrets.key").read_bytes() == before
    with pytest.raises(Conflict, match="exists already"):
        await back_up(data, archive)
    with pytest.raises(NotFound):
        await put_back(tmp_path / "none", data)


def sealed(tmp_path: Path, *, size: int = 3 * 1024 * 1024 + 7) -> Path:
    """An encrypted archive of more than one frame."""
    (tmp_path / "state.db").write_bytes(bytes(range(256)) * (size // 256 + 1))
    archives.write({"state.db": tmp_path / "state.db"}, tmp_path / "sealed", passphrase="p")
    return tmp_path / "sealed"


def opened(archive: Path, tmp_path: Path, passphrase: str | None = "p") -> bytes:
    into = tmp_path / "into"
    into.mkdir(exist_ok=True)
    archives.read(archive, into, passphrase=passphrase)
    return (into / "state.db").read_bytes()


def test_an_encrypted_archive_tells_nothing_and_opens_by_its_passphrase_alone(tmp_path: Path) -> None:
    archive = sealed(tmp_path)
    content = (tmp_path / "state.db").read_bytes()
    assert content[:64] not in archive.read_bytes()
    for wrong in (None, "q"):
        with pytest.raises(Invalid) as refused:
            opened(archive, tmp_path, wrong)
        assert set(refused.value.fields) == {"passphrase"}
    assert opened(archive, tmp_path) == content


@pytest.mark.parametrize("change", ["cut", "cut at a frame", "exchanged", "flipped", "more work"])
def test_an_archive_that_was_changed_is_not_opened(tmp_path: Path, change: str) -> None:
    archive = sealed(tmp_path)
    whole = archive.read_bytes()
    frame, begin = 1024 * 1024 + 16, whole.index(b"}") + 1
    changed = {
        "cut": whole[:-9],
        "cut at a frame": whole[: begin + frame],
        "exchanged": whole[: begin + frame]
        + whole[begin + 2 * frame : begin + 3 * frame]
        + whole[begin + frame : begin + 2 * frame]
        + whole[begin + 3 * frame :],
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "more work": whole.replace(b'"n":32768', b'"n":9999999'),
    }[change]
    archive.write_bytes(changed)
    with pytest.raises((Damaged, Invalid)):
        opened(archive, tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "authority/../../outside", "link"])
async def test_an_archive_of_a_stranger_writes_nowhere_else(tmp_path: Path, name: str) -> None:
    archive, data = tmp_path / "hostile.tar", tmp_path / "data"
    with tarfile.open(archive, "w") as packed:
        entry = tarfile.TarInfo(name)
        if name == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            packed.addfile(entry)
        else:
            entry.size = 3
            packed.addfile(entry, BytesIO(b"bad"))
    with pytest.raises(Damaged):
        await put_back(archive, data)
    assert not (tmp_path / "outside").exists()
    assert [each for each in data.iterdir() if each.name != "state.lock"] == []


async def test_what_is_no_backup_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"Pileus backup, encrypted\n", b"Pileus backup, encrypted\n\0\0\0\2{}"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises((Damaged, Invalid)):
            await put_back(tmp_path / "file", tmp_path / "data", passphrase="p")
