"""What every hypervisor driver owes an agent of the devices of a guest, also while it runs."""

from collections.abc import Awaitable, Callable, Mapping

import pytest
from msgspec import structs

from pileus.agent.hypervisor.port import GuestState, Hypervisor
from pileus.agent.network.port import Plug
from pileus.agent.storage.port import DiskSource
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId, PortId, VolumeId
from pileus.link.guests import GuestDisk, GuestLimits, GuestSpec, NicSpec
from pileus.link.templates import GuestTemplate
from pileus.testing.contracts.guest import Crash, GuestContract

Plugged = Callable[[InstanceId], Awaitable[set[VolumeId]]]
Limited = Callable[[InstanceId], Awaitable[GuestLimits]]
Inserted = Callable[[InstanceId], Awaitable[dict[int, str]]]
Reads = Callable[[InstanceId], Awaitable[list[str]]]
Connected = Callable[[InstanceId], Awaitable[set[str]]]


class DevicesContract(GuestContract):
    """The promise. A subclass brings the fixtures below besides.

    * `another_disk`: an empty volume that the guest does not have, as large as the one it has, and where it is.
    * `inserted`: a function that says which files are in the drives of a running guest, without asking the driver.
    * `reads`: a function that says which files a running guest has as disks that it can only read, without the driver.
    * `limited`: a function that says what a running guest may take, without asking the driver.
    * `plugged`: a function that says which volumes a running guest has, without asking the driver.
    * `another_nic`: a port that the guest does not have, in slot 1, and its plug.
    * `connected`: a function that says which MAC addresses a running guest has, without asking the driver.
    """

    async def test_a_disk_is_plugged_into_a_running_guest_however_often_it_is_asked_for(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        another_disk: tuple[VolumeId, DiskSource],
        defined: Callable[..., Awaitable[InstanceId]],
        plugged: Plugged,
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        volume, source = another_disk
        more = structs.replace(guest, disks=(*guest.disks, GuestDisk(volume=volume, slot=1)))
        for _ in range(2):
            await hypervisor.change_disks(more, {**disks, volume: source})
            assert await plugged(id) == {guest.disks[0].volume, volume}

    async def test_a_guest_that_does_not_run_gets_its_disks_at_its_next_start(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
        another_disk: tuple[VolumeId, DiskSource],
        plugged: Plugged,
    ) -> None:
        volume, source = another_disk
        more = structs.replace(guest, disks=(*guest.disks, GuestDisk(volume=volume, slot=1)))
        await hypervisor.define(more, {**disks, volume: source}, plugs)
        await hypervisor.change_disks(more, {**disks, volume: source})
        await hypervisor.start(guest.id)
        assert await plugged(guest.id) == {guest.disks[0].volume, volume}

    async def test_what_cannot_be_plugged_in_comes_with_the_next_start(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
        another_disk: tuple[VolumeId, DiskSource],
    ) -> None:
        volume, source = another_disk
        old = structs.replace(guest, template=GuestTemplate.LEGACY)
        more = structs.replace(old, disks=(*guest.disks, GuestDisk(volume=volume, slot=1)))
        await hypervisor.define(old, disks, plugs)
        await hypervisor.start(guest.id)
        await hypervisor.change_disks(old, disks)
        with pytest.raises(Conflict):
            await hypervisor.change_disks(more, {**disks, volume: source})
        await hypervisor.define(more, {**disks, volume: source}, plugs)
        await hypervisor.stop(guest.id)
        await hypervisor.start(guest.id)
        await hypervisor.change_disks(more, {**disks, volume: source})

    async def test_a_disk_of_a_running_guest_is_mirrored_and_gone_over_to_also_for_its_next_start(
        self,
        hypervisor: Hypervisor,
        another: Callable[[], Awaitable[Hypervisor]],
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        another_disk: tuple[VolumeId, DiskSource],
        defined: Callable[..., Awaitable[InstanceId]],
    ) -> None:
        id, volume, (_, to) = await defined(), guest.disks[0].volume, another_disk
        with pytest.raises(Conflict):
            await hypervisor.mirrors.mirror(id, volume, to, _nobody)
        await hypervisor.start(id)
        with pytest.raises(Conflict):
            await hypervisor.mirrors.go_over(id, volume, to)
        assert await hypervisor.mirrors.mirrored(id) == {}
        for _ in range(2):
            await hypervisor.mirrors.mirror(id, volume, to, _nobody)
        assert await hypervisor.layers.files(id) == {volume: disks[volume].path}
        later = await another()
        assert await later.mirrors.mirrored(id) == {volume: to.path}
        for _ in range(2):
            await later.mirrors.go_over(id, volume, to)
        assert await later.mirrors.mirrored(id) == {}
        assert (await later.list())[id].state is GuestState.RUNNING
        assert await later.layers.files(id) == {volume: to.path}
        await later.stop(id)
        assert await later.layers.files(id) == {volume: to.path}

    async def test_a_disk_that_is_mirrored_no_more_is_what_it_was(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        another_disk: tuple[VolumeId, DiskSource],
        defined: Callable[..., Awaitable[InstanceId]],
        crash: Crash,
    ) -> None:
        id, volume, (_, to) = await defined(), guest.disks[0].volume, another_disk
        await hypervisor.start(id)
        await hypervisor.mirrors.mirror(id, volume, to, _nobody)
        for _ in range(2):
            await hypervisor.mirrors.stop_mirroring(id, volume)
        assert await hypervisor.layers.files(id) == {volume: disks[volume].path}
        with pytest.raises(Conflict):
            await hypervisor.mirrors.go_over(id, volume, to)
        await hypervisor.mirrors.mirror(id, volume, to, _nobody)
        await crash(id)
        await self.until(hypervisor, id, lambda found: found is not None and found.state is GuestState.CRASHED)
        assert await hypervisor.mirrors.mirrored(id) == {}
        assert await hypervisor.layers.files(id) == {volume: disks[volume].path}
        await hypervisor.mirrors.stop_mirroring(id, volume)

    async def test_media_come_and_go_while_a_guest_is_up_and_are_there_again_at_its_next_start(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
        another_disk: tuple[VolumeId, DiskSource],
        inserted: Inserted,
    ) -> None:
        _, medium = another_disk
        await hypervisor.define(guest, disks, plugs)
        await hypervisor.start(guest.id)
        # Firmware that finds no system shuts each drive within microseconds of its being opened, for ever: libvirt
        # takes a drive for open then that is not. What a system lets happen is shown where one runs.
        await hypervisor.pause(guest.id)
        for media in ({}, {1: medium}, {1: medium}, {0: medium}, {0: medium, 1: medium}, {}):
            await hypervisor.change_media(guest, media)
            assert await inserted(guest.id) == {drive: source.path for drive, source in media.items()}
        await hypervisor.define(guest, disks, plugs, {0: medium})
        assert await inserted(guest.id) == {}
        await hypervisor.stop(guest.id)
        await hypervisor.change_media(guest, {0: medium})
        await hypervisor.start(guest.id)
        assert await inserted(guest.id) == {0: medium.path}

    async def test_a_config_drive_is_there_to_be_read_from_the_next_start_and_is_no_disk_of_the_guests(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
        another_disk: tuple[VolumeId, DiskSource],
        plugged: Plugged,
        reads: Reads,
    ) -> None:
        _, drive = another_disk
        await hypervisor.define(guest, disks, plugs)
        await hypervisor.start(guest.id)
        await hypervisor.define(guest, disks, plugs, config_drive=drive)
        assert await reads(guest.id) == []
        await hypervisor.stop(guest.id)
        await hypervisor.start(guest.id)
        await hypervisor.change_disks(guest, disks)
        await hypervisor.change_media(guest, {})
        assert await reads(guest.id) == [drive.path]
        assert await plugged(guest.id) == {disk.volume for disk in guest.disks}

    async def test_limits_are_set_and_taken_away_while_a_guest_runs_and_count_from_its_next_start(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
        limited: Limited,
    ) -> None:
        limits = GuestLimits(cpu_percent=20, disk_iops=100, disk_burst_iops=200, disk_burst_s=3)
        await hypervisor.define(guest, disks, plugs)
        await hypervisor.start(guest.id)
        for wanted in (limits, limits, GuestLimits(disk_bytes_per_s=1_000_000), GuestLimits(), limits):
            await hypervisor.change_limits(structs.replace(guest, limits=wanted))
            assert await limited(guest.id) == wanted
        await hypervisor.define(structs.replace(guest, limits=GuestLimits(cpu_percent=50)), disks, plugs)
        assert await limited(guest.id) == limits
        await hypervisor.stop(guest.id)
        await hypervisor.start(guest.id)
        assert await limited(guest.id) == GuestLimits(cpu_percent=50)

    async def test_a_network_interface_is_plugged_into_a_running_guest_however_often_it_is_asked_for(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        plugs: Mapping[PortId, Plug],
        another_nic: tuple[NicSpec, Plug],
        defined: Callable[..., Awaitable[InstanceId]],
        connected: Connected,
    ) -> None:
        id = await defined()
        await hypervisor.start(id)
        nic, plug = another_nic
        more = structs.replace(guest, nics=(*guest.nics, nic))
        for _ in range(2):
            await hypervisor.change_nics(more, {**plugs, nic.port: plug})
            assert await connected(id) == {each.mac for each in more.nics}

    async def test_a_guest_that_does_not_run_gets_its_network_interfaces_at_its_next_start(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
        another_nic: tuple[NicSpec, Plug],
        connected: Connected,
    ) -> None:
        nic, plug = another_nic
        more = structs.replace(guest, nics=(*guest.nics, nic))
        await hypervisor.define(more, disks, {**plugs, nic.port: plug})
        await hypervisor.change_nics(more, {**plugs, nic.port: plug})
        await hypervisor.start(guest.id)
        assert await connected(guest.id) == {each.mac for each in more.nics}

    async def test_a_running_guest_is_given_vcpus_up_to_its_most(
        self,
        hypervisor: Hypervisor,
        guest: GuestSpec,
        disks: Mapping[VolumeId, DiskSource],
        plugs: Mapping[PortId, Plug],
    ) -> None:
        small = structs.replace(guest, max_vcpus=guest.vcpus + 1)
        await hypervisor.define(small, disks, plugs)
        await hypervisor.start(guest.id)
        larger = structs.replace(small, vcpus=guest.vcpus + 1)
        await hypervisor.define(larger, disks, plugs)
        for _ in range(2):
            await hypervisor.change_size(larger)
        found = (await hypervisor.list())[guest.id]
        assert (found.state, found.vcpus) == (GuestState.RUNNING, larger.vcpus)
        too_large = structs.replace(guest, vcpus=guest.vcpus + 2, max_vcpus=guest.vcpus + 2)
        await hypervisor.define(too_large, disks, plugs)
        with pytest.raises(Conflict):
            await hypervisor.change_size(too_large)
        await hypervisor.stop(guest.id)
        assert (await hypervisor.list())[guest.id].vcpus == 0
        await hypervisor.change_size(too_large)


def _nobody(_: float) -> None:
    """Nobody wants to know how far it is."""
