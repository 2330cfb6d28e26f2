"""Storage pools on real mounts: what is served and what is refused, and that the root disk stays out of it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from patience import WITHIN_S

from pileus.agent.agent import Agent, Engines
from pileus.agent.host import Machine, SimulatedHost
from pileus.agent.hypervisor.simulated import SimulatedHypervisor
from pileus.agent.network.simulated import SimulatedNetwork
from pileus.agent.records import AgentRecords
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.mounted import MARKER, MountedFolders
from pileus.kernel.clock import FrozenClock
from pileus.kernel.errors import Conflict, Unavailable
from pileus.kernel.ids import BackupId, ProjectId, SnapshotId, StoragePoolId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import MIB
from pileus.link.backups import BackupSpec, VolumeToBackUp
from pileus.link.messages import Progress
from pileus.link.snapshots import SnapshotSpec, VolumeOf
from pileus.link.storagepools import DirectoryBacking, PoolObserved, StoragePools, StoragePoolSpec
from pileus.link.volumes import VolumeBackup, VolumeSpec

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="storage pools lab: only root mounts file systems"),
]

Mount = Callable[[Path], None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts a disk of 64 MiB; all are gone afterwards."""
    mounted: list[Path] = []

    def mount(at: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "pileus-lab", str(at)], check=True, timeout=WITHIN_S)
        mounted.append(at)

    yield mount
    for at in mounted:
        with suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", "--lazy", str(at)], check=True, timeout=WITHIN_S, stderr=subprocess.DEVNULL)


class Host:
    """A host whose agent comes and goes; its disks and records stay."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.fast, self.slow = folder / "fast", folder / "slow"
        self.fast.mkdir()
        self.slow.mkdir()
        self.agent = self.another()

    def another(self) -> Agent:
        records = AgentRecords(self._folder / "records")
        records.load()
        engines = Engines(
            hypervisor=SimulatedHypervisor(),
            network=SimulatedNetwork(),
            pools={"local": DirectoryPool.open(self._folder / "local")},
            host=SimulatedHost(Machine(name="host-1", vcpus=8, memory_mib=16_384, disk_mib=100_000)),
            fetch=_nothing,
            send=_nothing,
            # Whatever this machine calls its root: the folder of the test stands for it.
            backings=MountedFolders(root=self._folder),
        )
        self.agent = Agent(engines, records, FrozenClock())
        return self.agent

    async def serve(self, *pools: StoragePoolSpec) -> dict[str, PoolObserved]:
        found = await self.agent.serve_pools(StoragePools(pools=pools))
        return {each.name: each for each in found.pools}

    async def make(self, pool: str, size_bytes: int) -> VolumeSpec:
        volume = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=size_bytes, pool=pool)
        await self.agent.ensure_volume(volume, _nobody)
        return volume


async def test_pools_on_two_disks_are_apart_and_one_whose_disk_is_gone_is_not_written_to(
    tmp_path: Path, mount: Mount
) -> None:
    host = Host(tmp_path)
    fast, slow = _pool("fast", host.fast), _pool("slow", host.slow)
    mount(host.fast)
    found = await host.serve(fast, slow)
    assert found["slow"].reason == f"{host.slow} is on the root file system: mount a disk there"
    assert found["fast"].use is not None
    assert found["fast"].use.total_bytes == 64 * MIB
    mount(host.slow)
    await host.agent.reconcile()
    in_fast, in_slow = await host.make("fast", 16 * MIB), await host.make("slow", 32 * MIB)
    disk = host.fast / "volumes" / in_fast.id / "disk.raw"
    disk.write_bytes(b"\x2a" * MIB + disk.read_bytes()[MIB:])
    assert not (host.fast / "volumes" / in_slow.id).exists()

    await run("umount", str(host.fast), timeout_s=WITHIN_S)
    with pytest.raises(Unavailable, match="is its disk mounted"):
        await host.make("fast", MIB)
    found = {each.name: each for each in (await host.another().hello()).pools}
    assert found["fast"].reason == f"{host.fast} has lost its marker {MARKER}: is its disk mounted?"
    assert list(host.fast.iterdir()) == [], "the root disk was written to"

    mount(host.fast)
    await host.agent.reconcile()
    with pytest.raises(Unavailable):
        await host.make("fast", MIB)
    assert list(host.fast.iterdir()) == [], "a strange disk was written to"


async def test_a_volume_is_backed_up_to_another_disk_and_restored_to_the_disk_that_it_was_on(
    tmp_path: Path, mount: Mount
) -> None:
    host = Host(tmp_path)
    mount(host.fast)
    mount(host.slow)
    await host.serve(_pool("fast", host.fast), _pool("slow", host.slow))
    volume, project, id = await host.make("fast", 16 * MIB), ProjectId(new_id()), BackupId(new_id())
    content = os.urandom(2 * MIB) + bytes(14 * MIB)
    (host.fast / "volumes" / volume.id / "disk.raw").write_bytes(content)
    kept = SnapshotSpec(id=SnapshotId(id), volumes=(VolumeOf(id=volume.id, pool="fast"),))
    await host.agent.ensure_snapshot(kept, _nobody)
    of = VolumeToBackUp(id=volume.id, pool="fast", since=None)
    await host.agent.ensure_backup(BackupSpec(id=id, place="slow", project=project, volumes=(of,)), _nobody)
    held = VolumeBackup(id=id, place="slow", project=project, volume=volume.id)
    again = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=16 * MIB, pool="fast", backup=held)
    await host.agent.ensure_volume(again, _nobody)
    assert (host.fast / "volumes" / again.id / "disk.raw").read_bytes() == content
    assert not (host.slow / "volumes" / again.id).exists()
    assert not (tmp_path / "local" / "volumes" / again.id).exists()


async def test_a_pool_promises_as_much_as_it_may_and_refuses_when_it_is_really_full(
    tmp_path: Path, mount: Mount
) -> None:
    host = Host(tmp_path)
    mount(host.fast)
    pool = _pool("fast", host.fast)
    await host.serve(pool)
    volume = await host.make("fast", 48 * MIB)
    with pytest.raises(Conflict, match=r"has room for [\d.]+ MiB more, 48 MiB are needed"):
        await host.make("fast", 48 * MIB)
    found = (await host.serve(structs.replace(pool, overcommit=3.0)))["fast"]
    assert found.use is not None
    assert found.use.promised_bytes == 48 * MIB
    await host.make("fast", 48 * MIB)
    with (host.fast / "volumes" / volume.id / "disk.raw").open("r+b") as disk:
        for _ in range(47):
            disk.write(b"\x2a" * MIB)
    (host.fast / "strange").write_bytes(b"\x2a" * 15 * MIB)
    with pytest.raises(Conflict, match=r"has [\d.]+ MiB of 64 MiB really free, of which 5% are kept"):
        await host.make("fast", MIB)


def _pool(name: str, at: Path) -> StoragePoolSpec:
    return StoragePoolSpec(id=StoragePoolId(new_id()), name=name, backing=DirectoryBacking(path=str(at)))


def _nothing(*_: object) -> Any:
    raise AssertionError("nothing is fetched or sent here")


def _nobody(_: Progress) -> None:
    """Nobody wants to know how far it is."""
