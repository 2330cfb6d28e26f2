"""Disk images from strangers and the real qemu-img: good ones are read and converted, hostile ones reach nothing.

Where it can be, the attack is first shown to work on a qemu-img without walls: a test of a defence against what does
not happen would prove nothing.
"""

import asyncio
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest
from patience import WITHIN_S

from pileus.cloud.images.web import PublicWeb
from pileus.controller.compose import composed
from pileus.diskimages.headers import DiskFormat
from pileus.diskimages.jail import CANNOT, Limits, jailed
from pileus.diskimages.qemuimg import QemuImg
from pileus.kernel.clock import SystemClock
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.units import GIB, KIB, MIB
from pileus.testing.cloud import SETTINGS, administrator, client_of
from pileus.testing.diskimages import iso, qcow2, vmdk_descriptor
from pileus.testing.memorystore import MemoryStore

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="disk image lab: qemu-img is not installed"),
]

READ_ONLY = Limits(GIB, 30, 0)
WRITES = Limits(GIB, 30, 64 * MIB)
SECRET = b"root:$6$salt$hash:19000:0:99999:7:::\n" * 200


def qemu_img(*arguments: str | Path) -> bytes:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True).stdout


def in_jail(folder: Path, limits: Limits, *program: str) -> "subprocess.CompletedProcess[bytes]":
    ended = subprocess.run(jailed(list(program), folder, limits), capture_output=True, check=False, timeout=WITHIN_S)
    if ended.returncode == CANNOT:
        pytest.skip(f"disk image lab: {ended.stderr.decode().strip()}")
    return ended


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that is the host's, readable for all: only walls keep it from a hostile image."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o644)
    return path


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("format", "options"),
    [
        (DiskFormat.RAW, ()),
        (DiskFormat.QCOW2, ()),
        (DiskFormat.QCOW2, ("-c",)),
        (DiskFormat.QCOW2, ("-o", "compat=0.10")),
        (DiskFormat.VMDK, ()),
        (DiskFormat.VMDK, ("-o", "subformat=streamOptimized")),
        (DiskFormat.VHDX, ()),
        (DiskFormat.VHDX, ("-o", "subformat=fixed")),
        (DiskFormat.VPC, ("-o", "force_size=on")),
        (DiskFormat.VPC, ("-o", "subformat=fixed,force_size=on")),
    ],
    ids=str,
)
async def test_an_image_of_every_format_is_what_it_was_when_it_is_converted(
    format: DiskFormat, options: tuple[str, ...], tmp_path: Path
) -> None:
    disk, image, made, back = (tmp_path / name for name in ("disk", "image", "made", "back"))
    content = os.urandom(MIB) + bytes(14 * MIB) + os.urandom(MIB)
    disk.write_bytes(content)
    qemu_img("convert", "-f", "raw", "-O", format, *options, disk, image)
    tool, heard = QemuImg(), list[float]()
    assert await tool.inspect(image, format) == 16 * MIB
    await tool.convert(image, made, format=format, to=DiskFormat.QCOW2, at_most_bytes=32 * MIB, told=heard.append)
    assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (os.geteuid(), 0o600)
    assert await tool.inspect(made, DiskFormat.QCOW2) == 16 * MIB
    assert made.stat().st_size < 4 * MIB, "zeroes take no room"
    assert heard[-1] == 1.0
    qemu_img("convert", "-f", "qcow2", "-O", "raw", made, back)
    assert back.read_bytes() == content
    assert sorted(each.name for each in tmp_path.iterdir()) == ["back", "disk", "image", "made"]


