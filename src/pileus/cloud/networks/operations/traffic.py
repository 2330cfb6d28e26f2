"""What has passed the ports of guests."""

import msgspec

from pileus.cloud.networks.model import Port
from pileus.cloud.networks.operations.ports import ports
from pileus.cloud.world import Hosts
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import PortId
from pileus.link.guests import PortTraffic, TrafficAsked
from pileus.link.messages import Method
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange

_ANSWER_S = 5.0


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What has passed a port since it was plugged in, as its guest sees it."""

    port_id: str
    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int
    dropped_packets: int
    """On their way to the guest, which did not take them in time."""


@ports.special("GET", "/{id}/traffic", least=Role.READER, answers=Traffic, raises=(Conflict,))
async def traffic(exchange: Exchange, port: Port) -> Answer:
    """Show what has passed a port since it was plugged in, as its guest sees it."""
    hosts: Hosts = exchange.services[Hosts]
    if port.host_id is None:
        raise Conflict(f"port {port.name} is not plugged into an instance")
    asked = TrafficAsked(port=PortId(port.id))
    passed = await hosts.ask(port.host_id, Method.PORT_TRAFFIC, asked, PortTraffic, timeout_s=_ANSWER_S)
    return Answer(status=200, body=msgspec.json.encode(Traffic(port_id=port.id, **msgspec.structs.asdict(passed))))
