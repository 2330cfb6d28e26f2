"""Which network and addresses a new port gets, and why what was asked for cannot be had. Plans only; no I/O."""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network

from pileus.cloud.networks.addresses import Addresses, usable, version_of
from pileus.cloud.networks.model import (
    NETWORKS,
    PORTS,
    SUBNETS,
    FixedAddress,
    Ipv6Mode,
    Network,
    NetworkKind,
    Port,
    Subnet,
)
from pileus.cloud.networks.sharing import is_for
from pileus.cloud.reservations.model import RESERVATIONS
from pileus.cloud.securitygroups.model import SECURITY_GROUPS
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.eui64 import slaac_address
from pileus.kernel.ids import NetworkId, ProjectId, SecurityGroupId, SubnetId
from pileus.operations.plan import Ask
from pileus.state.state import State


def may_use(state: State, network: Network, project: ProjectId) -> bool:
    """Whether the network is for ports of this project."""
    return is_for(state, network, project) and not is_closed(network)


def is_closed(network: Network) -> bool:
    """Whether no guest may be on it: floating IPs and routers alone have its addresses."""
    return network.kind is NetworkKind.EXTERNAL and not network.direct


def network_for(ask: Ask, id: str, field: str, project: ProjectId) -> Network:
    """The network that a wish's `field` names, for a port of this project.

    Raises:
        Conflict: it is external, and not for ports of guests, or not made by us.
        NotFound: it does not exist, or is not for this project.
    """
    network = ask.state[NETWORKS].find(id)
    if network is None or not is_for(ask.state, network, project):
        raise NotFound(f"there is no network {id}", fields={field: "not found"})
    if is_closed(network):
        raise Conflict(
            f"network {network.name} is external, and not for guests' own interfaces: use a floating IP",
            fields={field: "external"},
        )
    network.must_be_ours(field)
    return network


def new_port(
    ask: Ask,
    network: Network,
    *,
    project: ProjectId,
    name: str,
    groups: tuple[SecurityGroupId, ...],
    mac: str | None = None,
    wanted: Sequence[str] = (),
    besides: Sequence[Port] = (),
) -> Port:
    """A port with one address of each IP version that the network has subnets of: those wanted, or the next free ones.

    On a flat network without subnets it has none: the LAN tells its guest one. On wires that others are on, guests
    have IPv4 alone (`pileus.ovn.physical`).

    Args:
        ask: what there is.
        network: that it is to be connected to.
        project: whose it is.
        name: for people.
        groups: what it may reach and be reached by.
        mac: or None for one of its own.
        wanted: addresses, at most one of each version.
        besides: ports that the same plan makes.

    Raises:
        Conflict: an address or the MAC address is taken, or there is none left.
        Invalid: no machine of this network can have the address.
    """
    id = ask.new_id()
    mac = mac or mac_of(id)
    if (holder := ask.state[PORTS].one("mac", (NetworkId(network.id), mac))) is not None:
        known = f"port {holder.name}" if ask.may_see(holder) else "another port"
        raise Conflict(f"{known} of the network has the MAC address {mac}", fields={"mac": "taken"})
    taken = [each.address for port in besides if port.network_id == network.id for each in port.addresses]
    return Port(
        id=id,
        created_at=ask.now,
        network_id=NetworkId(network.id),
        project_id=project,
        name=name,
        mac=mac,
        addresses=tuple(_addresses(ask, network, mac, wanted, taken)),
        security_group_ids=groups,
        is_external=network.kind is NetworkKind.EXTERNAL,
    )


def _addresses(
    ask: Ask, network: Network, mac: str, wanted: Sequence[str], taken: Iterable[str]
) -> Iterator[FixedAddress]:
    subnets = ask.state[SUBNETS].by("network_id", network.id)
    if not subnets and network.kind is NetworkKind.FLAT:
        if wanted:
            raise Conflict(
                f"network {network.name} has no address pool: the LAN tells its guests their addresses",
                fields={"addresses": "no subnet"},
            )
        return
    if not subnets:
        raise Conflict(f"network {network.name} has no subnet", fields={"network_id": "no subnet"})
    for address in wanted:
        if not any(ip_address(address) in ip_network(subnet.cidr) for subnet in subnets):
            there = ", ".join(subnet.cidr for subnet in subnets)
            raise Invalid(f"{address} is of no subnet of network {network.name} ({there})", fields=_of_no_use(address))
    for version in (4,) if network.is_physical else (4, 6):
        of_version = [subnet for subnet in subnets if version_of(subnet.cidr) == version]
        asked = [address for address in wanted if version_of(address) == version]
        if len(asked) > 1:
            raise Invalid(f"a port has one IPv{version} address", fields={"addresses": "more than one of a version"})
        if asked:
            yield _as_wanted(ask, of_version, asked[0], mac)
        elif of_version:
            yield _next(ask, network, of_version, mac, taken)


