"""Images that are made of volumes: packed, sent and forgotten, whatever is in the way."""

import asyncio
import shutil
from pathlib import Path

import pytest
from msgspec import structs

from pileus.agent.packing import Read
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.port import StoragePool, Told
from pileus.agent.storage.simulated import SimulatedStorage
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import ImageId, SnapshotId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import KIB, MIB
from pileus.link.images import ImageForget, ImagePack, ImageSend
from pileus.link.volumes import VolumeSpec
from pileus.testing.contracts.packing import PackingContract
from pileus.testing.links import until

from .conftest import HostBench, a_volume

needs_qemu = pytest.mark.skipif(
    not all(shutil.which(each) for each in ("qemu-img", "qemu-io")), reason="qemu-img and qemu-io are not installed"
)


class TestSimulatedPacking(PackingContract):
    @pytest.fixture
    def pool(self) -> SimulatedStorage:
        return SimulatedStorage()


@needs_qemu
class TestDirectoryPacking(PackingContract):
    @pytest.fixture
    def pool(self, tmp_path: Path) -> DirectoryPool:
        return DirectoryPool.open(tmp_path / "pool")


async def snapshot_of(pool: StoragePool, volume: VolumeId) -> SnapshotId:
    snapshot = SnapshotId(new_id())
    await pool.layering.lay(volume, snapshot)
    await pool.layering.confirm(volume, snapshot)
    return snapshot


@needs_qemu
async def test_an_image_holds_what_the_layers_held_and_nothing_of_later(tmp_path: Path) -> None:
    pool = DirectoryPool.open(tmp_path / "pool")
    volume = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=8 * MIB)
    await pool.ensure(volume, nobody)
    await written(pool, volume.id, 0, 0x11)
    await snapshot_of(pool, volume.id)
    await written(pool, volume.id, 64 * KIB, 0x22)
    moment = await snapshot_of(pool, volume.id)
    await written(pool, volume.id, 0, 0x33)
    image = ImageId(new_id())
    packed = await pool.packing.pack(image, volume.id, moment, nobody)
    assert packed.size_bytes < MIB, "it is compressed"
    (tmp_path / "image").write_bytes(b"".join([piece async for piece in pool.packing.read(image, 0)]))
    await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(tmp_path / "image"), str(tmp_path / "raw"))
    content = (tmp_path / "raw").read_bytes()
    assert content == b"\x11" * 64 * KIB + b"\x22" * 64 * KIB + bytes(8 * MIB - 128 * KIB)


@needs_qemu
async def test_a_layer_that_points_elsewhere_is_not_packed(tmp_path: Path) -> None:
    pool = DirectoryPool.open(tmp_path / "pool")
    volume = a_volume()
    await pool.ensure(volume, nobody)
    await snapshot_of(pool, volume.id)
    moment = await snapshot_of(pool, volume.id)
    layers = await pool.layering.layers(volume.id)
    frozen = (await pool.layering.source(volume.id, layers.of(moment))).path
    await run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", frozen)
    with pytest.raises(Conflict, match="not what was made"):
        await pool.packing.pack(ImageId(new_id()), volume.id, moment, nobody)
    assert await pool.packing.packed() == {}
    assert not any((tmp_path / "pool/scratch").iterdir())


async def test_what_an_agent_has_packed_the_next_one_sends(bench: HostBench) -> None:
    agent, volume, image = bench.agent(), a_volume(), ImageId(new_id())
    await agent.ensure_volume(volume, bench.tell)
    moment = await snapshot_of(bench.storage, volume.id)
    wish = ImagePack(image=image, volume=volume.id, snapshot=moment)
    packed = await agent.packing.pack(wish, bench.tell)
    agent = bench.agent()
    assert await agent.packing.pack(wish, bench.tell) == packed
    await agent.packing.send(ImageSend(image=image, url="/there"), bench.tell)
    assert len(bench.sent["/there"]) == packed.size_bytes
    assert bench.told[-1].step == "sending"
    await agent.packing.forget(ImageForget(image=image))
    with pytest.raises(NotFound):
        await agent.packing.send(ImageSend(image=image, url="/there"), bench.tell)


async def test_what_is_forgotten_is_neither_packed_nor_sent_any_further(bench: HostBench) -> None:
    agent, volume, image = bench.agent(), a_volume(), ImageId(new_id())
    await agent.ensure_volume(volume, bench.tell)
    wish = ImagePack(image=image, volume=volume.id, snapshot=await snapshot_of(bench.storage, volume.id))
    bench.faults.hold("packing.pack")
    bench.faults.calls = []
    packing = asyncio.create_task(agent.packing.pack(wish, bench.tell))
    await until(lambda: "packing.pack" in (bench.faults.calls or ()))
    await agent.packing.forget(ImageForget(image=image))
    with pytest.raises(Conflict, match="not wanted"):
        await packing
    bench.faults.mend()
    began = asyncio.Event()

    async def stuck(path: str, size_bytes: int, read: Read, told: Told) -> None:
        began.set()
        await asyncio.Event().wait()

    bench.send = stuck
    agent = bench.agent()
    await agent.packing.pack(wish, bench.tell)
    sending = asyncio.create_task(agent.packing.send(ImageSend(image=image, url="/there"), bench.tell))
    await began.wait()
    await agent.packing.forget(ImageForget(image=image))
    with pytest.raises(Conflict, match="not wanted"):
        await sending
    assert bench.storage.packing.files == {}


async def test_a_pool_that_is_not_here_is_said(bench: HostBench) -> None:
    agent = bench.agent()
    with pytest.raises(NotFound, match="no storage pool"):
        await agent.packing.forget(ImageForget(image=ImageId(new_id()), pool="far"))
    wish = structs.replace(ImageForget(image=ImageId(new_id())), pool="local")
    await agent.packing.forget(wish)


async def written(pool: DirectoryPool, volume: VolumeId, at: int, byte: int) -> None:
    source = await pool.source(volume)
    await run("qemu-io", "-f", source.format, "-c", f"write -P {byte} {at} 64k", source.path)


def nobody(_: float) -> None:
    """Nobody wants to know."""
