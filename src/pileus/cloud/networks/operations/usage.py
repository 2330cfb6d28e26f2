"""How many addresses of a subnet are left, and who has the others."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from itertools import islice

import msgspec

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.networks.addresses import Addresses, held
from pileus.cloud.networks.model import PORTS, ROUTERS, Subnet
from pileus.cloud.networks.operations.subnets import subnets
from pileus.cloud.reservations.model import RESERVATIONS
from pileus.kernel.ids import SubnetId
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange
from pileus.operations.plan import Ask
from pileus.state.records import Record

_TOLD_AT_MOST = 1000


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has an address."""

    address: str
    kind: str
    """`port`, `router` or `floating_ip`."""
    id: str
    project_id: str


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses from first to last that are kept for somebody outside of the cloud."""

    first: str
    last: str
    id: str
    name: str


class AddressUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses of a subnet, the gateway's apart."""

    subnet_id: str
    free: int
    """That can be given out."""
    reserved: int
    in_use: int
    holders: tuple[Holder, ...]
    """Who has which address: of one's own project, at most 1,000."""
    reservations: tuple[Kept, ...]


@subnets.special("GET", "/{id}/usage", least=Role.READER, answers=AddressUsage)
async def usage(exchange: Exchange, subnet: Subnet) -> Answer:
    """Show how many addresses of a subnet are free, reserved and in use, and by whom."""
    ask = exchange.ask
    counted = ask.view(Addresses).counted(SubnetId(subnet.id))
    kept = [each for each in ask.state[RESERVATIONS].by("subnet_id", subnet.id) if ask.may_see(each)]
    answer = AddressUsage(
        subnet_id=subnet.id,
        free=counted.free,
        reserved=counted.reserved,
        in_use=counted.in_use,
        holders=tuple(sorted(islice(_holders(ask, subnet), _TOLD_AT_MOST), key=lambda each: ip_address(each.address))),
        reservations=tuple(
            Kept(first=each.first, last=each.last, id=each.id, name=each.name)
            for each in sorted(kept, key=lambda each: each.span)
        ),
    )
    return Answer(status=200, body=msgspec.json.encode(answer))


def _holders(ask: Ask, subnet: Subnet) -> Iterator[Holder]:
    inside = ip_network(subnet.cidr)
    records: list[tuple[str, list[Record]]] = [
        (PORTS.name, list(ask.state[PORTS].by("subnet", subnet.id))),
        (ROUTERS.name, list(ask.state[ROUTERS].by("external_network", subnet.network_id))),
        (FLOATING_IPS.name, list(ask.state[FLOATING_IPS].by("network_id", subnet.network_id))),
    ]
    for kind, found in records:
        for record in filter(ask.may_see, found):
            for network, address in held(record):
                if network == subnet.network_id and ip_address(address) in inside:
                    project = str(getattr(record, "project_id", ""))
                    yield Holder(address=address, kind=kind, id=record.id, project_id=project)
