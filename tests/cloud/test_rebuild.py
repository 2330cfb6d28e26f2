"""A cloud whose records are lost is made again from what its hosts keep."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.instances.specs import guest_spec
from pileus.controller.copies import COPIED, wanted_on
from pileus.controller.nouns import KINDS
from pileus.controller.rebuilding import Kept
from pileus.installation.rebuild import Gathering, begin_again, rebuild
from pileus.kernel.clock import SystemClock
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import HostId
from pileus.operations.caller import Role
from pileus.state.state import State
from pileus.testing.cloud import SETTINGS, SimulatedCloud, simulated_cloud
from pileus.testing.fleet import SimulatedAgent, SimulatedFleet, in_memory
from pileus.testing.foreignguests import DATA, DISK, other, shadows
from pileus.testing.invariants import dangling
from pileus.testing.links import until
from pileus.testing.memorystore import MemoryStore
from pileus.testing.people import People
from pileus.testing.requests import items, made, over, running, shown


def in_step(cloud: SimulatedCloud, host: SimulatedAgent) -> bool:
    """Whether a host keeps exactly what it ought to."""
    wanted = {record.id: record.revision for record in wanted_on(cloud.state, host.id)}
    return {id: copy.revision for id, copy in host.records.copies.items()} == wanted


async def all_in_step(cloud: SimulatedCloud) -> None:
    await until(lambda: all(in_step(cloud, host) for host in cloud.fleet.hosts))


async def gathered(fleet: SimulatedFleet) -> Mapping[HostId, Kept]:
    gathering = Gathering()
    living = asyncio.ensure_future(fleet.run(in_memory(gathering.handlers, gathering.accompany)))
    await gathering.wait_for(len(fleet.hosts), timedelta(seconds=60))
    living.cancel()
    await asyncio.gather(living, return_exceptions=True)
    return gathering.kept


def of(state: State, *kinds: str) -> dict[str, dict[str, Any]]:
    """All records of these kinds, without what is the controller's own business."""
    own = {"revision", "connected", "since", "state_reason"}
    return {
        record.id: {name: value for name, value in msgspec.to_builtins(record).items() if name not in own}
        for kind in KINDS
        if kind.name in kinds
        for record in state.table(kind)
    }


async def _peopled(cloud: SimulatedCloud) -> None:
    """Some of everything that hosts keep."""
    async with People(cloud) as people:
        member = await people.person(Role.MEMBER, await people.project("shop"))
        for client in (cloud.client, member.client):
            group = await made(client, "security-groups", name="web")
            await made(client, "security-rules", group_id=group["id"], protocol="tcp", port_min=443)
            first = await running(cloud, client, name="first", labels={"tier": "web"}, security_group_ids=[group["id"]])
            await running(cloud, client, name="second", user_data="aGVsbG8=")
            volume = await made(client, "volumes", name="data", size_gib=3)
            attached = await client.post(f"/v1/volumes/{volume['id']}/attach", json={"instance_id": first["id"]})
            await over(cloud, attached.json()["task_id"])
            await made(client, "floating-ips", instance_id=first["id"])
            to_first = {"floating_ip_id": (await made(client, "floating-ips"))["id"], "instance_id": first["id"]}
            await made(client, "port-forwardings", external_port=22, **to_first)
            await made(client, "snat-rules", floating_ip_id=to_first["floating_ip_id"], cidr="10.0.0.0/24")
            router = next(each for each in await items(client, "routers") if each["name"] == "default")
            lan = await made(client, "networks", name="lan")
            inner = await made(client, "subnets", name="lan", network_id=lan["id"], cidr="10.77.0.0/24")
            core = await made(client, "routers", name="core", subnet_ids=[inner["id"]])
            await made(client, "peerings", name="core", router_id=router["id"], peer_router_id=core["id"])
            await made(client, "schedules", name="nightly", instance_id=first["id"], time_utc="02:30", keep_last=7)
            await made(client, "schedules", name="often", volume_id=volume["id"], every_hours=6, keep_last=4)
            taken = await client.post("/v1/snapshots", json={"name": "before", "instance_id": first["id"]})
            await over(cloud, taken.json()["task_id"])
            stopped = await client.post(f"/v1/instances/{first['id']}/stop")
            await over(cloud, stopped.json()["task_id"])
        outside = next(each["id"] for each in await items(cloud.client, "networks") if each["kind"] == "external")
        await made(cloud.client, "network-shares", network_id=outside, to_project_id=member.project_id)
        await cloud.client.patch(f"/v1/projects/{member.project_id}", json={"quota": {"instances": 7}})
        await member.client.patch(f"/v1/instances/{first['id']}", json={"name": "renamed"})


async def _adopted(cloud: SimulatedCloud) -> None:
    """A guest that was taken over."""
    other(cloud.fleet.hosts[0], disks=(DISK, DATA))
    [shadow] = await shadows(cloud, cloud.fleet.hosts[0])
    project = next(each["id"] for each in await items(cloud.client, "projects") if each["name"] == "default")
    answer = await cloud.client.post(f"/v1/foreign-guests/{shadow['id']}/adopt", json={"project_id": project})
    assert (await over(cloud, answer.json()["task_id"])).state == "done"


