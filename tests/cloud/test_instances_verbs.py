"""What is done with instances that are there, through the API of a whole controller, on simulated hosts."""

from typing import Any

from pileus.agent.hypervisor.port import GuestState
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fleet import SimulatedAgent
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
