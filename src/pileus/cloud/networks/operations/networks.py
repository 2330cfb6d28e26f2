"""What one may do with networks."""

from ipaddress import ip_address, ip_network
from typing import Annotated

import msgspec
from pydantic import Field

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.hosts.model import HOSTS
from pileus.cloud.networks.model import (
    GUEST_MTU,
    NETWORK_SHARES,
    NETWORKS,
    PHYSICAL,
    PORTS,
    ROUTERS,
    SUBNETS,
    AddressRange,
    Network,
    NetworkKind,
    Router,
    Subnet,
)
from pileus.cloud.networks.operations.fields import Address, Cidr, can_be_had
from pileus.cloud.networks.operations.uplinks import with_uplinks
from pileus.cloud.networks.sharing import is_for
from pileus.cloud.pools.model import POOLS
from pileus.cloud.reservations.model import RESERVATIONS
from pileus.kernel.errors import Conflict, Forbidden, Invalid
from pileus.kernel.ids import NetworkId, ProjectId, SubnetId
from pileus.operations.caller import Role
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Name, Wire
from pileus.state.state import Change, put, remove

PhysicalNetwork = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Vlan = Annotated[int, Field(ge=1, le=4094)]


class NetworkCreate(Wire):
    name: Name


class ExternalNetworkCreate(Wire):
    name: Name
    physical_network: PhysicalNetwork = "external"
    vlan: Vlan | None = None
    cidr: Cidr
    gateway: Address
    first: Address | None = None
    last: Address | None = None
    shared: bool = True
    """Whether every project may use it; otherwise its own, and those that it is shared with."""


def network_is_seen(ask: Ask, network: Network) -> bool:
    return ask.may_see(network) or is_for(ask.state, network, ask.caller.project_id)


networks = Noun(
    NETWORKS,
    plural="networks",
    columns=("name", "kind", "mtu"),
    about="Networks: isolated ones of a project (VPC), physical LANs (flat), and external ones that lead out.",
    visible=network_is_seen,
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
        shared=wish.shared,
        mtu=1500,
        physical_network=wish.physical_network,
        vlan=wish.vlan,
    )
    wrong = {
        name: f"is not an address of {wish.cidr} that a machine can have"
        for name in ("gateway", "first", "last")
        if (value := getattr(wish, name)) is not None and not can_be_had(value, wish.cidr)
    }
    if (wish.first is None) != (wish.last is None):
        wrong["last" if wish.last is None else "first"] = "must be given together with the other end"
    elif wish.first and wish.last and not wrong and int(ip_address(wish.first)) > int(ip_address(wish.last)):
        wrong["last"] = "is below the first"
    if wrong:
        raise Invalid("some fields are wrong", fields=wrong)
    check_wire(ask, network)
    check_overlaps(ask, network, wish.cidr)
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
    must_administer(ask, network)
    if ports := ask.state[PORTS].count_by("network_id", network.id):
        raise Conflict(f"the network has {ports} ports")
    if routers := ask.state[ROUTERS].by("external_network", network.id):
        raise Conflict(f"router {routers[0].name} leads out through it")
    if floating := ask.state[FLOATING_IPS].count_by("network_id", network.id):
        raise Conflict(f"the network has {floating} floating IPs")
    if delegated := ask.state[SUBNETS].by("delegated_by", network.id):
        raise Conflict(f"subnet {delegated[0].cidr} has a prefix of the network")
    if pools := ask.state[POOLS].by("default_network", network.id):
        raise Conflict(f"it is the default network of pool {pools[0].name}")
    changes: list[Change] = [remove(network)]
    changes += [remove(share) for share in ask.state[NETWORK_SHARES].by("network", network.id)]
    gone = set(ask.state[SUBNETS].ids_by("network_id", network.id))
    for id in gone:
        changes.append(remove(ask.state[SUBNETS].get(id)))
        changes += [remove(each) for each in ask.state[RESERVATIONS].by("subnet_id", id)]
        for router in ask.state[ROUTERS].by("subnet", id):
            if router.id not in {change.record.id for change in changes}:
                left = tuple(each for each in router.subnet_ids if each not in gone)
                changes.append(put(msgspec.structs.replace(router, subnet_ids=left)))
    return Plan(summary=f"delete network {network.name}", changes=changes, undo="create it again, with its subnets")


def must_administer(ask: Ask, network: Network) -> None:
    if network.is_physical and not ask.caller.is_platform:
        raise Forbidden(f"{network.kind} networks belong to the administrators of the cloud")


def check_wire(ask: Ask, network: Network) -> None:
    """Whether a new network can be on its wire.

    Raises:
        Conflict: a flat network has the wire already, or this one is flat and another network has it, or no host is
            on the physical network.
    """
    known = {name for host in ask.state[HOSTS] if host.facts for name in host.facts.physical_networks}
    if known and network.physical_network not in known:
        raise Conflict(
            f"no host is on physical network {network.physical_network}; there are {', '.join(sorted(known))}",
            fields={"physical_network": "on no host"},
        )
    for kind in PHYSICAL if network.kind is NetworkKind.FLAT else (NetworkKind.FLAT,):
        for other in ask.state[NETWORKS].by("kind", kind):
            if (other.physical_network, other.vlan) == (network.physical_network, network.vlan):
                raise Conflict(
                    f"{network.wire} is the {other.kind} network {other.name} already",
                    fields={"physical_network": "taken"},
                )


def check_overlaps(ask: Ask, network: Network, cidr: str) -> None:
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
        id=ask.new_id(), created_at=ask.now, project_id=project, name="default", subnet_ids=(SubnetId(subnet.id),)
    )
    router = with_uplinks(ask, router, external.id if external else None, ())
    return [put(network), put(subnet), put(router)]
