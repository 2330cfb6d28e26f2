"""Routers as rows: their ports in subnets, what they announce there, and their routes inside."""

from collections.abc import Iterator
from ipaddress import ip_network

from pileus.cloud.networks.model import Ipv6Mode, Network, Router, Subnet
from pileus.cloud.networks.uplinks import Leg, leg_to, preferred
from pileus.ovn.made import Made, logical_router, subnets_joined
from pileus.ovn.names import DOMAIN
from pileus.ovn.rows import Fact, row_id
from pileus.ovn.steering import stays_inside
from pileus.ovn.uplinks import ROUTER_OPTIONS, connected, project_uplinks, routed_outside
from pileus.ovn.view import Kind, View

_IPV4, _IPV6 = 4, 6


def project_router(view: View, router: Router) -> Iterator[Fact]:
    """A router with a port in each of its subnets, its routes, and its ways out."""
    of, itself = Made(Kind.ROUTER, router.id), logical_router(router)
    ways_out = view.legs(router)
    yield of.row("Logical_Router", row_id("Logical_Router", *itself), name=router.id, options=ROUTER_OPTIONS)
    joined = subnets_joined(view, router)
    leads_out = preferred(ways_out, _IPV6) is not None
    for subnet in joined:
        network = view.networks[subnet.network_id]
        prefix = ip_network(subnet.cidr)
        announced = {} if prefix.version == _IPV4 else {"ipv6_ra_configs": _announced(subnet, network, leads_out)}
        addresses = frozenset((f"{subnet.gateway}/{prefix.prefixlen}",))
        yield from connected(of, itself, subnet.network_id, subnet.id, addresses, **announced)
    yield from stays_inside(of, router, "subnets", *(subnet.cidr for subnet in joined))
    yield from _static_routes(of, router, ways_out)
    yield from project_uplinks(view, of, router)


def _static_routes(of: Made, router: Router, ways_out: list[Leg]) -> Iterator[Fact]:
    for at, route in enumerate(router.routes):
        leg = leg_to(ways_out, route.next_hop)
        if leg is not None:
            yield from routed_outside(of, router, at, route, leg)
        else:
            yield from of.route(logical_router(router), str(at), route.destination, route.next_hop)
            yield from stays_inside(of, router, f"route/{at}", route.destination)


def _announced(subnet: Subnet, network: Network, leads_out: bool) -> dict[str, str]:
    """What the router announces to machines of an IPv6 subnet (RFC 4861, section 4.2; RFC 4191; RFC 8106)."""
    mode = "slaac" if subnet.ipv6_mode is Ipv6Mode.SLAAC else "dhcpv6_stateful"
    announced = {"address_mode": mode, "mtu": str(network.mtu), "send_periodic": "true", "dnssl": DOMAIN}
    if not leads_out:
        # OVN announces every router as one to send everything to, and this one is the way to other subnets too. A
        # machine with several interfaces rather takes one that leads out.
        announced["router_preference"] = "LOW"
    return announced | ({"rdnss": subnet.dns_servers[0]} if subnet.dns_servers else {})
