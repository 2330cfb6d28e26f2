"""Guests that are not of Pileus: looked at, kept an eye on, left alone."""

import asyncio
from pathlib import Path

from pileus.agent.hypervisor.libvirt.foreign import foreign_guest
from pileus.cloud.foreign.model import GONE
from pileus.cloud.foreign.reconcilers import FollowShadows
from pileus.kernel.ids import new_id
from pileus.link.foreign import ForeignDisk
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.foreignguests import DISK, become, other, shadows
from pileus.testing.people import People
from pileus.testing.requests import items, refusal, running, shown

FOUND = Path(__file__).parents[1] / "golden" / "domain" / "foreign.xml"


async def look(cloud: SimulatedCloud) -> None:
    await FollowShadows(cloud.state, cloud.controller.hosts).once()


async def test_a_host_tells_of_guests_that_are_not_ours_and_of_no_others(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    host = next(each for each in cloud.fleet.hosts if each.id == instance["host_id"])
    guest = other(host, obstacles=("it was given a device of the host",))
    found = (await shown(cloud.client, f"hosts/{host.id}/foreign-guests"))["guests"]
    assert [each["id"] for each in found] == [guest.id]
    assert found[0]["disks"][0]["path"] == "/srv/old.qcow2"
    assert found[0]["obstacles"] == ["it was given a device of the host"]
    assert await items(cloud.client, "foreign-guests") == []


async def test_a_shadow_tells_what_has_changed_since(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    guest, quiet = other(host), other(host, "quiet")
    made_now = await shadows(cloud, host)
    assert {each["name"] for each in made_now} == {"old", "quiet"}
    id = next(each["id"] for each in made_now if each["name"] == "old")
    more = ForeignDisk(target="vdb", path="/srv/more.raw", format="raw")
    become(host, guest, memory_mib=4096, running=False, disks=(DISK, more), nics=())
    await look(cloud)
    shadow = await shown(cloud.client, f"foreign-guests/{id}")
    assert shadow["running"] is False
    assert shadow["drift"] == [
        "memory_mib was 2048, is 4096",
        "disk vdb is new",
        "interface 52:54:00:00:00:01 is gone",
    ]
    before = cloud.state.sequence
    await look(cloud)
    assert cloud.state.sequence == before
    again = (await shadows(cloud, host, guest="old"))[0]
    assert (again["id"], again["memory_mib"], again["drift"]) == (id, 4096, [])
    del host.hypervisor.others[quiet.id]
    await look(cloud)
    gone = next(each for each in await items(cloud.client, "foreign-guests?name=quiet"))
    assert (gone["drift"], gone["running"]) == ([GONE], False)


async def test_nothing_is_done_to_a_guest_that_has_a_shadow(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    guest = other(host)
    [shadow] = await shadows(cloud, host)
    await look(cloud)
    host.kill_agent()
    await asyncio.sleep(0)
    assert (await cloud.client.delete(f"/v1/foreign-guests/{shadow['id']}")).status_code == 204
    assert host.hypervisor.others == {guest.id: guest}
    assert host.hypervisor.guests == {}


async def test_a_host_takes_its_shadows_with_it(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[2]
    other(host)
    await shadows(cloud, host)
    assert (await cloud.client.delete(f"/v1/hosts/{host.id}")).status_code == 204
    assert await items(cloud.client, "foreign-guests") == []


async def test_only_administrators_of_the_cloud_see_what_is_not_of_the_cloud(
    cloud: SimulatedCloud, people: People
) -> None:
    host = cloud.fleet.hosts[0]
    other(host)
    [shadow] = await shadows(cloud, host)
    admin = await people.person(Role.ADMIN, await people.project("one"))
    for path in ("foreign-guests", f"foreign-guests/{shadow['id']}", f"hosts/{host.id}/foreign-guests"):
        assert refusal(await admin.client.get(f"/v1/{path}"))[0] == 403
    wish = {"host_id": host.id}
    assert refusal(await admin.client.post("/v1/foreign-guests", json=wish))[0] == 403


async def test_what_is_not_there_is_not_shadowed(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    wrong = {"host_id": host.id, "guest": "nobody"}
    assert refusal(await cloud.client.post("/v1/foreign-guests", json=wrong)) == (404, "not-found", {"guest"})
    assert refusal(await cloud.client.post("/v1/foreign-guests", json={"host_id": new_id()}))[0] == 404
    assert await shadows(cloud, host) == []


def test_a_definition_is_read_with_what_stands_in_the_way() -> None:
    guest = foreign_guest(FOUND.read_text(), running=True, persistent=False)
    assert (guest.name, guest.vcpus, guest.memory_mib, guest.firmware) == ("billing", 2, 2048, "uefi")
    assert [(each.target, each.kind, each.path) for each in guest.disks] == [
        ("vda", "file", "/srv/billing.qcow2"),
        ("vdb", "network", "pool/billing"),
        ("sda", "file", ""),
    ]
    assert [(each.kind, each.source) for each in guest.nics] == [("bridge", "br0"), ("direct", "eth0")]
    assert guest.obstacles == (
        "its definition is not kept: it would be gone when it ends",
        "it was given a device of the host",
        "disk vda stands on another image, which others may use",
        "disk vdb is neither a file nor a block device, but of type network",
        "disk vdb is shared with other guests",
        "interface 52:54:00:00:00:02 is on no bridge, but of type direct",
    )
