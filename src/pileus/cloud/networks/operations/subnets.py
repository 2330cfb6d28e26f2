"""What one may do with subnets."""

from ipaddress import ip_address, ip_network
from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator

from pileus.cloud.floatingips.model import FLOATING_IPS
from pileus.cloud.networks.addresses import version_of
from pileus.cloud.networks.model import (
    NETWORKS,
    PORTS,
    ROUTERS,
    SUBNETS,
    Ipv6Mode,
    Network,
    NetworkKind,
    Subnet,
)
from pileus.cloud.networks.operations.fields import Address, Cidr, Ranges, can_be_had, ranges_of, wrong_ranges
from pileus.cloud.networks.operations.networks import check_overlaps, must_administer, network_is_seen
from pileus.cloud.networks.operations.prefixes import next_prefix
from pileus.cloud.reservations.model import RESERVATIONS
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.ids import NetworkId
from pileus.operations.declare import Noun
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Id, Name, Wire, ref
from pileus.state.state import Change, put, remove

DnsServers = Annotated[tuple[Address, ...], Field(max_length=4)]


class SubnetCreate(Wire):
    name: Name
    network_id: Annotated[Id, ref("network")]
    cidr: Cidr | None = None
    prefix_network_id: Annotated[Id, ref("network")] | None = None
    """In place of a CIDR: an external network, which delegates an IPv6 prefix that the world knows."""
    gateway: Address | None = None
    """Unless said otherwise the first address; of a flat network a machine of the LAN, or none."""
    ranges: Ranges = ()
    """Where addresses are taken from; without any, the whole subnet."""
    dns_servers: DnsServers = ()
    """Asked for names outside, of the subnet's IP version; without any, the host's own (IPv4)."""
    dhcp: bool = True
    """Whether machines are told their addresses; if not, somebody else has to do that."""
    ipv6_mode: Ipv6Mode | None = None
    """How machines of an IPv6 subnet come to their addresses; SLAAC unless said otherwise."""

    @model_validator(mode="after")
    def _has_one_range(self) -> Self:
        if (self.cidr is None) == (self.prefix_network_id is None):
            raise ValueError("name either cidr or prefix_network_id")
        return self


class SubnetChange(Wire):
    name: Name | None = None
    ranges: Ranges | None = None
    """Where addresses are taken from. Those that were taken elsewhere are kept until they are given back."""
    dns_servers: DnsServers | None = None
    """Told to machines when they next ask."""


def _subnet_is_seen(ask: Ask, subnet: Subnet) -> bool:
    network = ask.state[NETWORKS].find(subnet.network_id)
    return ask.may_see(subnet) or (network is not None and network_is_seen(ask, network))


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
    must_administer(ask, network)
    network.must_be_ours()
    if wish.prefix_network_id is not None and network.kind is not NetworkKind.VPC:
        inside = "prefixes are delegated to networks inside the cloud"
        raise Conflict(inside, fields={"prefix_network_id": f"network {network.name} is {network.kind}"})
    cidr = wish.cidr or next_prefix(ask, wish.prefix_network_id or "", network.project_id)
    check_overlaps(ask, network, cidr)
    _is_the_only_one_of_ipv6(ask, network, cidr)
    _is_no_surprise_to_guests(ask, network)
    gateway = wish.gateway
    if gateway is None and network.kind is not NetworkKind.FLAT:
        gateway = str(ip_network(cidr).network_address + 1)
    wrong = _wrong(cidr, gateway, wish.dns_servers, wish.ranges)
    if wish.ipv6_mode is not None and version_of(cidr) == 4:
        wrong["ipv6_mode"] = "is for IPv6 subnets"
    if wrong:
        raise Invalid("some fields are wrong", fields=wrong)
    subnet = Subnet(
        id=ask.new_id(),
        created_at=ask.now,
        network_id=NetworkId(network.id),
        project_id=network.project_id,
        name=wish.name,
        cidr=cidr,
        gateway=gateway,
        ranges=ranges_of(wish.ranges),
        dns_servers=wish.dns_servers,
        dhcp=wish.dhcp,
        ipv6_mode=(wish.ipv6_mode or Ipv6Mode.SLAAC) if version_of(cidr) == 6 else None,
        delegated_by=NetworkId(wish.prefix_network_id) if wish.prefix_network_id else None,
    )
    return Plan(
        summary=f"create subnet {wish.name} ({cidr}) in network {network.name}",
        changes=(put(subnet),),
        answers=subnet,
        undo="delete it",
    )


