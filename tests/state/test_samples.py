"""Records of every version that was ever kept are read for ever: a sample of each is kept here.

A new kind, or a new version of one, brings its sample: `python tests/state/test_samples.py` writes those that are
missing, from a small cloud. A sample that is there is never written again.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pileus.cloud.identity.model import TOKENS
from pileus.cloud.instances.consoles import OpenConsole
from pileus.cloud.instances.model import INSTANCES, PasswordChange
from pileus.controller.nouns import KINDS
from pileus.kernel.ids import InstanceId, new_id
from pileus.link.consoles import ConsoleKind
from pileus.link.foreign import ForeignGuest
from pileus.state.kinds import Kind
from pileus.state.state import put
from pileus.state.store import StoredRecord
from pileus.testing.cloud import ORIGIN, SimulatedCloud, simulated_cloud
from pileus.testing.links import until
from pileus.testing.memorystore import MemoryStore

SAMPLES = Path(__file__).parents[1] / "golden" / "records"


def sample(kind: Kind[Any], version: int) -> Path:
    return SAMPLES / f"{kind.name}.{version}.json"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_version_of_a_kind_is_read_as_it_is_today(kind: Kind[Any]) -> None:
    for version in range(1, kind.version + 1):
        body = sample(kind, version).read_bytes()
        id = msgspec.json.decode(body)["id"]
        record = kind.read(StoredRecord(kind=kind.name, id=id, revision=1, version=version, body=body))
        assert isinstance(record, kind.record)
        assert record.id == id


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_sample_of_todays_version_holds_every_field_of_today(kind: Kind[Any]) -> None:
    kept = set(msgspec.json.decode(sample(kind, kind.version).read_bytes()))
    today = {field.encode_name for field in msgspec.structs.fields(kind.record)}
    assert kept == today, f"{kind.name} has changed: declare an upgrade from version {kind.version}"


async def begun(cloud: SimulatedCloud) -> None:
    """Something of every kind."""

    async def make(path: str, /, **wish: Any) -> dict[str, Any]:
        answer = await cloud.client.post(f"/v1/{path}", json=wish, headers={"idempotency-key": path})
        assert answer.is_success, answer.text
        return answer.json()

    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl somebody"
    await make("keypairs", name="somebody", public_key=key)
    await make("server-groups", name="web")
    await make("users", name="somebody", password="not guessed at once")
    group = await make("groups", name="somebody")
    await make("roles", name="starter", permissions=["instance.start"])
    directory = {"kind": "ldap", "url": "ldaps://directory.example.com", "base_dn": "dc=example,dc=com"}
    provider = await make("identity-providers", name="staff", secret="not guessed", **directory)
    operators = "cn=operators,dc=example,dc=com"
    await make("group-mappings", provider_id=provider["id"], external_group=operators, group_id=group["id"])
    me = (await cloud.client.get("/v1/tokens/current")).json()["user_id"]
    await make(f"users/{me}/enrol-second-factor")
    assert (await cloud.client.put("/v1/policy", json={"second_factor": "optional"})).is_success
    await make("hosts/tokens")
    await make("storage-pools", name="fast", path="/srv/fast", purposes=["volumes", "backups"])
    other = ForeignGuest(id=new_id(), name="old", running=True, vcpus=1, memory_mib=512)
    cloud.fleet.hosts[0].hypervisor.others[other.id] = other
    await make("foreign-guests", host_id=cloud.fleet.hosts[0].id)
    image = (await cloud.client.get("/v1/images")).json()["items"][0]["id"]
    await make("image-shares", image_id=image, to_group_id=group["id"])
    await make("image-exports", image_id=image, format="vmdk")
    shop = (await make("projects", name="shop"))["id"]
    outside = (await cloud.client.get("/v1/networks?kind=external")).json()["items"][0]["id"]
    await make("network-shares", network_id=outside, to_project_id=shop)
    one = (await cloud.client.get("/v1/routers")).json()["items"][0]["id"]
    subnet = (await cloud.client.get("/v1/subnets?name=default")).json()["items"][0]["id"]
    await make("reservations", name="printer", subnet_id=subnet, first="10.0.0.50")
    await make("peerings", name="both", router_id=one, peer_router_id=(await make("routers", name="other"))["id"])
    made = await make("instances", name="hello", image_id=image, vcpus=1, memory_mib=256)
    await cloud.client.get(f"/v1/tasks/{made['task_id']}?wait_s=5")
    rest = {"idempotency-key": "of rules"}
    of_rules = (await cloud.client.post("/v1/floating-ips", json={}, headers=rest)).json()["id"]
    to = {"floating_ip_id": of_rules, "instance_id": made["instance"]["id"]}
    await make("port-forwardings", external_port=22, **to)
    await make("snat-rules", floating_ip_id=of_rules, cidr="10.0.0.0/24")
    await until(lambda: cloud.state[INSTANCES].get(made["instance"]["id"]).state == "running")
    await make("snapshots", name="before", instance_id=made["instance"]["id"])
    await until(lambda: not cloud.state[INSTANCES].get(made["instance"]["id"]).busy_with)
    await until(lambda: all(host.backings.pools for host in cloud.fleet.hosts))
    await make("backups", name="kept", instance_id=made["instance"]["id"])
    await make("schedules", name="nightly", instance_id=made["instance"]["id"], time_utc="02:30", keep_last=7)
    await make("floating-ips", instance_id=made["instance"]["id"])
    owner = cloud.state[TOKENS].by("project", made["instance"]["project_id"])[0]
    console = OpenConsole(
        id=new_id(),
        created_at=cloud.now(),
        project_id=owner.project_id,
        instance_id=InstanceId(made["instance"]["id"]),
        user_id=owner.user_id,
        kind=ConsoleKind.SERIAL,
    )
    change = PasswordChange(
        id=made["instance"]["id"], created_at=cloud.now(), project_id=owner.project_id, user="root", hash="$6$salt$hash"
    )
    await cloud.state.commit([put(console), put(change)], ORIGIN)


async def write_missing() -> None:
    store = MemoryStore()
    async with simulated_cloud(Path(tempfile.mkdtemp()), store=store) as cloud:
        await begun(cloud)
    for kind in KINDS:
        path = sample(kind, kind.version)
        if not path.exists():
            body = next(record.body for (name, _), record in store.disk.records.items() if name == kind.name)
            path.write_bytes(msgspec.json.format(body, indent=1) + b"\n")


if __name__ == "__main__":
    asyncio.run(write_missing())
