"""Floating IPs: addresses of an external network that follow a port wherever it is. No I/O."""

from typing import Any

import msgspec

from pileus.kernel.ids import NetworkId, PortId, ProjectId, RouterId
from pileus.state.kinds import Kind
from pileus.state.records import Record


class FloatingIp(Record, frozen=True, kw_only=True):
    """An external address of a project; translated one to one to a port's address by the router while associated."""

    project_id: ProjectId
    network_id: NetworkId
    """The external network that it is an address of."""
    address: str
    port_id: PortId | None = None
    fixed_address: str | None = None
    router_id: RouterId | None = None
    bandwidth_mbit: int | None = None
    """How much passes in each direction, in Mbit/s; None for no limit."""


def without_port(floating: FloatingIp) -> FloatingIp:
    """The same floating IP, associated with nothing."""
    return msgspec.structs.replace(floating, port_id=None, fixed_address=None, router_id=None)


def _with_bandwidth(floating: dict[str, Any]) -> dict[str, Any]:
    """Version 2 may be limited."""
    return {**floating, "bandwidth_mbit": None}


FLOATING_IPS = Kind(
    "floating_ip",
    FloatingIp,
    indexes={
        "project": lambda floating: floating.project_id,
        "port_id": lambda floating: floating.port_id,
        "network_id": lambda floating: floating.network_id,
        "router_id": lambda floating: floating.router_id,
    },
    unique={"address": lambda floating: (floating.network_id, floating.address)},
    counts=lambda _: {"floating_ips": 1},
    upgrades=(_with_bandwidth,),
)
