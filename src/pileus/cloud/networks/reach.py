"""Whether one reaches another, and why: what switches and routers do with a packet, told from the records. Pure.

The way is that of the projection (`pileus.ovn.projection`), hop by hop: the rules of the sender's security groups, its
network, routers with their translation and their routes, the external network, the rules of the receiver's groups.
`labs/test_reach.py` compares what is said here with ovn-trace(8), over clouds made at random.
"""

from collections.abc import Callable
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS, FloatingIp
from pileus.cloud.nat.model import PORT_FORWARDINGS, SNAT_RULES, PortForwarding
from pileus.cloud.networks.model import NETWORKS, PORTS, ROUTERS, SUBNETS, Network, Port, Router, Subnet
from pileus.cloud.networks.routing import Packet, Sent, is_foreign, joined, send, within
from pileus.cloud.networks.uplinks import Leg, is_routed, legs_of
from pileus.cloud.peerings.model import PEERINGS, Peering
from pileus.cloud.securitygroups.model import SECURITY_GROUPS, SECURITY_RULES, Direction, SecurityRule
from pileus.state.records import Record
from pileus.state.state import State

_ROUTERS_AT_MOST: Final = 16
_IPV6: Final = 6
_ECHO_REQUEST: Final = {4: 8, 6: 128}
"""Types of ICMP (RFC 792) and ICMPv6 (RFC 4443)."""


class Verdict(StrEnum):
    YES = "yes"
    NO = "no"
    BEYOND = "beyond"
    """It gets out of what the asker may know of: out of the cloud, to another project, to a guest that routes."""


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """What one record on the way does with the packet."""

    kind: str
    id: str
    name: str
    says: str
    passes: bool = True


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A packet's way, and how it ends."""

    verdict: Verdict
    packet: Packet
    """As it is at the end, after all translation."""
    hops: tuple[Hop, ...]
    port: Port | None = None
    """Where it arrives."""
    advice: str = ""
    """What would let it go on."""


def from_port(state: State, port: Port, packet: Packet, sees: Callable[[Record], bool]) -> Trace:
    """The way of a packet that the guest behind this port sends; `sees` says which records the asker may know of."""
    return _Way(state, packet, sees).leave(port)


def from_outside(state: State, network: Network, packet: Packet, sees: Callable[[Record], bool]) -> Trace:
    """The way of a packet that comes in from this external network."""
    return _Way(state, packet, sees).cross_outside(network)


