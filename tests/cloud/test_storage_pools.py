"""Storage pools: served by hosts that have them, told of when they fill, kept from what would lose data."""

from typing import Any

import pytest

from pileus.cloud.storagepools.model import POOLS_ON_HOSTS, STORAGE_BACKINGS, PoolOnHost, named
from pileus.kernel.clock import FrozenClock
from pileus.kernel.ids import HostId, StoragePoolId, new_id
from pileus.kernel.units import GIB
from pileus.link.records import PoolObserved, PoolUse
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.links import until
from pileus.testing.people import People
from pileus.testing.requests import made, refusal, shown


async def a_pool(cloud: SimulatedCloud, name: str = "fast", **more: Any) -> dict[str, Any]:
    """A storage pool that every host serves."""
    pool = await made(cloud.client, "storage-pools", name=name, **{"path": f"/srv/{name}", **more})
    await until(lambda: len(on_hosts(cloud, pool["id"])) == len(cloud.fleet.hosts))
    return pool


def on_hosts(cloud: SimulatedCloud, pool: str) -> list[PoolOnHost]:
    return cloud.state[POOLS_ON_HOSTS].by("storage_pool", pool)


async def test_there_is_a_pool_from_the_start_that_cannot_go(cloud: SimulatedCloud) -> None:
    local = named(cloud.state, "local")
    assert local is not None
    use = await shown(cloud.client, f"storage-pools/{local.id}/use")
    assert [(each["host"], each["reason"]) for each in use["hosts"]] == [("host-1", ""), ("host-2", ""), ("host-3", "")]
    assert use["hosts"][0]["use"]["total_bytes"] == 1024 * GIB
    assert refusal(await cloud.client.delete(f"/v1/storage-pools/{local.id}"))[0] == 409


async def test_a_new_pool_is_served_by_every_host_that_has_it(cloud: SimulatedCloud) -> None:
    cloud.host("host-2").backings.away["fast"] = "there is no folder /srv/fast on this host"
    pool = await a_pool(cloud, storage_class="performance")
    use = await shown(cloud.client, f"storage-pools/{pool['id']}/use")
    assert use["backing"] == {"driver": "directory", "path": "/srv/fast"}
    reasons = {each["host"]: each["reason"] for each in use["hosts"]}
    assert reasons == {"host-1": "", "host-2": "there is no folder /srv/fast on this host", "host-3": ""}


async def test_hosts_of_other_resource_pools_do_not_serve_it(cloud: SimulatedCloud) -> None:
    vip = await made(cloud.client, "pools", name="vip")
    host = cloud.host("host-3")
    assert (await cloud.client.patch(f"/v1/hosts/{host.id}", json={"pool_id": vip["id"]})).is_success
    pool = await made(cloud.client, "storage-pools", name="ssd", path="/srv/ssd", pool_ids=[vip["id"]])
    await until(lambda: [each.host_id for each in on_hosts(cloud, pool["id"])] == [host.id])
    assert not cloud.host("host-1").backings.pools
    assert refusal(await cloud.client.delete(f"/v1/pools/{vip['id']}"))[0] == 409


async def test_a_pool_that_is_deleted_is_let_go_by_hosts(cloud: SimulatedCloud) -> None:
    pool = await a_pool(cloud)
    assert (await cloud.client.delete(f"/v1/storage-pools/{pool['id']}")).status_code == 204
    await until(lambda: not any(host.backings.pools for host in cloud.fleet.hosts))
    assert not on_hosts(cloud, pool["id"])
    assert not len(cloud.state[STORAGE_BACKINGS])
    again = await a_pool(cloud)
    assert {each.reason for each in on_hosts(cloud, again["id"])} == {""}


async def test_a_place_that_is_in_use_and_what_is_no_place_are_refused(cloud: SimulatedCloud) -> None:
    await a_pool(cloud)
    for path in ("/srv/fast", "/srv", "/srv/fast/more"):
        answer = await cloud.client.post("/v1/storage-pools", json={"name": "other", "path": path})
        assert refusal(answer) == (409, "conflict", {"path"}), path
    for path in ("/", "srv/fast", "/srv/../etc", "/srv/fast/", "/srv/a b", "/srv/\n"):
        wish = {"name": "Other one", "path": path, "overcommit": 0.5, "iops": 3}
        answer = await cloud.client.post("/v1/storage-pools", json=wish)
        wrong = refusal(answer)[2]
        assert {"name", "overcommit"} <= wrong, path
        if path != "/srv/../etc":
            assert "path" in wrong, path


async def test_people_see_pools_and_their_classes_but_not_what_is_behind_them(
    cloud: SimulatedCloud, people: People
) -> None:
    pool = await a_pool(cloud, storage_class="performance")
    person = await people.person(Role.ADMIN, await people.project("theirs"))
    seen = await person.client.get(f"/v1/storage-pools/{pool['id']}")
    assert (seen.json()["name"], seen.json()["storage_class"]) == ("fast", "performance")
    assert "/srv" not in seen.text
    assert (await person.client.get(f"/v1/storage-pools/{pool['id']}/use")).status_code == 403
    assert "/srv/fast" not in (await person.client.get("/v1/events?limit=1000")).text


async def test_a_pool_that_fills_is_told_once_and_once_more_when_it_has_room_again(cloud: SimulatedCloud) -> None:
    pool = await a_pool(cloud)
    host = cloud.host("host-1")

    async def told() -> list[tuple[bool, bool]]:
        events = (await cloud.client.get("/v1/events?kind=pool_on_host&all_projects=true&limit=1000")).json()["items"]
        afters = [each["after"] for each in events if "after" in each]
        return [
            (each["filled"], each["promised"])
            for each in afters
            if (each["storage_pool_id"], each["host_id"]) == (pool["id"], host.id)
        ]

    def report(part: float) -> None:
        total = 100 * GIB
        use = PoolUse(total_bytes=total, free_bytes=int(total * (1 - part)))
        found = PoolObserved(name="fast", id=StoragePoolId(pool["id"]), use=use)
        cloud.controller.hosts.supplies.take(HostId(host.id), [found])

    for part in (0.79, 0.80, 0.85, 0.79, 0.76, 0.81, 0.74, 0.79, 0.10):
        report(part)
    await cloud.state.durable()
    assert await told() == [(False, False), (True, False), (False, False)]


@pytest.mark.parametrize(("overcommit", "promised"), [(1.0, True), (2.0, False)])
def test_promises_count_against_what_may_be_promised(overcommit: float, promised: bool) -> None:
    use = PoolUse(total_bytes=100 * GIB, free_bytes=60 * GIB, promised_bytes=80 * GIB, unfilled_bytes=50 * GIB)
    assert use.promisable_bytes(overcommit) == int(90 * GIB * overcommit)
    there = PoolOnHost(
        id=new_id(),
        created_at=(now := FrozenClock().now()),
        storage_pool_id=StoragePoolId(new_id()),
        host_id=HostId(new_id()),
        since=now,
    )
    seen = there.seen(PoolObserved(name="fast", use=use), overcommit, now)
    assert (seen.filled, seen.promised) == (False, promised)
