"""What a backup reads and writes of a volume, against a copy of the whole by qemu-img in the same run.

    PYTHONPATH=src python benchmarks/backups.py [--mib 512] [--folder /var/tmp]

A volume is filled with blocks of which half are random and half are text. Then it is backed up, changed, and backed up
again: by 16 MiB of one byte at one place, and by 64 KiB at 64 places in what is random, as a database does it. It needs
qemu-img and qemu-io.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from pileus.agent.agent import Agent, Engines
from pileus.agent.host import Machine, SimulatedHost
from pileus.agent.hypervisor.simulated import SimulatedHypervisor
from pileus.agent.network.simulated import SimulatedNetwork
from pileus.agent.packing import Read
from pileus.agent.records import AgentRecords
from pileus.agent.storage.directory import DirectoryPool
from pileus.agent.storage.port import Told
from pileus.kernel.clock import SystemClock
from pileus.kernel.errors import Unavailable
from pileus.kernel.ids import BackupId, ProjectId, SnapshotId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import KIB, MIB
from pileus.link.backups import BackupObserved, BackupOf, BackupSpec, VolumeToBackUp
from pileus.link.images import ImageSource
from pileus.link.messages import Progress
from pileus.link.snapshots import SnapshotRemoval, SnapshotSpec, VolumeOf
from pileus.link.volumes import VolumeBackup, VolumeSpec

PLACES = 64


class Bench:
    """An agent without guests, with one volume and a pool for backups."""

    def __init__(self, folder: Path, size_mib: int) -> None:
        self.pool = DirectoryPool.open(folder / "pool")
        self.vault = folder / "vault"
        self.size_mib = size_mib
        self.volume, self.project = VolumeId(new_id()), ProjectId(new_id())
        engines = Engines(
            hypervisor=SimulatedHypervisor(),
            network=SimulatedNetwork(),
            pools={"local": self.pool, "vault": DirectoryPool.open(self.vault)},
            host=SimulatedHost(Machine(name="host-1", vcpus=8, memory_mib=16_384, disk_mib=100_000)),
            fetch=_no_images,
            send=_nowhere,
        )
        self.agent = Agent(engines, AgentRecords(None), SystemClock())

    async def filled(self) -> None:
        """Half of it with what can be compressed."""
        volume = VolumeSpec(id=self.volume, generation=1, size_bytes=self.size_mib * MIB)
        await self.agent.ensure_volume(volume, _nobody)
        path = Path((await self.pool.source(self.volume)).path)
        await asyncio.to_thread(_fill, path, self.size_mib)

    async def write(self, at: int, length: int) -> None:
        source = await self.pool.source(self.volume)
        await run("qemu-io", "-f", source.format, "-c", f"write -P {at % 251} {at} {length}", source.path)

    async def back_up(self, since: BackupId | None) -> BackupObserved:
        id = BackupId(new_id())
        kept = SnapshotSpec(id=SnapshotId(id), volumes=(VolumeOf(id=self.volume),))
        await self.agent.ensure_snapshot(kept, _nobody)
        volumes = (VolumeToBackUp(id=self.volume, since=since),)
        spec = BackupSpec(id=id, place="vault", project=self.project, volumes=volumes)
        observed = await self.agent.ensure_backup(spec, _nobody)
        if since is not None:
            removal = SnapshotRemoval(id=SnapshotId(since), volumes=kept.volumes)
            await self.agent.remove_snapshot(removal, _nobody)
        return observed

    async def restore(self, id: BackupId) -> None:
        source = VolumeBackup(id=id, place="vault", project=self.project, volume=self.volume)
        spec = VolumeSpec(id=VolumeId(new_id()), generation=1, size_bytes=self.size_mib * MIB, backup=source)
        await self.agent.ensure_volume(spec, _nobody)

    async def verify(self, id: BackupId) -> None:
        await self.agent.check_backup(BackupOf(id=id, place="vault", project=self.project), _nobody)


async def measured(folder: Path, size_mib: int) -> None:
    bench = Bench(folder, size_mib)
    await bench.filled()
    begun = time.monotonic()
    disk = (await bench.pool.source(bench.volume)).path
    await run("qemu-img", "convert", "-f", "raw", "-O", "raw", disk, str(folder / "copy.raw"), timeout_s=3600)
    copied = (folder / "copy.raw").stat().st_blocks * 512
    _say("copy by qemu-img", copied, copied, begun)
    (folder / "copy.raw").unlink()
    last: BackupId | None = None
    for name, writes in (
        ("full backup", []),
        ("after 16 MiB at one place", [(MIB, 16 * MIB)]),
        (
            f"after 64 KiB at {PLACES} places",
            [((each * (size_mib // PLACES) + 1) * MIB, 64 * KIB) for each in range(PLACES)],
        ),
        ("after nothing", []),
    ):
        for at, length in writes:
            await bench.write(at, length)
        begun = time.monotonic()
        observed = await bench.back_up(last)
        _say(name, observed.read_bytes, observed.stored_bytes, begun)
        last = observed.id
    assert last is not None
    begun = time.monotonic()
    await bench.verify(last)
    print(f"{'verified':32}{'':>26}{time.monotonic() - begun:8.1f} s")
    begun = time.monotonic()
    await bench.restore(last)
    print(f"{'restored':32}{'':>26}{time.monotonic() - begun:8.1f} s")


def _fill(disk: Path, size_mib: int) -> None:
    chance, text = random.Random(1), b"a line of some log, which is much like the next one\n" * 20_165
    with disk.open("rb+") as opened:
        opened.writelines(
            chance.randbytes(MIB) if number % 2 else (b"%8d" % number + text)[:MIB] for number in range(size_mib)
        )


def _say(name: str, read: int, written: int, begun: float) -> None:
    took_s = time.monotonic() - begun
    print(f"{name:32}{read / MIB:8.1f} MiB read{written / MIB:8.1f} written{took_s:6.1f} s")


def _nobody(_: Progress) -> None:
    """Nobody wants to know how far it is."""


def _no_images(_: ImageSource) -> AsyncIterator[bytes]:
    raise Unavailable("there are no images here")


async def _nowhere(_path: str, _size_bytes: int, _read: Read, _told: Told) -> None:
    raise Unavailable("no images are sent from here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--folder", default=None, help="on the file system to be measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        asyncio.run(measured(Path(folder), arguments.mib))


if __name__ == "__main__":
    main()
