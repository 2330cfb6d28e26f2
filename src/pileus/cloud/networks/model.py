"""Networks, subnets, routers and ports: who is connected to whom, with which addresses. No I/O."""

from enum import StrEnum

import msgspec

from pileus.kernel.ids import HostId, InstanceId, NetworkId, ProjectId, SecurityGroupId, SubnetId
from pileus.state.kinds import Kind
from pileus.state.records import Record

GUEST_MTU = 1442
"""What a Geneve tunnel leaves of an underlay of 1500 bytes."""


class NetworkKind(StrEnum):
    VPC = "vpc"
    """An isolated overlay of its project."""
    EXTERNAL = "external"
    """A network outside the cloud, reached through a bridge of the hosts; floating IPs come from it."""


class Network(Record, frozen=True, kw_only=True):
    """A layer-2 network."""

    project_id: ProjectId
    name: str
    kind: NetworkKind = NetworkKind.VPC
    mtu: int = GUEST_MTU
    physical_network: str = ""
    """For an external network: the name of the bridge mapping on the hosts."""
    vlan: int | None = None


class AddressRange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Addresses from first to last, both included."""

    first: str
    last: str


class Subnet(Record, frozen=True, kw_only=True):
    """A range of addresses of a network."""

    network_id: NetworkId
    project_id: ProjectId
    name: str
    cidr: str
    gateway: str | None
    ranges: tuple[AddressRange, ...] = ()
    """Where addresses are taken from; without any, the whole subnet but network, broadcast and gateway."""
    dns_servers: tuple[str, ...] = ()
    """Asked for names outside; without any, the host's own."""
    dhcp: bool = True


class Route(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    destination: str
    """A prefix in CIDR notation."""
    next_hop: str


class Router(Record, frozen=True, kw_only=True):
    """Joins subnets with each other and, by an external network, with the world."""

    project_id: ProjectId
    name: str
    subnet_ids: tuple[SubnetId, ...] = ()
    external_network_id: NetworkId | None = None
    external_address: str | None = None
    """Its own address in the external network: the source of what it sends out for guests without a floating IP."""
    snat: bool = True
    routes: tuple[Route, ...] = ()


class FixedAddress(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    subnet_id: SubnetId
    address: str


class Port(Record, frozen=True, kw_only=True):
    """A connection to a network: a guest's network interface (NIC)."""

    network_id: NetworkId
    project_id: ProjectId
    name: str
    mac: str
    addresses: tuple[FixedAddress, ...]
    security_group_ids: tuple[SecurityGroupId, ...] = ()
    instance_id: InstanceId | None = None
    host_id: HostId | None = None
    """Where the instance runs."""
    hostname: str = ""
    """The name that the network's DNS gives its addresses."""


NETWORKS = Kind(
    "network",
    Network,
    indexes={"project": lambda network: network.project_id, "kind": lambda network: network.kind},
    counts=lambda network: {"networks": 1} if network.kind is NetworkKind.VPC else {},
)
SUBNETS = Kind(
    "subnet",
    Subnet,
    indexes={"project": lambda subnet: subnet.project_id, "network_id": lambda subnet: subnet.network_id},
    counts=lambda _: {"subnets": 1},
)
ROUTERS = Kind(
    "router",
    Router,
    indexes={
        "project": lambda router: router.project_id,
        "external_network": lambda router: router.external_network_id,
    },
    many={"subnet": lambda router: router.subnet_ids},
    counts=lambda _: {"routers": 1},
)
PORTS = Kind(
    "port",
    Port,
    indexes={
        "project": lambda port: port.project_id,
        "network_id": lambda port: port.network_id,
        "instance_id": lambda port: port.instance_id,
        "host_id": lambda port: port.host_id,
    },
    many={
        "subnet": lambda port: (each.subnet_id for each in port.addresses),
        "security_group": lambda port: port.security_group_ids,
    },
    unique={"mac": lambda port: (port.network_id, port.mac)},
    counts=lambda _: {"ports": 1},
)
