"""Networks, subnets, routers and ports: who is connected to whom, with which addresses. No I/O."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from itertools import count
from typing import Any, NamedTuple

import msgspec

from pileus.kernel.errors import Conflict
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
    FLAT = "flat"
    """A physical LAN, or a VLAN of one, reached through a bridge of the hosts; instances are on it as machines are."""
    UNMANAGED = "unmanaged"
    """Whatever the interfaces of guests were on that were taken over: we know of it, and touch nothing of it."""


PHYSICAL = frozenset({NetworkKind.EXTERNAL, NetworkKind.FLAT})
"""The kinds that are on a wire which machines outside of the cloud are on too."""


class Network(Record, frozen=True, kw_only=True):
    """A layer-2 network."""

    project_id: ProjectId
    name: str
    kind: NetworkKind = NetworkKind.VPC
    mtu: int = GUEST_MTU
    physical_network: str = ""
    """For an external or a flat network: the name of the bridge mapping on the hosts."""
    vlan: int | None = None
    """The tag of its frames on the physical network (IEEE 802.1Q); None for those without one."""
    shared: bool = False
    """Whether every project may use it; otherwise its own may, and those that it is shared with."""
    direct: bool = False
    """Of an external network: whether guests may be on it themselves, each with an external address of its own."""
    in_service: bool = True
    """Of an external network: whether routers send out by it. One that failed is taken out of service by hand."""
    ipv6_prefixes: tuple[str, ...] = ()
    """Of an external network: prefixes that the world reaches by it, for subnets inside; in CIDR notation."""

    @property
    def is_physical(self) -> bool:
        """Whether it is on a wire that machines outside of the cloud are on too."""
        return self.kind in PHYSICAL

    @property
    def wire(self) -> str:
        """Where it is, in words: `physical network lan, VLAN 20`."""
        vlan = "" if self.vlan is None else f", VLAN {self.vlan}"
        return f"physical network {self.physical_network}{vlan}"

    def must_be_ours(self, field: str = "network_id") -> None:
        """Raises Conflict if it only stands for what guests were on that were taken over."""
        if self.kind is NetworkKind.UNMANAGED:
            raise Conflict(
                f"network {self.name} is not made by Pileus: only what was found on it is there",
                fields={field: "unmanaged"},
            )


class NetworkShare(Record, frozen=True, kw_only=True):
    """That a project may use a flat or external network. Administrators of the cloud say so."""

    network_id: NetworkId
    to_project_id: ProjectId


class AddressRange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Addresses from first to last, both included."""

    first: str
    last: str


class Ipv6Mode(StrEnum):
    """How machines of an IPv6 subnet come to their addresses."""

    SLAAC = "slaac"
    """Each makes its own out of the router's announcement and its MAC address; any system can."""
    STATEFUL = "dhcpv6-stateful"
    """Each is told one by DHCPv6, so that it may be any; takes a client in the machine."""


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
    ipv6_mode: Ipv6Mode | None = None
    """Of an IPv6 subnet."""
    delegated_by: NetworkId | None = None
    """The external network one of whose prefixes this subnet is a part of: the world knows its addresses."""

    @property
    def is_served(self) -> bool:
        """Whether machines are told their addresses of it by the built-in DHCP."""
        return self.dhcp and self.ipv6_mode is not Ipv6Mode.SLAAC


