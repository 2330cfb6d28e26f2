"""What one may do with reservations."""

from ipaddress import ip_address
from typing import Annotated

import msgspec

from pileus.cloud.networks.addresses import Addresses
from pileus.cloud.networks.model import NETWORKS, SUBNETS
from pileus.cloud.networks.operations import must_administer
from pileus.cloud.networks.operations.fields import Address, can_be_had
from pileus.cloud.reservations.model import RESERVATIONS, Reservation
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import SubnetId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Name, Wire, ref
from pileus.state.state import put, remove

_NAMED_AT_MOST = 10


class ReservationCreate(Wire):
    name: Name
    """Whom the addresses are for."""
    subnet_id: Annotated[Id, ref("subnet")]
    first: Address
    last: Address | None = None
    """Included; without one, the first address alone."""


class ReservationChange(Wire):
    name: Name


reservations = Noun(
    RESERVATIONS,
    plural="reservations",
    columns=("name", "first", "last", "subnet_id"),
    about="Reservations: addresses of a subnet that are kept for machines outside of the cloud.",
)
reservations.list(filters=("name", "subnet_id", "project_id"), sorts=("name", "first"))
reservations.show()


@reservations.post()
def create(ask: Ask, wish: ReservationCreate) -> Plan:
    """Keep addresses of a subnet for somebody outside of the cloud: they are given to nobody in it."""
    subnet = ask.see(SUBNETS, wish.subnet_id, "subnet_id")
    must_administer(ask, ask.state[NETWORKS].get(subnet.network_id))
    first, last = wish.first, wish.last or wish.first
    wrong = {
        name: f"is not an address of {subnet.cidr} that a machine can have"
        for name, value in (("first", first), ("last", last))
        if not can_be_had(value, subnet.cidr)
    }
    if not wrong and int(ip_address(first)) > int(ip_address(last)):
        wrong["last"] = "is below the first"
    if wrong:
        raise Invalid("some fields are wrong", fields=wrong)
    made = Reservation(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=subnet.project_id,
        subnet_id=SubnetId(subnet.id),
        name=wish.name,
        first=first,
        last=last,
    )
    for other in ask.state[RESERVATIONS].by("subnet_id", subnet.id):
        if other.span[0] <= made.span[1] and made.span[0] <= other.span[1]:
            raise Conflict(f"{other.words} is reserved for {other.name}", fields={"first": "reserved"})
    if taken := ask.view(Addresses).held_within(SubnetId(subnet.id), made.span):
        named = ", ".join(taken[:_NAMED_AT_MOST]) + (" and more" if len(taken) > _NAMED_AT_MOST else "")
        raise Conflict(f"in use: {named}", fields={"first": "in use"})
    return Plan(
        summary=f"reserve {made.words} of subnet {subnet.name} for {made.name}",
        changes=(put(made),),
        answers=made,
        undo="delete the reservation",
    )


@reservations.patch()
def change(ask: Ask, reservation: Reservation, wish: ReservationChange) -> Plan:
    """Say anew whom addresses are kept for."""
    _is_administered(ask, reservation)
    changed = msgspec.structs.replace(reservation, name=wish.name)
    return Plan(
        summary=f"keep {reservation.words} for {wish.name}",
        changes=(put(changed),),
        answers=changed,
        undo="change it back",
    )


@reservations.delete()
def delete(ask: Ask, reservation: Reservation) -> Plan:
    """Give reserved addresses back to their subnet."""
    _is_administered(ask, reservation)
    return Plan(
        summary=f"give {reservation.words} back, which was reserved for {reservation.name}",
        changes=(remove(reservation),),
        undo="reserve it again",
    )


def _is_administered(ask: Ask, reservation: Reservation) -> None:
    must_administer(ask, ask.state[NETWORKS].get(ask.state[SUBNETS].get(reservation.subnet_id).network_id))
