"""The network of a simulated cloud: the same projection and the same differences, and no database to write them to."""

from collections.abc import Iterable, Sequence

from pileus.kernel.errors import TimedOut
from pileus.kernel.ids import HostId, PortId
from pileus.ovn.pending import Pending, joined
from pileus.ovn.projection import project_everything
from pileus.ovn.rows import Fact, Key, apply, difference
from pileus.ovn.view import NetworkRecord, View
from pileus.state.state import Change


class SimulatedNorthbound:
    """Writes at once, into `rows` if it is given any, else nowhere. See `pileus.ovn.port.Northbound`."""

    def __init__(self, rows: dict[Key, Fact] | None = None) -> None:
        self._rows = rows
        self._pending = Pending(View())

    def load(self, records: Iterable[NetworkRecord], *, gateways: Sequence[HostId] = ()) -> None:
        self._pending = Pending(View(records, gateways=gateways))
        self.compare()

    def changed(self, changes: Iterable[Change]) -> None:
        self._pending.take(changes)
        self._write()

    def gateways_are(self, hosts: Sequence[HostId]) -> None:
        self._pending.gateways_are(hosts)
        self._write()

    def compare(self) -> None:
        self._pending.clear()
        if self._rows is not None:
            apply(self._rows, difference(self._rows, project_everything(self._pending.view)))

    async def settled(self, *, timeout_s: float = 10.0) -> None:
        del timeout_s  # what was told is written

    async def realized(self, *, timeout_s: float = 10.0) -> None:
        del timeout_s

    async def up(self, port: PortId, *, timeout_s: float = 10.0) -> None:
        found = self._pending.view.ports.get(port)
        if found is None or found.host_id is None:
            raise TimedOut(f"the port is not connected on its host after {timeout_s:g} s", internal=port)

    async def run(self) -> None:
        """There is nothing to do."""

    def _write(self) -> None:
        parts = self._pending.pop()
        if self._rows is not None:
            apply(self._rows, joined(parts))