class _Way:
    """Follows one packet. Each method takes it one hop on, and answers with the whole of what came of it."""

    def __init__(self, state: State, packet: Packet, sees: Callable[[Record], bool]) -> None:
        self._state = state
        self._packet = packet
        self._sees = sees
        self._hops: list[Hop] = []
        self._routers = 0
        self._left_by = ""
        """The router by whose way out it went."""

    def leave(self, port: Port) -> Trace:
        """Out of a guest: past the rules of its groups, and on its network to whom it is for, or to the gateway."""
        if not self._allowed(port, Direction.EGRESS, self._packet.destination):
            return self._end(Verdict.NO, advice=self._missing_rule(port, Direction.EGRESS, self._packet.destination))
        network = self._state[NETWORKS].get(port.network_id)
        mine = [subnet for subnet in self._subnets_of(port) if _version(subnet) == self._packet.version]
        if not mine:
            self._note(port, f"has no IPv{self._packet.version} address to send from", passes=False)
            return self._end(Verdict.NO, advice=f"give it an address of an IPv{self._packet.version} subnet")
        if network.is_physical:
            return self._leave_by_wire(network, mine[0])
        if any(_holds(subnet, self._packet.destination) for subnet in mine):
            return self._deliver(network)
        for subnet in mine:
            for router in self._state[ROUTERS].by("subnet", subnet.id):
                if subnet.gateway is not None:
                    self._note(network, f"{self._packet.destination} is not in {subnet.cidr}: to {subnet.gateway}")
                    return self._route(router)
        self._note(network, f"{self._packet.destination} is not in it, and no router joins it", passes=False)
        return self._end(Verdict.NO, advice=f"join subnet {mine[0].name} to a router")

    def _leave_by_wire(self, network: Network, own: Subnet) -> Trace:
        """On the wire that a guest is on itself: to whom the packet is for, or to the LAN's gateway."""
        to = self._packet.destination
        if _holds(own, to):
            return self.cross_outside(network)
        if own.gateway is None:
            self._note(network, f"{to} is not in {own.cidr}, which has no gateway", passes=False)
            return self._end(Verdict.NO)
        self._note(network, f"{to} is not in {own.cidr}: to {own.gateway}")
        return self.cross_outside(network, own.gateway)

    def cross_outside(self, network: Network, next_hop: str = "") -> Trace:
        """On a physical network: to whom the packet is for, or to the next hop."""
        to = next_hop or self._packet.destination
        floating = self._state[FLOATING_IPS].one("address", (network.id, to))
        if floating is not None:
            return self._at_floating_ip(floating)
        for router in self._state[ROUTERS].by("external_network", network.id):
            uplink = router.uplink(network.id)
            if uplink is not None and to in uplink.addresses:
                return self._route(router) if next_hop else self._at_router(router)
        if (port := self._port_at(network, to)) is not None:
            return self._receive(port)
        self._note(network, f"{to} is nobody's of this cloud: it goes out")
        return self._end(Verdict.BEYOND)

    def _at_floating_ip(self, floating: FloatingIp) -> Trace:
        forwarding = self._forwarding_of(floating)
        if forwarding is not None and self._sees(floating):
            inside = f"{forwarding.fixed_address}, port {forwarding.internal_port}"
            if forwarding.router_id == self._left_by:
                self._note(floating, "is forwarded only for what comes in from outside", passes=False)
                return self._end(Verdict.NO, advice=f"from inside ask for {inside}")
            self._note(floating, f"leads port {forwarding.external_port} to {inside}")
            self._packet = msgspec.structs.replace(
                self._packet, destination=forwarding.fixed_address, port=forwarding.internal_port
            )
            return self._route(self._state[ROUTERS].get(forwarding.router_id))
        router = self._state[ROUTERS].find(floating.router_id or "")
        if not self._sees(floating):
            self._hops.append(Hop(kind="floating_ip", id="", name=floating.address, says="is of another project"))
            return self._end(Verdict.BEYOND)
        if router is None or floating.fixed_address is None:
            self._note(floating, "leads nowhere: it is associated with no port", passes=False)
            return self._end(Verdict.NO, advice=f"associate {floating.address} with a port")
        self._note(floating, f"is translated to {floating.fixed_address} by router {router.name}")
        self._packet = msgspec.structs.replace(self._packet, destination=floating.fixed_address)
        return self._route(router)

    def _forwarding_of(self, floating: FloatingIp) -> PortForwarding | None:
        if self._packet.port is None:
            return None
        key = floating.id, self._packet.protocol, self._packet.port
        return self._state[PORT_FORWARDINGS].one("external", key)

    def _route(self, router: Router) -> Trace:
        """Through a router that has the packet, to where its best route leads."""
        self._routers += 1
        if self._routers > _ROUTERS_AT_MOST:
            self._note(router, "has had it before: the routes go round in a circle", passes=False)
            return self._end(Verdict.NO, advice="mend the static routes of the routers above")
        to = self._packet.destination
        first = router.uplinks[0].addresses if router.uplinks else ()
        if to in first or any(subnet.gateway == to for subnet in joined(self._state, router)):
            return self._at_router(router)
        sent = send(self._state, router, self._packet)
        if sent is None:
            return self._has_no_route(router)
        if sent.peering:
            return self._cross(router, self._state[PEERINGS].get(sent.peering))
        if sent.leg is not None:
            return self._go_out(router, sent.leg, sent)
        network = self._state[NETWORKS].get(sent.network)
        via = f" by way of {sent.next_hop}" if sent.next_hop else ""
        self._note(router, f"sends it to network {network.name}{via}")
        return self._hand_over(network, sent.next_hop) if sent.next_hop else self._deliver(network)

    def _has_no_route(self, router: Router) -> Trace:
        to = self._packet.destination
        self._note(router, f"has no route to {to}", passes=False)
        ways_out = [leg for leg in legs_of(self._state, router) if leg.version == self._packet.version]
        closed = [leg.network.name for leg in ways_out if not leg.network.in_service]
        if closed:
            help = f"its external network {closed[0]} is out of service"
        elif self._packet.version == _IPV6 and not ways_out:
            help = "join the subnet to it, or give it an external network with IPv6"
        else:
            help = "join the subnet to it, or give it a route" if ip_address(to).is_private else "let it lead out"
        return self._end(Verdict.NO, advice=f"router {router.name}: {help}")

    def _go_out(self, router: Router, leg: Leg, sent: Sent) -> Trace:
        """By a way out of the router, which translates."""
        if is_foreign(self._state, router, self._packet):
            self._note(
                router, f"lets nothing out as {self._packet.source}, which the world does not know", passes=False
            )
            return self._end(
                Verdict.NO, advice="send from a prefix that the external network delegated, or let it translate"
            )
        if self._packet.destination == leg.address:
            return self._at_router(router)
        via = f" by way of {sent.next_hop}" if sent.next_hop else ""
        because = f", {sent.because}" if sent.because else ""
        self._note(router, f"sends it to network {leg.network.name}{because}{via}")
        self._left_by = router.id
        self._translate_source(router, leg)
        return self.cross_outside(leg.network, sent.next_hop)

    def _cross(self, router: Router, peering: Peering) -> Trace:
        self._note(router, f"sends it across peering {peering.name}")
        return self._route(self._state[ROUTERS].get(peering.across(router.id)))

    def _translate_source(self, router: Router, leg: Leg) -> None:
        """What leaves by a way out is sent by its floating IP, as a rule says, or else by the router's own address."""
        source = self._packet.source
        for floating in self._state[FLOATING_IPS].by("router_id", router.id):
            if floating.fixed_address == source and floating.network_id == leg.network.id:
                self._note(floating, f"stands for {source} outside")
                self._packet = msgspec.structs.replace(self._packet, source=floating.address)
                return
        rules = [
            rule
            for rule in self._state[SNAT_RULES].by("router_id", router.id)
            if within(source, rule.source) and rule.network_id == leg.network.id
        ]
        if rules:
            rule = max(rules, key=lambda rule: ip_network(rule.source).prefixlen)
            self._note(router, f"translates {source} to {rule.address}, as SNAT rule {rule.id} says")
            self._packet = msgspec.structs.replace(self._packet, source=rule.address)
            return
        of = next((subnet for subnet in joined(self._state, router) if _holds(subnet, source)), None)
        if of is not None and is_routed(of, leg):
            self._note(router, f"sends it out as {source}: {of.cidr} is delegated by {leg.network.name}")
        elif of is not None and router.snat:
            self._note(router, f"translates {source} to its own {leg.address}")
            self._packet = msgspec.structs.replace(self._packet, source=leg.address)
        elif ip_address(source).is_private:
            self._note(router, f"sends it out as {source}, which nobody outside can answer")

    def _hand_over(self, network: Network, next_hop: str) -> Trace:
        """To a guest that is to route: it gets the packet if its groups let it in."""
        port = self._port_at(network, next_hop)
        if port is None:
            self._note(network, f"has nobody with the address {next_hop}", passes=False)
            return self._end(Verdict.NO, advice="mend the route")
        trace = self._receive(port)
        return msgspec.structs.replace(trace, verdict=Verdict.BEYOND) if trace.verdict is Verdict.YES else trace

    def _deliver(self, network: Network) -> Trace:
        """On a network of the cloud, to the port with the packet's destination."""
        to = self._packet.destination
        port = self._port_at(network, to)
        if port is not None:
            return self._receive(port)
        for subnet in self._state[SUBNETS].by("network_id", network.id):
            for router in self._state[ROUTERS].by("subnet", subnet.id) if subnet.gateway == to else ():
                return self._at_router(router)
        self._note(network, f"has nobody with the address {to}", passes=False)
        return self._end(Verdict.NO)

    def _at_router(self, router: Router) -> Trace:
        """A router is asked itself: it answers a ping, and nothing else."""
        echo = self._packet.protocol == "icmp"
        has = f"has the address {self._packet.destination} itself"
        self._note(router, f"{has}, and answers" if echo else f"{has}, and answers nothing but a ping", passes=echo)
        return self._end(Verdict.YES if echo else Verdict.NO)

    def _receive(self, port: Port) -> Trace:
        """Into a guest, past the rules of its groups."""
        if not self._sees(port):
            self._hops.append(Hop(kind="port", id="", name=self._packet.destination, says="is of another project"))
            return self._end(Verdict.BEYOND)
        if not self._allowed(port, Direction.INGRESS, self._packet.source):
            return self._end(Verdict.NO, advice=self._missing_rule(port, Direction.INGRESS, self._packet.source))
        return self._end(Verdict.YES, port=port)

    def _allowed(self, port: Port, direction: Direction, peer: str) -> bool:
        way = f"in from {peer}" if direction is Direction.INGRESS else f"out to {peer}"
        groups = [self._state[SECURITY_GROUPS].get(id) for id in port.security_group_ids]
        for group in groups:
            for rule in self._state[SECURITY_RULES].by("group_id", group.id):
                if rule.direction is direction and self._fits(rule, peer):
                    self._note(port, f"lets {self._packet.words} {way}: security group {group.name}, rule {rule.id}")
                    return True
        names = ", ".join(group.name for group in groups)
        where = f"no rule of its security groups ({names}) does" if groups else "it is in no security group"
        self._note(port, f"does not let {self._packet.words} {way}: {where}", passes=False)
        return False

    def _fits(self, rule: SecurityRule, peer: str) -> bool:
        if rule.ip_version != self._packet.version:
            return False
        if rule.remote_group_id is not None:
            members = self._state[PORTS].by("security_group", rule.remote_group_id)
            if not any(each.address == peer for member in members for each in member.addresses):
                return False
        elif rule.remote_cidr is not None and not within(peer, rule.remote_cidr):
            return False
        if rule.protocol is None:
            return True
        if rule.protocol != self._packet.protocol:
            return False
        if rule.protocol == "icmp":
            return rule.port_min in (None, _ECHO_REQUEST[rule.ip_version]) and rule.port_max in (None, 0)
        port = self._packet.port or 0
        return (rule.port_min is None or rule.port_min <= port) and (rule.port_max is None or port <= rule.port_max)

    def _missing_rule(self, port: Port, direction: Direction, peer: str) -> str:
        group = next((self._state[SECURITY_GROUPS].get(id).name for id in port.security_group_ids), None)
        if group is None:
            return f"put port {port.name} into a security group"
        prefix = 32 if self._packet.version == 4 else 128
        side = "from" if direction is Direction.INGRESS else "to"
        return f"add a rule to security group {group}: {direction}, {self._packet.words}, {side} {peer}/{prefix}"

    def _subnets_of(self, port: Port) -> list[Subnet]:
        return [self._state[SUBNETS].get(each.subnet_id) for each in port.addresses]

    def _port_at(self, network: Network, address: str) -> Port | None:
        for subnet in self._state[SUBNETS].by("network_id", network.id):
            if _holds(subnet, address):
                ports = self._state[PORTS].by("subnet", subnet.id)
                return next((port for port in ports if any(each.address == address for each in port.addresses)), None)
        return None

    def _note(self, record: Network | Router | Port | FloatingIp, says: str, *, passes: bool = True) -> None:
        if isinstance(record, Router) and not self._sees(record):
            return  # across a peering there are routers of others
        name = record.address if isinstance(record, FloatingIp) else record.name
        kind = type(record).__name__.lower() if not isinstance(record, FloatingIp) else "floating_ip"
        self._hops.append(Hop(kind=kind, id=record.id, name=name, says=says, passes=passes))

    def _end(self, verdict: Verdict, *, port: Port | None = None, advice: str = "") -> Trace:
        return Trace(verdict=verdict, packet=self._packet, hops=tuple(self._hops), port=port, advice=advice)


def _version(subnet: Subnet) -> int:
    return ip_network(subnet.cidr).version


def _holds(subnet: Subnet, address: str) -> bool:
    return within(address, subnet.cidr)
