"""Peerings: what two routers join reaches each other, within a project or between two. No I/O."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from ipaddress import IPv4Address

from pileus.kernel.ids import ProjectId, RouterId
from pileus.state.kinds import Kind
from pileus.state.records import Record

_LINKS = int(IPv4Address("169.254.128.0"))
_ADDRESSES_OF_A_LINK = 4
_AT_MOST = 8192
_OF_METADATA = (int(IPv4Address("169.254.169.254")) - _LINKS) // _ADDRESSES_OF_A_LINK


class PeeringState(StrEnum):
    PENDING = "pending"
    """The other project has not agreed yet: nothing flows."""
    ACTIVE = "active"


class Peering(Record, frozen=True, kw_only=True):
    """Joins two routers, so that their subnets reach each other. What lies behind other peerings stays there."""

    project_id: ProjectId
    """Which asked for it."""
    name: str
    router_id: RouterId
    peer_project_id: ProjectId
    peer_router_id: RouterId
    state: PeeringState = PeeringState.PENDING
    link: int
    """Numbers the link between the two among those of either."""

    @property
    def routers(self) -> tuple[RouterId, RouterId]:
        return self.router_id, self.peer_router_id

    def across(self, router: str) -> RouterId:
        """The other router."""
        return self.peer_router_id if router == self.router_id else self.router_id

    def address(self, router: str) -> str:
        """What a router has on the link: an address that only the two see."""
        own = 1 if router == self.router_id else 2
        return str(IPv4Address(_LINKS + _ADDRESSES_OF_A_LINK * self.link + own))


def free_link(taken: Iterable[int]) -> int | None:
    """The first number of a link that is none of these, if there is one."""
    held = set(taken)
    return next((number for number in _numbers() if number not in held), None)


def _numbers() -> Iterator[int]:
    return (number for number in range(_AT_MOST) if number != _OF_METADATA)


PEERINGS = Kind(
    "peering",
    Peering,
    many={
        "project": lambda peering: dict.fromkeys((peering.project_id, peering.peer_project_id)),
        "router": lambda peering: peering.routers,
    },
    unique={"pair": lambda peering: tuple(sorted(peering.routers))},
    counts=lambda _: {"peerings": 1},
)
