"""The agent dies at every moment of every operation; the next one over the same files leaves nothing half made."""

import shutil
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import structs

from pileus.agent import configdrive, records
from pileus.agent.agent import Agent
from pileus.agent.hypervisor.port import GuestState
from pileus.agent.records import AgentRecords, GuestRecord, Removed, VolumeRecord
from pileus.kernel.errors import Unavailable
from pileus.link.guests import GuestRemoval, Power
from pileus.link.volumes import VolumeRemoval

from .conftest import HostBench, a_guest, a_nic, a_volume, an_image, later


class PowerCutError(BaseException):
    """The process dies: nothing after this has any effect."""


class Fuse:
    """Blows at one moment, before or after something has an effect; then nothing has any until it is replaced."""

    def __init__(self, holds: int) -> None:
        self.blown = False
        self._holds = holds

    def __call__(self, _: object) -> None:
        self._holds -= 1
        self.blown = self.blown or self._holds < 0
        if self.blown:
            raise PowerCutError


class Scene:
    """An operation: what is there before, the deed, and what there ought to be in the end."""

    def __init__(self) -> None:
        self.volume = a_volume(image=an_image())
        self.guest = a_guest(self.volume, nics=2)

    async def before(self, bench: HostBench, agent: Agent) -> None:
        """Nothing is there."""

    async def deed(self, bench: HostBench, agent: Agent) -> None:
        raise AssertionError

    def is_done(self, bench: HostBench) -> bool:
        raise AssertionError


class MakingAVolume(Scene):
    async def deed(self, bench: HostBench, agent: Agent) -> None:
        await agent.ensure_volume(self.volume, bench.tell)

    def is_done(self, bench: HostBench) -> bool:
        return bench.storage.volumes.keys() == {self.volume.id}


class GrowingAVolume(MakingAVolume):
    async def before(self, bench: HostBench, agent: Agent) -> None:
        await agent.ensure_volume(self.volume, bench.tell)
        self.volume = structs.replace(self.volume, generation=2, size_bytes=2 * self.volume.size_bytes)

    def is_done(self, bench: HostBench) -> bool:
        return bench.storage.volumes[self.volume.id].size_bytes == self.volume.size_bytes


class RemovingAVolume(GrowingAVolume):
    async def deed(self, bench: HostBench, agent: Agent) -> None:
        await agent.remove_volume(VolumeRemoval(id=self.volume.id, generation=2))

    def is_done(self, bench: HostBench) -> bool:
        return not bench.storage.volumes


class OverwritingAVolume(RemovingAVolume):
    async def deed(self, bench: HostBench, agent: Agent) -> None:
        await agent.remove_volume(VolumeRemoval(id=self.volume.id, generation=2, secure=True))

    def is_done(self, bench: HostBench) -> bool:
        return not bench.storage.volumes and bench.storage.wiped == {self.volume.id}


class MakingAGuest(Scene):
    async def before(self, bench: HostBench, agent: Agent) -> None:
        await agent.ensure_volume(self.volume, bench.tell)

    async def deed(self, bench: HostBench, agent: Agent) -> None:
        await agent.ensure_guest(self.guest, bench.tell)

    def is_done(self, bench: HostBench) -> bool:
        guest = bench.hypervisor.guests[self.guest.id]
        wanted = GuestState.RUNNING if self.guest.power is Power.RUNNING else GuestState.SHUT_DOWN
        return (
            guest.state is wanted
            and guest.spec == self.guest
            and bench.network.ports.keys() == {nic.port for nic in self.guest.nics}
        )


class ChangingAGuest(MakingAGuest):
    async def before(self, bench: HostBench, agent: Agent) -> None:
        await super().before(bench, agent)
        self.guest = structs.replace(self.guest, max_vcpus=4)
        await agent.ensure_guest(self.guest, bench.tell)
        self.guest = later(self.guest, vcpus=4, nics=(self.guest.nics[1], a_nic(5)))


class StoppingAGuest(MakingAGuest):
    async def before(self, bench: HostBench, agent: Agent) -> None:
        await super().before(bench, agent)
        await agent.ensure_guest(self.guest, bench.tell)
        self.guest = later(self.guest, power=Power.STOPPED)


class StartingAGuest(StoppingAGuest):
    async def before(self, bench: HostBench, agent: Agent) -> None:
        await super().before(bench, agent)
        await agent.ensure_guest(self.guest, bench.tell)
        self.guest = later(self.guest, power=Power.RUNNING)


class RemovingAGuest(ChangingAGuest):
    async def deed(self, bench: HostBench, agent: Agent) -> None:
        await agent.remove_guest(GuestRemoval(id=self.guest.id, generation=2))

    def is_done(self, bench: HostBench) -> bool:
        return not bench.hypervisor.guests and not bench.network.ports and not bench.network.served


class MakingAGuestWithAConfigDrive(MakingAGuest):
    def __init__(self) -> None:
        super().__init__()
        self.guest = structs.replace(a_guest(nics=0), config_drive=True)

    async def before(self, bench: HostBench, agent: Agent) -> None:
        """Nothing else is there."""


