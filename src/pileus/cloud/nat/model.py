"""Rules of translation: what comes in to one port of a floating IP, and what goes out under a floating IP. No I/O.

A floating IP serves either one port whole (it is associated), or any number of these rules; all of one router.
"""

from enum import StrEnum

from pileus.cloud.floatingips.model import FloatingIp
from pileus.kernel.ids import FloatingIpId, NetworkId, PortId, ProjectId, RouterId
from pileus.state.kinds import Kind
from pileus.state.records import Record
from pileus.state.state import State


class Transport(StrEnum):
    TCP = "tcp"
    UDP = "udp"


class PortForwarding(Record, frozen=True, kw_only=True):
    """What comes to one TCP or UDP port of a floating IP goes to a port of an instance (DNAT)."""

    project_id: ProjectId
    floating_ip_id: FloatingIpId
    network_id: NetworkId
    address: str
    """Of the floating IP, as is its external network."""
    protocol: Transport
    external_port: int
    port_id: PortId
    """The network interface that it goes to."""
    fixed_address: str
    internal_port: int
    router_id: RouterId
    """Which translates."""
    description: str = ""


class SnatRule(Record, frozen=True, kw_only=True):
    """What goes out from a source inside has a floating IP as its sender (SNAT), in place of the router's own address.

    Of several rules that a sender fits, the one with the longest prefix counts.
    """

    project_id: ProjectId
    floating_ip_id: FloatingIpId
    network_id: NetworkId
    address: str
    """Of the floating IP, as is its external network."""
    router_id: RouterId
    """Which translates."""
    source: str
    """A prefix in CIDR notation, within a subnet that the router joins."""
    port_id: PortId | None = None
    """The network interface that the source is the address of, if it is one; the rule goes with it."""
    description: str = ""


PORT_FORWARDINGS = Kind(
    "port_forwarding",
    PortForwarding,
    indexes={
        "project": lambda rule: rule.project_id,
        "floating_ip_id": lambda rule: rule.floating_ip_id,
        "port_id": lambda rule: rule.port_id,
        "router_id": lambda rule: rule.router_id,
    },
    unique={"external": lambda rule: (rule.floating_ip_id, rule.protocol, rule.external_port)},
    counts=lambda _: {"nat_rules": 1},
)
SNAT_RULES = Kind(
    "snat_rule",
    SnatRule,
    indexes={
        "project": lambda rule: rule.project_id,
        "floating_ip_id": lambda rule: rule.floating_ip_id,
        "port_id": lambda rule: rule.port_id,
        "router_id": lambda rule: rule.router_id,
    },
    unique={"source": lambda rule: (rule.router_id, rule.source)},
    counts=lambda _: {"nat_rules": 1},
)

NatRule = PortForwarding | SnatRule


def rules_of(state: State, floating: FloatingIp) -> list[NatRule]:
    """The rules that a floating IP serves."""
    id = floating.id
    return [*state[PORT_FORWARDINGS].by("floating_ip_id", id), *state[SNAT_RULES].by("floating_ip_id", id)]


def rules_through(state: State, router: str) -> list[NatRule]:
    """The rules by which a router translates."""
    return [*state[PORT_FORWARDINGS].by("router_id", router), *state[SNAT_RULES].by("router_id", router)]


def rules_at(state: State, port: str) -> list[NatRule]:
    """The rules that end at a network interface: they go with it."""
    return [*state[PORT_FORWARDINGS].by("port_id", port), *state[SNAT_RULES].by("port_id", port)]
