"""What one may not see is not there: of another project's records nobody learns so much as that they exist."""

from collections.abc import Mapping
from typing import Any

import pytest

from pileus.cloud.backups.model import BACKUPS
from pileus.cloud.identity.model import TOKENS
from pileus.cloud.imageexports.model import IMAGE_EXPORTS
from pileus.cloud.instances.model import INSTANCES
from pileus.cloud.networks.model import PORTS
from pileus.cloud.projects.model import PROJECTS
from pileus.cloud.snapshots.model import SNAPSHOTS
from pileus.cloud.storagepools.model import named
from pileus.cloud.volumes.model import VOLUMES
from pileus.controller.nouns import NOUNS
from pileus.kernel.ids import new_id
from pileus.link.foreign import ForeignGuest
from pileus.operations.caller import Role, allows
from pileus.operations.declare import Operation
from pileus.testing.asgi import status_of
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.testing.people import People, Person
from pileus.testing.requests import KEY, items, made

SEEN_BY_ALL = {"flavor", "pool", "storage_pool", "event", "policy"}
"""Nouns without records of a project."""
OF_THE_CLOUD = {"host", "foreign_guest", "identity_provider", "group_mapping"}
"""Nouns that only administrators of the cloud see."""
BY_TICKET = {"image.transfer", "image.arrived", "image.deliver", "instance.console"}
"""Operations that look at a ticket, and not at who brings it."""


async def a_record_of_every_noun(cloud: SimulatedCloud, owner: Person) -> dict[str, str]:
    """One record of every noun that this person's project has, by noun."""
    client, state = owner.client, cloud.state
    found: dict[str, str] = {"project": owner.project_id, "user": owner.user_id}
    found["token"] = state[TOKENS].by("user", owner.user_id)[0].id
    image = next(each for each in await items(client, "images") if each["public"])
    wishes: Mapping[str, dict[str, Any]] = {
        "keypairs": {"name": "mine", "public_key": KEY},
        "images": {"name": "mine", "format": "raw"},
        "networks": {"name": "mine"},
        "server-groups": {"name": "mine"},
        "floating-ips": {},
        "groups": {"name": "mine"},
        "roles": {"name": "mine", "permissions": ["instance.start"]},
    }
    for plural, wish in wishes.items():
        answer = await client.post(f"/v1/{plural}", json=wish)
        assert answer.status_code == 201, answer.text
        found[plural.removesuffix("s").replace("-", "_")] = answer.json()["id"]
    answer = await client.post("/v1/image-shares", json={"image_id": found["image"], "to_group_id": found["group"]})
    assert answer.status_code == 201, answer.text
    found["image_share"] = answer.json()["id"]
    answer = await client.post("/v1/image-exports", json={"image_id": image["id"], "format": "vmdk"})
    assert answer.status_code == 202, answer.text
    found["image_export"] = answer.json()["image_export"]["id"]
    await until(lambda: state[IMAGE_EXPORTS].get(found["image_export"]).state == "available")
    wish = {"name": "theirs", "image_id": image["id"], "vcpus": 1, "memory_mib": 256}
    answer = await client.post("/v1/instances", json=wish)
    assert answer.status_code == 202, answer.text
    found["instance"], found["task"] = answer.json()["instance"]["id"], answer.json()["task_id"]
    await until(lambda: state[INSTANCES].get(found["instance"]).state == "running")
    found["volume"] = state[VOLUMES].by("instance", found["instance"])[0].id
    answer = await client.post("/v1/snapshots", json={"name": "theirs", "volume_id": found["volume"]})
    assert answer.status_code == 202, answer.text
    found["snapshot"] = answer.json()["snapshot"]["id"]
    await until(lambda: state[SNAPSHOTS].get(found["snapshot"]).state == "available")
    if named(state, "vault") is None:
        await made(cloud.client, "storage-pools", name="vault", path="/srv/vault", purposes=["backups"])
    await until(lambda: all(host.backings.pools for host in cloud.fleet.hosts))
    answer = await client.post("/v1/backups", json={"name": "theirs", "volume_id": found["volume"]})
    assert answer.status_code == 202, answer.text
    found["backup"] = answer.json()["backup"]["id"]
    await until(lambda: state[BACKUPS].get(found["backup"]).state == "available")
    outside = next(each["id"] for each in await items(client, "networks") if each["kind"] == "external")
    to_owner = {"network_id": outside, "to_project_id": owner.project_id}
    found["network_share"] = (await made(cloud.client, "network-shares", **to_owner))["id"]
    of_volume = {"volume_id": found["volume"], "every_hours": 6, "keep_last": 2}
    found["schedule"] = (await made(client, "schedules", name="theirs", **of_volume))["id"]
    found["port"] = state[PORTS].by("instance_id", found["instance"])[0].id
    rules = await made(client, "floating-ips")
    of_rules = {"floating_ip_id": rules["id"], "instance_id": found["instance"]}
    found["port_forwarding"] = (await made(client, "port-forwardings", external_port=22, **of_rules))["id"]
    found["snat_rule"] = (await made(client, "snat-rules", **of_rules))["id"]
    for plural, noun in (("subnets", "subnet"), ("routers", "router"), ("security-groups", "security_group")):
        own = [each for each in await items(client, plural) if each["project_id"] == owner.project_id]
        found[noun] = own[0]["id"]
    kept = {"subnet_id": found["subnet"], "first": "10.0.0.50"}
    found["reservation"] = (await made(client, "reservations", name="mine", **kept))["id"]
    more = await client.post("/v1/routers", json={"name": "second"})
    pair = {"name": "mine", "router_id": found["router"], "peer_router_id": more.json()["id"]}
    found["peering"] = (await client.post("/v1/peerings", json=pair)).json()["id"]
    found["security_rule"] = (await items(client, "security-rules"))[0]["id"]
    found["grant"] = (await items(client, "grants"))[0]["id"]
    directory = {"kind": "ldap", "url": "ldaps://directory.example.com", "base_dn": "dc=example,dc=com"}
    provider = (await made(cloud.client, "identity-providers", name=found["group"], **directory))["id"]
    operators = {"external_group": "operators", "group_id": found["group"]}
    found["identity_provider"] = provider
    found["group_mapping"] = (await made(cloud.client, "group-mappings", provider_id=provider, **operators))["id"]
    host = cloud.fleet.hosts[0]
    found["host"] = host.id
    host.hypervisor.others["other"] = ForeignGuest(id="other", name="other", running=True, vcpus=1, memory_mib=64)
    found["foreign_guest"] = (await made(cloud.client, "foreign-guests", host_id=host.id))["items"][0]["id"]
    return found


