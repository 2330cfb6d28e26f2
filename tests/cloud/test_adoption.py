"""Guests that others made, taken over as they are; and instances that go on without Pileus."""

from typing import Any

import msgspec

from pileus.cloud.foreign.model import SHADOWS
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.networks.model import NETWORKS, PORTS, NetworkKind
from pileus.cloud.volumes.model import VOLUMES, VolumeState
from pileus.kernel.ids import VolumeId
from pileus.link.foreign import ForeignDisk
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fleet import SimulatedAgent
from pileus.testing.foreignguests import DATA, DISK, NIC, become, other, shadows
from pileus.testing.invariants import dangling
from pileus.testing.links import until
from pileus.testing.people import People
from pileus.testing.prover import disagreements
from pileus.testing.requests import items, made, over, refusal, running, shown
from pileus.workflow.task import TaskState


async def project_of(cloud: SimulatedCloud) -> str:
    return next(each["id"] for each in await items(cloud.client, "projects"))


async def adoption(cloud: SimulatedCloud, host: SimulatedAgent, guest: str = "old", **wish: Any) -> dict[str, Any]:
    """A guest on its way to be an instance: `task_id` and `foreign_guest`."""
    [shadow] = await shadows(cloud, host, guest=guest)
    wish = {"project_id": await project_of(cloud), **wish}
    answer = await cloud.client.post(f"/v1/foreign-guests/{shadow['id']}/adopt", json=wish)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def adopted(cloud: SimulatedCloud, host: SimulatedAgent) -> dict[str, Any]:
    """A guest of two disks that is an instance by now."""
    other(host, disks=(DISK, DATA))
    begun = await adoption(cloud, host)
    task = await over(cloud, begun["task_id"])
    assert task.state is TaskState.DONE, task
    return await shown(cloud.client, f"instances/{begun['foreign_guest']['instance_id']}")


async def done(cloud: SimulatedCloud, method: str, path: str, body: Any = None) -> None:
    answer = await cloud.client.request(method, f"/v1/{path}", json=body)
    assert answer.status_code == 202, answer.text
    task = await over(cloud, answer.json()["task_id"])
    assert task.state is TaskState.DONE, task