class ChangingWhatAConfigDriveSays(MakingAGuestWithAConfigDrive):
    async def before(self, bench: HostBench, agent: Agent) -> None:
        await super().before(bench, agent)
        await agent.ensure_guest(self.guest, bench.tell)
        self.guest = later(self.guest, name="renamed")


class RemovingAGuestWithAConfigDrive(ChangingWhatAConfigDriveSays):
    async def deed(self, bench: HostBench, agent: Agent) -> None:
        await agent.remove_guest(GuestRemoval(id=self.guest.id, generation=2))

    def is_done(self, bench: HostBench) -> bool:
        return not bench.hypervisor.guests and not list(bench.config_drives.iterdir())


class FailingToMakeAGuest(MakingAGuest):
    async def deed(self, bench: HostBench, agent: Agent) -> None:
        bench.faults.fail("hypervisor.start", Unavailable("no memory"))
        with suppress(Unavailable):
            await agent.ensure_guest(self.guest, bench.tell)

    def is_done(self, bench: HostBench) -> bool:
        return not bench.network.ports or super().is_done(bench)


class StartingACrashedGuestAgain(ChangingAGuest):
    async def before(self, bench: HostBench, agent: Agent) -> None:
        await MakingAGuest.before(self, bench, agent)
        await agent.ensure_guest(self.guest, bench.tell)
        bench.hypervisor.crash(self.guest.id)

    async def deed(self, bench: HostBench, agent: Agent) -> None:
        await agent.reconcile()


SCENES = (
    MakingAVolume,
    GrowingAVolume,
    RemovingAVolume,
    OverwritingAVolume,
    MakingAGuest,
    ChangingAGuest,
    StoppingAGuest,
    StartingAGuest,
    RemovingAGuest,
    MakingAGuestWithAConfigDrive,
    ChangingWhatAConfigDriveSays,
    RemovingAGuestWithAConfigDrive,
    FailingToMakeAGuest,
    StartingACrashedGuestAgain,
)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
async def test_nothing_is_half_made_wherever_the_agent_dies(
    scene: type[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = 0
    while await _dies(scene(), HostBench(tmp_path / str(moments)), moments, monkeypatch):
        moments += 1
    assert moments > 4


async def _dies(scene: Scene, bench: HostBench, moment: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there was such a moment."""
    await scene.before(bench, bench.agent())
    agent, fuse = bench.agent(), Fuse(moment)
    bench.faults.watch = fuse
    write, remove = records.write_atomically, shutil.rmtree

    def write_or_die(path: Path, data: bytes) -> None:
        fuse("before a write")
        write(path, data)
        fuse("after a write")

    def write_a_drive_or_die(path: Path, data: bytes) -> None:
        (path.parent / f".{path.name}.half").write_bytes(data[: len(data) // 2])
        fuse("in the middle of a write")
        write_or_die(path, data)

    def remove_or_die(path: Path) -> None:
        for file in path.iterdir():
            fuse("in the middle of a removal")
            file.unlink()
        remove(path)

    with monkeypatch.context() as patch, suppress(PowerCutError, BaseExceptionGroup):
        patch.setattr(records, "write_atomically", write_or_die)
        patch.setattr(configdrive, "write_atomically", write_a_drive_or_die)
        patch.setattr(shutil, "rmtree", remove_or_die)
        await scene.deed(bench, agent)

    bench.faults.mend()
    # The next agent, with nobody to tell it anything: it may finish or undo, and leaves nothing in between.
    await bench.agent().reconcile()
    _nothing_is_half_made(bench)
    # Whoever did not get an answer asks again.
    bench.clock.advance(timedelta(minutes=5))
    await scene.deed(bench, bench.agent())
    assert scene.is_done(bench)
    _nothing_is_half_made(bench)
    return fuse.blown


def _nothing_is_half_made(bench: HostBench) -> None:
    kept = AgentRecords(bench.data)
    kept.load()
    ports, networks, guests, drives = set[str](), dict[str, int](), set[str](), set[str]()
    for id, record in kept.guests.items():
        if isinstance(record, Removed):
            assert record.finished
            continue
        assert isinstance(record, GuestRecord)
        assert record.made
        assert not record.former_ports
        guests.add(id)
        ports |= set(record.ports)
        networks |= {nic.network: nic.mtu for nic in record.spec.nics}
        found = bench.hypervisor.guests[id]
        assert found.spec == record.spec
        assert (found.state is GuestState.RUNNING) is (record.power is Power.RUNNING)
        if record.spec.config_drive:
            drive = bench.config_drives / id / "config-drive.raw"
            assert drive.read_bytes() == configdrive.image(record.spec)
            drives.add(id)
    assert {each.name for each in bench.config_drives.glob("*")} == drives
    assert bench.hypervisor.guests.keys() == guests
    assert bench.network.ports.keys() == ports
    assert bench.network.served == networks
    volumes = {id for id, record in kept.volumes.items() if isinstance(record, VolumeRecord) and record.made}
    assert bench.storage.volumes.keys() == volumes
    assert all(record.finished for _, record in kept.volumes.items() if isinstance(record, Removed))