def _next(ask: Ask, network: Network, subnets: list[Subnet], mac: str, taken: Iterable[str]) -> FixedAddress:
    first = subnets[0]
    if first.ipv6_mode is Ipv6Mode.SLAAC:
        address = slaac_address(first.cidr, mac)
        if ask.view(Addresses).holders(network.id, address):
            raise Conflict(f"{address}, which {mac} leads to, is taken", fields={"mac": "taken"})
        return FixedAddress(subnet_id=SubnetId(first.id), address=address)
    subnet, address = ask.view(Addresses).next_of(NetworkId(network.id), version_of(first.cidr), besides=taken)
    return FixedAddress(subnet_id=subnet, address=address)


def _as_wanted(ask: Ask, subnets: list[Subnet], address: str, mac: str) -> FixedAddress:
    subnet = next(subnet for subnet in subnets if ip_address(address) in ip_network(subnet.cidr))
    first, last = usable(ip_network(subnet.cidr))
    if not first <= int(ip_address(address)) <= last:
        raise Invalid(f"{address} is no address that a machine can have", fields=_of_no_use(address))
    if subnet.ipv6_mode is Ipv6Mode.SLAAC and (own := slaac_address(subnet.cidr, mac)) != address:
        raise Invalid(
            f"machines of subnet {subnet.name} make their addresses themselves: {mac} leads to {own}. Give a MAC"
            f" address that leads to {address}, or use a subnet of mode {Ipv6Mode.STATEFUL}",
            fields=_of_no_use(address),
        )
    if subnet.ranges and not any(_is_within(address, each.first, each.last) for each in subnet.ranges):
        there = ", ".join(f"{each.first} to {each.last}" for each in subnet.ranges)
        raise Conflict(f"{address} is not in the address pool of subnet {subnet.name} ({there})", fields=_taken())
    if address == subnet.gateway:
        raise Conflict(f"{address} is the gateway of subnet {subnet.name}", fields=_taken())
    for kept in ask.state[RESERVATIONS].by("subnet_id", subnet.id):
        if kept.span[0] <= int(ip_address(address)) <= kept.span[1]:
            whom = f" for {kept.name}" if ask.may_see(kept) else ""
            raise Conflict(f"{address} is reserved{whom}", fields=_taken())
    if ask.view(Addresses).holders(subnet.network_id, address):
        raise Conflict(f"{address} is taken", fields=_taken())
    return FixedAddress(subnet_id=SubnetId(subnet.id), address=address)


def _is_within(address: str, first: str, last: str) -> bool:
    return int(ip_address(first)) <= int(ip_address(address)) <= int(ip_address(last))


def _of_no_use(address: str) -> dict[str, str]:
    return {"addresses": f"{address} cannot be had"}


def _taken() -> dict[str, str]:
    return {"addresses": "taken"}


def security_groups_of(ask: Ask, wanted: tuple[str, ...], project: ProjectId) -> tuple[SecurityGroupId, ...]:
    """The groups that a port is to be in; by default the project's own."""
    if wanted:
        found = [ask.see(SECURITY_GROUPS, id, "security_group_ids", of=project) for id in dict.fromkeys(wanted)]
        return tuple(SecurityGroupId(group.id) for group in found)
    default = ask.state[SECURITY_GROUPS].one("default", project)
    return (SecurityGroupId(default.id),) if default is not None else ()


def mac_of(port: str) -> str:
    """A locally administered unicast MAC address (IEEE 802, section 8.4) from the random end of a port's id."""
    tail = port[-10:]
    return ":".join(("0a", *(tail[at : at + 2] for at in range(0, 10, 2))))
