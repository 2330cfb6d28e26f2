"""Where the doctor looks for volumes: in the pools that the agent is configured with, and in those that it was told."""

from pathlib import Path

from pileus.agent.records import AgentRecords, PoolRecord
from pileus.agent.storage.mounted import MountedFolders
from pileus.doctor.facts import Pool
from pileus.doctor.gather.pools import pools
from pileus.kernel.ids import StoragePoolId, new_id
from pileus.link.storagepools import DirectoryBacking, StoragePoolSpec


def spec(folder: Path) -> StoragePoolSpec:
    folder.mkdir()
    return StoragePoolSpec(id=StoragePoolId(new_id()), name=folder.name, backing=DirectoryBacking(path=str(folder)))


async def served(agent: Path, spec: StoragePoolSpec, elsewhere: Path, *, accepted: bool = True) -> None:
    """Have the agent of this folder serve a pool as it does; `elsewhere` is on the file system that it is kept off."""
    if accepted:
        await MountedFolders(elsewhere).open(spec, accepted=False)
    records = AgentRecords(agent / "records")
    records.load()
    await records.pools.put(spec.id, PoolRecord(spec=spec, accepted=accepted))


async def test_a_pool_that_the_agent_was_told_to_serve_is_one_of_the_hosts(tmp_path: Path) -> None:
    fast = spec(tmp_path / "fast")
    await served(tmp_path / "agent", fast, Path("/proc"))
    assert pools(tmp_path / "agent", None) == (Pool(name="fast", folder=tmp_path / "fast"),)


async def test_a_pool_whose_disk_is_not_mounted_is_said_to_be_away(tmp_path: Path) -> None:
    fast = spec(tmp_path / "fast")
    await served(tmp_path / "agent", fast, Path("/proc"))
    (tmp_path / "fast" / "pileus-pool.json").unlink()
    (found,) = pools(tmp_path / "agent", None)
    assert "lost its marker" in found.away


async def test_a_pool_that_never_was_on_this_host_is_none_of_its(tmp_path: Path) -> None:
    await served(tmp_path / "agent", spec(tmp_path / "far"), Path("/proc"), accepted=False)
    assert pools(tmp_path / "agent", None) == ()


async def test_a_record_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    await served(tmp_path / "agent", spec(tmp_path / "fast"), Path("/proc"))
    (tmp_path / "agent" / "records" / "pools" / "0.json").write_bytes(b"{")
    assert [each.name for each in pools(tmp_path / "agent", None)] == ["fast"]
