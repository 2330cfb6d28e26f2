"""Records of networks for tests and measurements: a small cloud that has one of everything."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from pileus.cloud.floatingips.model import FloatingIp
from pileus.cloud.nat.model import PortForwarding, SnatRule, Transport
from pileus.cloud.networks.model import (
    GUEST_MTU,
    FixedAddress,
    Ipv6Mode,
    Network,
    NetworkKind,
    Port,
    Route,
    Router,
    SourceRoute,
    Subnet,
    Uplink,
)
from pileus.cloud.peerings.model import Peering, PeeringState
from pileus.cloud.securitygroups.model import Direction, SecurityGroup, SecurityRule
from pileus.kernel.ids import FloatingIpId, HostId, NetworkId, PortId, ProjectId, RouterId, SecurityGroupId, SubnetId
from pileus.ovn.view import NetworkRecord

SINCE = datetime(2026, 1, 1, tzinfo=UTC)
PROJECT = ProjectId("project")


def vpc(
    id: str,
    *,
    kind: NetworkKind = NetworkKind.VPC,
    physical: str = "",
    vlan: int | None = None,
    mtu: int = GUEST_MTU,
    in_service: bool = True,
) -> Network:
    return Network(
        id=id,
        created_at=SINCE,
        project_id=PROJECT,
        name=id,
        kind=kind,
        physical_network=physical,
        vlan=vlan,
        mtu=mtu,
        in_service=in_service,
    )


def subnet(
    id: str,
    *,
    of: str,
    cidr: str,
    gateway: str | None,
    dhcp: bool = True,
    dns: Sequence[str] = (),
    mode: Ipv6Mode | None = None,
    delegated_by: str | None = None,
) -> Subnet:
    return Subnet(
        id=id,
        created_at=SINCE,
        network_id=NetworkId(of),
        project_id=PROJECT,
        name=id,
        cidr=cidr,
        gateway=gateway,
        dhcp=dhcp,
        dns_servers=tuple(dns),
        ipv6_mode=mode,
        delegated_by=None if delegated_by is None else NetworkId(delegated_by),
    )


def port(
    id: str,
    *,
    of: str,
    mac: str,
    at: Sequence[tuple[str, str]],
    groups: Sequence[str] = (),
    host: str | None = None,
    hostname: str = "",
    speaks_for: Sequence[str] = (),
) -> Port:
    """A port of a network; `at` are pairs of subnet and address."""
    return Port(
        id=id,
        created_at=SINCE,
        network_id=NetworkId(of),
        project_id=PROJECT,
        name=id,
        mac=mac,
        addresses=tuple(FixedAddress(subnet_id=SubnetId(each), address=address) for each, address in at),
        allowed_prefixes=tuple(speaks_for),
        security_group_ids=tuple(map(SecurityGroupId, groups)),
        host_id=None if host is None else HostId(host),
        hostname=hostname,
    )


def router(
    id: str,
    *,
    subnets: Sequence[str],
    outside: tuple[str, *tuple[str, ...]] | None = None,
    further: Sequence[tuple[str, *tuple[str, ...]]] = (),
    snat: bool = True,
    routes: Sequence[tuple[str, str]] = (),
    sources: Sequence[tuple[str, str]] = (),
) -> Router:
    """A router; `outside` is its external network with its addresses there, `further` are more of these.

    `sources` are pairs of a prefix and the external network that it goes out by.
    """
    first = None if outside is None else uplink(*outside)
    return Router(
        id=id,
        created_at=SINCE,
        project_id=PROJECT,
        name=id,
        subnet_ids=tuple(map(SubnetId, subnets)),
        external_network_id=None if first is None else first.network_id,
        external_address=None if first is None else first.address,
        external_ipv6_address=None if first is None else first.ipv6_address,
        further_uplinks=tuple(uplink(*each, link=at) for at, each in enumerate(further)),
        snat=snat,
        routes=tuple(Route(destination=to, next_hop=by) for to, by in routes),
        source_routes=tuple(SourceRoute(source=source, network_id=NetworkId(by)) for source, by in sources),
    )


def uplink(network: str, *addresses: str, link: int | None = None) -> Uplink:
    four, six = (next((each for each in addresses if (":" in each) is is_six), None) for is_six in (False, True))
    return Uplink(network_id=NetworkId(network), address=four, ipv6_address=six, link=link)


def group(id: str) -> SecurityGroup:
    return SecurityGroup(id=id, created_at=SINCE, project_id=PROJECT, name=id)


def rule(id: str, *, of: str, direction: Direction, **rest: str | int | None) -> SecurityRule:
    """A rule of a group; `rest` are fields of SecurityRule."""
    made = SecurityRule(id=id, created_at=SINCE, group_id=SecurityGroupId(of), project_id=PROJECT, direction=direction)
    return msgspec.structs.replace(made, **rest)


def floating_ip(
    id: str,
    *,
    of: str,
    address: str,
    port: str | None = None,
    fixed: str | None = None,
    by: str | None = None,
    mbit: int | None = None,
) -> FloatingIp:
    """An address of an external network, and the port, its address and the router that it is translated by."""
    return FloatingIp(
        id=id,
        created_at=SINCE,
        project_id=PROJECT,
        network_id=NetworkId(of),
        address=address,
        port_id=None if port is None else PortId(port),
        fixed_address=fixed,
        router_id=None if by is None else RouterId(by),
        bandwidth_mbit=mbit,
    )


def forwarding(
    id: str, *, at: str, outside: int, to: str, inside: int, by: str, port: str = "", of: str = "outside"
) -> PortForwarding:
    """A TCP port of this address of an external network, and where it leads by this router."""
    return PortForwarding(
        id=id,
        created_at=SINCE,
        project_id=PROJECT,
        floating_ip_id=FloatingIpId(at),
        network_id=NetworkId(of),
        address=at,
        protocol=Transport.TCP,
        external_port=outside,
        port_id=PortId(port),
        fixed_address=to,
        internal_port=inside,
        router_id=RouterId(by),
    )


def snat_rule(id: str, *, at: str, source: str, by: str, of: str = "outside") -> SnatRule:
    """What goes out from this source under this address of an external network, by this router."""
    return SnatRule(
        id=id,
        created_at=SINCE,
        project_id=PROJECT,
        floating_ip_id=FloatingIpId(at),
        network_id=NetworkId(of),
        address=at,
        source=source,
        router_id=RouterId(by),
    )


def peering(id: str, one: str, other: str, *, link: int = 0, active: bool = True) -> Peering:
    return Peering(
        id=id,
        created_at=SINCE,
        project_id=PROJECT,
        name=id,
        router_id=RouterId(one),
        peer_project_id=PROJECT,
        peer_router_id=RouterId(other),
        state=PeeringState.ACTIVE if active else PeeringState.PENDING,
        link=link,
    )


def default_group(id: str) -> list[NetworkRecord]:
    """Everything out, and in from members of the same group."""
    return [
        group(id),
        rule(f"{id}-out", of=id, direction=Direction.EGRESS),
        rule(f"{id}-in", of=id, direction=Direction.INGRESS, remote_group_id=id),
    ]


def small_cloud() -> list[NetworkRecord]:
    """Two VPCs that overlap, one with subnets, a router, two ways out and a peer; a group with every sort of rule."""
    web = [
        group("web"),
        rule("web-http", of="web", direction=Direction.INGRESS, protocol="tcp", port_min=80, port_max=80),
        rule("web-high", of="web", direction=Direction.INGRESS, protocol="udp", port_min=5000, port_max=5010),
        rule("web-ping", of="web", direction=Direction.INGRESS, protocol="icmp", port_min=8, remote_cidr="0.0.0.0/0"),
        rule("web-office", of="web", direction=Direction.INGRESS, remote_cidr="192.0.2.0/24"),
        rule("web-six", of="web", direction=Direction.EGRESS, ip_version=6, remote_cidr="2001:db8::/32"),
    ]
    return [
        vpc("outside", kind=NetworkKind.EXTERNAL, physical="provider", vlan=7),
        subnet("outside-4", of="outside", cidr="172.24.0.0/24", gateway="172.24.0.1", dhcp=False),
        vpc("line", kind=NetworkKind.EXTERNAL, physical="line"),
        subnet("line-4", of="line", cidr="172.25.0.0/24", gateway="172.25.0.1", dhcp=False),
        subnet("line-6", of="line", cidr="2001:db8:1::/64", gateway="2001:db8:1::1", dhcp=False),
        vpc("blue"),
        subnet("blue-0", of="blue", cidr="10.0.0.0/24", gateway="10.0.0.1"),
        subnet("blue-1", of="blue", cidr="10.0.1.0/24", gateway="10.0.1.1", dns=["192.0.2.53"]),
        subnet("blue-6", of="blue", cidr="fd00:1::/64", gateway="fd00:1::1", mode=Ipv6Mode.STATEFUL),
        subnet("blue-7", of="blue", cidr="fd00:2::/64", gateway="fd00:2::1", dns=["2001:db8::53"], mode=Ipv6Mode.SLAAC),
        vpc("green"),
        subnet("green-0", of="green", cidr="10.0.0.0/24", gateway=None),
        router(
            "edge",
            subnets=["blue-0", "blue-1", "blue-6", "blue-7"],
            outside=("outside", "172.24.0.100"),
            further=[("line", "172.25.0.100", "2001:db8:1::100")],
            routes=[("10.9.0.0/16", "10.0.0.9"), ("192.0.2.0/24", "172.25.0.9")],
            sources=[("10.0.0.0/25", "line")],
        ),
        *default_group("default"),
        *web,
        port(
            "p-one",
            of="blue",
            mac="02:00:00:00:00:01",
            at=[("blue-0", "10.0.0.11"), ("blue-6", "fd00:1::11")],
            groups=["default", "web"],
            host="host-1",
            hostname="one",
        ),
        port(
            "p-two",
            of="blue",
            mac="02:00:00:00:00:02",
            at=[("blue-1", "10.0.1.12")],
            groups=["web"],
            hostname="two",
            speaks_for=["10.9.0.0/16"],
        ),
        port("p-far", of="green", mac="02:00:00:00:00:01", at=[("green-0", "10.0.0.11")], hostname="one"),
        floating_ip("fip-one", of="outside", address="172.24.0.111", port="p-one", fixed="10.0.0.11", by="edge"),
        floating_ip("fip-free", of="outside", address="172.24.0.112", mbit=20),
        forwarding("pf-ssh", at="172.24.0.112", outside=2222, to="10.0.1.12", inside=22, by="edge", port="p-two"),
        snat_rule("snat-1", at="172.24.0.112", source="10.0.1.0/24", by="edge"),
        floating_ip("fip-line", of="line", address="172.25.0.113"),
        forwarding("pf-line", of="line", at="172.25.0.113", outside=80, to="10.0.1.12", inside=80, by="edge"),
        vpc("red"),
        subnet("red-0", of="red", cidr="10.5.0.0/24", gateway="10.5.0.1"),
        subnet("red-6", of="red", cidr="fd00:5::/64", gateway="fd00:5::1", mode=Ipv6Mode.SLAAC),
        router("red-edge", subnets=["red-0", "red-6"]),
        peering("edge-red", "edge", "red-edge"),
        vpc("office", kind=NetworkKind.FLAT, physical="lan", vlan=20, mtu=1500),
        subnet("office-4", of="office", cidr="192.168.20.0/24", gateway="192.168.20.1", dns=["192.168.20.1"]),
        port("p-desk", of="office", mac="02:00:00:00:00:05", at=[("office-4", "192.168.20.11")], groups=["default"]),
        vpc("told", kind=NetworkKind.FLAT, physical="lan", mtu=1500),
        port("p-told", of="told", mac="02:00:00:00:00:06", at=[], groups=["default"]),
    ]
