"""Addresses that are kept for machines outside of the cloud, and who has the others."""

from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.cloud.networks.addresses import without
from pileus.cloud.reservations.model import RESERVATIONS
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import items, made, refusal, running, shown

SPANS = st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(SPANS), st.lists(SPANS))
def test_what_is_left_of_ranges_is_all_that_was_not_taken_out_of_them(
    ranges: list[tuple[int, int]], closed: list[tuple[int, int]]
) -> None:
    def numbers(spans: list[tuple[int, int]]) -> set[int]:
        return {number for first, last in spans for number in range(first, last + 1)}

    assert numbers(without(ranges, closed)) == numbers(ranges) - numbers(closed)


async def pool(client: httpx2.AsyncClient, **more: Any) -> dict[str, Any]:
    """A subnet of six addresses, one of which is the gateway's."""
    network = await made(client, "networks", name="lan")
    return await made(client, "subnets", name="lan", network_id=network["id"], cidr="192.168.7.0/29", **more)


async def usage(client: httpx2.AsyncClient, subnet: str) -> dict[str, Any]:
    return await shown(client, f"subnets/{subnet}/usage")


async def test_a_reserved_address_is_never_given_out_until_it_is_given_back(cloud: SimulatedCloud) -> None:
    lan = await pool(cloud.client)
    kept = {"subnet_id": lan["id"], "first": "192.168.7.2", "last": "192.168.7.4"}
    reservation = await made(cloud.client, "reservations", name="printers", **kept)
    port = {"name": "x", "network_id": lan["network_id"]}
    asked = await cloud.client.post("/v1/ports", json={**port, "addresses": ["192.168.7.3"]})
    assert refusal(asked) == (409, "conflict", {"addresses"})
    assert "reserved for printers" in asked.json()["detail"]
    for address in ("192.168.7.5", "192.168.7.6"):
        assert (await made(cloud.client, "ports", **port))["addresses"][0]["address"] == address
    assert refusal(await cloud.client.post("/v1/ports", json=port))[:2] == (409, "conflict")
    assert (await cloud.client.delete(f"/v1/reservations/{reservation['id']}")).status_code == 204
    assert (await made(cloud.client, "ports", **port))["addresses"][0]["address"] == "192.168.7.2"


async def test_a_reserved_address_is_nobodys_floating_ip_or_router_either(cloud: SimulatedCloud) -> None:
    external = next(each for each in await items(cloud.client, "networks") if each["kind"] == "external")
    (outside,) = await items(cloud.client, f"subnets?network_id={external['id']}")
    first = await made(cloud.client, "floating-ips")
    await cloud.client.delete(f"/v1/floating-ips/{first['id']}")
    number = int(first["address"].rpartition(".")[2])
    next_ones = [f"{first['address'].rpartition('.')[0]}.{number + more}" for more in range(1, 4)]
    await made(cloud.client, "reservations", name="firewall", subnet_id=outside["id"], first=next_ones[0])
    assert (await made(cloud.client, "floating-ips"))["address"] == next_ones[1]
    router = await made(cloud.client, "routers", name="r", external_network_id=external["id"])
    assert router["external_address"] == next_ones[2]


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({"first": "192.168.8.2"}, (400, "invalid", {"first", "last"})),
        ({"first": "192.168.7.0", "last": "192.168.7.7"}, (400, "invalid", {"first", "last"})),
        ({"first": "192.168.7.5", "last": "192.168.7.4"}, (400, "invalid", {"last"})),
        ({"first": "192.168.7.2", "last": "192.168.7.3"}, (409, "conflict", {"first"})),
        ({"first": "192.168.7.4", "last": "192.168.7.6"}, (409, "conflict", {"first"})),
        ({"first": "fd00::1"}, (400, "invalid", {"first", "last"})),
        ({"first": "192.168.7.5", "name": ""}, (400, "invalid", {"name"})),
    ],
)
async def test_only_free_addresses_are_reserved(
    cloud: SimulatedCloud, kept: dict[str, Any], expected: tuple[int, str, set[str]]
) -> None:
    lan = await pool(cloud.client)
    await made(cloud.client, "ports", name="web", network_id=lan["network_id"], addresses=["192.168.7.2"])
    await made(cloud.client, "reservations", name="printer", subnet_id=lan["id"], first="192.168.7.6")
    wish = {"name": "second", "subnet_id": lan["id"], **kept}
    assert refusal(await cloud.client.post("/v1/reservations", json=wish)) == expected


async def test_what_is_free_reserved_and_in_use_is_told_with_by_whom(cloud: SimulatedCloud, people: People) -> None:
    member = await people.person(Role.ADMIN, await people.project("shop"))
    lan = (
        await cloud.client.post("/v1/networks/flat", json={"name": "lan", "physical_network": "lan", "shared": True})
    ).json()
    some = {"cidr": "192.168.7.0/24", "gateway": "192.168.7.1"}
    ranges = [{"first": "192.168.7.1", "last": "192.168.7.20"}]
    office = await made(cloud.client, "subnets", name="lan", network_id=lan["id"], ranges=ranges, **some)
    kept = {"subnet_id": office["id"], "first": "192.168.7.11", "last": "192.168.7.30"}
    reservation = await made(cloud.client, "reservations", name="printers", **kept)
    instance = await running(cloud, member.client, network_ids=[lan["id"]])
    seen = await usage(member.client, office["id"])
    assert (seen["free"], seen["reserved"], seen["in_use"]) == (8, 20, 1)
    (holder,) = seen["holders"]
    assert (holder["address"], holder["kind"], holder["project_id"]) == (
        instance["addresses"][0],
        "port",
        member.project_id,
    )
    assert seen["reservations"] == [], "for whom is the administrators' business"
    assert (await usage(cloud.client, office["id"]))["reservations"] == [
        {"first": "192.168.7.11", "last": "192.168.7.30", "id": reservation["id"], "name": "printers"}
    ]
    other = await people.person(Role.ADMIN, await people.project("other"))
    assert (await usage(other.client, office["id"]))["holders"] == []
    for answer in (
        await member.client.post("/v1/reservations", json={"name": "mine", "subnet_id": office["id"], **kept}),
        await member.client.delete(f"/v1/reservations/{reservation['id']}"),
    ):
        assert answer.status_code == 404
    whole = await usage(cloud.client, (await items(cloud.client, "subnets?name=default"))[0]["id"])
    assert whole["free"] == 1024 - 3, "network, broadcast and gateway are nobody's"


async def test_reservations_go_with_their_subnet(cloud: SimulatedCloud) -> None:
    for path in ("subnets/{id}", "networks/{network_id}"):
        lan = await pool(cloud.client)
        reservation = await made(cloud.client, "reservations", name="x", subnet_id=lan["id"], first="192.168.7.2")
        renamed = await cloud.client.patch(f"/v1/reservations/{reservation['id']}", json={"name": "y"})
        assert renamed.json()["name"] == "y"
        assert (await cloud.client.delete(f"/v1/{path.format(**lan)}")).status_code == 204
    assert len(cloud.state[RESERVATIONS]) == 0
