"""How much of their hosts instances may take."""

from typing import Any

import pytest

from pileus.cloud.instances.model import INSTANCES
from pileus.kernel.ids import InstanceId
from pileus.link.records import GuestLimits
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
NONE = dict.fromkeys(ALL, 0)


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
    assert (await limited(cloud, id, **ALL))["limits"] == ALL
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
        {"memory": 1},
    ],
)
async def test_limits_that_mean_nothing_are_refused(cloud: SimulatedCloud, wish: dict[str, int]) -> None:
    id = (await running(cloud, cloud.client))["id"]
    answer = await cloud.client.put(f"/v1/instances/{id}/limits", json=wish)
    assert refusal(answer)[:2] == (400, "invalid")
