"""Instances that are given another size while they run, through the API of a whole controller, on simulated hosts."""

from pileus.kernel.ids import InstanceId
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fleet import MACHINE

from .test_instances_verbs import Made, made

MOST = {"max_vcpus": 4, "max_memory_mib": 1024}


def size(instance: Made) -> tuple[int, int]:
    """What its guest has while it runs."""
    return instance.host.hypervisor.guests[InstanceId(instance.id)].size


async def used(cloud: SimulatedCloud) -> tuple[int, int]:
    project = (await cloud.client.get("/v1/tokens/current")).json()["project_id"]
    usage = (await cloud.client.get(f"/v1/projects/{project}/quota")).json()["usage"]
    return usage["vcpus"]["used"], usage["memory_mib"]["used"]


async def test_a_running_instance_grows_and_shrinks_up_to_its_most(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, **MOST)
    assert await used(cloud) == (1, 1024), "all the memory that it can have is promised"
    for vcpus, memory_mib in ((4, 1024), (2, 512)):
        task = await instance.asked("resize", vcpus=vcpus, memory_mib=memory_mib)
        assert (task["state"], task["workflow"]) == ("done", "instance.resize_running")
        shown = await instance.shown()
        assert (shown["vcpus"], shown["memory_mib"], shown["state"]) == (vcpus, memory_mib, "running")
        assert size(instance) == (vcpus, memory_mib)
        assert await used(cloud) == (vcpus, 1024)
    assert instance.host.hypervisor.guests[InstanceId(instance.id)].starts == 1


async def test_more_than_its_most_takes_a_stop_and_every_field_is_named(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, **MOST)
    refused = await instance.asked("resize", vcpus=5, memory_mib=2048, disk_gib=1000, max_vcpus=8)
    assert (refused["status"], set(refused["fields"])) == (409, {"vcpus", "memory_mib", "disk_gib", "max_vcpus"})
    plain = await made(cloud)
    assert (await plain.asked("resize", vcpus=2))["fields"] == {"vcpus": "while it runs no more than 1"}


async def test_the_most_is_declared_while_it_is_stopped_and_stands_as_long_as_it_is_one(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    await instance.asked("stop")
    assert (await instance.asked("resize", vcpus=2, max_vcpus=1))["fields"].keys() == {"max_vcpus"}
    assert (await instance.asked("resize", **MOST))["state"] == "done"
    assert (await instance.asked("resize", vcpus=3))["state"] == "done"
    assert (await instance.shown())["max_vcpus"] == 4
    assert (await instance.asked("resize", vcpus=6))["state"] == "done"
    shown = await instance.shown()
    assert (shown["max_vcpus"], shown["max_memory_mib"]) == (None, 1024)


async def test_a_guest_that_does_not_let_go_keeps_what_it_has(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, vcpus=2, **MOST)
    instance.host.hypervisor.deaf.add(InstanceId(instance.id))
    task = await instance.asked("resize", vcpus=1)
    assert (task["state"], task["cause"]["detail"]) == ("undone", "the guest does not let go of it")
    shown = await instance.shown()
    assert (shown["vcpus"], shown["busy_with"], size(instance)) == (2, "", (2, 256))


async def test_vcpus_that_its_host_has_no_room_for_are_refused(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, max_vcpus=255)
    refused = await instance.asked("resize", vcpus=8 * MACHINE.vcpus - 1)
    assert refused["type"] in ("/problems/no-capacity", "/problems/quota-exceeded")


async def test_an_instance_keeps_its_size_when_its_guest_is_started_again(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, **MOST)
    await instance.asked("resize", vcpus=3, memory_mib=768)
    await instance.asked("stop")
    await instance.asked("start")
    assert size(instance) == (3, 768)


async def test_a_most_that_is_less_than_the_size_is_refused_at_creation(cloud: SimulatedCloud) -> None:
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    wish = {"name": "x", "image_id": image, "vcpus": 4, "memory_mib": 256, "max_vcpus": 2, "max_memory_mib": 128}
    answer = await cloud.client.post("/v1/instances", json=wish)
    assert (answer.status_code, set(answer.json()["fields"])) == (400, {"max_vcpus", "max_memory_mib"})
