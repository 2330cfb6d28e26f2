"""What is left when everything is removed."""

from pathlib import Path

from pileus.agent.records import AgentRecords, PoolRecord
from pileus.installation.down import kept_elsewhere
from pileus.installation.places import Places
from pileus.kernel.ids import StoragePoolId, new_id
from pileus.link.storagepools import DirectoryBacking, StoragePoolSpec


async def test_what_storage_pools_have_on_disks_of_their_own_is_known_to_be_left(tmp_path: Path) -> None:
    places = Places.of(tmp_path / "data")
    records = AgentRecords(places.agent / "records")
    records.load()
    for path, accepted in (("/srv/fast", True), ("/srv/never-here", False), (str(tmp_path / "data" / "inside"), True)):
        spec = StoragePoolSpec(id=StoragePoolId(new_id()), name="pool", backing=DirectoryBacking(path=path))
        await records.pools.put(spec.id, PoolRecord(spec=spec, accepted=accepted))
    assert kept_elsewhere(places) == [Path("/srv/fast")]
