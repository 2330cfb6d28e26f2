"""What a host is: a machine that instances run on. No I/O."""

from datetime import datetime
from enum import StrEnum

from pileus.kernel.ids import HostId, PoolId
from pileus.link.records import HostFacts
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


class JoinToken(Record, frozen=True, kw_only=True):
    """Lets one new host in, once."""

    pool_id: PoolId
    secret_hash: str
    expires_at: datetime
    host_id: HostId | None = None
    """Who used it."""


JOIN_TOKENS = Kind("join_token", JoinToken, keeps_before=False, secret=True)
