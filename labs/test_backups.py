"""Backups of a real guest that runs and writes: what is read and stored, what is made of them, and what damage does."""

import asyncio
from hashlib import sha256
from pathlib import Path

import cache
import pytest
from libvirt_host import LibvirtHost, missing
from test_agent import Bench
from test_snapshots import booted, nobody

from pileus.agent.agent import Agent
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import BackupId, ProjectId, SnapshotId, VolumeId, new_id
from pileus.kernel.units import MIB
from pileus.link.backups import BackupObserved, BackupOf, BackupRestore, BackupSpec, VolumeRestore, VolumeToBackUp
from pileus.link.guests import Power
from pileus.link.snapshots import SnapshotRemoval, SnapshotSpec, VolumeOf
from pileus.link.volumes import VolumeBackup, VolumeSpec

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"backup lab: {missing()}")]

SIZE = 128 * MIB
WRITE = "dd if=/dev/urandom of=/dev/vdb bs=1M seek={mib} count={count} conv=notrunc 2>/dev/null; sync; echo written"
WRITTEN = 32
"""MiB of it in which there may be something."""
SUM = f"echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vdb bs=1M count={WRITTEN} 2>/dev/null | sha256sum"


@pytest.fixture
def bench(host: LibvirtHost, tmp_path: Path) -> Bench:
    return Bench(host, tmp_path / new_id())


class Vault:
    """Backups of one guest's volumes."""

    def __init__(self, agent: Agent, project: ProjectId, root: VolumeId, data: VolumeId) -> None:
        self._agent = agent
        self._project = project
        self.data = data
        self._volumes = (root, data)

    async def back_up(self, since: BackupId | None = None) -> BackupObserved:
        id = BackupId(new_id())
        kept = SnapshotSpec(id=SnapshotId(id), volumes=tuple(VolumeOf(id=each) for each in self._volumes))
        await self._agent.ensure_snapshot(kept, nobody)
        volumes = tuple(VolumeToBackUp(id=each, since=since) for each in self._volumes)
        spec = BackupSpec(id=id, place="vault", project=self._project, volumes=volumes)
        observed = await self._agent.ensure_backup(spec, nobody)
        if since is not None:
            removal = SnapshotRemoval(id=SnapshotId(since), volumes=kept.volumes, later=True)
            await self._agent.remove_snapshot(removal, nobody)
        return observed

    async def restored(self, id: BackupId) -> Path:
        """A new volume of what a backup holds of the data."""
        spec = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=SIZE, backup=self._of(id))
        await self._agent.ensure_volume(spec, nobody)
        return Path(spec.id, "disk.raw")

    async def back_to(self, id: BackupId) -> None:
        one = VolumeRestore(volume=VolumeOf(id=self.data), backup=self._of(id))
        wish = BackupRestore(to=new_id(), volumes=(one,))
        await self._agent.prepare_restore(wish, nobody)
        try:
            await self._agent.exchange_restored(wish)
        except Conflict:
            await self._agent.drop_restore(wish)
            raise

    def named(self, id: BackupId) -> BackupOf:
        return BackupOf(id=id, place="vault", project=self._project)

    def _of(self, id: BackupId) -> VolumeBackup:
        return VolumeBackup(id=id, place="vault", project=self._project, volume=self.data)


async def test_a_running_guest_is_backed_up_by_what_it_writes_and_has_it_back(bench: Bench) -> None:
    image = await asyncio.to_thread(cache.mini)
    async with bench.agent() as agent, booted(bench, agent, image.path) as (subject, terminal):
        vault = Vault(agent, subject.spec.project, subject.root, subject.data)

        def sum_of(disk: Path) -> str:
            content = (bench.pool / "volumes" / disk).read_bytes()
            assert len(content) == SIZE
            assert not any(content[WRITTEN * MIB :])
            return sha256(content[: WRITTEN * MIB]).hexdigest()

        # All of it, then what was written since, while it runs and writes.
        await terminal.answers(WRITE.format(mib=0, count=24))
        first_sum = await terminal.answers(SUM)
        first = await vault.back_up()
        await terminal.answers(WRITE.format(mib=8, count=4))
        second_sum = await terminal.answers(SUM)
        second = await vault.back_up(first.id)
        await terminal.answers(WRITE.format(mib=30, count=2))
        print(f"full: {first}; incremental: {second}")
        assert set(second.compared) == {subject.root, subject.data}
        assert 4 * MIB <= second.read_bytes < first.read_bytes / 3
        assert 4 * MIB <= second.stored_bytes < 8 * MIB
        assert subject.files == {"disk.raw", f"{second.id}.qcow2"}

        # Both as new volumes, while it runs; then in place.
        assert sum_of(await vault.restored(first.id)) in first_sum
        assert sum_of(await vault.restored(second.id)) in second_sum
        with pytest.raises(Conflict, match="runs"):
            await vault.back_to(first.id)
        await agent.ensure_guest(subject.later(Power.STOPPED), nobody)
        await vault.back_to(first.id)
        assert subject.files == {"disk.raw"}
        assert sum_of(Path(subject.data, "disk.raw")) in first_sum

        # One flipped bit of what both need.
        assert not (await agent.check_backup(vault.named(second.id), nobody)).damaged
        chunks = [each for each in bench.vault.glob("*/chunks/*/*") if each.stat().st_size > MIB // 2]
        oldest = min(chunks, key=lambda each: each.stat().st_mtime_ns)
        harmed = bytearray(oldest.read_bytes())
        harmed[len(harmed) // 2] ^= 1
        oldest.write_bytes(harmed)
        checked = await agent.check_backup(vault.named(first.id), nobody)
        assert checked.damaged
        assert checked.others == (second.id,)
        for id in (first.id, second.id):
            await agent.remove_backup(vault.named(id))
        assert not list(bench.vault.glob("*/chunks/*/*"))
