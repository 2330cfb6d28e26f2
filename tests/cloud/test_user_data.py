"""User data and config drives, from a request to what a guest is given."""

import gzip
from base64 import b64decode, b64encode, encodebytes
from typing import Any

import pytest

from pileus.agent.configdrive import image
from pileus.agent.metadata import files
from pileus.cloud.instances.operations.creation import MAX_USER_DATA
from pileus.kernel.ids import InstanceId
from pileus.link.guests import GuestSpec
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.fat import Reader
from pileus.testing.requests import items, refusal

from .test_instances import ended, made

BINARY = (bytes(range(256)) * 256)[:MAX_USER_DATA]


async def given(cloud: SimulatedCloud, **wish: Any) -> GuestSpec:
    """What a host is told of a new instance."""
    answer = await made(cloud, **wish)
    assert (await ended(cloud, answer))["state"] == "done"
    id = InstanceId(answer["instance"]["id"])
    return next(host.hypervisor.guests[id].spec for host in cloud.fleet.hosts if id in host.hypervisor.guests)


@pytest.mark.parametrize(
    ("wish", "user_data"),
    [
        ({"user_data": "x" * MAX_USER_DATA}, b"x" * MAX_USER_DATA),
        ({"user_data": "é" * (MAX_USER_DATA // 2)}, "é".encode() * (MAX_USER_DATA // 2)),
        ({"user_data": "\x1b" * MAX_USER_DATA}, b"\x1b" * MAX_USER_DATA),
        ({"user_data_base64": b64encode(BINARY).decode()}, BINARY),
        ({"user_data_base64": encodebytes(BINARY).decode()}, BINARY),
        ({"user_data_base64": b64encode(gzip.compress(b"#!", mtime=0)).decode()}, gzip.compress(b"#!", mtime=0)),
    ],
    ids=("text", "wide", "escaped", "binary", "in lines", "gzip"),
)
async def test_user_data_reach_metadata_and_config_drive_byte_for_byte(
    cloud: SimulatedCloud, wish: dict[str, str], user_data: bytes
) -> None:
    guest = await given(cloud, config_drive=True, **wish)
    assert guest.config_drive
    for content in (files(guest), Reader(image(guest)).files()):
        assert content["openstack/latest/user_data"] == content["latest/user-data"] == user_data


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"user_data": "x" * (MAX_USER_DATA + 1)}, "at most 65536"),
        ({"user_data": "é" * (MAX_USER_DATA // 2) + "x"}, "user_data is larger than 65536 bytes"),
        ({"user_data_base64": b64encode(BINARY + b"x").decode()}, "user_data_base64 is larger than 65536 bytes"),
        ({"user_data_base64": "not base64!"}, "user_data_base64 is not base64"),
        ({"user_data_base64": "YQ"}, "user_data_base64 is not base64"),
        ({"user_data_base64": "é"}, "user_data_base64 is not base64"),
        ({"user_data_base64": "A" * 100_000}, "at most 98304"),
        ({"user_data": "a", "user_data_base64": "YQ=="}, "exclude each other"),
    ],
)
async def test_user_data_that_are_too_large_or_no_base64_or_of_both_kinds_are_refused(
    cloud: SimulatedCloud, wish: dict[str, str], why: str
) -> None:
    body = {"name": "x", "image_id": (await items(cloud.client, "images"))[0]["id"], "vcpus": 1, "memory_mib": 64}
    refused = await cloud.client.post("/v1/instances", json={**body, **wish})
    assert refusal(refused)[:2] == (400, "invalid")
    assert why in refused.text


async def test_many_instances_are_each_given_the_bytes_and_a_drive(cloud: SimulatedCloud) -> None:
    image_id = (await items(cloud.client, "images"))[0]["id"]
    wish = {"image_id": image_id, "vcpus": 1, "memory_mib": 64, "user_data_base64": "/w==", "config_drive": True}
    answer = await cloud.client.post("/v1/instances/create-many", json={**wish, "name": "web", "count": 2})
    for item in answer.json()["items"]:
        await ended(cloud, item)
    guests = [guest.spec for host in cloud.fleet.hosts for guest in host.hypervisor.guests.values()]
    told = [(guest.config_drive, b64decode(guest.first_boot.user_data)) for guest in guests]
    assert told == [(True, b"\xff")] * 2


async def test_an_instance_says_whether_it_has_a_config_drive_and_keeps_it_when_it_is_rebuilt(
    cloud: SimulatedCloud,
) -> None:
    assert not (await given(cloud, name="without")).config_drive
    guest = await given(cloud, name="with", config_drive=True)
    path = f"/v1/instances/{guest.id}"
    assert (await cloud.client.get(path)).json()["config_drive"] is True
    host = next(host for host in cloud.fleet.hosts if guest.id in host.hypervisor.guests)
    await ended(cloud, (await cloud.client.post(f"{path}/rebuild", json={})).json())
    rebuilt = host.hypervisor.guests[guest.id]
    assert (rebuilt.spec.config_drive, rebuilt.spec.generation > guest.generation) == (True, True)
    assert rebuilt.reads is not None