async def test_a_cloud_is_made_again_from_its_hosts_and_no_guest_is_touched(tmp_path: Path) -> None:
    fleet = SimulatedFleet(3, clock=SystemClock())
    async with simulated_cloud(tmp_path / "lost", fleet=fleet, store=MemoryStore()) as cloud:
        await _peopled(cloud)
        await _adopted(cloud)
        await all_in_step(cloud)
        before = of(cloud.state, *COPIED - {"image"}, "first_boot")
        specs = {each.id: guest_spec(cloud.state, each) for each in cloud.state[INSTANCES]}
        guests = {host.id: list(host.hypervisor.running()) for host in fleet.hosts}
    kept = await gathered(fleet)
    again = MemoryStore()
    done = await begin_again(tmp_path / "new", again, kept, SystemClock())
    assert done.hosts == 3
    async with simulated_cloud(tmp_path / "new", fleet=fleet, store=again, image=False) as cloud:
        assert dangling(cloud.state) == []
        assert of(cloud.state, *COPIED - {"image"}, "first_boot") == before
        assert {each.id: guest_spec(cloud.state, each) for each in cloud.state[INSTANCES]} == specs
        assert {host.id: list(host.hypervisor.running()) for host in fleet.hosts} == guests
        assert any("mini" in each and "upload" in each for each in done.missing)
        assert any("passwords" in each for each in done.missing)
        # The cloud goes on: what was rebuilt obeys, and is copied anew.
        renamed = (await items(cloud.client, "instances?all_projects=true&name=renamed"))[0]
        started = await cloud.client.post(f"/v1/instances/{renamed['id']}/start")
        assert (await over(cloud, started.json()["task_id"])).state == "done"
        assert (await shown(cloud.client, f"instances/{renamed['id']}"))["state"] == "running"
        await all_in_step(cloud)


async def test_a_guest_whose_records_no_host_has_is_left_alone_and_named(tmp_path: Path) -> None:
    fleet = SimulatedFleet(1, clock=SystemClock())
    host = fleet.hosts[0]
    async with simulated_cloud(tmp_path / "lost", fleet=fleet, store=MemoryStore()) as cloud:
        known, unknown = [await running(cloud, cloud.client, name=name) for name in ("known", "unknown")]
        await all_in_step(cloud)
    await host.records.copies.forget(unknown["id"])
    again = MemoryStore()
    done = await begin_again(tmp_path / "new", again, await gathered(fleet), SystemClock())
    assert any(unknown["id"] in each and "left alone" in each for each in done.missing)
    async with simulated_cloud(tmp_path / "new", fleet=fleet, store=again, image=False) as cloud:
        assert dangling(cloud.state) == []
        assert list(cloud.state[INSTANCES].ids) == [known["id"]]
        assert {guest.id for guest in host.hypervisor.running()} == {known["id"], unknown["id"]}


async def test_hosts_keep_what_concerns_them_and_nothing_of_others(tmp_path: Path) -> None:
    async with simulated_cloud(tmp_path, store=MemoryStore()) as cloud, People(cloud) as people:
        member = await people.person(Role.MEMBER, await people.project("shop"))
        instance = await running(cloud, member.client)
        group = await made(member.client, "security-groups", name="web")
        await all_in_step(cloud)
        for host in cloud.fleet.hosts:
            kept = dict(host.records.copies.items())
            here = host.id == instance["host_id"]
            assert all((id in kept) == here for id in (instance["id"], group["id"], member.project_id))
            assert not {copy.kind for copy in kept.values()} & {"user", "password", "token", "grant", "first_boot"}
        await cloud.client.patch(f"/v1/hosts/{instance['host_id']}", json={"rack": "r7"})
        deleted = await member.client.delete(f"/v1/instances/{instance['id']}")
        await over(cloud, deleted.json()["task_id"])
        await all_in_step(cloud)
        assert all(instance["id"] not in dict(host.records.copies.items()) for host in cloud.fleet.hosts)


async def test_a_host_that_was_away_is_brought_up_to_date_when_it_is_back(tmp_path: Path) -> None:
    fleet = SimulatedFleet(2, clock=SystemClock())
    store = MemoryStore()
    async with simulated_cloud(tmp_path, fleet=fleet, store=store) as cloud:
        instance = await running(cloud, cloud.client)
        await all_in_step(cloud)
    host = next(each for each in fleet.hosts if each.id == instance["host_id"])
    await host.records.copies.forget(instance["id"])
    async with simulated_cloud(tmp_path, fleet=fleet, store=store) as cloud:
        await cloud.client.patch(f"/v1/instances/{instance['id']}", json={"name": "renamed"})
        host.kill_agent()
        await until(lambda: cloud.state[HOSTS].get(host.id).connected)
        await all_in_step(cloud)


async def test_records_that_are_there_are_not_overwritten(tmp_path: Path) -> None:
    async with simulated_cloud(tmp_path):
        pass
    with pytest.raises(Conflict, match="there are records"):
        await rebuild(tmp_path, SETTINGS, hosts=1, within=timedelta(seconds=1))


async def test_without_the_authority_or_an_answer_nothing_is_rebuilt(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="authority"):
        await rebuild(tmp_path, SETTINGS, hosts=1, within=timedelta(seconds=1))
    async with simulated_cloud(tmp_path, store=MemoryStore()):
        pass
    with pytest.raises(NotFound, match="no host"):
        await rebuild(tmp_path, SETTINGS, hosts=None, within=timedelta(0))
