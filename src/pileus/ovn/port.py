"""The port through which a controller has its networks made: it tells what changed, and may wait until that is so."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from pileus.kernel.ids import HostId, PortId
from pileus.ovn.view import NetworkRecord
from pileus.state.state import Change


class Northbound(Protocol):
    """Keeps OVN's northbound database what our records say. Telling is free; waiting raises Unavailable if it is."""

    def load(self, records: Iterable[NetworkRecord], *, gateways: Sequence[HostId] = ()) -> None:
        """Begin with these records instead of all before, and compare everything."""
        ...

    def changed(self, changes: Iterable[Change]) -> None:
        """Take in committed changes, in the order of commits; those of other records are nothing to us."""
        ...

    def gateways_are(self, hosts: Sequence[HostId]) -> None:
        """From now on these hosts have a way out."""
        ...

    def compare(self) -> None:
        """Compare everything soon, and put right what is not."""
        ...

    async def settled(self, *, timeout_s: float = 10.0) -> None:
        """Wait until all that was told so far is in the database.

        Raises:
            Unavailable: the database cannot be reached.
            TimedOut: it took longer than `timeout_s` seconds.
        """
        ...

    async def realized(self, *, timeout_s: float = 10.0) -> None:
        """Wait until all that was told so far is at work on every host; one host that is down lets this time out."""
        ...

    async def up(self, port: PortId, *, timeout_s: float = 10.0) -> None:
        """Wait until the port is connected on its host. Raises like `settled`."""
        ...

    async def run(self) -> None:
        """Do the work, until cancelled."""
        ...
