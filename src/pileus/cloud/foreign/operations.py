"""What one may do with guests that are not of Pileus: look at them, and keep an eye on them."""

from typing import Annotated

import msgspec

from pileus.cloud.foreign.model import SHADOWS, Shadow, looked_at, seen
from pileus.cloud.hosts.model import HOSTS, Host
from pileus.cloud.hosts.operations import hosts
from pileus.cloud.world import Hosts
from pileus.kernel.errors import Conflict, NotFound
from pileus.kernel.ids import HostId
from pileus.link.foreign import ForeignGuest, ForeignGuests
from pileus.link.messages import Message, Method
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange, Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Name, Wire, ref
from pileus.state.state import Origin, put, remove

LOOK_S = 30.0
_MOST = 1000
"""Shadows that one request makes."""


class ShadowWish(Wire):
    host_id: Annotated[Id, ref("host")]
    guest: Name | None = None
    """Its name or id in the hypervisor; without one all that the host has."""


class Shadowed(msgspec.Struct, frozen=True, kw_only=True):
    """The guests that are kept an eye on from now on."""

    items: list[Shadow]


foreign_guests = Noun(
    SHADOWS,
    plural="foreign-guests",
    columns=("name", "host_id", "running", "vcpus", "memory_mib", "drift"),
    about="Guests on our hosts that are not of Pileus: looked at, left alone, and taken over when that is wanted.",
    visible=lambda ask, _: ask.caller.is_platform,
    scope="",
)
foreign_guests.list(filters=("name", "host_id", "running"), sorts=("name",), least=Role.PLATFORM)
foreign_guests.show(least=Role.PLATFORM)


@hosts.special("GET", "/{id}/foreign-guests", verb="foreign_guests", least=Role.PLATFORM, answers=ForeignGuests)
async def on_host(exchange: Exchange, host: Host) -> Answer:
    """Show the guests of a host that are not of Pileus: size, disks, interfaces, what stands in the way of adoption."""
    found = await _look(exchange, HostId(host.id))
    return Answer(status=200, body=msgspec.json.encode(found))


@foreign_guests.special("POST", "", verb="shadow", least=Role.PLATFORM, status=201, answers=Shadowed)
async def shadow(exchange: Exchange, wish: ShadowWish) -> Answer:
    """Keep an eye on guests that are not of Pileus: what they are now is recorded, and in what they change.

    Nothing is done to them. Asked again, what they are by now is taken for what they ought to be.
    """
    host = HostId(exchange.ask.see(HOSTS, wish.host_id, "host_id").id)
    found = await _look(exchange, host)
    wanted = [each for each in found.guests if wish.guest in (None, each.name, each.id)][:_MOST]
    if wish.guest is not None and not wanted:
        raise NotFound(f"the host has no such guest of somebody else's: {wish.guest}", fields={"guest": "not found"})
    ask, caller = exchange.ask, exchange.caller
    ask.see(HOSTS, host, "host_id")  # it may have been removed meanwhile
    shadows = [_shadow(ask, host, guest) for guest in wanted]
    origin = Origin(actor=caller.actor, operation="foreign_guest.shadow", request=caller.request, source=caller.source)
    await ask.state.commit([put(each) for each in shadows], origin)
    kept = [ask.state[SHADOWS].find(each.id) or each for each in shadows]
    return Answer(status=201, body=msgspec.json.encode(Shadowed(items=kept)))


@foreign_guests.delete(verb="forget", least=Role.PLATFORM)
def forget(ask: Ask, shadow: Shadow) -> Plan:
    """Keep an eye on a guest no longer. The guest itself is left alone."""
    del ask
    must_not_be_on_its_way(shadow)
    return Plan(
        summary=f"forget the guest {shadow.name}, which stays as it is",
        changes=(remove(shadow),),
        undo="shadow it again",
    )


def must_not_be_on_its_way(shadow: Shadow) -> None:
    """Raises Conflict if the guest is being taken over."""
    if shadow.instance_id is not None:
        raise Conflict(f"guest {shadow.name} is being taken over as instance {shadow.instance_id}")


async def _look(exchange: Exchange, host: HostId) -> ForeignGuests:
    links: Hosts = exchange.services[Hosts]
    return await links.ask(host, Method.FOREIGN_GUESTS, Message(), ForeignGuests, timeout_s=LOOK_S)


def _shadow(ask: Ask, host: HostId, guest: ForeignGuest) -> Shadow:
    known = ask.state[SHADOWS].one("guest", (host, guest.id))
    if known is not None:
        return looked_at(known, guest)
    return Shadow(id=ask.new_id(), created_at=ask.now, host_id=host, uuid=guest.id, **seen(guest))
