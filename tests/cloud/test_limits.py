"""How much of their hosts instances may take."""

from typing import Any

import pytest

from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.instances.specs import ports_of
from pileus.cloud.networks.model import NETWORKS, PORTS
from pileus.kernel.ids import InstanceId
from pileus.link.guests import GuestLimits
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.requests import over, refusal, running, shown

ALL = {
    "cpu_percent": 25,
    "disk_iops": 100,
    "disk_bytes_per_s": 10_000_000,
    "disk_burst_iops": 200,
    "disk_burst_bytes_per_s": 20_000_000,
    "disk_burst_s": 60,
}
NONE = dict.fromkeys([*ALL, "network_mbit"], 0)


async def limited(cloud: SimulatedCloud, id: str, **wish: int) -> dict[str, Any]:
    """The instance after it was limited."""
    answer = await cloud.client.put(f"/v1/instances/{id}/limits", json=wish)
    assert answer.status_code == 202, answer.text
    assert (await over(cloud, answer.json()["task_id"])).state == "done"
    return await shown(cloud.client, f"instances/{id}")


def told(cloud: SimulatedCloud, id: str) -> GuestLimits | None:
    """What the running guest may take."""
    host = cloud.state[INSTANCES].get(id).host_id
    return next(each for each in cloud.fleet.hosts if each.id == host).hypervisor.guests[InstanceId(id)].limits


