"""What one may do with peerings."""

from typing import Annotated

import msgspec

from pileus.cloud.networks.model import ROUTERS, Router
from pileus.cloud.peerings.model import PEERINGS, Peering, PeeringState, free_link
from pileus.cloud.peerings.overlaps import check_overlaps
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.ids import RouterId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Name, Wire, ref
from pileus.state.state import put, remove


class PeeringCreate(Wire):
    name: Name
    router_id: Annotated[Id, ref("router")]
    peer_router_id: Annotated[Id, ref("router")]
    """The id of the other router, which may be of another project."""


def _is_seen(ask: Ask, peering: Peering) -> bool:
    mine = ask.caller.project_id
    return ask.caller.is_platform or mine in (peering.project_id, peering.peer_project_id)


peerings = Noun(
    PEERINGS,
    plural="peerings",
    columns=("name", "state", "router_id", "peer_router_id"),
    about="Peerings: routers that are joined, so that their subnets reach each other.",
    visible=_is_seen,
)
peerings.list(filters=("name", "state"), sorts=("name",))
peerings.show()


@peerings.post()
def create(ask: Ask, wish: PeeringCreate) -> Plan:
    """Join two routers. One of another project waits until that project accepts."""
    project = ask.caller.project_id
    router = ask.see(ROUTERS, wish.router_id, "router_id", of=project)
    peer = ask.state[ROUTERS].find(wish.peer_router_id)
    if peer is None:
        raise NotFound(f"there is no router {wish.peer_router_id}", fields={"peer_router_id": "not found"})
    if peer.id == router.id:
        raise Invalid("a router is not joined with itself", fields={"peer_router_id": "the same router"})
    if ask.state[PEERINGS].one("pair", tuple(sorted((router.id, peer.id)))) is not None:
        raise Conflict("the two routers are joined, or wait to be", fields={"peer_router_id": "joined already"})
    own = peer.project_id == project
    if own:
        # Of another project's plan nothing is told before that project agrees.
        check_overlaps(ask.state, router, peer)
    peering = Peering(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=project,
        name=wish.name,
        router_id=RouterId(router.id),
        peer_project_id=peer.project_id,
        peer_router_id=RouterId(peer.id),
        state=PeeringState.ACTIVE if own else PeeringState.PENDING,
        link=_link(ask, router, peer),
    )
    how = f"join routers {router.name} and {peer.name}" if own else f"ask another project to join {router.name}"
    return Plan(summary=how, changes=(put(peering),), answers=peering, undo="delete the peering")


@peerings.post("/{id}/accept")
def accept(ask: Ask, peering: Peering) -> Plan:
    """Agree to a peering that another project has asked for."""
    if peering.state is PeeringState.ACTIVE:
        raise Conflict(f"peering {peering.name} is active already")
    if not ask.caller.is_platform and ask.caller.project_id != peering.peer_project_id:
        raise Conflict(f"peering {peering.name} waits for the other project to accept it")
    one, other = (ask.state[ROUTERS].get(id) for id in peering.routers)
    check_overlaps(ask.state, one, other)
    changed = msgspec.structs.replace(peering, state=PeeringState.ACTIVE)
    return Plan(
        summary=f"join routers {one.name} and {other.name}",
        changes=(put(changed),),
        answers=changed,
        undo="delete the peering",
    )


@peerings.delete()
def delete(ask: Ask, peering: Peering) -> Plan:
    """End a peering, or refuse one. Either project may."""
    return Plan(summary=f"end peering {peering.name}", changes=(remove(peering),), undo="ask for it again")


def _link(ask: Ask, one: Router, other: Router) -> int:
    taken = (peering.link for router in (one, other) for peering in ask.state[PEERINGS].by("router", router.id))
    number = free_link(taken)
    if number is None:
        raise Conflict("the two routers have too many peerings")
    return number
