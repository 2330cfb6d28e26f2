"""Keypairs, flavors and pools: nouns without a life of their own."""

import pytest

from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import KEY, items, made, refusal, running

RSA_1024 = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC/dDZ32EHZeDpIGQoZpo8U/IARzDidJ7x63mCFfZVP+LqfaKsI9shBD+d8yNuwXivuAHlb"
    "95iX12J2PGoKrEfDPDKCxGbLRo8yI4FZB2DyIzoJr2T+m4bT7XZdcPR7qD8JTEyM1lpMNO3zOd4DQsxpGOI+2pG9oSVuBxsvkUaN0w=="
)


async def test_a_keypair_has_the_fingerprint_that_ssh_keygen_prints(cloud: SimulatedCloud) -> None:
    keypair = await made(cloud.client, "keypairs", name="laptop", public_key=f"  {KEY}\n")
    assert keypair["fingerprint"].startswith("SHA256:")
    assert keypair["public_key"] == KEY
    assert "private" not in str(keypair)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 not-base64 me",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        RSA_1024,
        f"{KEY}\x00\x1b[31m",
        f'command="rm -rf /" {KEY}',
        f"{KEY}\n{KEY} ssh-rsa",
        "ssh-ed25519 " + "A" * 16_380,
    ],
)
async def test_what_is_no_good_public_key_is_refused(cloud: SimulatedCloud, key: str) -> None:
    answer = await cloud.client.post("/v1/keypairs", json={"name": "bad", "public_key": key})
    if answer.status_code == 201:  # several lines are one key with a long comment
        assert "\n" not in answer.json()["public_key"]
    else:
        assert refusal(answer) == (400, "invalid", {"public_key"})


async def test_people_of_one_project_each_have_their_own_keypairs(cloud: SimulatedCloud, people: People) -> None:
    project = await people.project("one")
    ann, bob = await people.person(Role.MEMBER, project), await people.person(Role.MEMBER, project)
    keypair = await made(ann.client, "keypairs", name="laptop", public_key=KEY)
    await made(bob.client, "keypairs", name="laptop", public_key=KEY)
    assert [each["id"] for each in await items(ann.client, "keypairs")] == [keypair["id"]]
    again = await ann.client.post("/v1/keypairs", json={"name": "laptop", "public_key": KEY})
    assert refusal(again) == (409, "conflict", {"name"})
    assert (await bob.client.delete(f"/v1/keypairs/{keypair['id']}")).status_code == 404
    assert (await ann.client.delete(f"/v1/keypairs/{keypair['id']}")).status_code == 204


async def test_an_instance_keeps_the_size_of_a_flavor_that_is_gone(cloud: SimulatedCloud) -> None:
    flavor = await made(cloud.client, "flavors", name="odd", vcpus=3, memory_mib=768, disk_gib=7)
    taken = await cloud.client.post("/v1/flavors", json={"name": "odd", "vcpus": 1, "memory_mib": 64, "disk_gib": 1})
    assert refusal(taken) == (409, "conflict", {"name"})
    instance = await running(cloud, cloud.client, flavor_id=flavor["id"], vcpus=None, memory_mib=None)
    assert (await cloud.client.delete(f"/v1/flavors/{flavor['id']}")).status_code == 204
    assert (instance["vcpus"], instance["memory_mib"], instance["disk_gib"]) == (3, 768, 7)
    both = {"name": "x", "image_id": instance["image_id"], "flavor_id": flavor["id"], "vcpus": 1}
    assert refusal(await cloud.client.post("/v1/instances", json=both))[0] == 400


async def test_a_pool_is_changed_and_deleted_when_it_is_empty(cloud: SimulatedCloud) -> None:
    pool = await made(cloud.client, "pools", name="fast", cpu_overcommit=1)
    path = f"/v1/pools/{pool['id']}"
    changed = await cloud.client.patch(path, json={"memory_overcommit": 1.5})
    assert (changed.json()["cpu_overcommit"], changed.json()["memory_overcommit"]) == (1.0, 1.5)
    host = cloud.fleet.hosts[0].id
    moved = await cloud.client.patch(f"/v1/hosts/{host}", json={"pool_id": pool["id"]})
    assert moved.json()["pool_id"] == pool["id"]
    assert refusal(await cloud.client.delete(path))[:2] == (409, "conflict")
    default = next(each for each in await items(cloud.client, "pools") if each["is_default"])
    assert refusal(await cloud.client.delete(f"/v1/pools/{default['id']}"))[:2] == (409, "conflict")
    await cloud.client.patch(f"/v1/hosts/{host}", json={"pool_id": default["id"]})
    assert (await cloud.client.post("/v1/hosts/tokens", json={"pool_id": pool["id"]})).status_code == 201
    assert (await cloud.client.delete(path)).status_code == 204, "its join token goes with it"


@pytest.mark.parametrize("ratio", [0, -1, 65, 1e400, "2", True])
async def test_an_overcommitment_that_makes_no_sense_is_refused(cloud: SimulatedCloud, ratio: object) -> None:
    body = (
        f'{{"name": "x", "cpu_overcommit": {ratio!r}}}'.replace("'", '"')
        .replace("True", "true")
        .replace("inf", "1e400")
    )
    answer = await cloud.client.post("/v1/pools", content=body)
    assert refusal(answer) == (400, "invalid", {"cpu_overcommit"})