async def test_limits_count_at_once_and_at_every_start_until_they_are_taken_away(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    id = instance["id"]
    assert (instance["limits"], told(cloud, id)) == (None, None)
    assert (await limited(cloud, id, **ALL))["limits"] == {**NONE, **ALL}
    assert told(cloud, id) == GuestLimits(**ALL)
    for verb in ("stop", "start"):
        answer = await cloud.client.post(f"/v1/instances/{id}/{verb}", json={})
        await over(cloud, answer.json()["task_id"])
    assert told(cloud, id) == GuestLimits(**ALL)
    assert (await limited(cloud, id, cpu_percent=50))["limits"] == {**NONE, "cpu_percent": 50}
    assert (await limited(cloud, id))["limits"] == NONE
    assert told(cloud, id) == GuestLimits()


async def test_a_burst_lasts_a_second_if_nobody_says_otherwise(cloud: SimulatedCloud) -> None:
    id = (await running(cloud, cloud.client))["id"]
    burst = {"disk_iops": 100, "disk_burst_iops": 200}
    assert (await limited(cloud, id, **burst))["limits"] == {**NONE, **burst, "disk_burst_s": 1}


@pytest.mark.parametrize(
    "wish",
    [
        {"cpu_percent": 0},
        {"cpu_percent": 101},
        {"disk_iops": 9},
        {"disk_bytes_per_s": 1000},
        {"disk_burst_iops": 200},
        {"disk_iops": 200, "disk_burst_iops": 200},
        {"disk_bytes_per_s": 1_000_000, "disk_burst_s": 5},
        {"network_mbit": 0},
        {"memory": 1},
    ],
)
async def test_limits_that_mean_nothing_are_refused(cloud: SimulatedCloud, wish: dict[str, int]) -> None:
    id = (await running(cloud, cloud.client))["id"]
    answer = await cloud.client.put(f"/v1/instances/{id}/limits", json=wish)
    assert refusal(answer)[:2] == (400, "invalid")


def passes(cloud: SimulatedCloud, id: str) -> list[int | None]:
    """What each port of an instance passes at the most, by the records that the switches follow."""
    return [port.limit_mbit for port in ports_of(cloud.state, cloud.state[INSTANCES].get(id))]


async def with_a_second_port(cloud: SimulatedCloud, id: str, **wish: Any) -> str:
    network = next(network.id for network in cloud.state[NETWORKS] if network.name == "default")
    made = await cloud.client.post("/v1/ports", json={"name": "second", "network_id": network, **wish})
    answer = await cloud.client.post(f"/v1/ports/{made.json()['id']}/attach", json={"instance_id": id})
    assert (await over(cloud, answer.json()["task_id"])).state == "done"
    return made.json()["id"]


async def test_a_port_keeps_to_its_instances_limit_until_it_has_one_of_its_own(cloud: SimulatedCloud) -> None:
    id = (await running(cloud, cloud.client))["id"]
    assert passes(cloud, id) == [None]
    assert (await limited(cloud, id, network_mbit=100))["limits"]["network_mbit"] == 100
    assert (passes(cloud, id), told(cloud, id)) == ([100], GuestLimits())
    second = await with_a_second_port(cloud, id)
    assert passes(cloud, id) == [100, 100]
    await cloud.client.patch(f"/v1/ports/{second}", json={"bandwidth_mbit": 500})
    assert passes(cloud, id) == [100, 500]
    await limited(cloud, id, cpu_percent=50)
    assert passes(cloud, id) == [None, 500]


async def test_a_port_that_leaves_its_instance_leaves_its_limit_there(cloud: SimulatedCloud) -> None:
    id = (await running(cloud, cloud.client))["id"]
    await limited(cloud, id, network_mbit=100)
    second = await with_a_second_port(cloud, id)
    answer = await cloud.client.post(f"/v1/ports/{second}/detach")
    assert (await over(cloud, answer.json()["task_id"])).state == "done"
    assert (cloud.state[PORTS].get(second).limit_mbit, passes(cloud, id)) == (None, [100])


async def flavored(cloud: SimulatedCloud, name: str, **limits: int) -> str:
    wish = {"name": name, "vcpus": 1, "memory_mib": 256, "disk_gib": 1, **limits}
    made = await cloud.client.post("/v1/flavors", json=wish)
    assert made.status_code == 201, made.text
    return made.json()["id"]


async def test_an_instance_is_limited_as_its_flavor_says_and_the_plan_tells(cloud: SimulatedCloud) -> None:
    flavor = await flavored(cloud, "slow", cpu_percent=50, disk_iops=200, network_mbit=100)
    wish = {"name": "web", "image_id": cloud.state[IMAGES].ids[0], "flavor_id": flavor}
    plan = await cloud.client.post("/v1/instances?dry_run=true", json=wish)
    assert plan.json()["summary"].endswith("limited to cpu_percent 50, disk_iops 200, network_mbit 100")
    answer = await cloud.client.post("/v1/instances", json=wish)
    assert (await over(cloud, answer.json()["task_id"])).state == "done"
    id = answer.json()["instance"]["id"]
    assert (told(cloud, id), passes(cloud, id)) == (GuestLimits(cpu_percent=50, disk_iops=200), [100])


@pytest.mark.parametrize("state", ["running", "stopped"])
async def test_a_resize_to_another_flavor_brings_the_limits_of_that(cloud: SimulatedCloud, state: str) -> None:
    slow, free = await flavored(cloud, "slow", disk_iops=200, network_mbit=100), await flavored(cloud, "free")
    id = (await running(cloud, cloud.client))["id"]
    if state == "stopped":
        answer = await cloud.client.post(f"/v1/instances/{id}/stop")
        await over(cloud, answer.json()["task_id"])
    for flavor, limits, mbit, words in (
        (slow, GuestLimits(disk_iops=200), 100, "limited to disk_iops 200, network_mbit 100"),
        (free, GuestLimits(), None, "limited to nothing"),
    ):
        plan = await cloud.client.post(f"/v1/instances/{id}/resize?dry_run=true", json={"flavor_id": flavor})
        assert words in plan.json()["summary"]
        answer = await cloud.client.post(f"/v1/instances/{id}/resize", json={"flavor_id": flavor})
        assert (await over(cloud, answer.json()["task_id"])).state == "done"
        assert passes(cloud, id) == [mbit]
        if state == "running":
            assert told(cloud, id) == limits
    answer = await cloud.client.post(f"/v1/instances/{id}/resize", json={"flavor_id": slow})
    await over(cloud, answer.json()["task_id"])
    if state == "stopped":
        answer = await cloud.client.post(f"/v1/instances/{id}/resize", json={"vcpus": 2, "memory_mib": 512})
        await over(cloud, answer.json()["task_id"])
        assert passes(cloud, id) == [100], "a size of its own is no other flavor"
