"""A real guest's disks that move to another storage pool while it writes to them, and when it does not run."""

import asyncio
import re
from pathlib import Path

import cache
import pytest
from libvirt_guest import Terminal
from libvirt_host import LibvirtHost, missing
from msgspec import structs
from test_agent import Bench
from test_snapshots import READ, WRITE, Subject, booted, nobody

from pileus.agent.agent import Agent
from pileus.kernel.ids import SnapshotId, VolumeId, new_id
from pileus.kernel.units import MIB
from pileus.link.consoles import ConsoleRequest
from pileus.link.guests import Power
from pileus.link.moves import VolumeMove
from pileus.link.snapshots import SnapshotRemoval, SnapshotSpec, VolumeOf

pytestmark = [pytest.mark.lab, pytest.mark.skipif(missing() is not None, reason=f"moves lab: {missing()}")]

# Counts in the last MiB of the disk, one number after the other in the same place, until it is told to end.
COUNT = (
    "rm -f /tmp/end; (n=0; until [ -e /tmp/end ]; do n=$((n+1)); printf '%08d' $n |"
    " dd of=/dev/vdb bs=1M seek=127 conv=notrunc,fsync 2>/dev/null; done; echo $n >/tmp/last) & echo counting"
)
SUM = "for f in /bin/*; do [ -f $f ] && cat $f; done | md5sum"
COUNTED = (
    "touch /tmp/end; wait; echo last $(cat /tmp/last) read $(dd if=/dev/vdb bs=1M skip=127 2>/dev/null | head -c 8)"
)


@pytest.fixture
def bench(host: LibvirtHost, tmp_path: Path) -> Bench:
    return Bench(host, tmp_path / new_id())


async def test_disks_of_a_running_guest_move_with_their_snapshots_whoever_dies_and_it_notices_nothing(
    bench: Bench,
) -> None:
    image = await asyncio.to_thread(cache.mini)
    kept = SnapshotId(new_id())
    async with bench.agent() as agent, booted(bench, agent, image.path) as (subject, terminal):
        data = VolumeOf(id=subject.data)
        programs = md5(await terminal.answers(SUM))
        await terminal.answers(WRITE.format(word="before", mib=1))
        await agent.ensure_snapshot(SnapshotSpec(id=kept, volumes=(data,), guest=subject.spec.id), nobody)
        await terminal.answers(WRITE.format(word="since", mib=2))
        assert "counting" in await terminal.answers(COUNT)

        # Taken back, there is nothing of it elsewhere.
        back = move(subject.data, 2, "local", "vault")
        await agent.copy_volume(back, nobody)
        assert "mirror" in definition(bench, subject)
        await agent.undo_move(back)
        assert "mirror" not in definition(bench, subject)
        assert places(bench, subject.data) == {"local"}

        # The agent dies while both are kept equal.
        there = move(subject.data, 3, "local", "vault")
        await agent.copy_volume(there, nobody)
        assert places(bench, subject.data) == {"local", "vault"}
    async with bench.agent() as agent:
        await agent.copy_volume(there, nobody)
        await agent.switch_volume(there, nobody)
        assert places(bench, subject.data) == {"vault"}
        terminal = Terminal(await agent.consoles.open(ConsoleRequest(id=subject.spec.id)))
        await terminal.answers(WRITE.format(word="after", mib=3))
        counted = (await terminal.answers(COUNTED)).rpartition("last ")[2].split()
        assert int(counted[0]) == int(counted[2])
        assert int(counted[0]) > 1
        await terminal.answers("echo 3 >/proc/sys/vm/drop_caches")
        for word, mib in (("before", 1), ("since", 2), ("after", 3)):
            assert f"{word}\n" in await terminal.answers(READ.format(mib=mib, length=len(word)))

        # What it boots from, which has no layers; the guest is told by its next specification.
        await go(agent, move(subject.root, 2, "local", "vault"))
        disks = tuple(structs.replace(disk, pool="vault") for disk in subject.spec.disks)
        subject.spec = structs.replace(subject.spec, disks=disks)
        await agent.ensure_guest(subject.later(Power.PAUSED), nobody)
        assert places(bench, subject.root) == {"vault"}

        # And back, while the guest's CPUs stand still.
        await go(agent, move(subject.root, 3, "vault", "local"))
        assert bench.host.virsh("domstate", subject.spec.id).strip() == "paused"
        disks = (structs.replace(disks[0], pool="local"), disks[1])
        subject.spec = structs.replace(subject.spec, disks=disks)
        await agent.ensure_guest(subject.later(Power.PAUSED), nobody)
        assert bench.host.virsh("domstate", subject.spec.id).strip() == "paused"
        assert places(bench, subject.root) == {"local"}
        await agent.ensure_guest(subject.later(Power.RUNNING), nobody)
        await terminal.answers("sync; echo 3 >/proc/sys/vm/drop_caches")
        assert md5(await terminal.answers(SUM)) == programs

        # The snapshot has come with it, and goes.
        removal = SnapshotRemoval(id=kept, volumes=(structs.replace(data, pool="vault"),))
        await agent.remove_snapshot(removal, nobody)
        assert files(bench, "vault", subject.data) == {"disk.raw", "volume.json"}

        # At rest, with a snapshot again.
        await agent.ensure_guest(subject.later(Power.STOPPED), nobody)
        await agent.ensure_snapshot(
            SnapshotSpec(id=SnapshotId(new_id()), volumes=(structs.replace(data, pool="vault"),)), nobody
        )
        await go(agent, move(subject.data, 4, "vault", "local"))
        assert places(bench, subject.data) == {"local"}
        content = (bench.pool / "volumes" / subject.data / "disk.raw").read_bytes()
        for word, mib in ((b"before", 1), (b"since", 2), (b"after", 3)):
            assert content[mib * MIB :].startswith(word)
        await agent.ensure_guest(
            structs.replace(subject.later(Power.RUNNING), disks=(disks[0], structs.replace(disks[1], pool="local"))),
            nobody,
        )


def md5(said: str) -> str:
    """The sum that the guest's console shows last."""
    return re.findall(r"\b[0-9a-f]{32}\b", said)[-1]


async def go(agent: Agent, wish: VolumeMove) -> None:
    await agent.copy_volume(wish, nobody)
    await agent.switch_volume(wish, nobody)


def move(volume: VolumeId, generation: int, pool: str, to: str) -> VolumeMove:
    return VolumeMove(id=volume, generation=generation, pool=pool, to=to)


def places(bench: Bench, volume: VolumeId) -> set[str]:
    """The pools that have a folder of this volume."""
    return {name for name in ("local", "vault") if files(bench, name, volume)}


def files(bench: Bench, pool: str, volume: VolumeId) -> set[str]:
    folder = (bench.pool if pool == "local" else bench.vault.parent) / "volumes" / volume
    return {each.name for each in folder.glob("*")}


def definition(bench: Bench, subject: Subject) -> str:
    return bench.host.virsh("dumpxml", subject.spec.id)
