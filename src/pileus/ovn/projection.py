"""What OVN is to do, as rows of its northbound database: a pure function of our records.

The projection is cut by *owner*: each row, and each element of a collected column, is made for exactly one owner, by
`project(view, owner)`. A changed record affects few owners, and the difference of what these owners project before
and after is the difference of the whole: a port more costs the same among ten ports and among 50,000.
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network

from pileus.cloud.networks.model import Network, Port, Subnet
from pileus.cloud.securitygroups.model import Direction, SecurityGroup, SecurityRule
from pileus.ovn.made import Made, reference
from pileus.ovn.names import DOMAIN, METADATA_ADDRESS, guests_of, metadata_mac, metadata_port
from pileus.ovn.peering import project_peering
from pileus.ovn.physical import project_physical, spoken_for
from pileus.ovn.routing import project_router
from pileus.ovn.rows import Element, Fact, Key, Value, facts, row_id
from pileus.ovn.translation import project_floating_ip, project_port_forwarding, project_snat_rule
from pileus.ovn.view import Kind, Owner, View

LEASE_S = 86_400
"""Addresses never change while a port lives; guests need the lease to be renewed rarely, so hosts may be busy."""

_IPV4 = 4

_ALWAYS_ALLOWED, _ALLOWED_BY_RULE, _DROPPED = 1002, 1001, 1000
"""Priorities of ACLs."""


def project_everything(view: View) -> dict[Key, Fact]:
    """All rows that are wanted."""
    return facts(fact for owner in view.owners() for fact in project(view, owner))


def project(view: View, owner: Owner) -> Iterator[Fact]:  # noqa: C901 - one case for each kind
    """The rows and elements of one owner; none if its record is not there, or what it belongs to."""
    match owner.kind:
        case Kind.NETWORK if (network := view.networks.get(owner.id)) is not None:
            return project_network(view, network)
        case Kind.SUBNET if (subnet := view.subnets.get(owner.id)) is not None:
            return project_subnet(view, subnet)
        case Kind.ROUTER if (router := view.routers.get(owner.id)) is not None:
            return project_router(view, router)
        case Kind.GROUP if (group := view.groups.get(owner.id)) is not None:
            return project_group(group)
        case Kind.RULE if (rule := view.rules.get(owner.id)) is not None:
            return project_rule(view, rule)
        case Kind.PORT if (port := view.ports.get(owner.id)) is not None:
            return project_port(view, port)
        case Kind.FLOATING_IP if (floating_ip := view.floating_ips.get(owner.id)) is not None:
            return project_floating_ip(view, floating_ip)
        case Kind.PORT_FORWARDING if (forwarding := view.port_forwardings.get(owner.id)) is not None:
            return project_port_forwarding(view, forwarding)
        case Kind.SNAT_RULE if (snat := view.snat_rules.get(owner.id)) is not None:
            return project_snat_rule(view, snat)
        case Kind.PEERING if (peering := view.peerings.get(owner.id)) is not None:
            return project_peering(view, peering)
        case Kind.NAME:
            return project_name(view, owner.id, owner.name)
        case _:
            return iter(())


def project_network(view: View, network: Network) -> Iterator[Fact]:
    """A switch, its names, its metadata port, and the group of its guests' ports, which drops what no rule allows."""
    of = Made(Kind.NETWORK, network.id)
    switch = row_id("Logical_Switch", network.id)
    names = row_id("DNS", network.id)
    yield of.row("Logical_Switch", switch, name=network.id)
    yield of.row("DNS", names)
    yield reference("Logical_Switch", switch, "dns_records", names)
    metadata = row_id("Logical_Switch_Port", network.id, "metadata")
    yield of.row(
        "Logical_Switch_Port",
        metadata,
        name=metadata_port(network.id),
        type="localport",
        addresses=frozenset((f"{metadata_mac(network.id)} {METADATA_ADDRESS}",)),
    )
    yield reference("Logical_Switch", switch, "ports", metadata)
    guests = row_id("Port_Group", network.id)
    name = guests_of(network.id)
    yield of.row("Port_Group", guests, name=name)
    for part, direction, priority, action, match in (
        ("drop-out", "from-lport", _DROPPED, "drop", f"inport == @{name} && ip"),
        ("drop-in", "to-lport", _DROPPED, "drop", f"outport == @{name} && ip"),
        ("dhcp", "from-lport", _ALWAYS_ALLOWED, "allow", f"inport == @{name} && {_DHCP}"),
        ("metadata", "from-lport", _ALWAYS_ALLOWED, "allow-related", f"inport == @{name} && {_METADATA}"),
    ):
        acl = row_id("ACL", network.id, part)
        yield of.row("ACL", acl, priority=priority, direction=direction, match=match, action=action)
        yield reference("Port_Group", guests, "acls", acl)
    if network.is_physical:
        yield from project_physical(view, network)


