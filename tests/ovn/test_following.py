from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.hosts.model import HOSTS, Host
from pileus.cloud.nat.model import PORT_FORWARDINGS, SNAT_RULES
from pileus.cloud.networks.model import NETWORKS, PORTS, ROUTERS, SUBNETS
from pileus.cloud.peerings.model import PEERINGS
from pileus.cloud.securitygroups.model import SECURITY_GROUPS, SECURITY_RULES
from pileus.kernel.clock import FrozenClock
from pileus.kernel.ids import HostId, PoolId
from pileus.ovn.following import follow
from pileus.ovn.projection import project_everything
from pileus.ovn.rows import Fact, Key
from pileus.ovn.simulated import SimulatedNorthbound
from pileus.ovn.view import View
from pileus.state.state import Origin, opened, put, remove
from pileus.testing.memorystore import MemoryStore
from pileus.testing.networks import SINCE, port, small_cloud, vpc

NETWORKING = (NETWORKS, SUBNETS, ROUTERS, PORTS, SECURITY_GROUPS, SECURITY_RULES, FLOATING_IPS)
KINDS = (*NETWORKING, PEERINGS, PORT_FORWARDINGS, SNAT_RULES, HOSTS)
ORIGIN = Origin(actor="system", operation="test")


async def test_what_is_committed_is_projected() -> None:
    rows: dict[Key, Fact] = {}
    async with opened(KINDS, MemoryStore(), FrozenClock()) as state:
        await state.commit([put(record) for record in small_cloud()], ORIGIN)
        follow(state, SimulatedNorthbound(rows))
        assert rows == project_everything(View(small_cloud()))

        more = port("p-new", of="green", mac="02:00:00:00:00:09", at=[("green-0", "10.0.0.19")], hostname="new")
        await state.commit([put(more)], ORIGIN)
        assert rows == project_everything(View([*small_cloud(), more]))

        await state.commit([remove(state[PORTS].get("p-new"))], ORIGIN)
        assert rows == project_everything(View(small_cloud()))

        host = Host(id="h1", created_at=SINCE, name="h1", pool_id=PoolId("pool"), since=SINCE, roles=("gateway",))
        await state.commit([put(host)], ORIGIN)
        assert rows == project_everything(View(small_cloud(), gateways=[HostId("h1")]))


async def test_one_who_stopped_following_is_told_no_more() -> None:
    rows: dict[Key, Fact] = {}
    async with opened(KINDS, MemoryStore(), FrozenClock()) as state:
        stop = follow(state, SimulatedNorthbound(rows))
        stop()
        await state.commit([put(vpc("late"))], ORIGIN)
        assert rows == {}
