"""What a host is: a machine that instances run on. No I/O."""

from datetime import datetime
from enum import StrEnum

from pileus.kernel.ids import PoolId
from pileus.link.hosts import HostFacts
from pileus.link.join import Invitation
from pileus.state.kinds import Kind
from pileus.state.records import Record


class HostState(StrEnum):
    IN_SERVICE = "in-service"
    MAINTENANCE = "maintenance"
    """Gets no new instances; those that it has go on."""


class Host(Record, frozen=True, kw_only=True):
    """A machine with an agent."""

    name: str
    pool_id: PoolId
    state: HostState = HostState.IN_SERVICE
    connected: bool = False
    """Whether its agent has a connection to the controller."""
    since: datetime
    """When it was connected, or the connection lost."""
    zone: str = ""
    room: str = ""
    rack: str = ""
    roles: tuple[str, ...] = ()
    """What it carries for others: `gateway`, `load-balancer`."""
    facts: HostFacts | None = None
    """What its agent says that it is; None before the first connection."""
    certificate_serial: str = ""


HOSTS = Kind("host", Host, indexes={"pool": lambda host: host.pool_id}, unique={"name": lambda host: host.name})


class Invited(Record, frozen=True, kw_only=True):
    """A join token that was given out: lets one new host in."""

    pool_id: PoolId
    roles: tuple[str, ...] = ()
    invitation: Invitation


INVITATIONS = Kind(
    "invitation",
    Invited,
    unique={"secret": lambda invited: invited.invitation.secret_hash},
    keeps_before=False,
    secret=True,
)