@pytest.mark.parametrize("role", [Role.READER, Role.MEMBER, Role.ADMIN])
async def test_a_record_of_another_project_answers_as_one_that_does_not_exist(
    cloud: SimulatedCloud, people: People, role: Role
) -> None:
    theirs = await a_record_of_every_noun(cloud, await people.person(Role.ADMIN, await people.project("theirs")))
    assert set(theirs) == {noun.name for noun in NOUNS} - SEEN_BY_ALL
    stranger = await people.person(role, await people.project("ours"))
    revisions = {
        kind.name: [(each.id, each.revision) for each in cloud.state.table(kind)] for kind in cloud.state.kinds
    }
    for noun in NOUNS:
        for operation in noun.declared:
            if "{id}" not in operation.path or noun.name in SEEN_BY_ALL or operation.id in BY_TICKET:
                continue
            status, body = await asked(cloud, operation, theirs[noun.name], stranger)
            nothing, empty = await asked(cloud, operation, nowhere := new_id(), stranger)
            assert (status, body.replace(theirs[noun.name], nowhere)) == (nothing, empty), operation.id
            may = operation.least is not None and allows(role, operation.least)
            assert status % 1000 == (404 if may else 403), operation.id
    assert revisions == {
        kind.name: [(each.id, each.revision) for each in cloud.state.table(kind)] for kind in cloud.state.kinds
    }


async def asked(cloud: SimulatedCloud, operation: Operation, id: str, person: Person) -> tuple[int, str]:
    """Status and detail of what this person is answered."""
    path = operation.path.replace("{id}", id)
    if operation.socket is not None:
        return await status_of(cloud.controller.api, path, token=person.token, socket=True), ""
    answer = await person.client.request(operation.method, path, content=b"{}")
    return answer.status_code, answer.json()["detail"]


