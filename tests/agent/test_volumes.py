"""What an agent does with volumes, over simulated engines."""

import asyncio

import pytest
from msgspec import structs

from pileus.kernel.errors import Conflict, NotFound, Stale, Unavailable
from pileus.kernel.units import GIB, TIB
from pileus.link.guests import GuestRemoval
from pileus.link.volumes import VolumeRemoval

from .conftest import HostBench, a_guest, a_volume, an_image


async def test_a_volume_is_made_from_its_image(bench: HostBench) -> None:
    volume = a_volume(image=an_image())
    made = await bench.agent().ensure_volume(volume, bench.tell)
    assert (made.id, made.generation, made.size_bytes) == (volume.id, 1, GIB)
    assert bench.fetched == 1
    assert (bench.told[-1].step, bench.told[-1].fraction) == ("copying", 1.0)


async def test_a_volume_that_is_there_needs_its_image_no_more(bench: HostBench) -> None:
    agent, image = bench.agent(), an_image()
    volume = a_volume(image=image)
    await agent.ensure_volume(volume, bench.tell)
    await bench.storage.remove_image(image.id)
    await agent.ensure_volume(volume, bench.tell)
    assert bench.fetched == 1


async def test_many_volumes_of_one_image_fetch_it_once(bench: HostBench) -> None:
    agent, image = bench.agent(), an_image()
    await asyncio.gather(*(agent.ensure_volume(a_volume(image=image), bench.tell) for _ in range(20)))
    assert (len(bench.storage.volumes), bench.fetched) == (20, 1)


async def test_an_older_generation_never_undoes_a_newer_one(bench: HostBench) -> None:
    agent, volume = bench.agent(), a_volume()
    await agent.ensure_volume(structs.replace(volume, generation=2), bench.tell)
    with pytest.raises(Stale):
        await agent.ensure_volume(volume, bench.tell)
    with pytest.raises(Stale):
        await agent.remove_volume(VolumeRemoval(id=volume.id, generation=1))
    assert bench.storage.volumes


async def test_a_late_wish_does_not_bring_a_removed_volume_back(bench: HostBench) -> None:
    agent, volume = bench.agent(), a_volume()
    await agent.remove_volume(VolumeRemoval(id=volume.id, generation=1))
    with pytest.raises(Stale):
        await bench.agent().ensure_volume(volume, bench.tell)
    await agent.ensure_volume(structs.replace(volume, generation=2), bench.tell)


@pytest.mark.parametrize("call", ["storage.ensure_image", "storage.ensure", "storage.list"])
async def test_a_volume_that_cannot_be_made_leaves_nothing_and_may_be_asked_for_again(
    bench: HostBench, call: str
) -> None:
    agent, volume = bench.agent(), a_volume(image=an_image())
    bench.faults.fail(call, Unavailable("not now"))
    with pytest.raises(Unavailable):
        await agent.ensure_volume(volume, bench.tell)
    assert not bench.storage.volumes
    await agent.ensure_volume(volume, bench.tell)
    assert bench.storage.volumes


async def test_a_volume_that_cannot_grow_stays_as_it_was(bench: HostBench) -> None:
    agent, volume = bench.agent(), a_volume()
    await agent.ensure_volume(volume, bench.tell)
    larger = structs.replace(volume, generation=2, size_bytes=2 * TIB)
    with pytest.raises(Conflict):
        await agent.ensure_volume(larger, bench.tell)
    await bench.agent().reconcile()
    assert bench.storage.volumes[volume.id].size_bytes == GIB
    await agent.ensure_volume(structs.replace(larger, size_bytes=2 * GIB), bench.tell)


async def test_a_removal_that_failed_goes_on_by_itself(bench: HostBench) -> None:
    agent, volume = bench.agent(), a_volume()
    await agent.ensure_volume(volume, bench.tell)
    bench.faults.fail("storage.remove", Unavailable("not now"))
    with pytest.raises(Unavailable):
        await agent.remove_volume(VolumeRemoval(id=volume.id, generation=1))
    await bench.agent().reconcile()
    assert not bench.storage.volumes


async def test_a_pool_that_is_not_here_is_not_found(bench: HostBench) -> None:
    elsewhere = structs.replace(a_volume(), pool="ceph")
    with pytest.raises(NotFound):
        await bench.agent().ensure_volume(elsewhere, bench.tell)


async def test_no_ticket_is_written_to_a_file(bench: HostBench) -> None:
    await bench.agent().ensure_volume(a_volume(image=an_image()), bench.tell)
    assert bench.data is not None
    files = [file.read_text() for file in (bench.data / "volumes").iterdir()]
    assert files
    assert not any("secret" in text for text in files)


async def test_records_are_for_the_agent_alone(bench: HostBench) -> None:
    await bench.agent().ensure_volume(a_volume(), bench.tell)
    assert bench.data is not None
    folder = bench.data / "volumes"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


async def test_a_volume_that_is_a_guests_disk_is_not_removed(bench: HostBench) -> None:
    agent, volume = bench.agent(), a_volume()
    guest = a_guest(volume)
    await agent.ensure_volume(volume, bench.tell)
    await agent.ensure_guest(guest, bench.tell)
    with pytest.raises(Conflict, match="hello"):
        await agent.remove_volume(VolumeRemoval(id=volume.id, generation=1))
    await agent.remove_guest(GuestRemoval(id=guest.id, generation=1))
    await agent.remove_volume(VolumeRemoval(id=volume.id, generation=1))
    assert not bench.storage.volumes