class Route(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    destination: str
    """A prefix in CIDR notation."""
    next_hop: str


class Uplink(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A router's way out by an external network."""

    network_id: NetworkId
    address: str | None
    """The router's own IPv4 address there: the source of what it sends out for guests without a floating IP."""
    ipv6_address: str | None = None
    """Its own IPv6 address there: the next hop for the prefixes of the subnets that it joins."""
    link: int | None = None
    """Numbers the link to it among the router's; None for the first uplink, which the router has itself."""

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(each for each in (self.address, self.ipv6_address) if each is not None)

    @property
    def own_end(self) -> "LinkEnd":
        """What the router has on the link to the uplink: addresses that nobody else sees."""
        return LinkEnd.of(self.link or 0, 1)

    @property
    def far_end(self) -> "LinkEnd":
        """What the uplink has on it."""
        return LinkEnd.of(self.link or 0, 2)


class LinkEnd(NamedTuple):
    """The addresses of one end of the link between a router and one of its uplinks."""

    ipv4: str
    ipv6: str

    @classmethod
    def of(cls, link: int, end: int) -> "LinkEnd":
        at = _ADDRESSES_OF_A_LINK * link + end
        return cls(str(_IPV4_LINKS[at]), str(IPV6_LINKS[at]))

    def address(self, version: int) -> str:
        return self.ipv6 if version == _IPV6 else self.ipv4


_IPV6 = 6
_ADDRESSES_OF_A_LINK = 4
_IPV4_LINKS = IPv4Network("169.254.64.0/24")
IPV6_LINKS = IPv6Network("fd6c:696e:6b73:1::/64")
"""No subnet may have these: routes name next hops by them, and link-local ones would be of every port of a router."""
UPLINKS_AT_MOST = 8


class SourceRoute(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What goes out from a source goes by this external network."""

    source: str
    """A prefix in CIDR notation."""
    network_id: NetworkId


class Router(Record, frozen=True, kw_only=True):
    """Joins subnets with each other and, by external networks, with the world."""

    project_id: ProjectId
    name: str
    subnet_ids: tuple[SubnetId, ...] = ()
    external_network_id: NetworkId | None = None
    """The first of its uplinks."""
    external_address: str | None = None
    """Its own address in the external network: the source of what it sends out for guests without a floating IP."""
    external_ipv6_address: str | None = None
    """Its own IPv6 address there."""
    further_uplinks: tuple[Uplink, ...] = ()
    """Each is taken when none before it is in service, and by what is bound to it: floating IPs, rules, routes."""
    snat: bool = True
    routes: tuple[Route, ...] = ()
    source_routes: tuple[SourceRoute, ...] = ()

    @property
    def uplinks(self) -> tuple[Uplink, ...]:
        """All its ways out, the preferred one first."""
        if self.external_network_id is None:
            return ()
        first = Uplink(
            network_id=self.external_network_id,
            address=self.external_address,
            ipv6_address=self.external_ipv6_address,
        )
        return first, *self.further_uplinks

    def uplink(self, network: str) -> Uplink | None:
        """The way out by this external network, if it has one."""
        return next((each for each in self.uplinks if each.network_id == network), None)


class FixedAddress(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    subnet_id: SubnetId
    address: str


class PortState(StrEnum):
    FREE = "free"
    """It has its addresses, and no instance."""
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"
    MOVING = "moving"
    """From one instance to another; it names the second one already."""


_S = PortState
ALLOWED: Mapping[PortState, frozenset[PortState]] = {
    _S.FREE: frozenset({_S.ATTACHING, _S.ATTACHED}),
    _S.ATTACHING: frozenset({_S.ATTACHED, _S.FREE}),
    _S.ATTACHED: frozenset({_S.DETACHING, _S.MOVING, _S.FREE}),
    _S.DETACHING: frozenset({_S.FREE, _S.ATTACHED}),
    _S.MOVING: frozenset({_S.ATTACHED}),
}


class Port(Record, frozen=True, kw_only=True):
    """A connection to a network: a guest's network interface (NIC)."""

    network_id: NetworkId
    project_id: ProjectId
    name: str
    mac: str
    addresses: tuple[FixedAddress, ...]
    allowed_prefixes: tuple[str, ...] = ()
    """What it may speak for besides its own addresses: a guest that forwards for others, such as a VPN gateway."""
    security_group_ids: tuple[SecurityGroupId, ...] = ()
    bandwidth_mbit: int | None = None
    """How much it passes in each direction, in Mbit/s; None for what its instance's limits say."""
    instance_bandwidth_mbit: int | None = None
    """What its instance's limits say."""
    is_external: bool = False
    """Whether its addresses are of an external network: they count as floating IPs do."""
    state: PortState = PortState.FREE
    instance_id: InstanceId | None = None
    slot: int | None = None
    """Where it is plugged into its instance; None for one that was plugged in before slots were recorded."""
    kept: bool = False
    """Whether it stays when its instance is deleted: it was made by itself, or detached once."""
    host_id: HostId | None = None
    """Where the instance runs."""
    hostname: str = ""
    """The name that the network's DNS gives its addresses."""

    def to(self, state: PortState) -> "Port":
        """The same port in its next state, or Conflict if there is no such way."""
        if state not in ALLOWED[self.state]:
            raise Conflict(f"port {self.name} is {self.state} and cannot become {state}")
        return msgspec.structs.replace(self, state=state)

    @property
    def is_attached(self) -> bool:
        """Whether its addresses are its instance's."""
        return self.state in (PortState.ATTACHED, PortState.DETACHING)

    @property
    def limit_mbit(self) -> int | None:
        """How much it passes in each direction, in Mbit/s: its own limit counts before its instance's."""
        return self.instance_bandwidth_mbit if self.bandwidth_mbit is None else self.bandwidth_mbit

    def released(self) -> "Port":
        """The same port without an instance, its addresses kept."""
        return msgspec.structs.replace(
            self.to(PortState.FREE),
            instance_id=None,
            instance_bandwidth_mbit=None,
            slot=None,
            host_id=None,
            hostname="",
            kept=True,
        )


SETTLED = frozenset({_S.FREE, _S.ATTACHED})
"""The states in which no task is at work on the port."""


def in_slots(ports: Iterable[Port]) -> list[Port]:
    """An instance's ports by their slots. Those without one, the oldest first, are in the first slots that are free."""
    waiting = list(ports)
    taken = {port.slot for port in waiting}
    free = (slot for slot in count() if slot not in taken)
    placed = [port if port.slot is not None else msgspec.structs.replace(port, slot=next(free)) for port in waiting]
    return sorted(placed, key=lambda port: port.slot or 0)


def _network_of_version_2(network: dict[str, Any]) -> dict[str, Any]:
    """Version 2 says who may use a network, and how, and of an external one more about the way out."""
    shared = network.get("kind") == NetworkKind.EXTERNAL
    return {**network, "shared": shared, "direct": False, "in_service": True, "ipv6_prefixes": ()}


def _subnet_of_version_2(subnet: dict[str, Any]) -> dict[str, Any]:
    """Version 2 knows a second way to IPv6 addresses, and prefixes from outside."""
    mode = Ipv6Mode.STATEFUL if ":" in subnet["cidr"] else None
    return {**subnet, "ipv6_mode": mode, "delegated_by": None}


def _router_of_version_2(router: dict[str, Any]) -> dict[str, Any]:
    """Version 2 may have several ways out, by IPv6 too."""
    return {**router, "external_ipv6_address": None, "further_uplinks": (), "source_routes": ()}


def _port_of_version_2(port: dict[str, Any]) -> dict[str, Any]:
    """Version 2 knows ports that come and go by themselves."""
    state = PortState.ATTACHED if port.get("instance_id") else PortState.FREE
    more = {"bandwidth_mbit": None, "instance_bandwidth_mbit": None, "is_external": False}
    return {**port, "state": state, "slot": None, "kept": False, "allowed_prefixes": (), **more}


NETWORKS = Kind(
    "network",
    Network,
    indexes={"project": lambda network: network.project_id, "kind": lambda network: network.kind},
    counts=lambda network: {"networks": 1} if network.kind is NetworkKind.VPC else {},
    upgrades=(_network_of_version_2,),
)
NETWORK_SHARES = Kind(
    "network_share",
    NetworkShare,
    indexes={"network": lambda share: share.network_id, "to_project": lambda share: share.to_project_id},
    unique={"share": lambda share: (share.network_id, share.to_project_id)},
)
SUBNETS = Kind(
    "subnet",
    Subnet,
    indexes={
        "project": lambda subnet: subnet.project_id,
        "network_id": lambda subnet: subnet.network_id,
        "delegated_by": lambda subnet: subnet.delegated_by,
    },
    unique={"prefix": lambda subnet: subnet.delegated_by and (subnet.delegated_by, subnet.cidr)},
    counts=lambda _: {"subnets": 1},
    upgrades=(_subnet_of_version_2,),
)
ROUTERS = Kind(
    "router",
    Router,
    indexes={"project": lambda router: router.project_id},
    many={
        "subnet": lambda router: router.subnet_ids,
        "external_network": lambda router: (each.network_id for each in router.uplinks),
    },
    counts=lambda _: {"routers": 1},
    upgrades=(_router_of_version_2,),
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
    counts=lambda port: {"ports": 1, **({"floating_ips": len(port.addresses)} if port.is_external else {})},
    upgrades=(_port_of_version_2,),
)
