"""Snapshots of a real guest's disks and memory: what it goes on with, what was kept, and what is left of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import cache
import pytest
from libvirt_guest import PROMPT, Terminal
from libvirt_host import LibvirtHost, missing
from msgspec import structs
from patience import WITHIN_S
from test_agent import Bench

from pileus.agent.agent import Agent
from pileus.agent.storage.directory import DirectoryPool
from pileus.kernel.ids import InstanceId, NetworkId, PortId, ProjectId, SnapshotId, VolumeId, new_id
from pileus.kernel.programs import run
from pileus.kernel.units import MIB
from pileus.link.consoles import ConsoleRequest
from pileus.link.guests import FirstBoot, GuestDisk, GuestSpec, NicSpec, Power
from pileus.link.messages import Progress
from pileus.link.snapshots import Consistency, SnapshotRemoval, SnapshotRevert, SnapshotSpec, VolumeOf
from pileus.link.volumes import VolumeCopy, VolumeSpec

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"snapshot lab: {missing()}")]


@pytest.fixture
def bench(host: LibvirtHost, tmp_path: Path) -> Bench:
    return Bench(host, tmp_path / new_id())


class Subject:
    """A guest of two disks: one that it boots from, one that is written to without a file system."""

    def __init__(self, bench: Bench) -> None:
        self.root, self.data = (VolumeId(new_id()) for _ in range(2))
        self.volumes = VolumeOf(id=self.root), VolumeOf(id=self.data)
        self._bench = bench
        self.folder = bench.pool / "volumes" / self.data
        port = PortId(new_id())
        self.spec = GuestSpec(
            id=InstanceId(new_id()),
            generation=1,
            name="guest",
            project=ProjectId(new_id()),
            vcpus=1,
            memory_mib=128,
            power=Power.RUNNING,
            disks=(GuestDisk(volume=self.root), GuestDisk(volume=self.data, slot=1)),
            nics=(
                NicSpec(
                    port=port,
                    network=NetworkId(new_id()),
                    mac=f"52:54:00:{port[-6:-4]}:{port[-4:-2]}:{port[-2:]}",
                    addresses=("192.0.2.5",),
                    mtu=1442,
                ),
            ),
            first_boot=FirstBoot(hostname="guest"),
            config_drive=True,
        )

    @property
    def files(self) -> set[str]:
        """The files of the second disk."""
        return {file.name for file in self.folder.iterdir() if file.name != "volume.json"}

    def later(self, power: Power) -> GuestSpec:
        self.spec = structs.replace(self.spec, generation=self.spec.generation + 1, power=power)
        return self.spec


@asynccontextmanager
async def booted(bench: Bench, agent: Agent, image: Path) -> AsyncGenerator[tuple[Subject, Terminal]]:
    """A guest of this image at its prompt."""
    subject = Subject(bench)
    for volume in (subject.root, subject.data):
        await agent.ensure_volume(VolumeSpec(id=volume, generation=1, size_bytes=128 * MIB), nobody)
    disk = bench.pool / "volumes" / subject.root / "disk.raw"
    await run("qemu-img", "convert", "-n", "-O", "raw", str(image), str(disk), timeout_s=WITHIN_S)
    await agent.ensure_guest(subject.spec, nobody)
    terminal = Terminal(await agent.consoles.open(ConsoleRequest(id=subject.spec.id)))
    await terminal.says(PROMPT)
    yield subject, terminal


def nobody(_: Progress) -> None:
    """Nobody wants to know how far it is."""


WRITE = "printf %s {word} | dd of=/dev/vdb bs=1M seek={mib} conv=notrunc 2>/dev/null; sync; echo written"
READ = "dd if=/dev/vdb bs=1M skip={mib} count=1 2>/dev/null | head -c {length}; echo"


async def test_a_running_guest_keeps_snapshots_goes_back_to_them_and_lets_go_of_them(
    bench: Bench, tmp_path: Path
) -> None:
    image = await asyncio.to_thread(cache.mini)
    async with bench.agent() as agent, booted(bench, agent, image.path) as (subject, at_first):
        terminal = at_first
        first, second, third = (SnapshotId(new_id()) for _ in range(3))

        # Taken while it runs, of both disks at one moment.
        await terminal.answers(WRITE.format(word="one", mib=1))
        taken = await agent.ensure_snapshot(
            SnapshotSpec(id=first, volumes=subject.volumes, guest=subject.spec.id), nobody
        )
        print("consistency", taken.consistency)
        assert taken.consistency in (Consistency.FILE_SYSTEMS, Consistency.CRASH)
        assert subject.files == {"disk.raw", f"{first}.qcow2"}
        await terminal.answers(WRITE.format(word="two", mib=1))
        await terminal.answers(WRITE.format(word="more", mib=2))
        await agent.ensure_snapshot(SnapshotSpec(id=second, volumes=subject.volumes, guest=subject.spec.id), nobody)
        await terminal.answers(WRITE.format(word="six", mib=1))

        # A copy of what was, while it runs.
        copy = VolumeSpec(
            id=VolumeId(new_id()),
            generation=1,
            size_bytes=128 * MIB,
            copy_of=VolumeCopy(volume=subject.data, snapshot=second),
        )
        await agent.ensure_volume(copy, nobody)
        with (bench.pool / "volumes" / copy.id / "disk.raw").open("rb") as copied:
            content = copied.read(3 * MIB)
        assert (content[MIB : MIB + 3], content[2 * MIB : 2 * MIB + 4]) == (b"two", b"more")

        # Grown while it has layers.
        await agent.ensure_volume(VolumeSpec(id=subject.data, generation=2, size_bytes=192 * MIB), nobody)
        disks = subject.spec.disks[0], structs.replace(subject.spec.disks[1], size_bytes=192 * MIB)
        subject.spec = structs.replace(subject.spec, disks=disks)
        await agent.ensure_guest(subject.later(Power.RUNNING), nobody)
        assert f"{192 * MIB // 512}\n" in await terminal.answers("cat /sys/block/vdb/size")

        # The older one is removed while it runs.
        await agent.remove_snapshot(SnapshotRemoval(id=first, volumes=subject.volumes), nobody)
        assert subject.files == {"disk.raw", f"{second}.qcow2"}
        assert "six" in await terminal.answers("echo 3 >/proc/sys/vm/drop_caches; " + READ.format(mib=1, length=3))

        # Back to the other.
        wish = SnapshotRevert(id=second, to=new_id(), volumes=subject.volumes, guest=subject.spec.id)
        await agent.revert_to_snapshot(wish, nobody)
        await agent.ensure_guest(subject.later(Power.RUNNING), nobody)
        terminal = Terminal(await agent.consoles.open(ConsoleRequest(id=subject.spec.id)))
        await terminal.says(PROMPT)
        assert "two" in await terminal.answers(READ.format(mib=1, length=3))

        # With its memory, of a moment to which it goes back.
        await terminal.answers("remembered=yes")
        memory = SnapshotSpec(id=third, volumes=subject.volumes, guest=subject.spec.id, memory=True)
        taken = await agent.ensure_snapshot(memory, nobody)
        assert taken.consistency is Consistency.MEMORY
        assert taken.memory_bytes > MIB
        await terminal.answers("remembered=no; " + WRITE.format(word="lost", mib=3))
        wish = SnapshotRevert(id=third, to=new_id(), volumes=subject.volumes, guest=subject.spec.id, memory=True)
        await agent.revert_to_snapshot(wish, nobody)
        terminal = Terminal(await agent.consoles.open(ConsoleRequest(id=subject.spec.id)))
        assert "it is yes" in await terminal.answers("echo it is $remembered")
        assert "lost" not in await terminal.answers(READ.format(mib=3, length=4))

        # When all are removed the disk is one raw file again, and the guest has run on.
        for snapshot in (second, third):
            await agent.remove_snapshot(SnapshotRemoval(id=snapshot, volumes=subject.volumes), nobody)
        assert subject.files == {"disk.raw"}
        assert list((bench.pool / "memory").iterdir()) == []
        assert "it is yes" in await terminal.answers("echo it is $remembered")
        await terminal.answers(WRITE.format(word="last", mib=4))
        assert "two" in await terminal.answers("echo 3 >/proc/sys/vm/drop_caches; " + READ.format(mib=1, length=3))
        await agent.ensure_guest(subject.later(Power.STOPPED), nobody)
        with (subject.folder / "disk.raw").open("rb") as disk:
            content = disk.read(5 * MIB)
        assert (content[MIB : MIB + 3], content[4 * MIB : 4 * MIB + 4]) == (b"two", b"last")
        assert DirectoryPool.open(bench.pool) is not None