@subnets.patch(verb="change")
def change_subnet(ask: Ask, subnet: Subnet, wish: SubnetChange) -> Plan:
    """Rename a subnet, or change where its addresses are taken from and which DNS servers its machines are told."""
    must_administer(ask, ask.state[NETWORKS].get(subnet.network_id))
    if wrong := _wrong(subnet.cidr, subnet.gateway, wish.dns_servers or (), wish.ranges or ()):
        raise Invalid("some fields are wrong", fields=wrong)
    changed = msgspec.structs.replace(
        subnet,
        name=wish.name or subnet.name,
        ranges=subnet.ranges if wish.ranges is None else ranges_of(wish.ranges),
        dns_servers=subnet.dns_servers if wish.dns_servers is None else wish.dns_servers,
    )
    return Plan(summary=f"change subnet {subnet.name}", changes=(put(changed),), answers=changed, undo="change it back")


def _wrong(cidr: str, gateway: str | None, dns_servers: DnsServers, ranges: Ranges) -> dict[str, str]:
    """What does not fit the subnet's CIDR, by field."""
    version, wrong = version_of(cidr), wrong_ranges(ranges, cidr)
    if gateway is not None and not can_be_had(gateway, cidr):
        wrong["gateway"] = f"is not an address of {cidr} that a machine can have"
    if strangers := [each for each in dns_servers if version_of(each) != version]:
        wrong["dns_servers"] = f"must be IPv{version} addresses as the subnet's are, not {', '.join(strangers)}"
    return wrong


def _is_no_surprise_to_guests(ask: Ask, network: Network) -> None:
    """Raises Conflict if the LAN has told guests of the network their addresses so far."""
    told = network.kind is NetworkKind.FLAT and not ask.state[SUBNETS].count_by("network_id", network.id)
    if told and (ports := ask.state[PORTS].count_by("network_id", network.id)):
        raise Conflict(f"the LAN tells {ports} ports of network {network.name} their addresses: delete them first")


def _is_the_only_one_of_ipv6(ask: Ask, network: Network, cidr: str) -> None:
    if version_of(cidr) == 4:
        return
    if network.kind is NetworkKind.FLAT:
        raise Conflict(f"network {network.name} is flat, and has no IPv6", fields={"cidr": "IPv6"})
    if network.direct:
        # OVN lets what a guest announces as a router through whatever the rules are: no project shall lead another's
        # guests astray.
        raise Conflict(f"guests may be on network {network.name} themselves: it has no IPv6", fields={"cidr": "IPv6"})
    for other in ask.state[SUBNETS].by("network_id", network.id):
        if version_of(other.cidr) == 6:
            # Routers announce to a whole network: its machines would make themselves addresses of both.
            raise Conflict(
                f"network {network.name} has the IPv6 subnet {other.name} ({other.cidr}); give this one a network of"
                " its own, and join both by a router",
                fields={"cidr": "there is one already"},
            )


@subnets.delete(verb="delete")
def delete_subnet(ask: Ask, subnet: Subnet) -> Plan:
    """Delete a subnet that nobody has an address of, with its reservations."""
    network = ask.state[NETWORKS].get(subnet.network_id)
    must_administer(ask, network)
    inside = ip_network(subnet.cidr)
    for router in ask.state[ROUTERS].by("external_network", network.id):
        uplink = router.uplink(network.id)
        if uplink is not None and any(ip_address(each) in inside for each in uplink.addresses):
            raise Conflict(f"router {router.name} has an address of this subnet")
    for floating in ask.state[FLOATING_IPS].by("network_id", network.id):
        if ip_address(floating.address) in inside:
            raise Conflict(f"floating IP {floating.address} is an address of this subnet")
    if ports := ask.state[PORTS].count_by("subnet", subnet.id):
        raise Conflict(f"{ports} ports have an address of this subnet")
    changes: list[Change] = [remove(subnet)]
    changes += [remove(each) for each in ask.state[RESERVATIONS].by("subnet_id", subnet.id)]
    for router in ask.state[ROUTERS].by("subnet", subnet.id):
        left = tuple(each for each in router.subnet_ids if each != subnet.id)
        changes.append(put(msgspec.structs.replace(router, subnet_ids=left)))
    return Plan(summary=f"delete subnet {subnet.name}", changes=changes, undo="create it again")
