"""Volumes that move from one storage pool to another: with what is in them, and whatever happens meanwhile."""

import asyncio
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import structs

from pileus.agent.agent import Agent
from pileus.agent.moving import PATIENCE
from pileus.agent.storage import directory_moving
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.simulated import SimulatedStorage
from pileus.kernel.errors import Conflict, NotFound, Stale, Unavailable
from pileus.kernel.ids import SnapshotId, StoragePoolId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import GIB, KIB, MIB
from pileus.link.guests import Power
from pileus.link.moves import VolumeMove
from pileus.link.snapshots import SnapshotRemoval, SnapshotSpec, VolumeOf
from pileus.link.storagepools import DirectoryBacking, StoragePools, StoragePoolSpec
from pileus.link.volumes import VolumeCopy, VolumeRemoval, VolumeSpec
from pileus.testing.contracts.moving import MovingContract
from pileus.testing.links import until

from .conftest import HostBench, a_guest, a_volume, later

needs_qemu = pytest.mark.skipif(
    not all(shutil.which(each) for each in ("qemu-img", "qemu-io")), reason="qemu-img and qemu-io are not installed"
)


class TestSimulatedMoving(MovingContract):
    @pytest.fixture
    def pool(self) -> SimulatedStorage:
        return SimulatedStorage()

    @pytest.fixture
    def other(self) -> SimulatedStorage:
        return SimulatedStorage(root="/simulated/other")


