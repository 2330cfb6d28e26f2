import pytest

from pileus.kernel.errors import TimedOut
from pileus.kernel.ids import PortId
from pileus.ovn.rows import Fact, Key
from pileus.ovn.simulated import SimulatedNorthbound
from pileus.testing.contracts.northbound import Found, NorthboundContract
from pileus.testing.networks import small_cloud


class TestSimulatedNorthbound(NorthboundContract):
    @pytest.fixture
    def rows(self) -> dict[Key, Fact]:
        return {}

    @pytest.fixture
    def northbound(self, rows: dict[Key, Fact]) -> SimulatedNorthbound:
        return SimulatedNorthbound(rows)

    @pytest.fixture
    def found(self, rows: dict[Key, Fact]) -> Found:
        async def read() -> dict[Key, Fact]:
            return dict(rows)

        return read

    async def test_what_others_changed_is_put_right(
        self, northbound: SimulatedNorthbound, rows: dict[Key, Fact]
    ) -> None:
        northbound.load(small_cloud())
        before = dict(rows)
        rows.clear()
        northbound.compare()
        assert rows == before

    async def test_a_port_is_up_where_its_instance_runs(self, northbound: SimulatedNorthbound) -> None:
        northbound.load(small_cloud())
        await northbound.up(PortId("p-one"))
        with pytest.raises(TimedOut):
            await northbound.up(PortId("p-two"))