async def test_an_iso_is_read(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(iso())
    assert await QemuImg().inspect(tmp_path / "image", DiskFormat.ISO) == len(iso())


def attacks(folder: Path, secret: Path) -> dict[str, tuple[str, Path]]:
    """Images that name the secret, each with its format."""
    qemu_img("create", "-f", "qcow2", "-u", "-b", secret, "-F", "raw", folder / "backed", "16K")
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", folder / "split", "16K")
    # Creating it has emptied its data file.
    secret.write_bytes(SECRET)
    qemu_img(
        "create",
        "-f",
        "qcow2",
        "-u",
        "-b",
        f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}',
        "-F",
        "raw",
        folder / "json",
        "16K",
    )
    (folder / "extent").write_bytes(vmdk_descriptor(f'RW 14 FLAT "{secret}" 0', kind="monolithicFlat"))
    header = struct.pack("<4sIIQQQQIQQ", b"KDMV", 1, 3, 0, 128, 1, 20, 512, 21, 40).ljust(512, b"\0")
    inside = vmdk_descriptor(f'RW 14 FLAT "{secret}" 0', kind="monolithicFlat").ljust(20 * 512, b"\0")
    (folder / "followed").write_bytes(header + inside)
    return {
        "backing file": ("qcow2", folder / "backed"),
        "data file": ("qcow2", folder / "split"),
        "backing file in JSON": ("qcow2", folder / "json"),
        "extent": ("vmdk", folder / "extent"),
        "descriptor that is followed": ("vmdk", folder / "followed"),
    }


@pytest.mark.parametrize(
    "attack", ["backing file", "data file", "backing file in JSON", "extent", "descriptor that is followed"]
)
async def test_an_image_that_names_a_file_of_the_host_does_not_get_it(
    attack: str, tmp_path: Path, secret: Path, job: Path
) -> None:
    format, image = attacks(tmp_path, secret)[attack]
    # It works where there are no walls:
    qemu_img("convert", "-f", format, "-O", "raw", image, tmp_path / "stolen")
    assert SECRET[:4096] in (tmp_path / "stolen").read_bytes()
    # What reads headers refuses it:
    with pytest.raises(Invalid):
        await QemuImg().inspect(image, DiskFormat(format))
    # And the walls alone would have held:
    shutil.copy(image, job / "in")
    ended = in_jail(job, WRITES, "/usr/bin/qemu-img", "convert", "-f", format, "-O", "raw", "in", "out")
    assert ended.returncode != 0
    assert not (job / "out").exists() or SECRET[:32] not in (job / "out").read_bytes()


async def test_an_image_whose_backing_is_in_the_network_is_refused_and_reaches_nobody(
    tmp_path: Path, job: Path
) -> None:
    qemu_img("create", "-f", "qcow2", "-u", "-b", "nbd://127.0.0.1:1/x", "-F", "raw", tmp_path / "image", "1M")
    with pytest.raises(Invalid):
        await QemuImg().inspect(tmp_path / "image", DiskFormat.QCOW2)
    shutil.copy(tmp_path / "image", job / "in")
    ended = in_jail(job, WRITES, "/usr/bin/qemu-img", "convert", "-f", "qcow2", "-O", "raw", "in", "out")
    assert b"Operation not permitted" in ended.stderr


def test_what_runs_in_the_jail_sees_nothing_of_the_host(secret: Path, job: Path) -> None:
    probe = f"""
import os, socket, sys
seen = []
def tries(what, deed):
    try:
        deed()
    except OSError:
        return
    seen.append(what)
for path in ("/etc/shadow", "/etc/passwd", {str(secret)!r}, "/proc/1/environ", "/sys/class", "/root", "/var", "/tmp"):
    tries(path, lambda: os.stat(path))
tries("/usr is writable", lambda: open("/usr/x", "w"))
tries("/ is writable", lambda: open("/x", "w"))
tries("a socket", lambda: socket.socket())
tries("a socket of this machine", lambda: socket.socket(socket.AF_UNIX))
tries("a process", lambda: os.fork())
tries("signals", lambda: os.kill(os.getppid(), 0))
tries("being root", lambda: os.setuid(0))
tries("a namespace", lambda: os.stat("/proc/self/ns"))
tries("another file system", lambda: os.chroot("."))
print(os.getuid(), *seen, sep=",")
"""
    ended = in_jail(
        job,
        WRITES,
        sys.executable if sys.executable.startswith("/usr/bin") else "/usr/bin/python3",
        "-I",
        "-S",
        "-c",
        probe,
    )
    if ended.returncode == 127 or b"No such file" in ended.stderr:
        pytest.skip("disk image lab: the machine has no /usr/bin/python3 to look from inside")
    assert ended.stdout == b"65534\n", ended


