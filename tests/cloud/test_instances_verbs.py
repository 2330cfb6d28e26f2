"""What is done with instances that are there, through the API of a whole controller, on simulated hosts."""

from typing import Any

from pileus.agent.hypervisor.port import GuestState
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.cloud.volumes.model import VOLUMES
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.kernel.units import GIB
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fleet import MACHINE, SimulatedAgent
from pileus.testing.links import until
from pileus.workflow.task import TASKS, UNFINISHED


class Made:
    """An instance that was made for a test."""

    def __init__(self, cloud: SimulatedCloud, record: dict[str, Any]) -> None:
        self._cloud = cloud
        self.id: str = record["id"]
        self.path = f"/v1/instances/{self.id}"
        self.host: SimulatedAgent = next(host for host in cloud.fleet.hosts if host.id == record["host_id"])

    async def asked(self, verb: str, **wish: Any) -> dict[str, Any]:
        """Ask for a verb; the problem, or the task when it has come to its end."""
        answer = await self._cloud.client.post(f"{self.path}/{verb}", json=wish)
        if answer.status_code != 202:
            return answer.json()
        return await ended(self._cloud, answer.json()["task_id"])

    async def shown(self) -> dict[str, Any]:
        return (await self._cloud.client.get(self.path)).json()

    async def guest(self) -> GuestState:
        return (await self.host.hypervisor.list())[InstanceId(self.id)].state


async def made(cloud: SimulatedCloud, **more: Any) -> Made:
    """An instance that runs."""
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    wish = {"name": "hello", "image_id": image, "vcpus": 1, "memory_mib": 256, **more}
    answer = (await cloud.client.post("/v1/instances", json=wish)).json()
    assert (await ended(cloud, answer["task_id"]))["state"] == "done"
    return Made(cloud, answer["instance"])


async def ended(cloud: SimulatedCloud, task: str) -> dict[str, Any]:
    await until(lambda: cloud.state[TASKS].get(task).state not in UNFINISHED)
    return (await cloud.client.get(f"/v1/tasks/{task}")).json()


