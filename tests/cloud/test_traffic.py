"""What has passed a port, as the API tells it."""

from pileus.cloud.networks.model import PORTS
from pileus.kernel.ids import PortId
from pileus.link.guests import PortTraffic
from pileus.operations.caller import Role
from pileus.testing.cloud import SimulatedCloud
from pileus.testing.people import People
from pileus.testing.requests import refusal, running, shown


async def test_what_passed_is_asked_of_the_host(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    (port,) = cloud.state[PORTS].by("instance_id", instance["id"])
    path = f"ports/{port.id}/traffic"
    assert (await shown(cloud.client, path))["sent_bytes"] == 0
    host = next(each for each in cloud.fleet.hosts if port.id in each.network.ports)
    host.network.passed[PortId(port.id)] = PortTraffic(sent_bytes=7, received_packets=3)
    answer = await shown(cloud.client, path)
    assert (answer["port_id"], answer["sent_bytes"], answer["received_packets"]) == (port.id, 7, 3)


async def test_a_host_that_is_away_is_said_to_be(cloud: SimulatedCloud) -> None:
    instance = await running(cloud, cloud.client)
    (port,) = cloud.state[PORTS].by("instance_id", instance["id"])
    host = next(each for each in cloud.fleet.hosts if port.id in each.network.ports)
    host.network.lose()
    answer = await cloud.client.get(f"/v1/ports/{port.id}/traffic")
    assert refusal(answer)[:2] == (503, "unavailable")
    host.network.come_back()


async def test_traffic_is_its_owners_business(cloud: SimulatedCloud, people: People) -> None:
    instance = await running(cloud, cloud.client)
    (port,) = cloud.state[PORTS].by("instance_id", instance["id"])
    stranger = (await people.person(Role.ADMIN, await people.project("elsewhere"))).client
    assert refusal(await stranger.get(f"/v1/ports/{port.id}/traffic"))[0] == 404
