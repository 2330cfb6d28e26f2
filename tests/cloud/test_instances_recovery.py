"""What becomes of instances whose guests end by themselves, through the API of a whole controller."""

from pileus.agent.hypervisor.port import GuestState
from pileus.cloud.instances.model import INSTANCES, InstanceState
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.link.guests import Restart, Watchdog
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until

from .test_instances_verbs import Made, made


def crash(instance: Made) -> None:
    instance.host.hypervisor.crash(InstanceId(instance.id))


async def becomes(cloud: SimulatedCloud, instance: Made, state: InstanceState, reason: str) -> None:
    await until(
        lambda: (found := cloud.state[INSTANCES].get(instance.id)).state is state and reason in found.state_reason
    )


async def test_an_instance_that_crashed_is_started_again_and_says_so(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    crash(instance)
    await becomes(cloud, instance, InstanceState.RUNNING, "started again: killed by signal 9")


async def test_an_instance_that_is_never_to_be_restarted_stays_down_when_it_crashed(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, restart="never")
    crash(instance)
    await becomes(cloud, instance, InstanceState.STOPPED, "killed by signal 9")
    assert await instance.guest() is GuestState.CRASHED


async def test_an_instance_whose_guest_switched_itself_off_stays_off_by_default(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    instance.host.hypervisor.shuts_itself_down(InstanceId(instance.id))
    await becomes(cloud, instance, InstanceState.STOPPED, "the guest shut itself down")


async def test_the_policy_is_changed_while_the_instance_runs(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    task = await instance.asked("recovery", restart="always", watchdog="none")
    assert task["state"] == "done"
    shown = await instance.shown()
    assert (shown["restart"], shown["watchdog"], shown["state"], shown["busy_with"]) == (
        "always",
        "none",
        "running",
        "",
    )
    guest = instance.host.hypervisor.guests[InstanceId(instance.id)]
    assert (guest.spec.restart, guest.spec.watchdog, guest.starts) == (Restart.ALWAYS, Watchdog.NONE, 1)
    instance.host.hypervisor.shuts_itself_down(InstanceId(instance.id))
    await becomes(cloud, instance, InstanceState.RUNNING, "started again: the guest shut itself down")


async def test_whoever_stops_an_instance_is_obeyed_whatever_its_policy(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, restart="always")
    assert (await instance.asked("stop"))["state"] == "done"
    instance.host.kill_agent()
    assert ((await instance.shown())["state"], await instance.guest()) == ("stopped", GuestState.SHUT_DOWN)


async def test_a_policy_that_the_host_refuses_is_not_kept(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    instance.host.faults.fail("hypervisor.define", Conflict("not now"))
    task = await instance.asked("recovery", restart="never")
    assert (task["state"], task["cause"]["detail"]) == ("undone", "not now")
    shown = await instance.shown()
    assert (shown["restart"], shown["busy_with"]) == ("on-failure", "")


async def test_what_is_no_policy_is_refused_by_name(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    refused = await instance.asked("recovery", restart="sometimes", watchdog="bark")
    assert (refused["status"], set(refused["fields"])) == (400, {"restart", "watchdog"})
    assert (await instance.asked("recovery"))["status"] == 400