async def test_a_plan_says_what_would_become_what_and_does_nothing(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    drive = ForeignDisk(target="hda", device="cdrom")
    guest = other(host, untouched=("arguments for QEMU itself",))
    become(host, guest, disks=(DISK, DATA, drive))
    [shadow] = await shadows(cloud, host)
    wish = {"project_id": await project_of(cloud), "name": "billing"}
    answer = await cloud.client.post(f"/v1/foreign-guests/{shadow['id']}/adopt?dry_run=true", json=wish)
    assert answer.status_code == 200, answer.text
    says = {each["about"]: each["says"] for each in answer.json()["because"]}
    assert says == {
        "guest old": "goes on running, with 2 vCPUs and 2048 MiB of memory",
        "disk vda": "becomes volume billing of 1 GiB, and stays at /srv/old.qcow2",
        "disk vdb": "becomes volume billing-vdb of 6 GiB, and stays at /srv/data.raw",
        f"interface {NIC.mac}": "becomes port billing-0 of network br0 of host-1, and stays connected as it is",
        "drive hda": "stays as it is",
        "arguments for QEMU itself": "stays as it is: Pileus does not change it",
    }
    assert list(host.hypervisor.others) == [guest.id]
    assert guest.id not in cloud.state[INSTANCES]


async def test_a_running_guest_becomes_an_instance_and_does_not_notice(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    instance = await adopted(cloud, host)
    assert (instance["name"], instance["state"], instance["template"]) == ("old", "running", "as-found")
    assert (instance["vcpus"], instance["memory_mib"], instance["busy_with"]) == (2, 2048, "")
    guest = host.hypervisor.guests[instance["id"]]
    assert guest.starts == 1
    assert guest.spec.found_macs == (NIC.mac,)
    volumes = {each.name: each for each in cloud.state[VOLUMES].by("instance", instance["id"])}
    assert {name: (each.size_gib, each.state) for name, each in volumes.items()} == {
        "old": (1, VolumeState.IN_USE),
        "old-vdb": (6, VolumeState.IN_USE),
    }
    assert guest.disks[VolumeId(volumes["old"].id)].path == "/srv/old.qcow2"
    [port] = cloud.state[PORTS].by("instance_id", instance["id"])
    assert (port.mac, cloud.state[NETWORKS].get(port.network_id).kind) == (NIC.mac, NetworkKind.UNMANAGED)
    assert host.network.ports == {}
    assert list(cloud.state[SHADOWS]) == []
    assert dangling(cloud.state) == []
    assert await disagreements(cloud) == []


async def test_what_was_taken_over_is_stopped_started_and_kept_as_any_other(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    id = (await adopted(cloud, host))["id"]
    for verb in ("stop", "start", "reboot", "reset", "pause", "resume"):
        await done(cloud, "POST", f"instances/{id}/{verb}")
    host.hypervisor.crash(id)
    await until(lambda: host.hypervisor.guests[id].starts == 5)
    await done(cloud, "PUT", f"instances/{id}/limits", {"cpu_percent": 20})
    await done(cloud, "POST", f"instances/{id}/recovery", {"restart": "never"})
    assert await disagreements(cloud) == []


async def test_volumes_and_ports_come_and_go_beside_what_it_was_found_with(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    id = (await adopted(cloud, host))["id"]
    volume = await made(cloud.client, "volumes", name="more", size_gib=1)
    network = next(each["id"] for each in await items(cloud.client, "networks") if each["kind"] == "vpc")
    port = await made(cloud.client, "ports", name="more", network_id=network)
    await done(cloud, "POST", f"volumes/{volume['id']}/attach", {"instance_id": id})
    await done(cloud, "POST", f"ports/{port['id']}/attach", {"instance_id": id})
    guest = host.hypervisor.guests[id]
    assert volume["id"] in guest.plugged
    assert guest.connected == {port["id"]}
    assert await disagreements(cloud) == []
    found = next(each for each in cloud.state[VOLUMES] if each.name == "old-vdb")
    await done(cloud, "POST", f"volumes/{found.id}/detach")
    assert found.id not in host.hypervisor.guests[id].plugged
    other_one = await running(cloud, cloud.client)
    if other_one["host_id"] == host.id:
        await done(cloud, "POST", f"volumes/{found.id}/attach", {"instance_id": other_one["id"]})
        assert host.hypervisor.guests[other_one["id"]].disks[VolumeId(found.id)].path == "/srv/data.raw"
    assert await disagreements(cloud) == []


async def test_what_cannot_be_done_with_devices_that_are_not_ours_is_refused_with_the_reason(
    cloud: SimulatedCloud,
) -> None:
    host = cloud.fleet.hosts[0]
    id = (await adopted(cloud, host))["id"]
    volume = next(each for each in cloud.state[VOLUMES] if each.name == "old-vdb")
    [port] = cloud.state[PORTS].by("instance_id", id)
    network = port.network_id
    for path, body in (
        (f"instances/{id}/resize", {"vcpus": 3, "memory_mib": 4096}),
        (f"instances/{id}/rebuild", {}),
        (f"instances/{id}/recovery", {"watchdog": "reset"}),
        (f"volumes/{volume.id}/grow", {"size_gib": 9}),
        (f"volumes/{volume.id}/clone", {"name": "copy"}),
        ("snapshots", {"name": "now", "instance_id": id}),
        ("snapshots", {"name": "now", "volume_id": volume.id}),
        (f"ports/{port.id}/detach", {}),
        ("subnets", {"name": "mine", "network_id": network, "cidr": "10.9.0.0/24"}),
        ("ports", {"name": "another", "network_id": network}),
    ):
        answer = await cloud.client.post(f"/v1/{path}", json=body)
        assert answer.status_code == 409, f"{path}: {answer.text}"
    answer = await cloud.client.patch(f"/v1/instances/{id}", json={"boot_order": ["cdrom"]})
    assert refusal(answer)[:2] == (409, "conflict")
    image = (await items(cloud.client, "images"))[0]["id"]
    wish = {"name": "new", "image_id": image, "vcpus": 1, "memory_mib": 256, "template": "as-found"}
    assert refusal(await cloud.client.post("/v1/instances", json=wish))[0] == 400


async def test_deleting_keeps_the_disks_and_purging_removes_them(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    id = (await adopted(cloud, host))["id"]
    await done(cloud, "DELETE", f"instances/{id}")
    assert id not in cloud.state[INSTANCES]
    assert id not in host.hypervisor.guests
    assert {each.name: each.state for each in cloud.state[VOLUMES]} == {
        "old": VolumeState.AVAILABLE,
        "old-vdb": VolumeState.AVAILABLE,
    }
    assert host.found_disks.removed == []
    assert await disagreements(cloud) == []
    boot = next(each for each in cloud.state[VOLUMES] if each.name == "old")
    await done(cloud, "DELETE", f"volumes/{boot.id}")
    assert host.found_disks.removed == ["/srv/old.qcow2"]


async def test_a_guest_that_has_changed_since_is_not_taken_over(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    guest = other(host)
    [shadow] = await shadows(cloud, host)
    become(host, guest, memory_mib=4096)
    wish = {"project_id": await project_of(cloud)}
    answer = await cloud.client.post(f"/v1/foreign-guests/{shadow['id']}/adopt", json=wish)
    task = await over(cloud, answer.json()["task_id"])
    assert task.state is TaskState.UNDONE
    assert task.cause is not None
    assert "memory_mib was 2048, is 4096" in task.cause.detail
    assert guest.id in host.hypervisor.others
    assert cloud.state[SHADOWS].get(shadow["id"]).instance_id is None
    assert list(cloud.state[INSTANCES]) == list(cloud.state[VOLUMES]) == []
    await adoption(cloud, host)
    await until(lambda: cloud.state[SHADOWS].find(shadow["id"]) is None)
    assert cloud.state[INSTANCES].get(guest.id).memory_mib == 4096


async def test_what_stands_in_the_way_is_all_told_at_once(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    other(host, obstacles=("it was given a device of the host", "it has no disk"))
    [shadow] = await shadows(cloud, host)
    wish = {"project_id": await project_of(cloud)}
    answer = await cloud.client.post(f"/v1/foreign-guests/{shadow['id']}/adopt", json=wish)
    assert answer.status_code == 409
    assert list(answer.json()["because"].values()) == ["it was given a device of the host", "it has no disk"]


async def test_a_guest_without_a_disk_is_not_taken_over(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    other(host, disks=())
    [shadow] = await shadows(cloud, host)
    wish = {"project_id": await project_of(cloud)}
    answer = await cloud.client.post(f"/v1/foreign-guests/{shadow['id']}/adopt", json=wish)
    assert answer.status_code == 409
    assert list(answer.json()["because"].values()) == ["it has no disk"]


async def test_one_guest_is_taken_over_once_however_many_want_it(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    other(host)
    begun = await adoption(cloud, host)
    shadow = cloud.state[SHADOWS].ids[0]
    again = await cloud.client.post(f"/v1/foreign-guests/{shadow}/adopt", json={"project_id": await project_of(cloud)})
    assert again.status_code in (404, 409)
    assert (await cloud.client.delete(f"/v1/foreign-guests/{shadow}")).status_code in (404, 409)
    assert (await over(cloud, begun["task_id"])).state is TaskState.DONE
    assert len(list(cloud.state[INSTANCES])) == 1


async def test_it_takes_quota_of_its_project(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    other(host)
    [shadow] = await shadows(cloud, host)
    project = await project_of(cloud)
    assert (await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"vcpus": 1}})).status_code == 200
    answer = await cloud.client.post(f"/v1/foreign-guests/{shadow['id']}/adopt", json={"project_id": project})
    assert refusal(answer)[1] == "quota-exceeded"


async def test_only_administrators_of_the_cloud_take_over_and_let_go(cloud: SimulatedCloud, people: People) -> None:
    host = cloud.fleet.hosts[0]
    other(host)
    [shadow] = await shadows(cloud, host)
    admin = await people.person(Role.ADMIN, await people.project("one"))
    wish = {"project_id": await project_of(cloud)}
    assert refusal(await admin.client.post(f"/v1/foreign-guests/{shadow['id']}/adopt", json=wish))[0] == 403
    own = await running(cloud, admin.client)
    assert refusal(await admin.client.post(f"/v1/instances/{own['id']}/leave", json={}))[0] == 403


async def test_what_was_taken_over_goes_on_as_it_was_found(cloud: SimulatedCloud) -> None:
    host = cloud.fleet.hosts[0]
    guest = other(host)
    first = await adoption(cloud, host)
    await over(cloud, first["task_id"])
    await done(cloud, "POST", f"instances/{guest.id}/leave", {})
    assert host.hypervisor.others == {guest.id: guest}
    assert host.found_disks.removed == []
    assert list(cloud.state[VOLUMES]) == list(cloud.state[PORTS]) == []
    assert await disagreements(cloud) == []
    again = await adoption(cloud, host)
    assert (await over(cloud, again["task_id"])).state is TaskState.DONE
    assert cloud.state[INSTANCES].get(guest.id).state is InstanceState.RUNNING


async def test_an_instance_goes_on_without_pileus_when_somebody_says_what_becomes_of_its_networks(
    cloud: SimulatedCloud,
) -> None:
    instance = await running(cloud, cloud.client)
    host = next(each for each in cloud.fleet.hosts if each.id == instance["host_id"])
    path = f"instances/{instance['id']}/leave"
    answer = await cloud.client.post(f"/v1/{path}", json={})
    assert refusal(answer)[2] == {"bridge", "without_network"}
    plan = await cloud.client.post(f"/v1/{path}?dry_run=true", json={"bridge": "br0"})
    assert any("loses network default at once" in each["says"] for each in plan.json()["because"])
    await done(cloud, "POST", path, {"bridge": "br0"})
    [left] = host.hypervisor.others.values()
    assert (left.id, left.running, left.nics[0].source) == (instance["id"], True, "br0")
    assert instance["id"] not in cloud.state[INSTANCES]
    assert host.network.ports == {}
    assert list(host.storage.volumes), "its disk stays where it is"
    host.kill_agent()
    await until(lambda: list(host.storage.volumes) != [])
    assert dangling(cloud.state) == []


async def test_a_host_says_of_no_volume_that_it_left(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    host = next(each for each in cloud.fleet.hosts if each.id == instance["host_id"])
    await done(cloud, "POST", f"instances/{instance['id']}/leave", {"without_network": True})
    [(_, record)] = host.records.volumes.items()
    assert msgspec.to_builtins(record)["left"] is True
