"""Two routers that are joined: a port of each at both ends of a link, and routes to what the other joins."""

from collections.abc import Iterator
from ipaddress import ip_network

from pileus.cloud.networks.model import Router
from pileus.cloud.peerings.model import Peering, PeeringState
from pileus.kernel.eui64 import slaac_address
from pileus.ovn.made import Made, logical_router, reference, subnets_joined
from pileus.ovn.names import mac_of
from pileus.ovn.rows import Fact, row_id
from pileus.ovn.steering import stays_inside
from pileus.ovn.view import Kind, View

_LINK_LOCAL = "fe80::/64"
_PREFIX_LENGTH = 30
_IPV4 = 4


def project_peering(view: View, peering: Peering) -> Iterator[Fact]:
    """The two ends of the link, once both sides have agreed."""
    one, other = (view.routers.get(id) for id in peering.routers)
    if peering.state is not PeeringState.ACTIVE or one is None or other is None:
        return
    for near, far in ((one, other), (other, one)):
        yield from _end(view, peering, near, far)


def _end(view: View, peering: Peering, near: Router, far: Router) -> Iterator[Fact]:
    of = Made(Kind.PEERING, peering.id)
    port = row_id("Logical_Router_Port", near.id, peering.id)
    yield of.row(
        "Logical_Router_Port",
        port,
        name=_name(peering, near),
        mac=mac_of(near.id, peering.id),
        networks=frozenset((f"{peering.address(near.id)}/{_PREFIX_LENGTH}",)),
        peer=_name(peering, far),
    )
    yield reference("Logical_Router", row_id("Logical_Router", near.id), "ports", port)
    for subnet in subnets_joined(view, far):
        ipv4 = ip_network(subnet.cidr).version == _IPV4
        next_hop = peering.address(far.id) if ipv4 else slaac_address(_LINK_LOCAL, mac_of(far.id, peering.id))
        part = f"{peering.id}/{subnet.id}"
        yield from of.route(logical_router(near), part, subnet.cidr, next_hop, output_port=_name(peering, near))
        yield from stays_inside(of, near, part, subnet.cidr)


def _name(peering: Peering, router: Router) -> str:
    return f"{router.id}-{peering.id}"
