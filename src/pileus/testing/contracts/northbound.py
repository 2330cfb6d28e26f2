"""What every Northbound promises, the simulated one and the one that writes to OVN."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from pileus.kernel.ids import HostId
from pileus.ovn.port import Northbound
from pileus.ovn.projection import project_everything
from pileus.ovn.rows import Fact, Key
from pileus.ovn.view import NetworkRecord, View
from pileus.state.state import put, remove
from pileus.testing.networks import port, small_cloud

GATEWAYS = (HostId("host-1"), HostId("host-2"))
PATIENCE_S = 120.0
"""For what must come about, however slow the machine."""

Found = Callable[[], Awaitable[dict[Key, Fact]]]
"""Reads what is in the database."""


class NorthboundContract:
    """Needs the fixtures `northbound`, which runs, and `found`."""

    async def test_what_is_loaded_is_what_is_there(self, northbound: Northbound, found: Found) -> None:
        northbound.load(small_cloud(), gateways=GATEWAYS)
        await northbound.settled(timeout_s=PATIENCE_S)
        assert await found() == _wanted(small_cloud())

    async def test_a_change_is_there_when_it_has_settled(self, northbound: Northbound, found: Found) -> None:
        cloud = small_cloud()
        northbound.load(cloud, gateways=GATEWAYS)
        more = port("p-new", of="blue", mac="02:00:00:00:00:09", at=[("blue-0", "10.0.0.19")], hostname="one")
        northbound.changed([put(more)])
        await northbound.settled(timeout_s=PATIENCE_S)
        assert await found() == _wanted([*cloud, more])
        northbound.changed([put(msgspec.structs.replace(more, hostname="other"))])
        northbound.changed([remove(more)])  # late: it says what it was before
        await northbound.settled(timeout_s=PATIENCE_S)
        assert await found() == _wanted(cloud)

    async def test_everything_can_go(self, northbound: Northbound, found: Found) -> None:
        northbound.load(small_cloud(), gateways=GATEWAYS)
        await northbound.settled(timeout_s=PATIENCE_S)
        northbound.changed([remove(record) for record in reversed(small_cloud())])
        await northbound.settled(timeout_s=PATIENCE_S)
        assert await found() == {}

    async def test_other_gateways_are_taken_at_once(self, northbound: Northbound, found: Found) -> None:
        northbound.load(small_cloud(), gateways=GATEWAYS)
        northbound.gateways_are(GATEWAYS[1:])
        await northbound.settled(timeout_s=PATIENCE_S)
        assert await found() == _wanted(small_cloud(), GATEWAYS[1:])

    async def test_many_changes_at_once_all_arrive(self, northbound: Northbound, found: Found) -> None:
        cloud = small_cloud()
        northbound.load(cloud, gateways=GATEWAYS)
        many = [
            port(f"p-{at}", of="green", mac=f"02:00:00:00:01:{at:02x}", at=[("green-0", f"10.0.0.{at}")])
            for at in range(20, 120)
        ]

        async def add(one: NetworkRecord) -> None:
            northbound.changed([put(one)])
            await northbound.settled(timeout_s=PATIENCE_S)

        await asyncio.gather(*(add(one) for one in many))
        assert await found() == _wanted([*cloud, *many])


def _wanted(records: Sequence[NetworkRecord], gateways: Sequence[HostId] = GATEWAYS) -> dict[Key, Fact]:
    return project_everything(View(records, gateways=gateways))