async def test_lists_show_nothing_of_another_project(cloud: SimulatedCloud, people: People) -> None:
    theirs = await a_record_of_every_noun(cloud, await people.person(Role.ADMIN, await people.project("theirs")))
    stranger = await people.person(Role.ADMIN, await people.project("ours"))
    for noun in NOUNS:
        if noun.name in SEEN_BY_ALL | OF_THE_CLOUD:
            continue
        shown = {each["id"] for each in await items(stranger.client, noun.plural)}
        assert theirs[noun.name] not in shown, noun.name
        wide = await stranger.client.get(f"/v1/{noun.plural}?all_projects=true")
        assert (wide.status_code, list(wide.json()["fields"])) == (400, ["all_projects"])


async def test_a_filter_is_no_way_into_another_project(cloud: SimulatedCloud, people: People) -> None:
    owner = await people.person(Role.ADMIN, await people.project("theirs"))
    theirs = await a_record_of_every_noun(cloud, owner)
    stranger = await people.person(Role.ADMIN, await people.project("ours"))
    for path in (
        f"ports?instance_id={theirs['instance']}",
        f"ports?network_id={cloud.state[PORTS].get(theirs['port']).network_id}",
        f"volumes?instance_id={theirs['instance']}",
        f"security-rules?group_id={theirs['security_group']}",
        f"subnets?project_id={owner.project_id}",
        f"networks?project_id={owner.project_id}",
        f"grants?user_id={owner.user_id}",
        f"tokens?project_id={owner.project_id}",
        f"tasks?subject_id={theirs['instance']}",
        f"events?id={theirs['instance']}",
        f"users?name={cloud.state[PROJECTS].get(owner.project_id).name}",
    ):
        assert await items(stranger.client, path) == [], path


async def test_a_wish_that_names_another_projects_record_is_refused_as_if_it_did_not_exist(
    cloud: SimulatedCloud, people: People
) -> None:
    theirs = await a_record_of_every_noun(cloud, await people.person(Role.ADMIN, await people.project("theirs")))
    stranger = await people.person(Role.ADMIN, await people.project("ours"))
    ours = await a_record_of_every_noun(cloud, stranger)
    image = next(each["id"] for each in await items(stranger.client, "images") if each["public"])
    size = {"name": "x", "vcpus": 1, "memory_mib": 256}
    often = {"name": "x", "every_hours": 6, "keep_last": 2}
    wishes: list[tuple[str, str, str, dict[str, Any]]] = [
        ("POST", "instances", "image_id", {**size, "image_id": theirs["image"]}),
        ("POST", "instances", "network_ids", {**size, "image_id": image, "network_ids": [theirs["network"]]}),
        (
            "POST",
            "instances",
            "security_group_ids",
            {**size, "image_id": image, "security_group_ids": [theirs["security_group"]]},
        ),
        ("POST", "instances", "keypair_ids", {**size, "image_id": image, "keypair_ids": [theirs["keypair"]]}),
        (
            "POST",
            "instances",
            "server_group_id",
            {**size, "image_id": image, "server_group_id": theirs["server_group"]},
        ),
        ("POST", "subnets", "network_id", {"name": "x", "network_id": theirs["network"], "cidr": "10.9.0.0/24"}),
        ("POST", "reservations", "subnet_id", {"name": "x", "subnet_id": theirs["subnet"], "first": "10.0.0.60"}),
        ("POST", "routers", "subnet_ids", {"name": "x", "subnet_ids": [theirs["subnet"]]}),
        ("PATCH", f"routers/{ours['router']}", "subnet_ids", {"subnet_ids": [theirs["subnet"]]}),
        ("POST", "floating-ips", "port_id", {"port_id": theirs["port"]}),
        ("POST", "floating-ips", "instance_id", {"instance_id": theirs["instance"]}),
        ("POST", f"floating-ips/{ours['floating_ip']}/associate", "port_id", {"port_id": theirs["port"]}),
        ("POST", "snapshots", "instance_id", {"name": "x", "instance_id": theirs["instance"]}),
        ("POST", "snapshots", "volume_id", {"name": "x", "volume_id": theirs["volume"]}),
        ("POST", "schedules", "instance_id", {**often, "instance_id": theirs["instance"]}),
        ("POST", "schedules", "volume_id", {**often, "volume_id": theirs["volume"]}),
        (
            "POST",
            f"volumes/{ours['volume']}/clone",
            "snapshot_id",
            {"name": "x", "snapshot_id": theirs["snapshot"]},
        ),
        ("POST", "security-rules", "group_id", {"group_id": theirs["security_group"]}),
        (
            "POST",
            "security-rules",
            "remote_group_id",
            {"group_id": ours["security_group"], "remote_group_id": theirs["security_group"]},
        ),
        (
            "POST",
            "grants",
            "project_id",
            {"user_id": stranger.user_id, "project_id": theirs["project"], "role": "reader"},
        ),
    ]
    for method, path, field, wish in wishes:
        answer = await stranger.client.request(method, f"/v1/{path}", json=wish)
        assert (answer.status_code, list(answer.json()["fields"])) == (404, [field]), (path, answer.text)


