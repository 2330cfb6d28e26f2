"""What administrators may do with networks on physical wires: make flat ones, and say who may be on which."""

from typing import Annotated

import msgspec
from pydantic import Field

from pileus.cloud.networks.model import PORTS, SUBNETS, Network, NetworkKind
from pileus.cloud.networks.operations.fields import Prefix
from pileus.cloud.networks.operations.networks import PhysicalNetwork, Vlan, check_wire, must_administer, networks
from pileus.cloud.networks.operations.prefixes import check_prefixes
from pileus.cloud.networks.sharing import is_for, must_not_be_missed, must_speak_for_themselves
from pileus.kernel.errors import Conflict
from pileus.operations.caller import Role
from pileus.operations.plan import Ask, Plan
from pileus.operations.wire import Name, Wire
from pileus.state.state import Change, put

LAN_MTU = 1500
"""Of Ethernet, in bytes (IEEE 802.3)."""


class FlatNetworkCreate(Wire):
    name: Name
    physical_network: PhysicalNetwork
    """The name of a bridge mapping that hosts have."""
    vlan: Vlan | None = None
    """The tag of its frames there; without, those that have none."""
    mtu: Annotated[int, Field(ge=1280, le=9000)] = LAN_MTU
    """Of the LAN, in bytes."""
    shared: bool = False
    """Whether every project may use it; otherwise its own, and those that it is shared with."""


class NetworkChange(Wire):
    name: Name | None = None
    shared: bool | None = None
    """Of a flat or external network: whether every project may use it; otherwise its own, and those that it is shared
    with."""
    direct: bool | None = None
    """Of an external network: whether guests may be on it themselves, each with an external address of its own."""
    ipv6_prefixes: Annotated[tuple[Prefix, ...], Field(max_length=16)] | None = None
    """Of an external network: prefixes that the world reaches by it, of which subnets inside are given parts."""


@networks.post("/flat", least=Role.PLATFORM, status=201)
def create_flat(ask: Ask, wish: FlatNetworkCreate) -> Plan:
    """Create a flat network: a physical LAN, or a VLAN of one, on which instances are as machines are.

    With subnets it has address pools of the cloud; without any, the LAN tells its guests their addresses.
    """
    network = Network(
        id=ask.new_id(),
        created_at=ask.now,
        project_id=ask.caller.project_id,
        name=wish.name,
        kind=NetworkKind.FLAT,
        mtu=wish.mtu,
        physical_network=wish.physical_network,
        vlan=wish.vlan,
        shared=wish.shared,
    )
    check_wire(ask, network)
    return Plan(
        summary=f"create flat network {wish.name} on {network.wire}",
        changes=(put(network),),
        answers=network,
        undo="delete it",
    )


@networks.patch()
def change(ask: Ask, network: Network, wish: NetworkChange) -> Plan:
    """Rename a network, let all projects use a physical one, guests be on an external one, that delegate prefixes."""
    must_administer(ask, network)
    if wish.shared is not None and not network.is_physical:
        raise Conflict(
            f"network {network.name} is neither flat nor external", fields={"shared": "for flat and external networks"}
        )
    if wish.direct is not None and network.kind is not NetworkKind.EXTERNAL:
        raise Conflict(f"network {network.name} is not external", fields={"direct": "for external networks"})
    if wish.ipv6_prefixes is not None:
        check_prefixes(ask, network, wish.ipv6_prefixes)
    ports = ask.state[PORTS].by("network_id", network.id)
    if wish.shared and not network.shared:
        must_speak_for_themselves(ask.state, network)
    if wish.shared is False:
        unshared = msgspec.structs.replace(network, shared=False)
        must_not_be_missed(ask.state, network, lambda project: not is_for(ask.state, unshared, project), "shared")
    subnets = ask.state[SUBNETS].by("network_id", network.id)
    if wish.direct and any(":" in each.cidr for each in subnets):
        # As in networks that are for all projects: what guests announce as routers is not kept from others.
        raise Conflict(
            f"network {network.name} has an IPv6 subnet: that is for routers alone", fields={"direct": "IPv6"}
        )
    if wish.direct is False and ports:
        raise Conflict(f"{len(ports)} ports are on it", fields={"direct": "in use"})
    changed = msgspec.structs.replace(network, **wish.model_dump(exclude_none=True))
    changes: list[Change] = [put(changed)]
    if wish.direct is not None:
        # What guests are told of their addresses; floating IPs and routers need none of it.
        changes += [put(msgspec.structs.replace(each, dhcp=wish.direct)) for each in subnets]
    return Plan(summary=f"change network {network.name}", changes=changes, answers=changed, undo="change it back")
