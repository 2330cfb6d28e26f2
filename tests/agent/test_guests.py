"""What an agent does with guests, over simulated engines."""

import asyncio
from datetime import timedelta

import pytest
from msgspec import structs

from pileus.agent.agent import Pace
from pileus.agent.hypervisor.port import GuestState
from pileus.agent.making import ASK_AGAIN_S
from pileus.agent.network.port import Plug
from pileus.kernel.errors import Conflict, NotFound, Stale, Unavailable
from pileus.kernel.ids import InstanceId, PortId, new_id
from pileus.link.consoles import ConsoleRequest
from pileus.link.guests import GuestReboot, GuestRemoval, Power, Restart
from pileus.testing.links import until

from .conftest import HostBench, a_guest, a_nic, a_volume, later


async def test_a_wanted_guest_runs_with_its_disks_and_ports(bench: HostBench) -> None:
    agent, volume = bench.agent(), a_volume()
    guest = a_guest(volume, nics=2)
    await agent.ensure_volume(volume, bench.tell)
    observed = await agent.ensure_guest(guest, bench.tell)
    assert (observed.power, observed.generation, observed.cause) == (Power.RUNNING, 1, "")
    defined = bench.hypervisor.guests[guest.id]
    assert defined.state is GuestState.RUNNING
    assert defined.disks.keys() == {volume.id}
    assert defined.plugs.keys() == {nic.port for nic in guest.nics} == bench.network.ports.keys()
    assert bench.network.served == {nic.network: nic.mtu for nic in guest.nics}


async def test_the_steps_of_making_a_guest_are_told_by_name(bench: HostBench) -> None:
    await bench.agent().ensure_guest(a_guest(), bench.tell)
    assert [progress.step for progress in bench.told] == ["connecting", "defining", "starting"]


