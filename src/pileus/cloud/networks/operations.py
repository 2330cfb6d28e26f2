"""What one may do with networks, subnets, routers and ports."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Self

import msgspec
from pydantic import AfterValidator, Field, model_validator

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.networks.addresses import Addresses, usable
from pileus.cloud.networks.model import (
    GUEST_MTU,
    NETWORKS,
    PORTS,
    ROUTERS,
    SUBNETS,
    AddressRange,
    Network,
    NetworkKind,
    Route,
    Router,
    Subnet,
)
from pileus.kernel.errors import Conflict, Forbidden, Invalid, NotFound
from pileus.kernel.ids import NetworkId, ProjectId, SubnetId
from pileus.operations.caller import Role
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Name, Wire, ref
from pileus.state.state import Change, put, remove

_NOT_FOR_SUBNETS = [
    ip_network(each)
    for each in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/64", "fe80::/10", "ff00::/8")
]


def _cidr(text: str) -> str:
    network = _network(text, "a subnet such as 10.0.0.0/24")
    if network.version == 4 and not 8 <= network.prefixlen <= 29:
        raise ValueError("must have a prefix length from 8 to 29")
    if network.version == 6 and network.prefixlen != 64:
        raise ValueError("must have a prefix length of 64")
    if any(network.overlaps(special) for special in _NOT_FOR_SUBNETS):
        raise ValueError("must not hold addresses that are loopback, link-local, multicast or of no network")
    return str(network)


def _address(text: str) -> str:
    # A zone (`fe80::1%eth0`) may hold any character, and means nothing outside of one machine.
    if "%" in text:
        raise ValueError("must be an address without a zone")
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError("must be an IPv4 or IPv6 address") from None


def _prefix(text: str) -> str:
    return str(_network(text, "a prefix such as 192.0.2.0/24"))


def _network(text: str, wanted: str) -> IPv4Network | IPv6Network:
    if "%" in text:
        raise ValueError(f"must be {wanted}, without a zone")
    try:
        return ip_network(text)
    except ValueError as wrong:
        raise ValueError(f"must be {wanted}: {wrong}") from None


Cidr = Annotated[str, AfterValidator(_cidr)]
Address = Annotated[str, AfterValidator(_address)]
Prefix = Annotated[str, AfterValidator(_prefix)]


class NetworkCreate(Wire):
    name: Name


class ExternalNetworkCreate(Wire):
    name: Name
    physical_network: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")] = "external"
    vlan: Annotated[int, Field(ge=1, le=4094)] | None = None
    cidr: Cidr
    gateway: Address
    first: Address | None = None
    last: Address | None = None


class SubnetCreate(Wire):
    name: Name
    network_id: Annotated[Id, ref("network")]
    cidr: Cidr
    gateway: Address | None = None
    dns_servers: Annotated[tuple[Address, ...], Field(max_length=4)] = ()
    dhcp: bool = True


class RouteWish(Wire):
    destination: Prefix
    next_hop: Address

    @model_validator(mode="after")
    def _is_of_one_version(self) -> Self:
        if (":" in self.destination) != (":" in self.next_hop):
            raise ValueError("destination and next_hop are not of the same IP version")
        return self


class RouterCreate(Wire):
    name: Name
    subnet_ids: Annotated[tuple[Annotated[Id, ref("subnet")], ...], Field(max_length=32)] = ()
    external_network_id: Annotated[Id, ref("network")] | None = None
    snat: bool = True


class RouterChange(Wire):
    name: Name | None = None
    subnet_ids: Annotated[tuple[Annotated[Id, ref("subnet")], ...], Field(max_length=32)] | None = None
    snat: bool | None = None
    routes: Annotated[tuple[RouteWish, ...], Field(max_length=64)] | None = None


def _network_is_seen(ask: Ask, network: Network) -> bool:
    return network.kind is NetworkKind.EXTERNAL or ask.may_see(network)


def _subnet_is_seen(ask: Ask, subnet: Subnet) -> bool:
    network = ask.state[NETWORKS].find(subnet.network_id)
    return ask.may_see(subnet) or (network is not None and network.kind is NetworkKind.EXTERNAL)


networks = Noun(
    NETWORKS,
    plural="networks",
    columns=("name", "kind", "mtu"),
    about="Networks: isolated ones of a project (VPC), and external ones that lead out.",
    visible=_network_is_seen,
    scope="",
)
networks.list(filters=("name", "kind", "project_id"), sorts=("name",))
networks.show()


@networks.post()
def create(ask: Ask, wish: NetworkCreate) -> Plan:
    """Create an isolated network (VPC)."""
    network = Network(
        id=ask.new_id(), created_at=ask.now, project_id=ask.caller.project_id, name=wish.name, mtu=GUEST_MTU
    )
    return Plan(summary=f"create network {wish.name}", changes=(put(network),), answers=network, undo="delete it")


@networks.post("/external", least=Role.PLATFORM, status=201)
def create_external(ask: Ask, wish: ExternalNetworkCreate) -> Plan:
    """Create an external network: one that hosts reach through a bridge, and that floating IPs come from."""
    network = Network(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        name=wish.name,
        kind=NetworkKind.EXTERNAL,
        mtu=1500,
        physical_network=wish.physical_network,
        vlan=wish.vlan,
    )
    wrong = {
        name: f"is not an address of {wish.cidr} that a machine can have"
        for name in ("gateway", "first", "last")
        if (value := getattr(wish, name)) is not None and not _can_be_had(value, wish.cidr)
    }
    if (wish.first is None) != (wish.last is None):
        wrong["last" if wish.last is None else "first"] = "must be given together with the other end"
    elif wish.first and wish.last and not wrong and int(ip_address(wish.first)) > int(ip_address(wish.last)):
        wrong["last"] = "is below the first"
    if wrong:
        raise Invalid("some fields are wrong", fields=wrong)
    _check_overlaps(ask, network, wish.cidr)
    ranges = (AddressRange(first=wish.first, last=wish.last),) if wish.first and wish.last else ()
    subnet = Subnet(
        id=ask.new_id(),
        created_at=ask.now,
        network_id=NetworkId(network.id),
        project_id=ask.caller.project_id,
        name=wish.name,
        cidr=wish.cidr,
        gateway=wish.gateway,
        ranges=ranges,
        dhcp=False,
    )
    return Plan(
        summary=f"create external network {wish.name} ({wish.cidr})",
        changes=(put(network), put(subnet)),
        answers=network,
        undo="delete it",
    )


@networks.delete()
def delete(ask: Ask, network: Network) -> Plan:
    """Delete a network that nothing uses, with its subnets."""
    _must_administer(ask, network)
    if ports := ask.state[PORTS].count_by("network_id", network.id):
        raise Conflict(f"the network has {ports} ports")
    if routers := ask.state[ROUTERS].by("external_network", network.id):
        raise Conflict(f"router {routers[0].name} leads out through it")
    if floating := ask.state[FLOATING_IPS].count_by("network_id", network.id):
        raise Conflict(f"the network has {floating} floating IPs")
    changes: list[Change] = [remove(network)]
    gone = set(ask.state[SUBNETS].ids_by("network_id", network.id))
    for id in gone:
        changes.append(remove(ask.state[SUBNETS].get(id)))
        for router in ask.state[ROUTERS].by("subnet", id):
            if router.id not in {change.record.id for change in changes}:
                left = tuple(each for each in router.subnet_ids if each not in gone)
                changes.append(put(msgspec.structs.replace(router, subnet_ids=left)))
    return Plan(summary=f"delete network {network.name}", changes=changes, undo="create it again, with its subnets")


def _must_administer(ask: Ask, network: Network) -> None:
    if network.kind is NetworkKind.EXTERNAL and not ask.caller.is_platform:
        raise Forbidden("external networks belong to the administrators of the cloud")


def _can_be_had(address: str, cidr: str) -> bool:
    """Whether a machine of this subnet can have this address."""
    network = ip_network(cidr)
    first, last = usable(network)
    return ip_address(address).version == network.version and first <= int(ip_address(address)) <= last


def _check_overlaps(ask: Ask, network: Network, cidr: str) -> None:
    """Raises Conflict if a subnet on the same wire has addresses of this one."""
    inside = ip_network(cidr)
    together = [network]
    if network.kind is NetworkKind.EXTERNAL:
        wire = network.physical_network, network.vlan
        external = ask.state[NETWORKS].by("kind", NetworkKind.EXTERNAL)
        together += [each for each in external if (each.physical_network, each.vlan) == wire and each.id != network.id]
    for other in (subnet for each in together for subnet in ask.state[SUBNETS].by("network_id", each.id)):
        if inside.overlaps(ip_network(other.cidr)):
            raise Conflict(f"overlaps with subnet {other.name} ({other.cidr})", fields={"cidr": "overlaps"})


subnets = Noun(
    SUBNETS,
    plural="subnets",
    columns=("name", "cidr", "gateway", "network_id"),
    about="Subnets: ranges of addresses of a network.",
    visible=_subnet_is_seen,
    scope="",
)
subnets.list(filters=("name", "network_id", "project_id"), sorts=("name",))
subnets.show()


@subnets.post(verb="create")
def create_subnet(ask: Ask, wish: SubnetCreate) -> Plan:
    """Create a subnet."""
    network = ask.see(NETWORKS, wish.network_id, "network_id")
    _must_administer(ask, network)
    _check_overlaps(ask, network, wish.cidr)
    gateway = wish.gateway or str(ip_network(wish.cidr).network_address + 1)
    if not _can_be_had(gateway, wish.cidr):
        wrong = {"gateway": f"is not an address of {wish.cidr} that a machine can have"}
        raise Invalid("some fields are wrong", fields=wrong)
    subnet = Subnet(
        id=ask.new_id(),
        created_at=ask.now,
        network_id=NetworkId(network.id),
        project_id=network.project_id,
        name=wish.name,
        cidr=wish.cidr,
        gateway=gateway,
        dns_servers=wish.dns_servers,
        dhcp=wish.dhcp,
    )
    return Plan(
        summary=f"create subnet {wish.name} ({wish.cidr}) in network {network.name}",
        changes=(put(subnet),),
        answers=subnet,
        undo="delete it",
    )


@subnets.delete(verb="delete")
def delete_subnet(ask: Ask, subnet: Subnet) -> Plan:
    """Delete a subnet that nobody has an address of."""
    network = ask.state[NETWORKS].get(subnet.network_id)
    _must_administer(ask, network)
    inside = ip_network(subnet.cidr)
    for router in ask.state[ROUTERS].by("external_network", network.id):
        if router.external_address and ip_address(router.external_address) in inside:
            raise Conflict(f"router {router.name} has an address of this subnet")
    for floating in ask.state[FLOATING_IPS].by("network_id", network.id):
        if ip_address(floating.address) in inside:
            raise Conflict(f"floating IP {floating.address} is an address of this subnet")
    if ports := ask.state[PORTS].count_by("subnet", subnet.id):
        raise Conflict(f"{ports} ports have an address of this subnet")
    changes: list[Change] = [remove(subnet)]
    for router in ask.state[ROUTERS].by("subnet", subnet.id):
        left = tuple(each for each in router.subnet_ids if each != subnet.id)
        changes.append(put(msgspec.structs.replace(router, subnet_ids=left)))
    return Plan(summary=f"delete subnet {subnet.name}", changes=changes, undo="create it again")


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
    external = _external(ask, wish.external_network_id) if wish.external_network_id else None
    router = Router(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        name=wish.name,
        subnet_ids=_joined(ask, wish.subnet_ids, ask.caller.project_id, ""),
        external_network_id=NetworkId(external.id) if external else None,
        external_address=ask.view(Addresses).next_of_network(NetworkId(external.id)) if external else None,
        snat=wish.snat,
    )
    out = f" with a way out by {router.external_address}" if external else ""
    return Plan(summary=f"create router {wish.name}{out}", changes=(put(router),), answers=router, undo="delete it")


@routers.patch(verb="change")
def change_router(ask: Ask, router: Router, wish: RouterChange) -> Plan:
    """Change what a router joins, its static routes, or whether it translates what goes out."""
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
    )
    _floating_stay_reachable(ask, router, changed)
    return Plan(summary=f"change router {router.name}", changes=(put(changed),), answers=changed, undo="change it back")


@routers.delete(verb="delete")
def delete_router(ask: Ask, router: Router) -> Plan:
    """Delete a router that no floating IP goes through."""
    if floating := ask.state[FLOATING_IPS].by("router_id", router.id):
        raise Conflict(f"floating IP {floating[0].address} goes through it")
    return Plan(summary=f"delete router {router.name}", changes=(remove(router),), undo="create it again")


def _external(ask: Ask, id: str) -> Network:
    network = ask.state[NETWORKS].find(id)
    if network is None or network.kind is not NetworkKind.EXTERNAL:
        raise NotFound("there is no such external network", fields={"external_network_id": "not found"})
    return network


def _joined(ask: Ask, ids: tuple[str, ...], project: ProjectId, router_id: str) -> tuple[SubnetId, ...]:
    """These subnets, if one router of this project may join them. Raises Conflict or NotFound."""
    seen: list[tuple[Subnet, IPv4Network | IPv6Network]] = []
    for id in dict.fromkeys(ids):
        subnet = ask.see(SUBNETS, id, "subnet_ids", of=project)
        if ask.state[NETWORKS].get(subnet.network_id).kind is NetworkKind.EXTERNAL:
            raise Conflict(f"subnet {subnet.name} leads out: name its network", fields={"subnet_ids": "external"})
        if any(other.id != router_id for other in ask.state[ROUTERS].by("subnet", id)):
            raise Conflict(f"subnet {subnet.name} is joined by another router", fields={"subnet_ids": "taken"})
        inside = ip_network(subnet.cidr)
        for other, taken in seen:
            if inside.overlaps(taken):
                raise Conflict(f"subnets {subnet.name} and {other.name} overlap", fields={"subnet_ids": "overlap"})
        seen.append((subnet, inside))
    return tuple(SubnetId(subnet.id) for subnet, _ in seen)


def _floating_stay_reachable(ask: Ask, router: Router, changed: Router) -> None:
    gone = set(router.subnet_ids) - set(changed.subnet_ids)
    for floating in ask.state[FLOATING_IPS].by("router_id", router.id):
        port = ask.state[PORTS].find(floating.port_id) if floating.port_id else None
        if port is not None and any(each.subnet_id in gone for each in port.addresses):
            raise Conflict(f"floating IP {floating.address} goes through this router")


ports = Noun(
    PORTS,
    plural="ports",
    columns=("name", "mac", "addresses", "instance_id"),
    about="Ports: connections of instances to networks.",
)
ports.list(filters=("name", "network_id", "instance_id", "host_id"), sorts=("name",))
ports.show()


def default_network(ask: Ask, project: ProjectId, external: Network | None) -> list[Change]:
    """A network that a project can begin with: a subnet, and a router that leads out if there is a way."""
    network = Network(id=ask.new_id(), created_at=ask.now, project_id=project, name="default", mtu=GUEST_MTU)
    subnet = Subnet(
        id=ask.new_id(),
        created_at=ask.now,
        network_id=NetworkId(network.id),
        project_id=project,
        name="default",
        cidr="10.0.0.0/22",
        gateway="10.0.0.1",
    )
    router = Router(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=project,
        name="default",
        subnet_ids=(SubnetId(subnet.id),),
        external_network_id=NetworkId(external.id) if external else None,
        external_address=ask.view(Addresses).next_of_network(NetworkId(external.id)) if external else None,
    )
    return [put(network), put(subnet), put(router)]
