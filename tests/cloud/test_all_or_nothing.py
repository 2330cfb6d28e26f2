"""Every workflow, broken at every moment: what is left is all of it, or nothing."""

from pathlib import Path
from typing import Any

import pytest

from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.model import INSTANCES
from pileus.controller.nouns import WORKFLOWS
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.testing.prover import Deed, Prover
from pileus.workflow.task import TASKS, UNFINISHED


async def nothing(cloud: SimulatedCloud) -> None:
    pass


async def create(cloud: SimulatedCloud) -> None:
    image = cloud.state[IMAGES].ids[0]
    await ask(cloud, "POST", "", {"name": "hello", "image_id": image, "vcpus": 1, "memory_mib": 256})


async def running(cloud: SimulatedCloud) -> None:
    await create(cloud)
    await until(lambda: not any(cloud.state[TASKS].count_by("state", state) for state in UNFINISHED))


async def stopped(cloud: SimulatedCloud) -> None:
    await running(cloud)
    await stop(cloud)
    await until(lambda: not any(cloud.state[TASKS].count_by("state", state) for state in UNFINISHED))


async def stop(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/stop")


async def start(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/start")


async def paused(cloud: SimulatedCloud) -> None:
    await running(cloud)
    await pause(cloud)
    await until(lambda: not any(cloud.state[TASKS].count_by("state", state) for state in UNFINISHED))


async def pause(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/pause")


async def resume(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/resume")


async def reboot(cloud: SimulatedCloud) -> None:
    await ask(cloud, "POST", f"/{the_instance(cloud)}/reboot", {"hard": True})


async def delete(cloud: SimulatedCloud) -> None:
    await ask(cloud, "DELETE", f"/{the_instance(cloud)}")


def the_instance(cloud: SimulatedCloud) -> str:
    return cloud.state[INSTANCES].ids[0]


async def ask(cloud: SimulatedCloud, method: str, path: str, body: dict[str, Any] | None = None) -> None:
    answer = await cloud.client.request(method, f"/v1/instances{path}", json=body)
    assert answer.status_code in (202, 503), answer.text


DEEDS: dict[str, tuple[Deed, Deed, int]] = {
    "instance.create": (nothing, create, 42),
    "instance.start": (stopped, start, 25),
    "instance.stop": (running, stop, 25),
    "instance.pause": (running, pause, 25),
    "instance.resume": (paused, resume, 25),
    "instance.reboot": (running, reboot, 19),
    "instance.delete": (running, delete, 32),
}
"""What is there before, what is done, and in how many ways it is broken."""


@pytest.mark.parametrize("workflow", DEEDS)
async def test_a_workflow_is_all_or_nothing_whatever_breaks_when(workflow: str, tmp_path: Path) -> None:
    prepare, deed, ways = DEEDS[workflow]
    assert await Prover(tmp_path, prepare, deed).prove() == ways


def test_every_workflow_is_proven() -> None:
    assert set(DEEDS) == {workflow.name for workflow in WORKFLOWS}
