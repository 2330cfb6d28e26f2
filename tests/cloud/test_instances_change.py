"""What instances are called, described and labelled, and that they are kept: on simulated hosts."""

from pileus.cloud.instances.model import FIRST_BOOTS, INSTANCES
from pileus.cloud.networks.model import PORTS
from pileus.testing.cloud import SimulatedCloud

from .test_instances_verbs import Made, ended, made


async def changed(cloud: SimulatedCloud, instance: Made, **wish: object) -> dict[str, object]:
    answer = await cloud.client.patch(instance.path, json=wish)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def labelled(cloud: SimulatedCloud, query: str) -> list[str]:
    return [each["id"] for each in (await cloud.client.get(f"/v1/instances?{query}")).json()["items"]]


async def test_labels_and_description_are_replaced_and_taken_away(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, labels={"tier": "web", "stage": "live"}, description="the front")
    await made(cloud, labels={"tier": "web"})
    assert await labelled(cloud, "label.tier=web&label.stage=live") == [instance.id]
    one_less = await changed(cloud, instance, labels={"stage": "live"})
    assert (one_less["labels"], one_less["description"]) == ({"stage": "live"}, "the front")
    assert instance.id not in await labelled(cloud, "label.tier=web")
    assert await labelled(cloud, "label.stage=live") == [instance.id]
    none = await changed(cloud, instance, labels={}, description="")
    assert (none["name"], none["labels"], none["description"]) == ("hello", {}, "")
    assert await labelled(cloud, "label.stage=live") == []


async def test_a_renamed_instance_keeps_its_host_name_also_on_new_networks_and_disks(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, name="Web 1")
    await changed(cloud, instance, name="front")
    network = (await cloud.client.post("/v1/networks", json={"name": "other"})).json()
    wish = {"name": "other", "network_id": network["id"], "cidr": "10.9.0.0/24"}
    assert (await cloud.client.post("/v1/subnets", json=wish)).status_code == 201
    port = (await cloud.client.post("/v1/ports", json={"name": "second", "network_id": network["id"]})).json()
    answer = await cloud.client.post(f"/v1/ports/{port['id']}/attach", json={"instance_id": instance.id})
    assert (await ended(cloud, answer.json()["task_id"]))["state"] == "done"
    assert (await instance.asked("rebuild"))["state"] == "done"
    assert (await instance.shown())["name"] == "front"
    assert cloud.state[FIRST_BOOTS].get(instance.id).hostname == "web-1"
    assert [each.hostname for each in cloud.state[PORTS].by("instance_id", instance.id)] == ["web-1", "web-1"]


async def test_an_instance_is_renamed_while_a_task_is_at_work_on_it(cloud: SimulatedCloud) -> None:
    instance = await made(cloud)
    task = (await cloud.client.post(f"{instance.path}/stop")).json()["task_id"]
    await changed(cloud, instance, name="renamed", labels={"a": "b"})
    assert (await ended(cloud, task))["state"] == "done"
    shown = await instance.shown()
    assert (shown["name"], shown["labels"], shown["state"]) == ("renamed", {"a": "b"}, "stopped")


async def test_a_protected_instance_is_neither_deleted_nor_purged_alone_or_among_others(cloud: SimulatedCloud) -> None:
    instance = await made(cloud, labels={"tier": "web"})
    await changed(cloud, instance, protected=True)
    assert (await cloud.client.delete(instance.path)).status_code == 409
    assert (await cloud.client.delete(f"{instance.path}?dry_run=true")).status_code == 409
    assert (await instance.asked("purge"))["status"] == 409
    for action in ("delete", "purge"):
        for chosen in ({"ids": [instance.id]}, {"labels": {"tier": "web"}}):
            answer = await cloud.client.post("/v1/instances/batch", json={"action": action, **chosen})
            [item] = answer.json()["items"]
            assert item["problem"]["status"] == 409
            assert "protected" in item["problem"]["detail"]
    assert cloud.state[INSTANCES].get(instance.id).state == "running"
    await changed(cloud, instance, protected=False)
    assert (await instance.asked("purge"))["state"] == "done"
