"""Instances that are deleted, and can be had back for a day, through the API of a whole controller."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.networks.model import PORTS
from pileus.kernel.clock import FrozenClock
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.testing.cloud import KEEPING, SimulatedCloud, simulated_cloud
from pileus.testing.fleet import MACHINE, SimulatedFleet
from pileus.testing.invariants import dangling
from pileus.testing.links import until
from pileus.testing.memorystore import MemoryStore

from .test_instances_verbs import Made, ended, made


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
async def cloud(tmp_path: Path, clock: FrozenClock) -> AsyncIterator[SimulatedCloud]:
    """A cloud that keeps what is deleted for a day."""
    async with simulated_cloud(tmp_path, store=MemoryStore(), clock=clock, settings=KEEPING) as cloud:
        yield cloud
        assert dangling(cloud.state) == []


async def deleted(cloud: SimulatedCloud, instance: Made) -> dict[str, Any]:
    answer = await cloud.client.delete(instance.path)
    assert answer.status_code == 202, answer.text
    assert (await ended(cloud, answer.json()["task_id"]))["state"] == "done"
    return await instance.shown()


async def listed(cloud: SimulatedCloud, query: str = "") -> list[str]:
    return [each["id"] for each in (await cloud.client.get(f"/v1/instances{query}")).json()["items"]]


async def usage(cloud: SimulatedCloud) -> dict[str, int]:
    project = (await cloud.client.get("/v1/tokens/current")).json()["project_id"]
    lines = (await cloud.client.get(f"/v1/projects/{project}/quota")).json()["usage"]
    return {what: lines[what]["used"] for what in ("instances", "vcpus", "memory_mib", "volumes")}


async def test_a_deleted_instance_comes_back_with_its_disk_and_addresses(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    before = await instance.shown()
    disks = await instance.host.storage.list()
    gone = await deleted(cloud, instance)
    assert (gone["state"], gone["addresses"]) == ("deleted", before["addresses"])
    assert InstanceId(instance.id) not in await instance.host.hypervisor.list()
    assert await instance.host.network.list() == {}
    assert await instance.host.storage.list() == disks
    task = await instance.asked("undelete")
    assert task["state"] == "done", task
    back = await instance.shown()
    changed = {name for name, value in back.items() if before[name] != value}
    assert changed == {"state", "generation", "revision"}
    assert back["state"] == "stopped"
    assert (await instance.asked("start"))["state"] == "done"


async def test_a_deleted_instance_is_listed_only_to_who_asks_for_it(cloud: SimulatedCloud) -> None:
    instance, other = await made(cloud), await made(cloud)
    await deleted(cloud, instance)
    assert await listed(cloud) == [other.id]
    assert await listed(cloud, "?name=hello") == [other.id]
    assert await listed(cloud, "?state=deleted") == [instance.id]


async def test_a_deleted_instance_takes_nothing_but_its_disk(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    before = await usage(cloud)
    await deleted(cloud, instance)
    assert await usage(cloud) == {**dict.fromkeys(before, 0), "volumes": before["volumes"]}
    load = (await cloud.client.get(f"/v1/hosts/{(await instance.shown())['host_id']}/load")).json()
    assert (load["promised_vcpus"], load["promised_memory_mib"]) == (0, 0)
    assert load["promised_disk_gib"] > 0
    await instance.asked("undelete")
    assert await usage(cloud) == before


async def test_an_instance_comes_back_only_if_the_quota_allows_it(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await deleted(cloud, instance)
    project = (await cloud.client.get("/v1/tokens/current")).json()["project_id"]
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"vcpus": 0}})
    assert (await instance.asked("undelete"))["type"] == "/problems/quota-exceeded"
    assert (await instance.shown())["state"] == "deleted"


async def test_an_instance_comes_back_only_if_its_host_still_has_room(cloud: SimulatedCloud) -> None:
    most = MACHINE.memory_mib * 2 // 3
    instance = await made(cloud, memory_mib=most)
    await deleted(cloud, instance)
    project = (await cloud.client.get("/v1/tokens/current")).json()["project_id"]
    await cloud.client.patch(f"/v1/projects/{project}", json={"quota": {"memory_mib": 10**7}})
    for _ in cloud.fleet.hosts:
        await made(cloud, memory_mib=most)
    refused = await instance.asked("undelete")
    assert (refused["status"], refused["type"]) == (507, "/problems/no-capacity")


async def test_floating_ips_and_other_volumes_are_free_at_once(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    floating = (await cloud.client.post("/v1/floating-ips", json={"instance_id": instance.id})).json()
    volume = (await cloud.client.post("/v1/volumes", json={"name": "data", "size_gib": 1})).json()
    attach = await cloud.client.post(f"/v1/volumes/{volume['id']}/attach", json={"instance_id": instance.id})
    await ended(cloud, attach.json()["task_id"])
    gone = await deleted(cloud, instance)
    assert (gone["attached_volume_ids"], gone["floating_addresses"]) == ([], [])
    assert (await cloud.client.get(f"/v1/volumes/{volume['id']}")).json()["state"] == "available"
    assert cloud.state[FLOATING_IPS].get(floating["id"]).port_id is None
    given = await cloud.client.post(f"/v1/floating-ips/{floating['id']}/associate", json={"instance_id": instance.id})
    assert given.status_code == 409
    assert (await instance.asked("undelete"))["state"] == "done"


async def test_the_name_in_dns_is_free_meanwhile_and_comes_back(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await deleted(cloud, instance)
    assert [port.hostname for port in cloud.state[PORTS].by("instance_id", instance.id)] == [""]
    await instance.asked("undelete")
    assert [port.hostname for port in cloud.state[PORTS].by("instance_id", instance.id)] == ["hello"]


async def test_after_a_day_it_is_gone_for_good(cloud: SimulatedCloud, clock: FrozenClock) -> None:
    instance = await made(cloud)
    await deleted(cloud, instance)
    clock.advance(timedelta(hours=23, minutes=59))
    await cloud.controller.housekeeping.once()
    assert cloud.state[INSTANCES].get(instance.id).state is InstanceState.DELETED
    clock.advance(timedelta(minutes=1))
    await cloud.controller.housekeeping.once()
    await cloud.controller.housekeeping.once()
    await until(lambda: instance.id not in cloud.state[INSTANCES])
    assert await instance.host.storage.list() == {}
    assert len(cloud.state[PORTS]) == 0


async def test_one_that_was_protected_meanwhile_is_kept(cloud: SimulatedCloud, clock: FrozenClock) -> None:
    instance = await made(cloud)
    await deleted(cloud, instance)
    await cloud.client.patch(instance.path, json={"protected": True})
    clock.advance(timedelta(days=2))
    await cloud.controller.housekeeping.once()
    assert cloud.state[INSTANCES].get(instance.id).state is InstanceState.DELETED
    assert (await instance.asked("purge"))["status"] == 409


async def test_an_instance_is_purged_at_once_whether_deleted_or_not(cloud: SimulatedCloud) -> None:
    running, gone = await made(cloud), await made(cloud)
    await deleted(cloud, gone)
    for instance in (running, gone):
        assert (await instance.asked("purge"))["state"] == "done"
        assert (await cloud.client.get(instance.path)).status_code == 404
        assert await instance.host.storage.list() == {}


async def test_nothing_else_is_done_with_a_deleted_instance(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await deleted(cloud, instance)
    for verb in ("start", "stop", "reboot", "reset", "pause", "resume", "suspend", "rebuild", "recovery"):
        wish = {"restart": "never"} if verb == "recovery" else {}
        assert (await instance.asked(verb, **wish))["status"] == 409, verb
    assert (await cloud.client.delete(instance.path)).status_code == 409
    assert (await instance.asked("undelete"))["state"] == "done"
    assert (await instance.asked("undelete"))["status"] == 409


async def test_an_instance_that_cannot_come_back_stays_deleted(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    since = (await deleted(cloud, instance))["deleted_at"]
    instance.host.faults.fail("hypervisor.define", Conflict("not now"))
    assert (await instance.asked("undelete"))["state"] == "undone"
    assert ((await instance.shown())["state"], (await instance.shown())["deleted_at"]) == ("deleted", since)
    assert (await instance.asked("undelete"))["state"] == "done"


async def test_a_controller_and_an_agent_that_were_restarted_know_what_is_deleted(tmp_path: Path) -> None:
    store, clock = MemoryStore(), FrozenClock()
    fleet = SimulatedFleet(1, clock=clock)
    async with simulated_cloud(tmp_path, store=store, clock=clock, fleet=fleet, settings=KEEPING) as cloud:
        instance = await made(cloud)
        await deleted(cloud, instance)
    async with simulated_cloud(tmp_path, store=store, clock=clock, fleet=fleet, settings=KEEPING) as cloud:
        assert await fleet.hosts[0].hypervisor.list() == {}
        again = Made(cloud, (await cloud.client.get(instance.path)).json())
        assert (await again.asked("undelete"))["state"] == "done"
        assert list(await fleet.hosts[0].hypervisor.list()) == [instance.id]


async def test_a_project_that_keeps_deleted_instances_says_so(cloud: SimulatedCloud) -> None:
    project = (await cloud.client.post("/v1/projects", json={"name": "other"})).json()
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    wish = {"name": "hello", "image_id": image, "vcpus": 1, "memory_mib": 256}
    headers = {"pileus-project": project["id"]}
    answer = (await cloud.client.post("/v1/instances", json=wish, headers=headers)).json()
    await ended(cloud, answer["task_id"])
    instance = Made(cloud, answer["instance"])
    await deleted(cloud, instance)
    refused = await cloud.client.delete(f"/v1/projects/{project['id']}")
    assert (refused.status_code, "purge them" in refused.json()["detail"]) == (409, True)
    await instance.asked("purge")
    assert (await cloud.client.delete(f"/v1/projects/{project['id']}")).status_code == 204