@pytest.mark.parametrize(
    "deed",
    ["open('big', 'wb').truncate(1 << 30)", "bytearray(2 << 30)", "\nwhile True: pass"],
    ids=["disk", "memory", "time"],
)
def test_what_runs_in_the_jail_has_limits(deed: str, job: Path) -> None:
    ended = in_jail(job, Limits(256 * MIB, 1, 64 * MIB), "/usr/bin/python3", "-I", "-S", "-c", deed)
    assert ended.returncode != 0
    assert not (job / "big").exists() or (job / "big").stat().st_size == 0


async def test_a_bomb_fills_no_more_than_there_is_room_for(tmp_path: Path) -> None:
    """64 KiB that are a whole disk: every cluster of a qcow2 leads to the same compressed data."""
    image = bomb(tmp_path / "bomb", clusters=8192)
    assert image.stat().st_size < MIB
    tool = QemuImg()
    assert await tool.inspect(image, DiskFormat.QCOW2) == 512 * MIB
    with pytest.raises(Conflict):
        await tool.convert(
            image,
            tmp_path / "made",
            format=DiskFormat.QCOW2,
            to=DiskFormat.QCOW2,
            at_most_bytes=16 * MIB,
            told=lambda _: None,
        )
    assert [each.name for each in tmp_path.iterdir()] == ["bomb"]


def bomb(path: Path, *, clusters: int) -> Path:
    """A qcow2 of so many clusters of 64 KiB, at most 8192, all of which are the one that is there."""
    cluster = 64 * KIB
    header = bytearray(qcow2(size=clusters * cluster))
    struct.pack_into(">IQQIIQ", header, 36, 1, 3 * cluster, cluster, 1, 0, 0)
    struct.pack_into(">II", header, 96, 4, 104)
    refcounts = struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0")
    counts = struct.pack(">5H", 1, 1, 1, 1, 1).ljust(cluster, b"\0")
    directory = struct.pack(">Q", 4 * cluster | 1 << 63).ljust(cluster, b"\0")
    table = struct.pack(">Q", 5 * cluster) * clusters
    path.write_bytes(
        bytes(header).ljust(cluster, b"\0")
        + refcounts
        + counts
        + directory
        + table.ljust(cluster, b"\0")
        + b"x" * cluster
    )
    return path


async def test_garbage_of_every_kind_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    tool, chance = QemuImg(), Random(1)
    for format in DiskFormat:
        if format is DiskFormat.RAW:
            continue
        qemu_img("create", "-f", "raw" if format is DiskFormat.ISO else format, tmp_path / "image", "8M")
        good = (tmp_path / "image").read_bytes()
        for at in range(0, min(len(good), 2048), 149):
            bad = good[:at] + chance.randbytes(8) + good[at + 8 :]
            (tmp_path / "image").write_bytes(bad)
            with suppress(Invalid):
                assert await tool.inspect(tmp_path / "image", format) > 0
    assert [each.name for each in tmp_path.iterdir()] == ["image"]


