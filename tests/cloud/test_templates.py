"""What instances of each template are granted and refused."""

from typing import Any

import pytest
from msgspec import structs

from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.model import INSTANCES
from pileus.kernel.ids import InstanceId
from pileus.link.templates import FRAMES, TO_BE_GIVEN, GuestTemplate
from pileus.state.state import put
from pileus.testing.cloud import ORIGIN, SimulatedCloud
from pileus.testing.requests import at_rest


def wish(cloud: SimulatedCloud, template: GuestTemplate | None) -> dict[str, Any]:
    image = cloud.state[IMAGES].ids[0]
    size = {"name": "old", "image_id": image, "vcpus": 1, "memory_mib": 256}
    return size if template is None else {**size, "template": template}


async def made(cloud: SimulatedCloud, template: GuestTemplate | None) -> str:
    answer = await cloud.client.post("/v1/instances", json=wish(cloud, template))
    assert answer.status_code == 202, answer.text
    await at_rest(cloud)
    return str(answer.json()["instance"]["id"])


async def attach(cloud: SimulatedCloud, instance: str) -> Any:
    volume = (await cloud.client.post("/v1/volumes", json={"name": "data", "size_gib": 1})).json()["id"]
    answer = await cloud.client.post(f"/v1/volumes/{volume}/attach", json={"instance_id": instance})
    await at_rest(cloud)
    return answer


async def change(cloud: SimulatedCloud, instance: str, **wish: object) -> Any:
    return await cloud.client.patch(f"/v1/instances/{instance}", json=wish)


async def stop(cloud: SimulatedCloud, instance: str) -> None:
    await cloud.client.post(f"/v1/instances/{instance}/stop")
    await at_rest(cloud)


@pytest.mark.parametrize("template", [*TO_BE_GIVEN, None])
async def test_a_guest_is_given_the_template_that_was_wished_for(
    cloud: SimulatedCloud, template: GuestTemplate | None
) -> None:
    id = await made(cloud, template)
    instance = cloud.state[INSTANCES].get(id)
    assert instance.template == (template or GuestTemplate.LINUX)
    host = next(each for each in cloud.fleet.hosts if each.id == instance.host_id)
    assert host.hypervisor.guests[InstanceId(id)].spec.template == instance.template


async def test_a_template_that_there_is_not_is_refused_by_name(cloud: SimulatedCloud) -> None:
    answer = await cloud.client.post("/v1/instances", json={**wish(cloud, None), "template": "vms"})
    assert answer.status_code == 400
    assert set(answer.json()["fields"]) == {"template"}


async def test_a_host_without_uefi_is_passed_over_and_says_why(cloud: SimulatedCloud) -> None:
    for host in cloud.state[HOSTS]:
        assert host.facts is not None
        await cloud.state.commit([put(structs.replace(host, facts=structs.replace(host.facts, traits=())))], ORIGIN)
    assert (await cloud.client.post("/v1/instances", json=wish(cloud, GuestTemplate.LEGACY))).status_code == 202
    await at_rest(cloud)
    answer = await cloud.client.post("/v1/instances", json=wish(cloud, GuestTemplate.WINDOWS))
    assert answer.status_code == 507
    assert "lacks tpm, uefi" in answer.text


async def test_a_volume_is_attached_to_a_legacy_instance_while_it_is_stopped(cloud: SimulatedCloud) -> None:
    id = await made(cloud, GuestTemplate.LEGACY)
    refused = await attach(cloud, id)
    assert refused.status_code == 409
    assert "stop it" in refused.json()["detail"]
    await stop(cloud, id)
    attached = [(await attach(cloud, id)).status_code for _ in range(3)]
    assert attached == [202, 202, 409]
    await cloud.client.post(f"/v1/instances/{id}/start")
    await at_rest(cloud)
    volume = cloud.state[INSTANCES].get(id).attached_volume_ids[0]
    assert (await cloud.client.post(f"/v1/volumes/{volume}/detach")).status_code == 409


async def test_windows_is_moved_to_virtio_when_it_has_the_drivers_and_is_stopped(cloud: SimulatedCloud) -> None:
    id = await made(cloud, GuestTemplate.WINDOWS)
    assert (await change(cloud, id, template=GuestTemplate.WINDOWS_VIRTIO)).status_code == 409
    await stop(cloud, id)
    assert (await change(cloud, id, template=GuestTemplate.WINDOWS_VIRTIO)).status_code == 200
    await cloud.client.post(f"/v1/instances/{id}/start")
    await at_rest(cloud)
    host = next(each for each in cloud.fleet.hosts if each.id == cloud.state[INSTANCES].get(id).host_id)
    assert host.hypervisor.guests[InstanceId(id)].spec.template == GuestTemplate.WINDOWS_VIRTIO
    assert (await attach(cloud, id)).status_code == 202


@pytest.mark.parametrize("template", TO_BE_GIVEN)
async def test_an_instance_keeps_its_firmware(cloud: SimulatedCloud, template: GuestTemplate) -> None:
    id = await made(cloud, template)
    await stop(cloud, id)
    for other in TO_BE_GIVEN:
        answer = await change(cloud, id, template=other)
        assert answer.status_code == (200 if FRAMES[other].needs == FRAMES[template].needs else 409), answer.text
        assert (await change(cloud, id, template=template)).status_code == 200


async def test_a_smaller_template_is_refused_to_who_has_too_many_disks(cloud: SimulatedCloud) -> None:
    id = await made(cloud, None)
    for _ in range(3):
        assert (await attach(cloud, id)).status_code == 202
    await stop(cloud, id)
    answer = await change(cloud, id, template=GuestTemplate.LEGACY)
    assert answer.status_code == 409
    assert "slot 3" in answer.json()["detail"]
