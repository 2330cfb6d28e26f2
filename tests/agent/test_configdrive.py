"""Config drives: equal to what metadata answers, and there for exactly as long as their guest is."""

import gzip
from base64 import b64encode
from pathlib import Path

import pytest
from msgspec import structs

from pileus.agent.agent import Agent
from pileus.agent.configdrive import image
from pileus.agent.metadata import Metadata, files
from pileus.kernel.errors import Unavailable
from pileus.link.guests import FirstBoot, GuestRemoval, GuestSpec, Power
from pileus.testing.fat import Reader

from .conftest import HostBench, a_guest, later

USER_DATA = bytes(range(256)) * 256
KEYS = (("mine", "ssh-ed25519 AAAA me"), ("a/b: <c>", "ssh-rsa BBBB you"))


def telling(user_data: bytes, *, keys: tuple[tuple[str, str], ...] = KEYS) -> GuestSpec:
    """A guest that is told this at its first boot, and has a config drive."""
    encoded = b64encode(user_data).decode()
    boot = FirstBoot(hostname="web-1", public_keys=keys, user_data=encoded, user_data_base64=True)
    return structs.replace(a_guest(nics=2), first_boot=boot, config_drive=True)


def drive(bench: HostBench, guest: GuestSpec) -> Path:
    """Where the hypervisor was told that the guest's config drive is."""
    source = bench.hypervisor.guests[guest.id].config_drive
    assert source is not None
    return Path(source.path)


def on_drive(bench: HostBench, guest: GuestSpec) -> dict[str, bytes]:
    return Reader(drive(bench, guest).read_bytes()).files()


async def answered(guest: GuestSpec, path: str) -> bytes:
    """What metadata answers the guest."""
    nic = guest.nics[0]
    status, _, body = await Metadata(lambda: [guest]).answer(nic.network, nic.addresses[0], "GET", f"/{path}")
    assert status == 200, path
    return body


@pytest.fixture
def agent(bench: HostBench) -> Agent:
    return bench.agent()


@pytest.mark.parametrize(
    "user_data",
    [b"", USER_DATA, gzip.compress(b"#!/bin/sh\n"), b"#cloud-config\n"],
    ids=("none", "64k", "gzip", "text"),
)
async def test_a_drive_holds_byte_for_byte_what_metadata_answers_for_every_path(
    bench: HostBench, agent: Agent, user_data: bytes
) -> None:
    guest = telling(user_data)
    await agent.ensure_guest(guest, bench.tell)
    found = on_drive(bench, guest)
    assert len(found) > 60
    assert found == {path: await answered(guest, path) for path in found}
    # All but the lines of the list of keys, which are no files.
    lines = {path for path in files(guest) if "/public-keys/" in path and "=" in path}
    assert files(guest).keys() - found.keys() == lines
    assert found.get("openstack/latest/user_data", b"") == found.get("latest/user-data", b"") == user_data


def test_a_drive_has_the_label_that_is_looked_for() -> None:
    assert image(telling(b""))[43:54] == b"config-2   "


def test_a_drive_has_room_for_the_most_that_a_guest_can_be_told() -> None:
    keys = tuple((f"{number}" * 200, '"' * 16_384) for number in range(16))
    guest = telling(USER_DATA, keys=keys)
    assert Reader(image(guest)).files()["openstack/latest/user_data"] == USER_DATA


async def test_a_guest_has_no_drive_that_is_to_have_none(bench: HostBench, agent: Agent) -> None:
    guest = structs.replace(telling(b""), config_drive=False)
    await agent.ensure_guest(guest, bench.tell)
    assert bench.hypervisor.guests[guest.id].reads is None
    assert not bench.config_drives.exists()


async def test_a_drive_is_its_guests_alone_and_the_way_to_it_shows_nothing(bench: HostBench, agent: Agent) -> None:
    guest = telling(b"secret")
    await agent.ensure_guest(guest, bench.tell)
    file = drive(bench, guest)
    assert [each.stat().st_mode & 0o777 for each in (file, file.parent, file.parent.parent)] == [0o600, 0o711, 0o711]


async def test_a_drive_stays_the_same_file_for_as_long_as_it_says_the_same(bench: HostBench, agent: Agent) -> None:
    guest = telling(b"")
    await agent.ensure_guest(guest, bench.tell)
    before = drive(bench, guest).stat()
    guest = later(guest, vcpus=2, power=Power.STOPPED)
    await agent.ensure_guest(guest, bench.tell)
    now = drive(bench, guest).stat()
    assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_what_has_changed_is_on_the_drive_before_the_next_start_and_a_running_guest_keeps_what_it_has_open(
    bench: HostBench, agent: Agent
) -> None:
    guest = telling(b"")
    await agent.ensure_guest(guest, bench.tell)
    with drive(bench, guest).open("rb") as read_by_guest:
        before = image(guest)
        guest = later(guest, name="renamed", nics=guest.nics[:1])
        await agent.ensure_guest(guest, bench.tell)
        assert read_by_guest.read() == before
    assert drive(bench, guest).read_bytes() == image(guest) != before


async def test_a_lost_or_spoilt_drive_is_written_again_when_its_guest_is_started_again(bench: HostBench) -> None:
    guest = telling(USER_DATA)
    await bench.agent().ensure_guest(guest, bench.tell)
    for spoilt in (None, b"other"):
        drive(bench, guest).unlink()
        if spoilt is not None:
            drive(bench, guest).write_bytes(spoilt)
        bench.hypervisor.host_restarts()
        bench.host.boot += "again"
        await bench.agent().reconcile()
        assert drive(bench, guest).read_bytes() == image(guest)


async def test_a_drive_goes_with_its_guest(bench: HostBench, agent: Agent) -> None:
    guest, other = telling(b""), telling(b"other")
    for each in (guest, other):
        await agent.ensure_guest(each, bench.tell)
    await agent.remove_guest(GuestRemoval(id=guest.id, generation=2))
    assert [each.name for each in bench.config_drives.iterdir()] == [other.id]


async def test_nothing_is_left_of_a_drive_whose_guest_cannot_be_made(bench: HostBench, agent: Agent) -> None:
    bench.faults.fail("hypervisor.define", Unavailable("not now"))
    with pytest.raises(Unavailable):
        await agent.ensure_guest(telling(b""), bench.tell)
    assert list(bench.config_drives.iterdir()) == []


async def test_a_drive_that_cannot_be_written_keeps_the_guest_from_starting(bench: HostBench, agent: Agent) -> None:
    bench.config_drives.parent.mkdir(exist_ok=True)
    bench.config_drives.write_bytes(b"in the way")
    with pytest.raises(Unavailable, match="config drive"):
        await agent.ensure_guest(telling(b""), bench.tell)
    assert bench.hypervisor.guests == {}