@needs_qemu
class TestDirectoryMoving(MovingContract):
    @pytest.fixture
    def pool(self, tmp_path: Path) -> DirectoryPool:
        return DirectoryPool.open(tmp_path / "pool")

    @pytest.fixture
    def other(self, tmp_path: Path) -> DirectoryPool:
        return DirectoryPool.open(tmp_path / "other")

    async def test_what_was_written_and_what_was_kept_is_in_the_copy_which_is_as_sparse(
        self, pool: DirectoryPool, other: DirectoryPool, tmp_path: Path
    ) -> None:
        made = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=64 * MIB)
        await pool.ensure(made, nobody)
        await write(pool, made.id, 1, MIB)
        snapshot = await self.kept(pool, made.id)
        await write(pool, made.id, 2, MIB)
        await write(pool, made.id, 3, 32 * MIB)
        await other.moving.receive(made.id, await pool.moving.contents(made.id), nobody)
        await pool.remove(made.id)
        assert not list((tmp_path / "pool" / "volumes").iterdir())
        assert await read(other, made.id, MIB) == 2
        assert await read(other, made.id, 32 * MIB) == 3
        was = structs.replace(made, id=VolumeId(new_id()), copy_of=VolumeCopy(volume=made.id, snapshot=snapshot))
        await other.ensure(was, nobody)
        assert await read(other, was.id, MIB) == 1
        assert (await other.list())[made.id].allocated_bytes < 2 * MIB

    async def test_a_pool_without_room_refuses_with_what_is_missing_and_nothing_is_left(
        self, pool: DirectoryPool, other: DirectoryPool, tmp_path: Path
    ) -> None:
        made = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=64 * MIB)
        await pool.ensure(made, nobody)
        too_large = structs.replace(await pool.moving.contents(made.id), size_bytes=1024**6)
        with pytest.raises(Conflict, match=r"has room for .* more, 1.* are needed"):
            await other.moving.receive(made.id, too_large, nobody)
        assert not any(each.is_file() for each in (tmp_path / "other").rglob("*"))

    async def test_nothing_is_left_of_a_copy_that_is_broken_off(
        self, pool: DirectoryPool, other: DirectoryPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=MIB)
        await pool.ensure(made, nobody)
        contents = await pool.moving.contents(made.id)

        def full(*_: object) -> None:
            raise OSError(28, "no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(directory_moving, "clone", full)
            with pytest.raises(Conflict, match="full"):
                await other.moving.receive(made.id, contents, nobody)
        assert not any(each.is_file() for each in (tmp_path / "other").rglob("*"))

    async def test_a_layer_that_lies_on_another_file_is_not_given(
        self, pool: DirectoryPool, tmp_path: Path, volume: VolumeId
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_bytes(os.urandom(MIB))
        top = Path((await pool.source(volume)).path)
        await run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(top), timeout_s=60)
        with pytest.raises(Conflict, match="not what was made"):
            await pool.moving.contents(volume)


async def write(pool: DirectoryPool, id: VolumeId, byte: int, at: int) -> None:
    source = await pool.source(id)
    await run("qemu-io", "-f", source.format, "-c", f"write -P {byte} {at} {64 * KIB}", source.path, timeout_s=60)


async def read(pool: DirectoryPool, id: VolumeId, at: int) -> int:
    """What byte all of 64 KiB are."""
    source = await pool.source(id)
    for byte in range(5):
        command = f"read -P {byte} {at} {64 * KIB}"
        said = await run("qemu-io", "-f", source.format, "-c", command, source.path, timeout_s=60, accept=(0, 1))
        if "verification failed" not in said:
            return byte
    raise AssertionError("it is none of these")


class PowerCutError(BaseException):
    """The process dies."""


class Scene:
    """A volume in a pool of a host that has another, and a guest that may have it."""

    def __init__(self, bench: HostBench) -> None:
        self.bench = bench
        self.volume = a_volume()
        self.fast = StoragePoolSpec(id=StoragePoolId(new_id()), name="fast", backing=DirectoryBacking(path="/srv/fast"))
        self.wish = VolumeMove(id=self.volume.id, generation=2, pool="local", to="fast")
        self.guest = a_guest(self.volume, nics=0)

    async def made(self, *, power: Power | None = None) -> Agent:
        agent = await self.next_agent()
        await agent.ensure_volume(self.volume, self.bench.tell)
        if power is not None:
            self.guest = structs.replace(self.guest, power=power)
            await agent.ensure_guest(self.guest, self.bench.tell)
        return agent

    async def next_agent(self) -> Agent:
        agent = self.bench.agent()
        await agent.serve_pools(StoragePools(pools=(self.fast,)))
        return agent

    @property
    def places(self) -> set[str]:
        """The pools that have anything of the volume."""
        there = self.bench.backings.pools[self.fast.id]
        pools = {"local": self.bench.storage, "fast": there}
        return {name for name, pool in pools.items() if self.volume.id in pool.volumes}

    @property
    def written(self) -> str:
        return self.bench.hypervisor.guests[self.guest.id].written[self.volume.id]


@pytest.fixture
def scene(bench: HostBench) -> Scene:
    return Scene(bench)


@pytest.mark.parametrize("power", [None, Power.STOPPED, Power.RUNNING, Power.PAUSED])
async def test_a_volume_is_in_one_pool_before_and_in_the_other_afterwards(scene: Scene, power: Power | None) -> None:
    agent = await scene.made(power=power)
    for _ in range(2):
        await agent.copy_volume(scene.wish, scene.bench.tell)
        assert [each.size_bytes for each in (await agent.inventory()).volumes] == [GIB]
    for _ in range(2):
        await agent.switch_volume(scene.wish, scene.bench.tell)
        assert scene.places == {"fast"}
    assert "copying" in {each.step for each in scene.bench.told}
    if power in {Power.RUNNING, Power.PAUSED}:
        assert scene.written.startswith(f"/simulated/{scene.fast.id}/")
    # What is late is not believed, and makes nothing where the volume was.
    for late in (scene.volume, structs.replace(scene.volume, generation=2)):
        with pytest.raises(Stale):
            await agent.ensure_volume(late, scene.bench.tell)
    with pytest.raises(Stale):
        await agent.undo_move(scene.wish)
    assert scene.places == {"fast"}


@pytest.mark.parametrize("power", [None, Power.STOPPED, Power.RUNNING])
async def test_a_move_that_is_taken_back_leaves_nothing_and_does_not_come_late(
    scene: Scene, power: Power | None
) -> None:
    agent = await scene.made(power=power)
    await agent.copy_volume(scene.wish, scene.bench.tell)
    assert scene.places == {"local", "fast"}
    for _ in range(2):
        await agent.undo_move(scene.wish)
        assert scene.places == {"local"}
    assert not scene.bench.hypervisor.mirrors.to
    with pytest.raises(Stale):
        await agent.copy_volume(scene.wish, scene.bench.tell)
    again = structs.replace(scene.wish, generation=3)
    await agent.copy_volume(again, scene.bench.tell)
    await agent.switch_volume(again, scene.bench.tell)
    assert scene.places == {"fast"}


@pytest.mark.parametrize("waits", [False, True])
async def test_a_copy_that_is_under_way_ends_when_it_is_taken_back(scene: Scene, waits: bool) -> None:
    agent, calls = await scene.made(), list[str]()
    scene.bench.faults.hold("moving.receive")
    scene.bench.faults.calls = calls
    copying = asyncio.create_task(agent.copy_volume(scene.wish, scene.bench.tell))
    await until(lambda: not waits or "moving.receive" in calls)
    await asyncio.sleep(0)
    await agent.undo_move(scene.wish)
    with pytest.raises((Conflict, Stale)):
        await copying
    assert scene.places == {"local"}


async def test_a_guest_that_ends_while_its_disk_is_copied_has_it_where_it_was(scene: Scene) -> None:
    agent = await scene.made(power=Power.RUNNING)
    scene.bench.faults.fail("hypervisor.mirror", Conflict("the guest ended"))
    with pytest.raises(Conflict):
        await agent.copy_volume(scene.wish, scene.bench.tell)
    assert scene.places == {"local"}
    scene.bench.hypervisor.crash(scene.guest.id)
    await agent.reconcile()
    assert scene.written == f"/simulated/{scene.volume.id}"


async def test_a_mirror_that_was_lost_with_its_guest_is_made_again_before_the_volume_is_switched(scene: Scene) -> None:
    agent = await scene.made(power=Power.RUNNING)
    await agent.copy_volume(scene.wish, scene.bench.tell)
    scene.bench.hypervisor.crash(scene.guest.id)
    await agent.reconcile()
    assert scene.written == f"/simulated/{scene.volume.id}"
    await agent.switch_volume(scene.wish, scene.bench.tell)
    assert scene.places == {"fast"}
    assert scene.written.startswith(f"/simulated/{scene.fast.id}/")


@pytest.mark.parametrize("goes_over", [False, True])
async def test_a_guest_that_dies_with_its_agent_while_it_goes_over_is_started_on_what_it_wrote_last(
    scene: Scene, goes_over: bool
) -> None:
    agent = await scene.made(power=Power.RUNNING)
    await agent.copy_volume(scene.wish, scene.bench.tell)

    moments: list[str] = []

    def die(moment: str) -> None:
        """Before the call has its effect, or behind it."""
        moments.append(moment)
        if moments.count("hypervisor.go_over") == 1 + goes_over:
            raise PowerCutError

    scene.bench.faults.watch = die
    with pytest.raises(PowerCutError):
        await agent.switch_volume(scene.wish, scene.bench.tell)
    scene.bench.faults.watch = None
    scene.bench.hypervisor.crash(scene.guest.id)
    agent = await scene.next_agent()
    await agent.reconcile()
    root = f"/simulated/{scene.fast.id}" if goes_over else "/simulated"
    assert scene.written == f"{root}/{scene.volume.id}"
    await agent.switch_volume(scene.wish, scene.bench.tell)
    assert scene.places == {"fast"}


async def test_layers_are_not_merged_while_a_disk_is_mirrored(scene: Scene) -> None:
    agent, volume, snapshot = await scene.made(power=Power.RUNNING), VolumeOf(id=scene.volume.id), SnapshotId(new_id())
    await agent.ensure_snapshot(SnapshotSpec(id=snapshot, volumes=(volume,), guest=scene.guest.id), scene.bench.tell)
    await agent.copy_volume(scene.wish, scene.bench.tell)
    calls = scene.bench.faults.calls = list[str]()
    await agent.remove_snapshot(SnapshotRemoval(id=snapshot, volumes=(volume,)), scene.bench.tell)
    await agent.reconcile()
    assert "hypervisor.merge" not in calls
    await agent.undo_move(scene.wish)
    await agent.reconcile()
    assert "hypervisor.merge" in calls


async def test_a_volume_at_rest_is_used_by_nobody_between_its_copy_and_its_switch(scene: Scene) -> None:
    agent = await scene.made(power=Power.STOPPED)
    await agent.copy_volume(scene.wish, scene.bench.tell)
    with pytest.raises(Unavailable, match="being moved"):
        await agent.ensure_guest(later(scene.guest, power=Power.RUNNING), scene.bench.tell)
    await agent.switch_volume(scene.wish, scene.bench.tell)
    await agent.reconcile()
    assert scene.written.startswith(f"/simulated/{scene.fast.id}/")


async def test_a_copy_that_nobody_asks_for_any_more_is_removed(scene: Scene) -> None:
    await (await scene.made(power=Power.RUNNING)).copy_volume(scene.wish, scene.bench.tell)
    agent = await scene.next_agent()
    await agent.reconcile()
    assert scene.places == {"local", "fast"}
    scene.bench.clock.advance(PATIENCE + timedelta(seconds=1))
    await agent.reconcile()
    assert scene.places == {"local"}
    assert not scene.bench.hypervisor.mirrors.to
    # Whoever asks after all is served.
    await agent.switch_volume(scene.wish, scene.bench.tell)
    assert scene.places == {"fast"}


async def test_what_is_left_in_a_pool_that_is_away_goes_when_that_is_back(scene: Scene) -> None:
    agent = await scene.made()
    back = VolumeMove(id=scene.volume.id, generation=3, pool="fast", to="local")
    await agent.copy_volume(scene.wish, scene.bench.tell)
    await agent.switch_volume(scene.wish, scene.bench.tell)
    await agent.copy_volume(back, scene.bench.tell)
    scene.bench.backings.away["fast"] = "its disk is gone"
    await agent.switch_volume(back, scene.bench.tell)
    assert scene.places == {"local", "fast"}
    assert [each.generation for each in (await agent.inventory()).volumes] == [1]
    del scene.bench.backings.away["fast"]
    await agent.reconcile()
    assert scene.places == {"local"}


async def test_a_volume_that_is_removed_on_its_way_leaves_nothing_anywhere(scene: Scene) -> None:
    agent = await scene.made()
    await agent.copy_volume(scene.wish, scene.bench.tell)
    await agent.remove_volume(VolumeRemoval(id=scene.volume.id, generation=3, secure=True))
    assert scene.places == set()


async def test_what_is_left_of_a_volume_is_overwritten_if_that_is_wanted(scene: Scene) -> None:
    agent, wish = await scene.made(), structs.replace(scene.wish, secure=True)
    await agent.copy_volume(wish, scene.bench.tell)
    await agent.switch_volume(wish, scene.bench.tell)
    assert scene.bench.storage.wiped == {scene.volume.id}


async def test_what_is_not_there_is_not_moved(scene: Scene) -> None:
    agent = await scene.made()
    for wrong in (
        structs.replace(scene.wish, id=VolumeId(new_id())),
        structs.replace(scene.wish, pool="fast", to="local", id=VolumeId(new_id())),
        structs.replace(scene.wish, to="nowhere"),
    ):
        with pytest.raises(NotFound):
            await agent.copy_volume(wrong, scene.bench.tell)
    assert scene.places == {"local"}


def nobody(_: float) -> None:
    """Nobody wants to know how far it is."""