async def test_a_cloud_takes_in_what_people_send_and_what_it_is_told_to_fetch(tmp_path: Path) -> None:
    """By the real controller over its API: a vmdk in parts, a vhdx from a web server, and one that is hostile."""
    content = os.urandom(MIB) + bytes(30 * MIB) + os.urandom(MIB)
    (tmp_path / "disk").write_bytes(content)
    for format in ("vmdk", "vhdx"):
        qemu_img("convert", "-f", "raw", "-O", format, tmp_path / "disk", tmp_path / format)
    web = PublicWeb([ip_network("127.0.0.0/8")], lambda: ())
    clock = SystemClock()
    async with (
        composed(tmp_path / "controller", SETTINGS, clock=clock, store=MemoryStore(), web=web) as controller,
        client_of(controller, await administrator(controller, clock)) as client,
        served(tmp_path / "vhdx") as url,
    ):
        sent = await begun(client, "/v1/images", name="sent", format="vmdk")
        path = f"/v1/images/{sent['id']}/upload"
        data = (tmp_path / "vmdk").read_bytes()
        for at in range(0, len(data), MIB):
            headers = {"upload-offset": str(at)}
            assert (await client.patch(path, content=data[at : at + MIB], headers=headers)).status_code == 200
        task = await begun(client, f"{path}/finish")
        assert (await ended(client, task))["state"] == "done"
        fetched = await begun(client, "/v1/images/import", name="fetched", format="vhdx", url=url)
        assert (await ended(client, fetched))["state"] == "done"
        for id in (sent["id"], fetched["image"]["id"]):
            image = (await client.get(f"/v1/images/{id}")).json()
            assert (image["state"], image["format"], image["virtual_size_bytes"]) == ("active", "qcow2", 32 * MIB)
            (tmp_path / "made").write_bytes((await client.get(f"/v1/images/{id}/data")).content)
            qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp_path / "made", tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == content
        await goes_out_and_comes_back(client, sent["id"], tmp_path)
        bad = await begun(client, "/v1/images", name="bad", format="vmdk")
        path = f"/v1/images/{bad['id']}/upload"
        await client.patch(path, content=vmdk_descriptor('RW 14 FLAT "/etc/shadow" 0'), headers={"upload-offset": "0"})
        refused = await ended(client, await begun(client, f"{path}/finish"))
        assert (refused["state"], refused["cause"]["code"]) == ("undone", "invalid")
        await controller.housekeeping.once()
    assert not list((tmp_path / "controller" / "image-exports").iterdir())
    kept = sorted(each.name for each in (tmp_path / "controller" / "images").iterdir())
    assert kept == sorted([sent["id"], fetched["image"]["id"], f"{bad['id']}.part"])


async def goes_out_and_comes_back(client: httpx2.AsyncClient, id: str, folder: Path) -> None:
    """The image is the same disk in every format, also after each was taken in again."""
    image = (await client.get(f"/v1/images/{id}")).json()
    (folder / "kept").write_bytes((await client.get(f"/v1/images/{id}/data")).content)
    for format in ("raw", "vmdk", "vhdx"):
        export = await begun(client, "/v1/image-exports", image_id=id, format=format)
        assert (await ended(client, export))["state"] == "done"
        path = f"/v1/image-exports/{export['image_export']['id']}"
        data = (await client.get(f"{path}/data")).content
        (folder / "out").write_bytes(data)
        info = json.loads(qemu_img("info", "--output=json", "-f", format, folder / "out"))
        assert info["virtual-size"] == image["virtual_size_bytes"]
        qemu_img("compare", "-f", "qcow2", "-F", format, folder / "kept", folder / "out")
        again = await begun(client, "/v1/images", name=format, format=format)
        upload = f"/v1/images/{again['id']}/upload"
        await client.patch(upload, content=data, headers={"upload-offset": "0"})
        assert (await ended(client, await begun(client, f"{upload}/finish")))["state"] == "done"
        back = (await client.get(f"/v1/images/{again['id']}")).json()
        (folder / "out").write_bytes((await client.get(f"/v1/images/{again['id']}/data")).content)
        qemu_img("compare", "-f", "qcow2", "-F", back["format"], folder / "kept", folder / "out")
        for made in (path, f"/v1/images/{again['id']}"):
            assert (await client.delete(made)).status_code == 204


async def begun(client: httpx2.AsyncClient, path: str, **wish: str) -> dict[str, Any]:
    answer = await client.post(path, json=wish)
    assert answer.is_success, answer.text
    return answer.json()


async def ended(client: httpx2.AsyncClient, begun: dict[str, Any]) -> dict[str, Any]:
    """The task when it has ended."""
    seen = ""
    async with asyncio.timeout(WITHIN_S):
        while True:
            answer = await client.get(f"/v1/tasks/{begun['task_id']}?wait_s=5&seen={seen}")
            if answer.json()["state"] in ("done", "undone"):
                return answer.json()
            seen = answer.headers["pileus-seen"]


@asynccontextmanager
async def served(file: Path) -> AsyncGenerator[str]:
    """A web server that knows one file, and its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        data = file.read_bytes()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(data) + data)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/{file.name}"
