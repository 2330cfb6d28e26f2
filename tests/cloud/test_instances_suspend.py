"""Instances that are suspended to disk, through the API of a whole controller, on simulated hosts."""

from pileus.agent.hypervisor.port import GuestState
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until

from .test_instances_verbs import Made, made


def starts(instance: Made) -> int:
    """How often its guest was started anew."""
    return instance.host.hypervisor.guests[InstanceId(instance.id)].starts


async def test_a_suspended_instance_goes_on_where_it_was(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    for verb, state, guest in (
        ("suspend", "suspended", GuestState.SUSPENDED),
        ("resume", "running", GuestState.RUNNING),
        ("pause", "paused", GuestState.PAUSED),
        ("suspend", "suspended", GuestState.SUSPENDED),
        ("start", "running", GuestState.RUNNING),
    ):
        assert (await instance.asked(verb))["state"] == "done"
        assert ((await instance.shown())["state"], await instance.guest()) == (state, guest)
    assert starts(instance) == 1


async def test_stopping_a_suspended_instance_forgets_its_memory_and_the_plan_says_so(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("suspend")
    plan = (await cloud.client.post(f"{instance.path}/stop?dry_run=true")).json()
    assert "forget what it had in memory" in plan["summary"]
    assert (await instance.asked("stop"))["state"] == "done"
    assert ((await instance.shown())["state"], await instance.guest()) == ("stopped", GuestState.SHUT_DOWN)
    assert (await instance.asked("start"))["state"] == "done"
    assert starts(instance) == 2


async def test_a_suspended_instance_outlives_agent_and_host(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("suspend")
    instance.host.hypervisor.host_restarts()
    instance.host.kill_agent()
    assert (await instance.asked("resume"))["state"] == "done"
    assert (await instance.guest(), starts(instance)) == (GuestState.RUNNING, 1)


async def test_nothing_about_a_suspended_instance_is_changed(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("suspend")
    volume = (await cloud.client.post("/v1/volumes", json={"name": "data", "size_gib": 1})).json()
    attach = await cloud.client.post(f"/v1/volumes/{volume['id']}/attach", json={"instance_id": instance.id})
    refused = [
        attach.json(),
        await instance.asked("resize", vcpus=2),
        await instance.asked("rebuild"),
        await instance.asked("recovery", restart="never"),
        await instance.asked("reboot"),
        await instance.asked("reset"),
        await instance.asked("suspend"),
    ]
    assert [each["status"] for each in refused] == [409] * len(refused)
    assert (await instance.asked("resume"))["state"] == "done"


async def test_an_instance_that_cannot_be_suspended_goes_on_as_it_was(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    instance.host.faults.fail("hypervisor.suspend", Conflict("its disk is full"))
    task = await instance.asked("suspend")
    assert (task["state"], task["cause"]["detail"]) == ("undone", "its disk is full")
    assert ((await instance.shown())["state"], await instance.guest(), starts(instance)) == (
        "running",
        GuestState.RUNNING,
        1,
    )


async def test_an_instance_whose_kept_memory_is_lost_is_stopped_and_says_why(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("suspend")
    await instance.host.hypervisor.forget_memory(InstanceId(instance.id))
    await until(lambda: cloud.state[INSTANCES].get(instance.id).state is InstanceState.STOPPED)
    assert cloud.state[INSTANCES].get(instance.id).state_reason == "it was suspended, and its memory is lost"


async def test_a_suspended_guest_that_somebody_resumed_by_hand_is_suspended_again(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("suspend")
    await instance.host.hypervisor.start(InstanceId(instance.id))
    instance.host.kill_agent()
    await until(
        lambda: (
            instance.host.hypervisor.guests[InstanceId(instance.id)].state is GuestState.SUSPENDED
            and (found := cloud.state[INSTANCES].get(instance.id)).state is InstanceState.SUSPENDED
            and not found.busy_with
        )
    )


async def test_only_a_running_instance_is_reset(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    instance.host.hypervisor.deaf.add(InstanceId(instance.id))
    assert (await instance.asked("reset"))["state"] == "done"
    assert starts(instance) == 2
    await instance.asked("pause")
    assert (await instance.asked("reset"))["status"] == 409
