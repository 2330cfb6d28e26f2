"""Reservations: addresses of a subnet that the cloud gives to nobody, and whom they are for. No I/O."""

from ipaddress import ip_address

from pileus.kernel.ids import ProjectId, SubnetId
from pileus.state.kinds import Kind
from pileus.state.records import Record


class Reservation(Record, frozen=True, kw_only=True):
    """Addresses from first to last, both included: a printer's, a physical router's."""

    project_id: ProjectId
    subnet_id: SubnetId
    name: str
    """Whom they are for."""
    first: str
    last: str

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last address, as numbers."""
        return int(ip_address(self.first)), int(ip_address(self.last))

    @property
    def words(self) -> str:
        """Its addresses: `192.168.20.50`, or `192.168.20.50 to 192.168.20.59`."""
        return self.first if self.first == self.last else f"{self.first} to {self.last}"


RESERVATIONS = Kind(
    "reservation",
    Reservation,
    indexes={
        "project": lambda reservation: reservation.project_id,
        "subnet_id": lambda reservation: reservation.subnet_id,
    },
    counts=lambda _: {"reservations": 1},
)