async def test_asking_twice_is_asking_once(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    first = await agent.ensure_guest(guest, bench.tell)
    bench.faults.calls = []
    assert await agent.ensure_guest(guest, bench.tell) == first
    assert bench.faults.calls == ["hypervisor.list"]


async def test_the_same_guest_asked_for_many_times_at_once_is_started_once(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await asyncio.gather(*(agent.ensure_guest(guest, bench.tell) for _ in range(10)))
    assert bench.hypervisor.guests[guest.id].starts == 1


async def test_an_older_generation_never_undoes_a_newer_one(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest(power=Power.STOPPED)
    await agent.ensure_guest(later(guest, power=Power.RUNNING), bench.tell)
    with pytest.raises(Stale):
        await agent.ensure_guest(guest, bench.tell)
    with pytest.raises(Stale):
        await agent.remove_guest(GuestRemoval(id=guest.id, generation=guest.generation))
    assert bench.hypervisor.guests[guest.id].state is GuestState.RUNNING


async def test_a_late_wish_does_not_bring_a_removed_guest_back(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    await agent.remove_guest(GuestRemoval(id=guest.id, generation=2))
    for late in (guest, later(guest)):
        with pytest.raises(Stale):
            await bench.agent().ensure_guest(late, bench.tell)
    assert not bench.hypervisor.guests


async def test_a_guest_may_come_back_in_a_later_generation(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.remove_guest(GuestRemoval(id=guest.id, generation=1))
    assert (await agent.ensure_guest(later(guest), bench.tell)).power is Power.RUNNING


async def test_a_removal_is_forgotten_after_a_day_and_not_before(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    assert bench.data is not None
    file = bench.data / "guests" / f"{guest.id}.json"
    await agent.remove_guest(GuestRemoval(id=guest.id, generation=1))
    bench.clock.advance(_hours(23))
    await agent.reconcile()
    assert file.exists()
    bench.clock.advance(_hours(2))
    await agent.reconcile()
    assert not file.exists()


async def test_a_removed_guest_leaves_nothing_but_its_volumes(bench: HostBench) -> None:
    agent, volume = bench.agent(), a_volume()
    guest = a_guest(volume)
    await agent.ensure_volume(volume, bench.tell)
    await agent.ensure_guest(guest, bench.tell)
    await agent.remove_guest(GuestRemoval(id=guest.id, generation=1))
    assert not bench.hypervisor.guests
    assert not bench.network.ports
    assert not bench.network.served
    assert bench.storage.volumes.keys() == {volume.id}


@pytest.mark.parametrize(
    "call", ["storage.source", "network.plug", "network.serve", "hypervisor.define", "hypervisor.start"]
)
async def test_a_guest_that_cannot_be_made_leaves_nothing_and_may_be_asked_for_again(
    bench: HostBench, call: str
) -> None:
    agent, volume = bench.agent(), a_volume()
    guest = a_guest(volume)
    await agent.ensure_volume(volume, bench.tell)
    bench.faults.fail(call, Unavailable("not now"))
    with pytest.raises(Unavailable):
        await agent.ensure_guest(guest, bench.tell)
    assert not bench.hypervisor.guests
    assert not bench.network.ports
    assert not bench.network.served
    assert (await agent.ensure_guest(guest, bench.tell)).power is Power.RUNNING


async def test_an_undo_that_fails_is_finished_later(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    bench.faults.fail("hypervisor.start", Unavailable("not now"))
    bench.faults.fail("network.unplug", Unavailable("not now"))
    with pytest.raises(Unavailable):
        await agent.ensure_guest(guest, bench.tell)
    assert bench.network.ports
    await bench.agent().reconcile()
    assert not bench.hypervisor.guests
    assert not bench.network.ports


async def test_a_guest_that_was_there_before_is_not_undone(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    bench.faults.fail("hypervisor.define", Unavailable("not now"))
    with pytest.raises(Unavailable):
        await agent.ensure_guest(later(guest, vcpus=2), bench.tell)
    assert bench.hypervisor.guests[guest.id].state is GuestState.RUNNING
    await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].spec.vcpus == 2


async def test_a_guest_without_its_volume_is_refused(bench: HostBench) -> None:
    with pytest.raises(NotFound):
        await bench.agent().ensure_guest(a_guest(a_volume()), bench.tell)


async def test_a_port_that_is_no_longer_wanted_is_unplugged(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest(nics=2)
    await agent.ensure_guest(guest, bench.tell)
    other = a_nic(7)
    await agent.ensure_guest(later(guest, nics=(guest.nics[0], other)), bench.tell)
    assert bench.network.ports.keys() == {guest.nics[0].port, other.port}
    assert bench.network.served.keys() == {guest.nics[0].network, other.network}


async def test_a_guest_is_asked_to_end_and_ends(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    bench.faults.calls = []
    observed = await agent.ensure_guest(later(guest, power=Power.STOPPED), bench.tell)
    assert observed.power is Power.STOPPED
    assert "hypervisor.shut_down" in bench.faults.calls
    assert "hypervisor.stop" not in bench.faults.calls
    assert not bench.observed


async def test_a_guest_that_does_not_listen_is_ended(bench: HostBench) -> None:
    agent, guest = bench.agent(pace=Pace(shut_down_s=0.02)), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    bench.hypervisor.deaf.add(guest.id)
    await agent.ensure_guest(later(guest, power=Power.STOPPED), bench.tell)
    assert bench.hypervisor.guests[guest.id].state is GuestState.SHUT_DOWN


async def test_a_guest_that_did_not_hear_as_it_still_booted_is_asked_again(bench: HostBench) -> None:
    agent, guest = bench.agent(pace=Pace(shut_down_s=3600)), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    bench.hypervisor.deaf.add(guest.id)
    bench.faults.calls = []
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(agent.ensure_guest(later(guest, power=Power.STOPPED), bench.tell))
        await until(lambda: "hypervisor.shut_down" in (bench.faults.calls or ()))
        bench.hypervisor.deaf.clear()
        bench.clock.advance(timedelta(seconds=ASK_AGAIN_S))
    assert bench.hypervisor.guests[guest.id].state is GuestState.SHUT_DOWN
    assert "hypervisor.stop" not in bench.faults.calls


async def test_removing_does_not_wait_for_a_guest_that_does_not_listen(bench: HostBench) -> None:
    agent, guest = bench.agent(pace=Pace(shut_down_s=3600)), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    bench.hypervisor.deaf.add(guest.id)
    bench.faults.calls = []
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(agent.ensure_guest(later(guest, power=Power.STOPPED), bench.tell))
        await until(lambda: "hypervisor.shut_down" in (bench.faults.calls or ()))
        await agent.remove_guest(GuestRemoval(id=guest.id, generation=3))
    assert not bench.hypervisor.guests


async def test_a_guest_that_lets_go_of_a_vcpu_too_late_is_given_it_back(bench: HostBench) -> None:
    agent, guest = bench.agent(), structs.replace(a_guest(), vcpus=2)
    await agent.ensure_guest(guest, bench.tell)
    bench.hypervisor.deaf.add(guest.id)
    with pytest.raises(Conflict):
        await agent.ensure_guest(later(guest, vcpus=1), bench.tell)
    await agent.ensure_guest(later(later(guest)), bench.tell)
    late = bench.hypervisor.guests[guest.id]
    bench.hypervisor.guests[guest.id] = structs.replace(late, size=(1, guest.memory_mib))
    await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].size == (2, guest.memory_mib)


async def test_different_guests_are_made_side_by_side(bench: HostBench) -> None:
    agent, slow, quick = bench.agent(), a_guest(), a_guest()
    await agent.ensure_guest(slow, bench.tell)
    bench.hypervisor.deaf.add(slow.id)
    bench.faults.calls = []
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(agent.ensure_guest(later(slow, power=Power.STOPPED), bench.tell))
        await until(lambda: "hypervisor.shut_down" in (bench.faults.calls or ()))
        assert (await agent.ensure_guest(quick, bench.tell)).power is Power.RUNNING
        await agent.remove_guest(GuestRemoval(id=slow.id, generation=3))


async def test_a_running_guest_is_rebooted_and_a_stopped_one_is_not(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    assert (await agent.reboot_guest(GuestReboot(id=guest.id))).power is Power.RUNNING
    assert bench.hypervisor.guests[guest.id].starts == 2
    await agent.ensure_guest(later(guest, power=Power.STOPPED), bench.tell)
    with pytest.raises(Conflict):
        await agent.reboot_guest(GuestReboot(id=guest.id))
    with pytest.raises(NotFound):
        await agent.reboot_guest(GuestReboot(id=InstanceId(new_id())))


async def test_the_console_of_a_running_guest_answers(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    console = await agent.consoles.open(ConsoleRequest(id=guest.id))
    assert b"login" in await console.read()


# By themselves.


async def test_a_guest_that_shut_itself_down_stays_down_and_is_told(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    bench.hypervisor.shuts_itself_down(guest.id)
    await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].state is GuestState.SHUT_DOWN
    (told,) = bench.observed
    assert (told.power, told.cause) == (Power.STOPPED, "the guest shut itself down")
    await bench.agent().reconcile()
    assert len(bench.observed) == 1


async def test_a_repeated_wish_does_not_start_a_guest_that_shut_itself_down(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    bench.hypervisor.shuts_itself_down(guest.id)
    assert (await agent.ensure_guest(guest, bench.tell)).power is Power.STOPPED
    assert (await agent.ensure_guest(later(guest), bench.tell)).power is Power.RUNNING


async def test_a_crashed_guest_is_started_again_and_told(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    bench.hypervisor.crash(guest.id)
    await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].state is GuestState.RUNNING
    assert [each.power for each in bench.observed] == [Power.STOPPED, Power.RUNNING]
    assert all("killed by signal 9" in each.cause for each in bench.observed)


async def test_a_guest_that_keeps_crashing_is_started_ever_more_rarely_and_called_a_loop(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    for _ in range(20):
        bench.hypervisor.crash(guest.id)
        await agent.reconcile()
        bench.clock.advance(_hours(0.5 / 3600))
        await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].starts == 5
    assert "crash loop" in bench.observed[-1].cause


async def test_crashes_no_longer_count_after_a_calm_while(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    for _ in range(5):
        bench.hypervisor.crash(guest.id)
        await agent.reconcile()
        assert bench.hypervisor.guests[guest.id].state is GuestState.RUNNING
        bench.clock.advance(_hours(1))
    assert not any("loop" in each.cause for each in bench.observed)


async def test_a_guest_that_cannot_be_started_is_tried_again_later(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    bench.hypervisor.crash(guest.id)
    bench.faults.fail("hypervisor.start", Unavailable("no memory"))
    await agent.reconcile()
    assert "no memory" in bench.observed[-1].cause
    await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].state is GuestState.CRASHED
    bench.clock.advance(_hours(1))
    await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].state is GuestState.RUNNING


async def test_guests_come_back_after_the_host_was_restarted(bench: HostBench) -> None:
    guest, stopped = a_guest(), a_guest(power=Power.STOPPED)
    await bench.agent().ensure_guest(guest, bench.tell)
    await bench.agent().ensure_guest(stopped, bench.tell)
    bench.hypervisor.host_restarts()
    bench.network.ports.clear()
    bench.host.boot = "the next"
    await bench.agent().reconcile()
    assert bench.hypervisor.guests[guest.id].state is GuestState.RUNNING
    assert bench.hypervisor.guests[stopped.id].state is GuestState.SHUT_DOWN
    assert bench.network.ports.keys() >= {guest.nics[0].port}
    assert "restarted" in bench.observed[-1].cause


async def test_a_guest_that_somebody_undefined_is_made_again(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    await bench.hypervisor.undefine(guest.id)
    await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].state is GuestState.RUNNING


async def test_a_guest_that_ought_not_to_run_is_ended(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest(power=Power.STOPPED)
    await agent.ensure_guest(guest, bench.tell)
    await bench.hypervisor.start(guest.id)
    await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].state is GuestState.SHUT_DOWN


async def test_a_guest_without_a_record_is_left_alone_and_reported(bench: HostBench) -> None:
    stranger = a_guest()
    plugs = {nic.port: await bench.network.plug(stranger.id, nic) for nic in stranger.nics}
    await bench.hypervisor.define(stranger, {}, plugs)
    await bench.hypervisor.start(stranger.id)
    agent = bench.agent()
    await agent.reconcile()
    assert bench.hypervisor.guests[stranger.id].state is GuestState.RUNNING
    assert bench.network.ports
    (seen,) = (await agent.inventory()).guests
    assert (seen.id, seen.power, seen.cause) == (stranger.id, Power.RUNNING, "this host has no record of it")


async def test_a_port_that_is_nobodys_is_unplugged(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    await bench.network.plug(InstanceId(new_id()), a_nic(9))
    await agent.reconcile()
    assert bench.network.ports.keys() == {guest.nics[0].port}


async def test_a_port_that_was_lost_is_plugged_again(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    bench.network.ports.clear()
    await agent.reconcile()
    assert await bench.network.list() == {guest.nics[0].port: Plug(device=_device(guest.nics[0].port), offload=True)}


async def test_guests_run_on_while_the_agent_is_away(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        await agent.ensure_guest(guest, bench.tell)
        running.cancel()
    bench.faults.calls = []
    await bench.agent().reconcile()
    assert bench.hypervisor.guests[guest.id].starts == 1
    assert "hypervisor.define" not in bench.faults.calls


async def test_a_running_agent_sees_a_crash_as_it_happens(bench: HostBench) -> None:
    agent, guest = bench.agent(pace=Pace(between_rounds_s=3600)), a_guest()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        await agent.ensure_guest(guest, bench.tell)
        bench.hypervisor.crash(guest.id)
        await until(lambda: bench.hypervisor.guests[guest.id].starts == 2)
        running.cancel()


async def test_a_running_agent_looks_again_when_the_hypervisor_is_back(bench: HostBench) -> None:
    agent, guest = bench.agent(pace=Pace(between_rounds_s=3600, look_again_s=0.01)), a_guest()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        await agent.ensure_guest(guest, bench.tell)
        bench.hypervisor.lose()
        with pytest.raises(Unavailable):
            await agent.inventory()
        bench.hypervisor.crash(guest.id)
        bench.hypervisor.come_back()
        await until(lambda: bench.hypervisor.guests[guest.id].starts == 2)
        running.cancel()


async def test_a_broken_record_is_set_aside_and_its_guest_left_alone(bench: HostBench) -> None:
    broken, whole = a_guest(), a_guest()
    agent = bench.agent()
    await agent.ensure_guest(broken, bench.tell)
    await agent.ensure_guest(whole, bench.tell)
    assert bench.data is not None
    file = bench.data / "guests" / f"{broken.id}.json"
    file.write_bytes(file.read_bytes()[:-20])
    again = bench.agent()
    await again.reconcile()
    assert file.with_suffix(".broken").exists()
    assert bench.hypervisor.guests[broken.id].state is GuestState.RUNNING
    assert bench.network.ports.keys() == {broken.nics[0].port, whole.nics[0].port}
    assert {each.id for each in (await again.inventory()).guests} == {broken.id, whole.id}


async def test_a_guest_finds_its_metadata(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    status, _, body = await bench.network.ask(guest.nics[0].port, "/latest/meta-data/local-hostname")
    assert (status, body) == (200, b"hello")


async def test_an_id_that_is_no_id_is_refused(bench: HostBench) -> None:
    evil = structs.replace(a_guest(), id=InstanceId("../../etc/passwd"))
    with pytest.raises(Exception, match="UUID"):
        await bench.agent().ensure_guest(evil, bench.tell)
    assert not bench.hypervisor.guests


def _hours(hours: float) -> timedelta:
    return timedelta(hours=hours)


def _device(port: PortId) -> str:
    return f"tap{port[-11:]}"


async def test_a_paused_guest_stays_paused_through_rounds_and_agents(bench: HostBench) -> None:
    guest = a_guest()
    await bench.agent().ensure_guest(guest, bench.tell)
    paused = later(guest, power=Power.PAUSED)
    assert (await bench.agent().ensure_guest(paused, bench.tell)).power is Power.PAUSED
    agent = bench.agent()
    await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].state is GuestState.PAUSED
    assert [each.power for each in (await agent.inventory()).guests] == [Power.PAUSED]
    assert (await agent.ensure_guest(later(paused, power=Power.RUNNING), bench.tell)).power is Power.RUNNING
    assert bench.hypervisor.guests[guest.id].starts == 1
    assert not bench.observed


async def test_a_paused_guest_that_somebody_resumed_is_paused_again(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest(power=Power.PAUSED)
    await agent.ensure_guest(guest, bench.tell)
    await bench.hypervisor.resume(guest.id)
    await agent.reconcile()
    assert bench.hypervisor.guests[guest.id].state is GuestState.PAUSED


async def test_a_paused_guest_is_woken_to_be_asked_to_end(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest(power=Power.PAUSED)
    await agent.ensure_guest(guest, bench.tell)
    bench.faults.calls = []
    await agent.ensure_guest(later(guest, power=Power.STOPPED), bench.tell)
    assert "hypervisor.resume" in bench.faults.calls
    assert "hypervisor.stop" not in bench.faults.calls


async def test_a_paused_guest_whose_memory_is_lost_is_stopped(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest(power=Power.PAUSED)
    await agent.ensure_guest(guest, bench.tell)
    bench.hypervisor.crash(guest.id)
    await agent.reconcile()
    (told,) = bench.observed
    assert (told.power, told.cause) == (Power.STOPPED, "killed by signal 9")
    assert (await agent.ensure_guest(guest, bench.tell)).power is Power.STOPPED


async def test_a_guest_that_its_hypervisor_halted_counts_as_running(bench: HostBench) -> None:
    agent, guest = bench.agent(), a_guest()
    await agent.ensure_guest(guest, bench.tell)
    await bench.hypervisor.pause(guest.id)
    await agent.reconcile()
    assert [each.power for each in (await agent.inventory()).guests] == [Power.RUNNING]
    assert bench.hypervisor.guests[guest.id].state is GuestState.PAUSED


@pytest.mark.parametrize(
    ("policy", "crashed", "runs"),
    [
        (Restart.ALWAYS, False, True),
        (Restart.ALWAYS, True, True),
        (Restart.ON_FAILURE, False, False),
        (Restart.ON_FAILURE, True, True),
        (Restart.NEVER, False, False),
        (Restart.NEVER, True, False),
    ],
)
async def test_a_guest_that_ended_by_itself_is_started_again_by_its_policy(
    bench: HostBench, policy: Restart, *, crashed: bool, runs: bool
) -> None:
    agent, guest = bench.agent(), structs.replace(a_guest(), restart=policy)
    await agent.ensure_guest(guest, bench.tell)
    if crashed:
        bench.hypervisor.crash(guest.id)
    else:
        bench.hypervisor.shuts_itself_down(guest.id)
    await agent.reconcile()
    assert (bench.hypervisor.guests[guest.id].state is GuestState.RUNNING) is runs
    last = bench.observed[-1]
    assert last.power is (Power.RUNNING if runs else Power.STOPPED)
    assert ("killed by signal 9" if crashed else "the guest shut itself down") in last.cause


async def test_a_guest_that_is_never_restarted_comes_back_with_its_host(bench: HostBench) -> None:
    guest = structs.replace(a_guest(), restart=Restart.NEVER)
    await bench.agent().ensure_guest(guest, bench.tell)
    bench.hypervisor.host_restarts()
    bench.host.boot = "another"
    await bench.agent().reconcile()
    assert bench.hypervisor.guests[guest.id].state is GuestState.RUNNING