_DHCP = "((ip4 && udp.src == 68 && udp.dst == 67) || (ip6 && udp.src == 546 && udp.dst == 547))"
_METADATA = f"ip4.dst == {METADATA_ADDRESS} && (tcp.dst == {{53, 80}} || udp.dst == 53)"


def project_subnet(view: View, subnet: Subnet) -> Iterator[Fact]:
    """What guests of the subnet learn by DHCP."""
    network = view.networks.get(subnet.network_id)
    if network is None or not subnet.is_served:
        return
    options = _dhcpv4(subnet, network) if ip_network(subnet.cidr).version == _IPV4 else _dhcpv6(subnet, network)
    yield Made(Kind.SUBNET, subnet.id).row(
        "DHCP_Options", row_id("DHCP_Options", subnet.id), cidr=subnet.cidr, options=options
    )


def _dhcpv4(subnet: Subnet, network: Network) -> dict[str, str]:
    # RFC 3442: a client that is told static routes ignores the router option, so the default route is among them; a
    # next hop of 0.0.0.0 is on-link. The server is the metadata address, which is there with and without a router.
    routes = [f"{METADATA_ADDRESS}/32,0.0.0.0"]
    options = {
        "server_id": METADATA_ADDRESS,
        "server_mac": metadata_mac(network.id),
        "lease_time": str(LEASE_S),
        "mtu": str(network.mtu),
        "domain_name": f'"{DOMAIN}"',
        "dns_server": _braced(subnet.dns_servers or (METADATA_ADDRESS,)),
    }
    if subnet.gateway is not None:
        options["router"] = subnet.gateway
        routes.append(f"0.0.0.0/0,{subnet.gateway}")
    return options | {"classless_static_route": _braced(routes)}


def _dhcpv6(subnet: Subnet, network: Network) -> dict[str, str]:
    options = {"server_id": metadata_mac(network.id), "domain_search": f'"{DOMAIN}"'}
    return options | ({"dns_server": _braced(subnet.dns_servers)} if subnet.dns_servers else {})


def project_port(view: View, port: Port) -> Iterator[Fact]:
    """A port of a switch that may speak with its own addresses only, in the groups that say what it may reach."""
    if port.network_id not in view.networks:
        return
    id = row_id("Logical_Switch_Port", port.id)
    own = (port.mac, *(fixed.address for fixed in port.addresses))
    columns: dict[str, Value] = {
        "addresses": frozenset((" ".join(own),)),
        "port_security": frozenset((" ".join((port.mac, *spoken_for(port), *port.allowed_prefixes)),)),
    }
    if port.host_id is not None:
        columns["options"] = {"requested-chassis": port.host_id}
    for fixed in port.addresses:
        subnet = view.subnets.get(fixed.subnet_id)
        if subnet is not None and subnet.is_served:
            column = "dhcpv4_options" if "." in fixed.address else "dhcpv6_options"
            columns.setdefault(column, row_id("DHCP_Options", subnet.id))
    yield Made(Kind.PORT, port.id).row("Logical_Switch_Port", id, name=port.id, **columns)
    yield reference("Logical_Switch", row_id("Logical_Switch", port.network_id), "ports", id)
    yield reference("Port_Group", row_id("Port_Group", port.network_id), "ports", id)
    for group in dict.fromkeys(port.security_group_ids):
        if group in view.groups:
            yield reference("Port_Group", row_id("Port_Group", group), "ports", id)
    out, into = f'inport == "{port.id}"', f'outport == "{port.id}"'
    yield from Made(Kind.PORT, port.id).limit(port.network_id, port.limit_mbit, out=out, into=into)


