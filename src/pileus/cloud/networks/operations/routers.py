"""What one may do with routers."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.nat.model import PortForwarding, rules_through
from pileus.cloud.networks.addresses import version_of
from pileus.cloud.networks.model import (
    NETWORKS,
    PORTS,
    ROUTERS,
    SUBNETS,
    UPLINKS_AT_MOST,
    NetworkKind,
    Route,
    Router,
    SourceRoute,
    Subnet,
)
from pileus.cloud.networks.operations.fields import Address, Prefix
from pileus.cloud.networks.operations.uplinks import check_still_used, what_breaks, with_uplinks
from pileus.cloud.networks.uplinks import legs_of
from pileus.cloud.peerings.model import PEERINGS
from pileus.cloud.peerings.overlaps import check_peerings
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import NetworkId, ProjectId, SubnetId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Name, Wire, ref
from pileus.state.state import put, remove


class RouteWish(Wire):
    destination: Prefix
    next_hop: Address

    @model_validator(mode="after")
    def _is_of_one_version(self) -> Self:
        if (":" in self.destination) != (":" in self.next_hop):
            raise ValueError("destination and next_hop are not of the same IP version")
        return self


class SourceRouteWish(Wire):
    source: Prefix
    network_id: Annotated[Id, ref("network")]


SubnetIds = Annotated[tuple[Annotated[Id, ref("subnet")], ...], Field(max_length=32)]
NetworkIds = Annotated[tuple[Annotated[Id, ref("network")], ...], Field(max_length=UPLINKS_AT_MOST - 1)]


class RouterCreate(Wire):
    name: Name
    subnet_ids: SubnetIds = ()
    external_network_id: Annotated[Id, ref("network")] | None = None
    further_network_ids: NetworkIds = ()
    """More external networks, in the order in which they are taken when those before are out of service."""
    snat: bool = True


class RouterChange(Wire):
    name: Name | None = None
    subnet_ids: SubnetIds | None = None
    external_network_id: Annotated[Id, ref("network")] | None = None
    """Null for no way out."""
    further_network_ids: NetworkIds | None = None
    """More external networks, in the order in which they are taken when those before are out of service."""
    snat: bool | None = None
    routes: Annotated[tuple[RouteWish, ...], Field(max_length=64)] | None = None
    source_routes: Annotated[tuple[SourceRouteWish, ...], Field(max_length=64)] | None = None
    """What goes out from a source goes by that external network, while it is in service."""


routers = Noun(
    ROUTERS,
    plural="routers",
    columns=("name", "external_address", "snat"),
    about="Routers: join subnets with each other and with the world.",
)
routers.list(filters=("name",), sorts=("name",))
routers.show()


@routers.post(verb="create")
def create_router(ask: Ask, wish: RouterCreate) -> Plan:
    """Create a router."""
    router = Router(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        name=wish.name,
        subnet_ids=_joined(ask, wish.subnet_ids, ask.caller.project_id, ""),
        snat=wish.snat,
    )
    router = with_uplinks(ask, router, wish.external_network_id, wish.further_network_ids)
    addresses = ", ".join(address for uplink in router.uplinks for address in uplink.addresses)
    out = f" with a way out by {addresses}" if addresses else ""
    return Plan(summary=f"create router {wish.name}{out}", changes=(put(router),), answers=router, undo="delete it")


@routers.patch(verb="change")
def change_router(ask: Ask, router: Router, wish: RouterChange) -> Plan:
    """Change what a router joins, its ways out, its routes, or whether it translates what goes out.

    An external network that it had is named again to take the addresses of an IP version that came to it since.
    """
    changed = msgspec.structs.replace(
        router,
        name=wish.name or router.name,
        subnet_ids=router.subnet_ids
        if wish.subnet_ids is None
        else _joined(ask, wish.subnet_ids, router.project_id, router.id),
        snat=router.snat if wish.snat is None else wish.snat,
        routes=router.routes
        if wish.routes is None
        else tuple(Route(destination=each.destination, next_hop=each.next_hop) for each in wish.routes),
        source_routes=router.source_routes
        if wish.source_routes is None
        else tuple(
            SourceRoute(source=each.source, network_id=NetworkId(each.network_id)) for each in wish.source_routes
        ),
    )
    if wish.model_fields_set & {"external_network_id", "further_network_ids"}:
        changed = _with_other_uplinks(ask, changed, wish)
    _floating_stay_reachable(ask, router, changed)
    if changed.routes != router.routes:
        _lead_one_way(changed)
    if changed.routes != router.routes or changed.uplinks != router.uplinks:
        _lead_somewhere(ask, changed)
    _sources_go_out(ask, changed)
    check_peerings(ask.state, changed)
    return Plan(
        summary=f"change router {router.name}",
        changes=(put(changed),),
        answers=changed,
        because=tuple(what_breaks(ask, router, changed)),
        undo="change it back",
    )


def _with_other_uplinks(ask: Ask, router: Router, wish: RouterChange) -> Router:
    first: str | None = router.external_network_id
    if "external_network_id" in wish.model_fields_set:
        first = wish.external_network_id
    further: tuple[str, ...] = tuple(each.network_id for each in router.further_uplinks if each.network_id != first)
    if wish.further_network_ids is not None:
        further = wish.further_network_ids
    elif first is None:
        further = ()
    changed = with_uplinks(ask, router, first, further)
    check_still_used(ask, router, changed)
    return changed


@routers.delete(verb="delete")
def delete_router(ask: Ask, router: Router) -> Plan:
    """Delete a router that no floating IP goes through, and that is not peered."""
    if rules := rules_through(ask.state, router.id):
        raise Conflict(f"it translates for floating IP {rules[0].address} by a rule: delete that first")
    if floating := ask.state[FLOATING_IPS].by("router_id", router.id):
        raise Conflict(f"floating IP {floating[0].address} goes through it")
    if peerings := ask.state[PEERINGS].by("router", router.id):
        raise Conflict(f"peering {peerings[0].name} joins it with another router")
    return Plan(summary=f"delete router {router.name}", changes=(remove(router),), undo="create it again")


def _joined(ask: Ask, ids: tuple[str, ...], project: ProjectId, router_id: str) -> tuple[SubnetId, ...]:
    """These subnets, if one router of this project may join them. Raises Conflict or NotFound."""
    seen: list[tuple[Subnet, IPv4Network | IPv6Network]] = []
    for id in dict.fromkeys(ids):
        subnet = ask.see(SUBNETS, id, "subnet_ids", of=project)
        kind = ask.state[NETWORKS].get(subnet.network_id).kind
        if kind is NetworkKind.EXTERNAL:
            raise Conflict(f"subnet {subnet.name} leads out: name its network", fields={"subnet_ids": "external"})
        if kind is NetworkKind.FLAT:
            raise Conflict(
                f"subnet {subnet.name} is of a flat network, whose gateway is the LAN's own",
                fields={"subnet_ids": "flat"},
            )
        if any(other.id != router_id for other in ask.state[ROUTERS].by("subnet", id)):
            raise Conflict(f"subnet {subnet.name} is joined by another router", fields={"subnet_ids": "taken"})
        inside = ip_network(subnet.cidr)
        for other, taken in seen:
            if inside.overlaps(taken):
                raise Conflict(f"subnets {subnet.name} and {other.name} overlap", fields={"subnet_ids": "overlap"})
        seen.append((subnet, inside))
    return tuple(SubnetId(subnet.id) for subnet, _ in seen)


def _lead_somewhere(ask: Ask, router: Router) -> None:
    """Raises Invalid if the next hop of a route is in no subnet that the router joins."""
    subnets = [ask.state[SUBNETS].get(id) for id in router.subnet_ids]
    subnets += [leg.subnet for leg in legs_of(ask.state, router)]
    joined = [ip_network(subnet.cidr) for subnet in subnets]
    wrong = {
        f"routes.{at}.next_hop": f"{route.next_hop} is in no subnet that the router joins"
        for at, route in enumerate(router.routes)
        if not any(ip_address(route.next_hop) in inside for inside in joined)
    }
    if wrong:
        raise Invalid("some routes lead nowhere", fields=wrong)


def _lead_one_way(router: Router) -> None:
    """Raises Invalid if two routes are for one destination."""
    first: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for at, route in enumerate(router.routes):
        if route.destination in first:
            wrong[f"routes.{at}.destination"] = f"{route.destination} goes by {first[route.destination]} already"
        first.setdefault(route.destination, f"{route.next_hop} (routes.{at})")
    if wrong:
        raise Invalid("to each destination there is one route, of one next hop", fields=wrong)


def _sources_go_out(ask: Ask, router: Router) -> None:
    """Raises Invalid if a source is to go out where the router does not lead, or by two ways."""
    wrong: dict[str, str] = {}
    there = {(leg.network.id, leg.version) for leg in legs_of(ask.state, router)}
    seen: set[str] = set()
    for at, route in enumerate(router.source_routes):
        version = version_of(route.source)
        if (route.network_id, version) not in there:
            wrong[f"source_routes.{at}.network_id"] = f"the router has no way out there by IPv{version}"
        if route.source in seen:
            wrong[f"source_routes.{at}.source"] = "is named twice"
        seen.add(route.source)
    if wrong:
        raise Invalid("some sources go nowhere", fields=wrong)


def _floating_stay_reachable(ask: Ask, router: Router, changed: Router) -> None:
    gone = set(router.subnet_ids) - set(changed.subnet_ids)
    for floating in ask.state[FLOATING_IPS].by("router_id", router.id):
        port = ask.state[PORTS].find(floating.port_id) if floating.port_id else None
        if port is not None and any(each.subnet_id in gone for each in port.addresses):
            raise Conflict(f"floating IP {floating.address} goes through this router")
    cidrs = [ask.state[SUBNETS].get(id).cidr for id in gone]
    for rule in rules_through(ask.state, router.id):
        inside = rule.fixed_address if isinstance(rule, PortForwarding) else rule.source
        if any(ip_network(inside).overlaps(ip_network(cidr)) for cidr in cidrs):
            raise Conflict(f"a rule of floating IP {rule.address} is about {inside}: delete that first")