async def test_a_paused_instance_keeps_its_memory_and_goes_on(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    for verb, state, guest in (
        ("pause", "paused", GuestState.PAUSED),
        ("resume", "running", GuestState.RUNNING),
        ("pause", "paused", GuestState.PAUSED),
        ("start", "running", GuestState.RUNNING),
    ):
        assert (await instance.asked(verb))["state"] == "done"
        assert ((await instance.shown())["state"], await instance.guest()) == (state, guest)
    assert instance.host.hypervisor.guests[InstanceId(instance.id)].starts == 1


async def test_only_a_running_instance_is_paused_and_only_a_paused_one_resumed(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    assert (await instance.asked("resume"))["status"] == 409
    await instance.asked("pause")
    assert (await instance.asked("pause"))["status"] == 409
    assert (await instance.asked("reboot"))["status"] == 409
    assert (await instance.asked("stop"))["state"] == "done"
    assert (await instance.asked("pause"))["status"] == 409


async def test_a_paused_instance_that_cannot_be_stopped_is_paused_again(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("pause")
    instance.host.faults.fail("hypervisor.shut_down", Conflict("it does not listen"))
    task = await instance.asked("stop")
    assert (task["state"], task["cause"]["detail"]) == ("undone", "it does not listen")
    assert ((await instance.shown())["state"], await instance.guest()) == ("paused", GuestState.PAUSED)


async def test_a_paused_instance_outlives_its_agent(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("pause")
    instance.host.kill_agent()
    assert (await instance.asked("resume"))["state"] == "done"
    assert await instance.guest() is GuestState.RUNNING


async def test_a_paused_instance_that_loses_its_memory_is_stopped(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("pause")
    instance.host.hypervisor.crash(InstanceId(instance.id))
    await until(lambda: cloud.state[INSTANCES].get(instance.id).state is InstanceState.STOPPED)
    assert cloud.state[INSTANCES].get(instance.id).state_reason == "killed by signal 9"


async def test_a_stopped_instance_is_resized_and_its_host_knows(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, disk_gib=2)
    await instance.asked("stop")
    assert (await instance.asked("resize", vcpus=2, memory_mib=512, disk_gib=3))["state"] == "done"
    shown = await instance.shown()
    assert (shown["state"], shown["vcpus"], shown["memory_mib"], shown["disk_gib"]) == ("stopped", 2, 512, 3)
    spec = instance.host.hypervisor.guests[InstanceId(instance.id)].spec
    assert (spec.vcpus, spec.memory_mib) == (2, 512)
    assert [each.size_bytes for each in (await instance.host.storage.list()).values()] == [3 * GIB]
    assert (await instance.asked("start"))["state"] == "done"


async def test_a_flavor_gives_its_size_and_never_shrinks_the_disk(cloud: SimulatedCloud) -> None:
    wish = {"name": "wide", "vcpus": 3, "memory_mib": 1024, "disk_gib": 1}
    flavor = (await cloud.client.post("/v1/flavors", json=wish)).json()["id"]
    instance = await made(cloud, disk_gib=2)
    await instance.asked("stop")
    assert (await instance.asked("resize", flavor_id=flavor))["state"] == "done"
    shown = await instance.shown()
    assert (shown["flavor_id"], shown["vcpus"], shown["memory_mib"], shown["disk_gib"]) == (flavor, 3, 1024, 2)
    await instance.asked("resize", disk_gib=4)
    assert (await instance.shown())["flavor_id"] == flavor
    await instance.asked("resize", vcpus=1)
    assert (await instance.shown()).get("flavor_id") is None


async def test_what_its_host_has_no_room_for_is_refused_with_the_smallest_change(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("stop")
    refused = await instance.asked("resize", vcpus=64)
    assert (refused["status"], set(refused["because"])) == (507, {instance.host.name})
    assert "it would fit: ask for " in refused["detail"]
    assert (await instance.shown())["vcpus"] == 1


async def test_an_instance_may_take_all_of_its_host_by_the_difference(cloud: SimulatedCloud) -> None:
    all_of_it = MACHINE.vcpus
    instance = await made(cloud, vcpus=all_of_it - 1)
    await instance.asked("stop")
    assert (await instance.asked("resize", vcpus=all_of_it))["state"] == "done"
    assert (await instance.asked("resize", vcpus=all_of_it + 1))["status"] == 507
    assert (await instance.asked("resize", vcpus=1))["state"] == "done"


async def test_only_a_stopped_instance_is_resized_and_no_disk_shrinks(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, disk_gib=2)
    assert (await instance.asked("resize", vcpus=2))["status"] == 409
    await instance.asked("stop")
    assert (await instance.asked("resize", disk_gib=1))["fields"] == {"disk_gib": "it has 2 GiB, and disks only grow"}
    for nothing in ({}, {"flavor_id": instance.id, "vcpus": 1}):
        assert (await instance.asked("resize", **nothing))["status"] == 400


async def test_a_resize_that_fails_leaves_the_size_as_it_was(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, disk_gib=2)
    await instance.asked("stop")
    instance.host.faults.fail("storage.ensure", Conflict("the pool is full"))
    task = await instance.asked("resize", vcpus=2, disk_gib=3)
    assert (task["state"], task["cause"]["detail"]) == ("undone", "the pool is full")
    shown = await instance.shown()
    assert (shown["state"], shown["vcpus"], shown["disk_gib"]) == ("stopped", 1, 2)
    assert instance.host.hypervisor.guests[InstanceId(instance.id)].spec.vcpus == 1
    assert (await instance.asked("start"))["state"] == "done"


async def test_a_rebuilt_instance_has_a_new_disk_and_all_else_as_before(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    before = await instance.shown()
    old = set(await instance.host.storage.list())
    assert (await instance.asked("rebuild"))["state"] == "done"
    now = await instance.shown()
    for same in ("id", "name", "addresses", "state", "vcpus", "memory_mib", "image_id"):
        assert now[same] == before[same]
    new = set(await instance.host.storage.list())
    assert len(new) == 1
    assert new.isdisjoint(old)
    guest = instance.host.hypervisor.guests[InstanceId(instance.id)]
    assert (set(guest.disks), guest.starts, guest.state) == (new, 2, GuestState.RUNNING)
    assert (await instance.asked("reboot"))["state"] == "done"


async def test_a_stopped_instance_is_rebuilt_and_stays_stopped(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("stop")
    assert (await instance.asked("rebuild"))["state"] == "done"
    assert ((await instance.shown())["state"], await instance.guest()) == ("stopped", GuestState.SHUT_DOWN)
    assert (await instance.asked("start"))["state"] == "done"


async def test_a_rebuild_whose_guest_does_not_start_brings_the_old_disk_back(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    disks = set(await instance.host.storage.list())
    instance.host.faults.fail("hypervisor.start", Conflict("it does not boot"))
    task = await instance.asked("rebuild")
    assert (task["state"], task["cause"]["detail"]) == ("undone", "it does not boot")
    assert set(await instance.host.storage.list()) == disks
    assert set(instance.host.hypervisor.guests[InstanceId(instance.id)].disks) == disks
    assert ((await instance.shown())["state"], await instance.guest()) == ("running", GuestState.RUNNING)
    assert [each.id for each in cloud.state[VOLUMES]] == list(disks)


async def test_a_paused_instance_is_not_rebuilt(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("pause")
    assert (await instance.asked("rebuild"))["status"] == 409