def project_name(view: View, network: str, name: str) -> Iterator[Fact]:
    """What the network's DNS says of a host name, and of the addresses that have it."""
    if network not in view.networks:
        return
    ports = view.ports_named(network, name)
    addresses = [fixed.address for port in ports for fixed in port.addresses]
    if not addresses:
        return
    names = row_id("DNS", network)
    qualified = f"{name}.{DOMAIN}"
    for entry in (name, qualified):
        yield Element(table="DNS", id=names, column="records", entry=entry, value=" ".join(addresses))
    for address in addresses:
        yield Element(
            table="DNS", id=names, column="records", entry=ip_address(address).reverse_pointer, value=qualified
        )


def project_group(group: SecurityGroup) -> Iterator[Fact]:
    """A group of ports; OVN makes of it the address sets that rules of other groups name."""
    yield Made(Kind.GROUP, group.id).row("Port_Group", row_id("Port_Group", group.id), name=members_of(group.id))


def project_rule(view: View, rule: SecurityRule) -> Iterator[Fact]:
    """What lets one kind of traffic through, with its answers."""
    named = rule.group_id if rule.remote_group_id is None else rule.remote_group_id
    if rule.group_id not in view.groups or named not in view.groups:
        return
    id = row_id("ACL", rule.id)
    yield Made(Kind.RULE, rule.id).row(
        "ACL",
        id,
        name=rule.id,
        priority=_ALLOWED_BY_RULE,
        direction="to-lport" if rule.direction is Direction.INGRESS else "from-lport",
        match=" && ".join(_conditions(rule)),
        action="allow-related",
    )
    yield reference("Port_Group", row_id("Port_Group", rule.group_id), "acls", id)


def _conditions(rule: SecurityRule) -> Iterator[str]:
    """The parts of a rule in OVN's language of matches (ovn-sb(5), Logical_Flow)."""
    ingress = rule.direction is Direction.INGRESS
    yield f"{'outport' if ingress else 'inport'} == @{members_of(rule.group_id)}"
    ip = f"ip{rule.ip_version}"
    yield ip
    peer = f"{ip}.{'src' if ingress else 'dst'}"
    if rule.remote_group_id is not None:
        yield f"{peer} == ${members_of(rule.remote_group_id)}_{ip}"
    elif rule.remote_cidr is not None and ip_network(rule.remote_cidr).prefixlen > 0:
        yield f"{peer} == {rule.remote_cidr}"
    if rule.protocol is None:
        return
    protocol = rule.protocol if rule.protocol != "icmp" else f"icmp{rule.ip_version}"
    yield protocol
    if rule.protocol == "icmp":
        bounds = ("type ==", rule.port_min), ("code ==", rule.port_max)
    elif rule.port_min == rule.port_max:
        bounds = (("dst ==", rule.port_min),)
    else:
        bounds = ("dst >=", rule.port_min), ("dst <=", rule.port_max)
    for condition, bound in bounds:
        if bound is not None:
            yield f"{protocol}.{condition} {bound}"


def members_of(group: str) -> str:
    """The port group of a security group's members."""
    return f"members_{group.replace('-', '_')}"


def _braced(many: Iterable[str]) -> str:
    return "{" + ", ".join(many) + "}"
