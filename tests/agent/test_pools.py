"""Storage pools that come and go while the agent runs."""

from pathlib import Path

import pytest
from msgspec import structs
from tests.agent.conftest import HostBench, a_volume

from pileus.agent.agent import Agent
from pileus.agent.storage.mounted import MARKER, MountedFolders
from pileus.kernel.errors import NotFound, PileusError, Unavailable
from pileus.kernel.ids import StoragePoolId, new_id
from pileus.kernel.units import GIB
from pileus.link.storagepools import DirectoryBacking, PoolObserved, StoragePools, StoragePoolSpec
from pileus.link.volumes import VolumeRemoval


def a_pool(path: Path | str = "/srv/fast", *, name: str = "fast", overcommit: float = 1.0) -> StoragePoolSpec:
    backing = DirectoryBacking(path=str(path))
    return StoragePoolSpec(id=StoragePoolId(new_id()), name=name, backing=backing, overcommit=overcommit)


async def served(agent: Agent, *pools: StoragePoolSpec) -> dict[str, PoolObserved]:
    found = await agent.serve_pools(StoragePools(pools=pools))
    return {each.name: each for each in found.pools}


async def test_a_pool_is_served_from_when_it_is_told_of_also_by_the_next_agent(bench: HostBench) -> None:
    agent, pool, volume = bench.agent(), a_pool(), structs.replace(a_volume(), pool="fast")
    with pytest.raises(NotFound):
        await agent.ensure_volume(volume, bench.tell)
    found = await served(agent, pool)
    assert (found["fast"].id, found["fast"].reason) == (pool.id, "")
    await agent.ensure_volume(volume, bench.tell)
    assert set(bench.backings.pools[pool.id].volumes) == {volume.id}
    assert volume.id not in bench.storage.volumes
    agent = bench.agent()
    await agent.reconcile()
    await agent.ensure_volume(structs.replace(volume, generation=2, size_bytes=2 * GIB), bench.tell)
    assert bench.backings.pools[pool.id].volumes[volume.id].size_bytes == 2 * GIB


async def test_a_pool_that_is_away_is_told_and_refuses_until_it_is_back(bench: HostBench) -> None:
    agent, pool = bench.agent(), a_pool()
    bench.backings.away["fast"] = "no disk is mounted"
    found = await served(agent, pool)
    assert (found["fast"].reason, found["fast"].use) == ("no disk is mounted", None)
    with pytest.raises(Unavailable, match="no disk is mounted"):
        await agent.ensure_volume(structs.replace(a_volume(), pool="fast"), bench.tell)
    del bench.backings.away["fast"]
    await agent.reconcile()
    await agent.ensure_volume(structs.replace(a_volume(), pool="fast"), bench.tell)
    bench.backings.away["fast"] = "the disk was pulled"
    with pytest.raises(Unavailable, match="the disk was pulled"):
        await agent.ensure_volume(structs.replace(a_volume(), pool="fast"), bench.tell)


async def test_a_pool_that_is_let_go_with_volumes_in_it_stays_until_they_are_gone(bench: HostBench) -> None:
    agent, pool, volume = bench.agent(), a_pool(), structs.replace(a_volume(), pool="fast")
    await served(agent, pool)
    await agent.ensure_volume(volume, bench.tell)
    assert "fast" in await served(agent)
    await agent.remove_volume(VolumeRemoval(id=volume.id, generation=1, pool="fast"))
    assert set(await served(agent)) == {"local"}
    assert not bench.backings.pools


async def test_what_a_pool_may_promise_counts_at_once_and_after_a_restart(bench: HostBench) -> None:
    agent, pool = bench.agent(), a_pool(overcommit=2.0)
    total = (await served(agent, pool))["fast"].use
    assert total is not None
    large = structs.replace(a_volume(), pool="fast", size_bytes=total.total_bytes * 2)
    again = bench.agent()
    await again.reconcile()
    await again.ensure_volume(large, bench.tell)
    with pytest.raises(PileusError, match="no room"):
        await again.ensure_volume(structs.replace(a_volume(), pool="fast"), bench.tell)


# The folders of real hosts, with another root than this machine's, so that any folder may be a disk.


@pytest.fixture
def folders() -> MountedFolders:
    return MountedFolders(root=Path("/proc"))


async def test_a_folder_on_the_root_file_system_is_no_pool(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="root file system"):
        await MountedFolders(root=tmp_path).open(a_pool(tmp_path), accepted=False)
    assert list(tmp_path.iterdir()) == []


async def test_a_disk_is_marked_once_and_is_not_written_to_without_its_mark(
    folders: MountedFolders, tmp_path: Path
) -> None:
    spec = a_pool(tmp_path)
    (tmp_path / "lost+found").mkdir()
    await folders.open(spec, accepted=False)
    assert folders.missing(spec) == ""
    await folders.open(spec, accepted=True)
    (tmp_path / MARKER).unlink()
    assert "is its disk mounted?" in folders.missing(spec)
    with pytest.raises(Unavailable, match="is its disk mounted"):
        await folders.open(spec, accepted=True)


async def test_a_disk_of_another_pool_is_not_taken(folders: MountedFolders, tmp_path: Path) -> None:
    await folders.open(a_pool(tmp_path, name="slow"), accepted=False)
    with pytest.raises(Unavailable, match="belongs to another storage pool, slow"):
        await folders.open(a_pool(tmp_path), accepted=False)


async def test_a_folder_with_files_of_others_is_not_taken(folders: MountedFolders, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(Unavailable, match=r"is not empty: it has thesis\.txt"):
        await folders.open(a_pool(tmp_path), accepted=False)


async def test_a_folder_that_is_not_there_is_no_pool_and_is_not_made(folders: MountedFolders, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="there is no folder"):
        await folders.open(a_pool(tmp_path / "fast"), accepted=False)
    assert list(tmp_path.iterdir()) == []


async def test_a_disk_that_is_let_go_is_as_it_was_and_can_be_of_another_pool(
    folders: MountedFolders, tmp_path: Path
) -> None:
    spec = a_pool(tmp_path)
    await folders.open(spec, accepted=False)
    await folders.retire(spec)
    assert list(tmp_path.iterdir()) == []
    await folders.open(a_pool(tmp_path, name="other"), accepted=False)
    await folders.retire(spec)
    assert (tmp_path / MARKER).exists()
