"""Rows of networks that are on a wire with machines outside of the cloud: external and flat ones."""

from collections.abc import Iterator

from pileus.cloud.networks.model import Network, NetworkKind, Port
from pileus.ovn.made import Made, reference
from pileus.ovn.names import guests_of
from pileus.ovn.rows import Fact, row_id
from pileus.ovn.view import Kind, View

_PRETENDED, _ALWAYS_ALLOWED = 1003, 1002
"""Priorities of ACLs: of what no rule allows, and below that of what needs none."""

_ANY_IPV4 = "0.0.0.0/0"
_TOLD_BY_DHCP = "ip4 && udp.src == 67 && udp.dst == 68"
"""What a DHCP server says to a machine."""


def project_physical(view: View, network: Network) -> Iterator[Fact]:
    """The port to the wire, and what guests neither pretend to be there nor are kept from."""
    of = Made(Kind.NETWORK, network.id)
    outside = row_id("Logical_Switch_Port", network.id, "localnet")
    yield of.row(
        "Logical_Switch_Port",
        outside,
        name=f"localnet-{network.id}",
        type="localnet",
        addresses=frozenset(("unknown",)),
        options={"network_name": network.physical_network},
        **({} if network.vlan is None else {"tag_request": network.vlan}),
    )
    yield reference("Logical_Switch", row_id("Logical_Switch", network.id), "ports", outside)
    guests = guests_of(network.id)
    acls = [("no-dhcp-server", "from-lport", _PRETENDED, "drop", f"inport == @{guests} && {_TOLD_BY_DHCP}")]
    if network.kind is NetworkKind.FLAT and not any(each.is_served for each in view.subnets_in(network.id)):
        acls.append(("told", "to-lport", _ALWAYS_ALLOWED, "allow", f"outport == @{guests} && {_TOLD_BY_DHCP}"))
    for part, direction, priority, action, match in acls:
        acl = row_id("ACL", network.id, part)
        yield of.row("ACL", acl, priority=priority, direction=direction, match=match, action=action)
        yield reference("Port_Group", row_id("Port_Group", network.id), "acls", acl)


def spoken_for(port: Port) -> tuple[str, ...]:
    """What a guest may send from: its own addresses; of one that others tell its address, any of IPv4.

    IPv6 is closed to the latter: a guest could announce itself as a router there, which no ACL of OVN keeps it from
    (ovn-northd(8), from-lport ACLs: neighbour discovery is let through before they are looked at).
    """
    return tuple(fixed.address for fixed in port.addresses) or (_ANY_IPV4,)