async def test_an_administrator_of_the_cloud_does_not_join_two_projects_by_mistake(
    cloud: SimulatedCloud, people: People
) -> None:
    theirs = await a_record_of_every_noun(cloud, await people.person(Role.ADMIN, await people.project("theirs")))
    boss = await people.person(Role.PLATFORM, await people.project("administration"))
    assert (await boss.client.get(f"/v1/ports/{theirs['port']}")).status_code == 200
    for path, wish in (
        ("routers", {"name": "x", "subnet_ids": [theirs["subnet"]]}),
        ("floating-ips", {"port_id": theirs["port"]}),
    ):
        assert (await boss.client.post(f"/v1/{path}", json=wish)).status_code == 404
        acting = await boss.client.post(f"/v1/{path}", json=wish, headers={"pileus-project": "theirs"})
        assert acting.status_code in (201, 409), acting.text


async def test_only_administrators_of_the_cloud_act_in_another_project(cloud: SimulatedCloud, people: People) -> None:
    theirs = await people.project("theirs")
    ours = await people.person(Role.ADMIN, await people.project("ours"))
    for project in (theirs, "theirs", new_id(), "nobody's"):
        answer = await ours.client.get("/v1/networks", headers={"pileus-project": project})
        assert (answer.status_code, answer.json()["detail"]) == (404, f"there is no project {project}")
    own = await ours.client.get("/v1/networks", headers={"pileus-project": "ours"})
    assert own.status_code == 200
    acting = await cloud.client.post("/v1/networks", json={"name": "made"}, headers={"pileus-project": "theirs"})
    assert acting.json()["project_id"] == theirs


async def test_what_a_list_shows_can_be_shown_by_itself(cloud: SimulatedCloud, people: People) -> None:
    """Also to administrators of the cloud, who see most but not other people's keys and tokens."""
    theirs = await people.person(Role.ADMIN, await people.project("theirs"))
    await a_record_of_every_noun(cloud, theirs)
    for client in (cloud.client, theirs.client):
        for noun in NOUNS:
            hidden = noun.name in OF_THE_CLOUD and client is theirs.client
            if noun.name in {"event", "policy"} or hidden:
                continue
            listed = await client.get(f"/v1/{noun.plural}?all_projects={str(client is cloud.client).lower()}")
            for each in listed.json()["items"]:
                assert (await client.get(f"{noun.path}/{each['id']}")).status_code == 200, noun.name


async def test_a_project_admin_manages_the_people_of_their_own_project_only(
    cloud: SimulatedCloud, people: People
) -> None:
    ours, theirs = await people.project("ours"), await people.project("theirs")
    admin, guest = await people.person(Role.ADMIN, ours), await people.person(Role.READER, theirs)
    wish = {"user_id": guest.user_id, "project_id": ours, "role": "reader"}
    assert (await admin.client.post("/v1/grants", json=wish)).status_code == 201
    assert {each["project_id"] for each in await items(admin.client, "grants")} == {ours}
    assert (await admin.client.post("/v1/grants", json={**wish, "role": "platform"})).status_code == 409
    assert [each["id"] for each in await items(admin.client, "users")] == [admin.user_id]
